"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  let printing = false;

  // Colours are named by CSS variables, so that light, dark and print have their own.
  const painted = (value, css) => {
    if (typeof value === "string") {
      const found = /^var\((--[a-z-]+)\)$/.exec(value);
      return found ? css.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map((v) => painted(v, css));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, css)]));
    return value;
  };

  const axis = (own) => ({
    gridcolor: "var(--line)", zeroline: false, linecolor: "var(--soft)", tickcolor: "var(--soft)", ticks: "outside",
    ticklen: 4, automargin: true, fixedrange: coarse.matches, ...own,
    title: { ...own.title, standoff: 10, font: { size: 13 } },
  });

  const draw = (place) => {
    const css = getComputedStyle(document.documentElement);
    const { data, layout } = structuredClone(figures[place.id]);
    const whole = {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      ...(printing ? { width: 640, height: 380 } : { autosize: true }), // that of the paper, see report.css
      margin: { l: 56, r: 14, t: 14, b: 48 },
      font: { family: "system-ui, sans-serif", size: narrow.matches ? 12 : 13, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: "var(--tint)", bordercolor: "var(--soft)", font: { color: "var(--ink)" } },
      hovermode: "closest",
      dragmode: coarse.matches ? false : "zoom", // on a phone a finger scrolls the page
    };
    Plotly.react(place, painted(data, css), painted(whole, css), {
      responsive: true, displaylogo: false, displayModeBar: printing || coarse.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { format: "svg" },
    });
  };

  const places = [...document.querySelectorAll(".plot")];
  const all = () => places.forEach(draw);
  all();
  dark.addEventListener("change", all);
  narrow.addEventListener("change", all);
  addEventListener("beforeprint", () => { printing = true; document.documentElement.classList.add("paper"); all(); });
  addEventListener("afterprint", () => { printing = false; document.documentElement.classList.remove("paper"); all(); });

  const contents = document.querySelector("nav details");
  const wide = matchMedia("(min-width: 75rem)");
  const fold = () => { contents.open = wide.matches; };
  fold();
  wide.addEventListener("change", fold);
})();
