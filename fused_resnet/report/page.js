"use strict";

// Colours come from the style sheet, so that a figure follows the page into dark mode.
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function themed(layout) {
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), automargin: true };
  const axes = Object.fromEntries(
    Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((key) => /^[xy]axis/.test(key))
      .map((key) => [key, { ...axis, ...layout[key] }]));
  const line = { color: color("soft"), width: 1, dash: "dot" };
  const shapes = (layout.shapes || []).map((shape) => ({ line, ...shape }));
  return {
    margin: { l: 60, r: 20, t: 20, b: 50 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
    ...layout, ...axes, shapes,
    font: { color: color("text"), family: "system-ui, sans-serif" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("soft"), activecolor: color("text") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  };
}

function drawn(trace) {
  const themedColor = (c) => { // "--name", or "--name 80", translucent
    if (Array.isArray(c)) return c.map(themedColor);
    if (typeof c !== "string" || !c.startsWith("--")) return c;
    const [name, alpha = ""] = c.slice(2).split(" ");
    return color(name) + alpha;
  };
  const parts = ["marker", "line", "error_x", "error_y"].filter((part) => trace[part]);
  const themedPart = (part) => [part, { ...trace[part], color: themedColor(trace[part].color) }];
  return { ...trace, ...Object.fromEntries(parts.map(themedPart)) };
}

function drawAll() {
  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(document.getElementById(`${place.id}-data`).textContent);
    const buttons = matchMedia("(hover: hover)").matches ? "hover" : false; // a finger has no use for them
    const options = { responsive: true, displaylogo: false, displayModeBar: buttons };
    Plotly.react(place, figure.data.map(drawn), themed(figure.layout), options);
  }
}

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const descending = header.getAttribute("aria-sort") !== "descending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => {
    const text = row.children[column].dataset.value ?? row.children[column].textContent;
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(value(a), value(b))));
}

function filterRows(input) {
  const words = input.value.toLowerCase().split(/\s+/);
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentNode));
}
for (const input of document.querySelectorAll('input[type="search"]')) {
  input.addEventListener("input", () => filterRows(input));
}
for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch { // there is none over plain http, and it may be forbidden: what is selected can be copied by hand
      getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
  });
}
