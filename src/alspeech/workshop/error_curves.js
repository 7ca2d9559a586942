// Error against what was labelled: values to point at, a choice of measure, axis and methods.
(() => {
  "use strict";
  const { element, shape, outline, shown, choice, alternative, table, draw } = ALSPEECH;
  const WIDTH = 640, HEIGHT = 400, LEFT = 62, RIGHT = 12, TOP = 12, BOTTOM = 46;

  draw("error_curves", (root, data) => {
    let metric = data.metrics[0].name, along = data.along[0].name;
    const on = new Set(data.methods.map(({ name }) => name));
    const controls = element("div", { class: "controls" }, root);
    choice(controls, "error", data.metrics.map(({ name, label }) => [name, label]), metric, (value) => { metric = value; paint(); }).dataset.choose = "metric";
    choice(controls, "against", data.along.map(({ name, label }) => [name, label]), along, (value) => { along = value; paint(); }).dataset.choose = "along";
    const boxes = element("fieldset", { class: "controls" }, root);
    element("legend", {}, boxes, "methods");
    for (const { name, label, colour, marker } of data.methods) {
      const box = element("label", {}, boxes);
      const tick = element("input", { type: "checkbox", checked: "", value: name }, box);
      tick.addEventListener("change", () => { if (tick.checked) on.add(name); else on.delete(name); paint(); });
      const small = shape("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14, style: "width: 14px", "aria-hidden": "true" }, box);
      shape("path", { d: outline(marker, 5), fill: colour }, small);
      box.append(label);
    }
    const board = element("div", {
      tabindex: "0", role: "application", class: "board",
      "aria-label": "Error curves: arrows left and right go from point to point",
    }, root);
    const picture = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" }, board);
    const told = element("p", { class: "status", role: "status" }, root, "Point at a marker, or use the arrow keys, to read its value.");
    const refresh = alternative(root, "The same as a table", fill);
    let marks = [], current = -1;

    const value = (row) => row.errors[metric];
    const rows = () => data.rows.filter(({ method }) => on.has(method));

    function ticks(low, high) {
      const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
      const found = [];
      for (let t = Math.ceil(low / step) * step; t <= high + 1e-9; t += step) found.push(Number(t.toPrecision(12)));
      return found;
    }

    function paint() {
      picture.textContent = "";
      marks = [];
      root.dataset.metric = metric; root.dataset.along = along;
      const seen = rows(), ends = data.ends.map((end) => ({ label: end.label, mean: end.errors[metric][0] }));
      const every = [...seen.flatMap((row) => value(row).filter((v) => v !== null)), ...ends.map(({ mean }) => mean)];
      const places = data.rows.map((row) => row[along]);
      const [low, high] = [Math.min(...every), Math.max(...every)], pad = 0.06 * (high - low || 1);
      const [a, b] = [0, 1.05 * Math.max(...places)], [c, d] = [low - pad, high + pad];
      const across = (v) => LEFT + ((v - a) / (b - a)) * (WIDTH - LEFT - RIGHT);
      const up = (v) => HEIGHT - BOTTOM - ((v - c) / (d - c)) * (HEIGHT - TOP - BOTTOM);
      for (const t of ticks(c, d)) {
        shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(t), y2: up(t) }, picture);
        shape("text", { x: LEFT - 6, y: up(t) + 5, "text-anchor": "end" }, picture, shown(t));
      }
      for (const t of ticks(a, b)) {
        shape("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, x1: across(t), x2: across(t) }, picture);
        shape("text", { x: across(t), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, picture, shown(t));
      }
      shape("rect", { class: "frame", x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }, picture);
      shape("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, picture, data.along.find(({ name }) => name === along).label);
      shape("text", { transform: `translate(14 ${(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)`, "text-anchor": "middle" }, picture,
        data.metrics.find(({ name }) => name === metric).label);
      for (const [n, { label, mean }] of ends.entries()) {
        shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: up(mean), y2: up(mean), stroke: "currentColor", "stroke-dasharray": "8 5" }, picture);
        const side = n ? { x: WIDTH - RIGHT - 4, "text-anchor": "end" } : { x: LEFT + 4 }; // they may lie close together
        shape("text", { y: up(mean) - 4, ...side }, picture, label);
      }
      for (const { name, label, colour, marker, dashes } of data.methods.filter(({ name }) => on.has(name))) {
        const own = seen.filter(({ method }) => method === name).sort((p, q) => p[along] - q[along]);
        const line = own.map((row) => `${across(row[along])},${up(value(row)[0])}`).join(" ");
        shape("polyline", { points: line, fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes, "data-method": name }, picture);
        for (const row of own) {
          const [mean, below, above] = value(row), px = across(row[along]), py = up(mean);
          if (below !== null) shape("line", { x1: px, x2: px, y1: up(below), y2: up(above), stroke: colour }, picture);
          const mark = shape("path", { d: outline(marker, 6), fill: colour, transform: `translate(${px} ${py})`, class: "mark" }, picture);
          const words = `${label}, ${shown(row.percent)} % of the pool queried (${shown(row.utterances)} utterances, ${shown(row.seconds)} s): ` +
            `${shown(mean)}` + (below === null ? "" : ` [${shown(below)}, ${shown(above)}]`);
          shape("title", {}, mark, words);
          mark.addEventListener("pointerenter", () => say(marks.findIndex((m) => m.mark === mark)));
          marks.push({ mark, words, px });
        }
      }
      marks.sort((p, q) => p.px - q.px);
      current = -1;
      refresh();
    }

    function say(i) {
      if (current >= 0 && marks[current]) marks[current].mark.removeAttribute("stroke");
      current = i;
      marks[i].mark.setAttribute("stroke", "currentColor");
      marks[i].mark.setAttribute("stroke-width", "3");
      told.textContent = marks[i].words;
    }

    board.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way || !marks.length) return;
      event.preventDefault();
      say(Math.min(marks.length - 1, Math.max(0, current + way)));
    });

    function fill(inside) {
      const interval = ([mean, low, high]) => shown(mean) + (low === null ? "" : ` [${shown(low)}, ${shown(high)}]`);
      const label = new Map(data.methods.map(({ name, label }) => [name, label]));
      const head = ["method", "% queried", "utterances", "seconds", ...data.metrics.map(({ label }) => label)];
      table(inside, head, [
        ...rows().map((row) => [label.get(row.method), shown(row.percent), shown(row.utterances), shown(row.seconds),
          ...data.metrics.map(({ name }) => interval(row.errors[name]))]),
        ...data.ends.map((end) => [end.label, "", "", "", ...data.metrics.map(({ name }) => interval(end.errors[name]))]),
      ], `Mean and 95 % interval over ${data.seeds} seeds`);
    }

    paint();
  });
})();
