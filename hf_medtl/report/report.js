"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  let printing = false;

  // Colours are CSS variables, so that light, dark and print mode each have their own values.
  const resolveColours = (value, css) => {
    if (typeof value === "string") {
      const match = /^var\((--[a-z-]+)\)$/.exec(value);
      return match ? css.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map((v) => resolveColours(v, css));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolveColours(v, css)]));
    return value;
  };

  const axis = (layout) => ({
    gridcolor: "var(--line)", zeroline: false, linecolor: "var(--soft)", tickcolor: "var(--soft)", ticks: "outside",
    ticklen: 4, automargin: true, fixedrange: coarse.matches, ...layout,
    title: { ...layout.title, standoff: 10, font: { size: 13 } },
  });

  const draw = (div) => {
    const css = getComputedStyle(document.documentElement);
    const { data, layout } = structuredClone(figures[div.id]);
    const fullLayout = {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      ...(printing ? { width: 640, height: 380 } : { autosize: true }), // the size on paper, see report.css
      margin: { l: 56, r: 14, t: 14, b: 48 },
      font: { family: "system-ui, sans-serif", size: narrow.matches ? 12 : 13, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: "var(--tint)", bordercolor: "var(--soft)", font: { color: "var(--ink)" } },
      hovermode: "closest",
      dragmode: coarse.matches ? false : "zoom", // on a phone, dragging must scroll the page
    };
    Plotly.react(div, resolveColours(data, css), resolveColours(fullLayout, css), {
      responsive: true, displaylogo: false, displayModeBar: printing || coarse.matches ? false : "hover",
      // A list of what is shown: plotly.js adds buttons in new releases, since 7.0 one that uploads the data.
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
      showSendToCloud: false, plotlyServerURL: "", toImageButtonOptions: { format: "svg" },
    });
  };

  const divs = [...document.querySelectorAll(".plot")];
  const drawAll = () => divs.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing = true; document.documentElement.classList.add("printing"); drawAll(); });
  addEventListener("afterprint", () => { printing = false; document.documentElement.classList.remove("printing"); drawAll(); });

  const contents = document.querySelector("nav details");
  const wide = matchMedia("(min-width: 75rem)");
  const toggleContents = () => { contents.open = wide.matches; };
  toggleContents();
  wide.addEventListener("change", toggleContents);
})();
