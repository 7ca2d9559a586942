// Three scores of a posterior that fits on a page, computed again whenever it is changed: p[t][v] of T frames and
// V symbols, of which the first is CTC's blank. All V^T paths are written down, as in notebook 2.
const EGL_BY_HAND = (() => {
  "use strict";

  // merge repeats, drop blanks
  function collapse(path) {
    return path.filter((v, t) => v !== 0 && v !== path[t - 1]);
  }

  function paths(frames, symbols) {
    let found = [[]];
    for (let t = 0; t < frames; t++) found = found.flatMap((path) => [...Array(symbols).keys()].map((v) => [...path, v]));
    return found;
  }

  // entropy (nats a frame), pCTC, and EGL at the logits over the `most` probable labelings
  function scores(p, most) {
    const frames = p.map((row) => -row.reduce((sum, q) => sum + (q > 0 ? q * Math.log(q) : 0), 0));
    const known = new Map();
    for (const path of paths(p.length, p[0].length)) {
      const labels = collapse(path), key = labels.join(" ");
      const chance = path.reduce((product, v, t) => product * p[t][v], 1);
      if (!known.has(key)) known.set(key, { labels, p: 0, count: 0, occupancy: p.map((row) => row.map(() => 0)) });
      const one = known.get(key);
      one.p += chance;
      one.count += 1;
      path.forEach((v, t) => { one.occupancy[t][v] += chance; });
    }
    const labelings = [...known.values()].filter((one) => one.p > 0).sort((a, b) => b.p - a.p).slice(0, most);
    for (const one of labelings) { // the gradient of −log p(y|x) by the logits: softmax less occupancy
      one.norm = 0;
      p.forEach((row, t) => row.forEach((q, v) => { one.norm += (q - one.occupancy[t][v] / one.p) ** 2; }));
    }
    return {
      frames, labelings,
      entropy: frames.reduce((sum, h) => sum + h, 0) / p.length,
      pctc: -Math.log(labelings[0].p) / p.length,
      egl: labelings.reduce((sum, one) => sum + one.p * one.norm, 0),
    };
  }

  // set one probability of a frame; the others keep their proportions
  function moved(row, v, value) {
    const rest = row.reduce((sum, q, u) => (u === v ? sum : sum + q), 0);
    return row.map((q, u) => (u === v ? value : rest > 0 ? (q / rest) * (1 - value) : (1 - value) / (row.length - 1)));
  }

  return { collapse, paths, scores, moved };
})();

if (typeof module !== "undefined") module.exports = EGL_BY_HAND;
else ALSPEECH.draw("egl_by_hand", (root, data) => {
  "use strict";
  const { element, button, table } = ALSPEECH;
  let p = data.posterior.map((row) => [...row]), most = data.labelings;
  const name = (labels) => labels.map((v) => data.symbols[v]).join("") || "(nothing)";

  const presets = element("div", { class: "controls", role: "group", "aria-label": "examples" }, root);
  for (const { label, posterior } of data.examples)
    button(presets, label, () => { p = posterior.map((row) => [...row]); paint(); });
  const frames = element("div", { class: "frames" }, root);
  const slides = p.map((row, t) => {
    const box = element("fieldset", {}, frames);
    element("legend", {}, box, `frame ${t + 1}`);
    const found = row.map((_, v) => {
      const line = element("label", { class: "slide" }, box);
      element("span", {}, line, data.symbols[v]);
      const input = element("input", { type: "range", min: "0", max: "1", step: "0.01", "aria-label": `frame ${t + 1}, ${v ? data.symbols[v] : "blank"}` }, line);
      const told = element("output", {}, line);
      input.addEventListener("input", () => { p[t] = EGL_BY_HAND.moved(p[t], v, Number(input.value)); paint(input); });
      return { input, told };
    });
    return { found, entropy: element("p", {}, box) };
  });
  const numbers = element("div", { class: "figures", "aria-live": "polite" }, root);
  const box = element("label", {}, element("div", { class: "controls" }, root), "labelings that count, K ");
  const many = element("input", { type: "number", min: "1", max: "9", value: String(most), style: "width: 4em" }, box);
  many.addEventListener("input", () => { most = Math.min(9, Math.max(1, Math.round(Number(many.value)) || 1)); paint(); });
  const inside = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "labelings" }, root);

  function paint(moving = null) {
    const found = EGL_BY_HAND.scores(p, most);
    slides.forEach(({ found: line, entropy }, t) => {
      line.forEach(({ input, told }, v) => {
        if (input !== moving) input.value = String(p[t][v]);
        told.textContent = p[t][v].toFixed(2);
      });
      entropy.textContent = `entropy ${found.frames[t].toFixed(4)} nats`;
    });
    numbers.textContent = "";
    for (const [label, key] of [["entropy", "entropy"], [`pCTC, of ‘${name(found.labelings[0].labels)}’`, "pctc"], ["EGL at the logits", "egl"]]) {
      const line = element("span", {}, numbers, `${label} `);
      element("b", { "data-score": key }, line, Math.abs(found[key]).toFixed(4));
      root.dataset[key] = String(found[key]);
    }
    inside.textContent = "";
    table(inside, ["labeling", "paths", "p", "‖∇ℓ‖²", "p · ‖∇ℓ‖²", ""], found.labelings.map((one) => [
      name(one.labels), String(one.count), one.p.toFixed(4), one.norm.toFixed(4), (one.p * one.norm).toFixed(4),
      element("span", { class: "bar", style: `width: ${(60 * one.p * one.norm).toFixed(2)}px` }),
    ]));
  }
  paint();
});
