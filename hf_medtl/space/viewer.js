// Viewer: zoom, pan, opacity, side by side and swipe. Listeners are on the document, since Gradio replaces elements;
// the user's settings are kept when an answer changes.
(() => {
  const state = { opacity: 60, mode: "over", swipe: 50, layer: null, zoom: 1, x: 0, y: 0 };
  const MAX_ZOOM = 12;

  const views = () => document.querySelectorAll("figure.viewer");

  function apply(figure) {
    const layers = [...figure.querySelector(".stage:not(.twin)").querySelectorAll(".layer")].map((image) => image.dataset.layer);
    const layer = state.layer === "" || layers.includes(state.layer) ? state.layer : layers[0];
    const alone = figure.dataset.views === "1";
    const mode = alone && layer ? state.mode : "over";
    if (mode === "beside") twin(figure); else figure.querySelector(".twin")?.remove();
    figure.dataset.mode = mode;
    figure.toggleAttribute("data-zoomed", state.zoom > 1);
    figure.style.setProperty("--opacity", state.opacity / 100);
    figure.style.setProperty("--swipe", state.swipe + "%");
    figure.style.setProperty("--zoom", state.zoom);
    for (const sheet of figure.querySelectorAll(".sheet"))
      sheet.style.transform = `translate(${state.x * 100}%, ${state.y * 100}%) scale(${state.zoom})`;
    for (const image of figure.querySelectorAll(".layer")) image.hidden = image.dataset.layer !== layer;
    for (const input of figure.querySelectorAll("input[name=layer]")) input.checked = input.value === layer;
    for (const input of figure.querySelectorAll("input[name=mode]")) input.checked = input.value === mode;
    const opacity = figure.querySelector(".opacity"), swipe = figure.querySelector(".swipe");
    if (opacity) opacity.value = state.opacity;
    if (swipe) { swipe.value = state.swipe; swipe.closest("label").hidden = mode !== "swipe"; }
  }

  function twin(figure) {
    const stage = figure.querySelector(".stage:not(.twin)"), before = figure.querySelector(".twin");
    if (before) {
      const [old, now] = [before, stage].map((each) => each.querySelector(".base"));
      if (old.src !== now.src) old.src = now.src;
      return;
    }
    const copy = stage.cloneNode(true);
    copy.classList.add("twin");
    copy.querySelectorAll(".layer").forEach((image) => image.remove());
    stage.parentNode.insertBefore(copy, stage);
  }

  // Pan is a fraction of the sheet, so that it means the same on every screen; the image never leaves its stage.
  function move(zoom, x, y) {
    state.zoom = Math.min(MAX_ZOOM, Math.max(1, zoom));
    const room = (state.zoom - 1) / 2;
    state.x = Math.min(room, Math.max(-room, x));
    state.y = Math.min(room, Math.max(-room, y));
    views().forEach(apply);
  }

  const zoomBy = (factor) => {
    const zoom = Math.min(MAX_ZOOM, Math.max(1, state.zoom * factor));
    move(zoom, (state.x * zoom) / state.zoom, (state.y * zoom) / state.zoom);
  };

  document.addEventListener("input", (event) => {
    const input = event.target;
    if (!input.closest?.("figure.viewer")) return;
    if (input.classList.contains("opacity")) state.opacity = +input.value;
    else if (input.classList.contains("swipe")) state.swipe = +input.value;
    else if (input.name === "mode") state.mode = input.value;
    else if (input.name === "layer") state.layer = input.value;
    views().forEach(apply);
  });

  document.addEventListener("click", (event) => {
    const zoom = event.target.closest?.("figure.viewer [data-zoom]")?.dataset.zoom;
    if (zoom === "fit") move(1, 0, 0);
    else if (zoom) zoomBy(zoom === "in" ? 1.4 : 1 / 1.4);
  });

  document.addEventListener("wheel", (event) => {
    if (!event.target.closest?.(".stages") || !(event.ctrlKey || state.zoom > 1)) return; // otherwise the page scrolls
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }, { passive: false });

  document.addEventListener("dblclick", (event) => {
    if (event.target.closest?.(".stages")) state.zoom > 1 ? move(1, 0, 0) : zoomBy(2.5);
  });

  document.addEventListener("keydown", (event) => {
    if (!event.target.classList?.contains("stages")) return;
    const step = 0.08;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key === "+" || event.key === "=") zoomBy(1.4);
    else if (event.key === "-") zoomBy(1 / 1.4);
    else if (event.key === "0") move(1, 0, 0);
    else if (moves[event.key]) move(state.zoom, state.x + moves[event.key][0], state.y + moves[event.key][1]);
    else return;
    event.preventDefault();
  });

  // One finger or the mouse pans a zoomed image, two fingers zoom.
  const fingers = new Map();
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.(".stage")) return;
    fingers.set(event.pointerId, event);
    if (state.zoom > 1) event.target.setPointerCapture?.(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const sheet = event.target.closest?.(".stage")?.querySelector(".sheet");
    if (!sheet) return;
    if (fingers.size === 2) {
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      zoomBy(apart(event) / Math.max(1, apart(before)));
    } else if (state.zoom > 1) {
      move(state.zoom, state.x + (event.clientX - before.clientX) / sheet.offsetWidth,
           state.y + (event.clientY - before.clientY) / sheet.offsetHeight);
    }
    fingers.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, (event) => fingers.delete(event.pointerId));

  // Gradio's sliders fire `release` for the pointer only; fire it for keys, too.
  document.addEventListener("keyup", (event) => {
    const moved = /^(Arrow|Page|Home|End)/.test(event.key) && event.target.matches?.(".gradio-container .block input[type=range]");
    if (moved && !event.target.closest("figure")) event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  // Gradio accepts a typed number when its field loses focus; accept it on Enter, too.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches?.(".gradio-container .block input[type=number]")) event.target.dispatchEvent(new FocusEvent("blur"));
  });

  // Each of Gradio's radio buttons is a group of its own, so that arrow keys do nothing; move among all of them.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.matches?.("#chosen input")) return;
    const all = [...document.querySelectorAll("#chosen input")];
    const next = all[(all.indexOf(event.target) + step + all.length) % all.length];
    next.focus();
    next.click();
    event.preventDefault();
  });

  // Pasted images go where dropped files go: on the tab Batch to its files.
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    const visible = ["#upload", "#many"].map((id) => document.querySelector(id)).find((each) => each?.checkVisibility());
    const input = visible?.querySelector("input[type=file]");
    if (!files.length || !input) return;
    const all = new DataTransfer();
    files.forEach((file) => all.items.add(file));
    input.files = all.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    event.preventDefault();
  });

  // Announce answers to screen readers in a permanent live region: a replaced one is not read out.
  const announcer = document.createElement("p");
  announcer.id = "announcer";
  announcer.className = "unseen";
  announcer.setAttribute("role", "status");
  document.querySelector(".gradio-container").append(announcer);

  // Gradio changes parts of an answer in place, so observe every change of one, at most once per animation frame.
  let shown = null, waiting = false;
  function refresh() {
    waiting = false;
    const base = document.querySelector("figure.viewer .base");
    if (base && base.src !== shown) {
      shown = base.src;
      move(1, 0, 0);
      const figure = base.closest("figure");
      if (figure.getBoundingClientRect().top > 0.6 * innerHeight) figure.scrollIntoView({ block: "start" }); // a small screen
    }
    views().forEach(apply);
    const announced = [...document.querySelectorAll("[data-announce]")].filter((each) => each.checkVisibility());
    const text = announced.map((each) => each.dataset.announce).join(" ");
    if (text !== announcer.textContent) announcer.textContent = text;
  }
  const selector = "figure.viewer, section.answer";
  new MutationObserver((changes) => {
    const inside = (node) => node.nodeType === 1 && (node.closest(selector) || node.querySelector(selector));
    if (waiting || !changes.some((change) => inside(change.target) || [...change.addedNodes].some(inside))) return;
    waiting = true;
    requestAnimationFrame(refresh);
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["src", "data-announce"] });
})();
