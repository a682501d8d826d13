// Draws the figures, in the colours of the reader's light or dark scheme, and in light at page width on paper.
(() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const themes = parsed("themes");
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (scheme.matches ? themes.dark : themes.light);
  const wide = window.matchMedia("(min-width: 560px)").matches; // on a telephone the buttons would cover titles
  const away = ["sendChartToCloud", "sendDataToCloud"]; // a page that is sent to a colleague sends nothing on
  const config = { modeBarButtonsToRemove: away, responsive: true, displaylogo: false, displayModeBar: wide ? "hover" : false };
  const figures = [...document.querySelectorAll(".plot")];
  for (const figure of figures) {
    const { data, layout } = parsed(`${figure.id}-drawing`);
    Plotly.newPlot(figure, data, { ...layout, template: theme() }, config);
  }
  const again = (change) => figures.forEach((figure) => Plotly.relayout(figure, change));
  scheme.addEventListener("change", () => again({ template: theme() }));
  // On paper the width is the page's, not the window's.
  window.addEventListener("beforeprint", () => again({ template: themes.light, autosize: false, width: 680 }));
  window.addEventListener("afterprint", () => again({ template: theme(), autosize: true, width: null }));
})();
