// What the pictures that can be clicked share; each has a file of its own. Text from data goes through textContent.
const ALSPEECH = (() => {
  "use strict";
  // Okabe & Ito's colours, which the colour-blind can tell apart; a shape beside each
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#555555"];
  const SHAPES = ["circle", "square", "triangle", "diamond", "down", "plus", "hexagon", "pentagon"];
  // inferno between a tenth and six of them, from little to much: none is lost on the figures' white
  const RAMP = ["#160B39", "#420A68", "#6A176E", "#932667", "#BC3754", "#DD513A"];

  function element(name, attributes = {}, parent = null, text = null) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function shape(name, attributes = {}, parent = null, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function outline(kind, r) {
    const polygon = (n, turn) =>
      "M" + [...Array(n).keys()].map((i) => {
        const angle = turn + (2 * Math.PI * i) / n;
        return `${(1.2 * r * Math.cos(angle)).toFixed(2)},${(1.2 * r * Math.sin(angle)).toFixed(2)}`;
      }).join("L") + "Z";
    const w = r / 2.6;
    const plus = `M${-w},${-r}H${w}V${-w}H${r}V${w}H${w}V${r}H${-w}V${w}H${-r}V${-w}H${-w}Z`;
    return {
      circle: `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
      square: `M${-r},${-r}H${r}V${r}H${-r}Z`,
      triangle: polygon(3, -Math.PI / 2), down: polygon(3, Math.PI / 2), diamond: polygon(4, 0),
      hexagon: polygon(6, 0), plus, pentagon: polygon(5, -Math.PI / 2),
    }[kind];
  }

  const among = (t) => RAMP[Math.min(RAMP.length - 1, Math.max(0, Math.round(t * (RAMP.length - 1))))];

  function shown(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return String(value);
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1000 ? value.toFixed(0)
      : size < 1e-3 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
    return text.replace("-", "−");
  }

  function choice(parent, label, options, chosen, changed) {
    const box = element("label", {}, parent, label + " ");
    const select = element("select", {}, box);
    for (const [value, text] of options) {
      const option = element("option", { value }, select, text);
      option.selected = value === chosen;
    }
    select.addEventListener("change", () => changed(select.value));
    return select;
  }

  function button(parent, text, pressed, more = {}) {
    const made = element("button", { type: "button", ...more }, parent, text);
    made.addEventListener("click", pressed);
    return made;
  }

  function table(parent, head, rows, caption = "") {
    const made = element("table"); // apart: who watches the page, as the book's icons do, is told once, not for every cell
    if (caption) element("caption", {}, made, caption);
    const top = element("tr", {}, element("thead", {}, made));
    for (const name of head) element("th", { scope: "col" }, top, name);
    const body = element("tbody", {}, made);
    for (const row of rows) {
      const line = element("tr", {}, body);
      for (const cell of row) {
        const place = element("td", {}, line);
        if (cell instanceof Node) place.append(cell);
        else place.textContent = cell;
      }
    }
    parent.append(made);
    return made;
  }

  // a table that is only made when somebody opens it
  function alternative(parent, title, fill) {
    const box = element("details", {}, parent);
    element("summary", {}, box, title);
    const inside = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, box);
    const refresh = () => { if (box.open) { inside.textContent = ""; fill(inside); } };
    box.addEventListener("toggle", refresh);
    return refresh;
  }

  // every figure of this kind that has its data and is not drawn yet
  function draw(kind, how) {
    for (const root of document.querySelectorAll(`.alspeech[data-kind="${kind}"]:not([data-ready])`)) {
      const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      root.dataset.ready = "yes";
      for (const old of root.querySelectorAll(".waiting")) old.remove();
      how(root, data);
    }
  }

  let ids = 0;
  const id = () => `alspeech-${Date.now().toString(36)}-${ids++}`;
  return { COLOURS, SHAPES, RAMP, element, shape, outline, among, shown, choice, button, table, alternative, draw, id };
})();
