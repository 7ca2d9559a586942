// The ranking plot that plays: utterances by two scores' ranks, to be clicked, brushed and heard.
(() => {
  "use strict";
  const { COLOURS, SHAPES, RAMP, element, shape, outline, among, shown, choice, button, table, alternative, draw, id } = ALSPEECH;
  const SIZE = 480, LEFT = 52, TOP = 10, SIDE = SIZE - LEFT - TOP; // of the square, in units of the picture
  const CORNER = 0.25; // how far a corner reaches along each axis

  draw("ranking", (root, data) => {
    const points = data.points;
    const axes = new Map(data.axes.map((axis) => [axis.name, axis]));
    let x = data.x, y = data.y, colour = data.colours.length ? data.colours[0].name : "", current = -1, region = null;
    let circle = null, anchor = -1, sound = null;

    // ranks as shares, 0 for what is queried first; those without a score have none. Places are those in the whole
    // pool, of which this may be a sample: they come with the data, as do the red circles
    const ranks = new Map(data.axes.map(({ name, of }) => [name, points.map(({ places }) =>
      places[name] === null ? null : (places[name] - 1) / Math.max(1, of - 1))]));
    const pool = data.pool, sampled = points.length < pool.size;
    const at = (i) => [ranks.get(x)[i], ranks.get(y)[i]];
    const drawn = (i) => at(i).every((value) => value !== null);
    const heard = (i) => data.clips[points[i].id] !== undefined;
    const playable = points.some((_, i) => heard(i)), all = points.every((_, i) => heard(i));
    const can = (i) => drawn(i) && (!playable || heard(i));
    const across = (value) => LEFT + value * SIDE, up = (value) => TOP + (1 - value) * SIDE;

    if (data.silent) element("p", { class: "note" }, root, data.silent);
    const controls = element("div", { class: "controls" }, root);
    const names = data.axes.map(({ name, label }) => [name, label]);
    const choices = [
      choice(controls, "across", names, x, (value) => { x = value; moved(); }),
      choice(controls, "up", names, y, (value) => { y = value; moved(); }),
    ];
    choices[0].dataset.axis = "x"; choices[1].dataset.axis = "y";
    if (data.colours.length) {
      const select = choice(controls, "colour", data.colours.map(({ name, label }) => [name, label]), colour, (value) => {
        colour = value; paint(); told();
      });
      select.dataset.colour = "yes";
    }
    const presets = element("div", { class: "controls", role: "group", "aria-label": "regions" }, root);
    const first = button(presets, "", () => select(null, data.circles[x][y]));
    first.dataset.preset = "circle";
    const corners = [button(presets, "", () => select([0, 1 - CORNER, CORNER, 1])),
                     button(presets, "", () => select([1 - CORNER, 0, 1, CORNER]))];
    button(presets, "no region", () => select(null)).dataset.preset = "none";

    const sides = element("div", { class: "sides" }, root);
    const left = element("div", {}, sides);
    const help = id();
    const board = element("div", {
      tabindex: "0", role: "application", "aria-describedby": help, class: "board",
    }, left);
    const picture = shape("svg", { viewBox: `0 0 ${SIZE} ${SIZE + 4}`, "aria-hidden": "true" }, board);
    element("p", { id: help, class: "help" }, left,
      (playable ? `Click or tap a dot to hear it${all ? "" : " (faint ones have no recording here)"}, ` : "Click or tap a dot, ") +
      "drag to select a region. On the keyboard: arrows go to the next dot and play it, Enter plays it again, " +
      "Shift with arrows selects a region from where you are, Escape lets it go.");
    const seen = element("p", { class: "seen" }, left);
    const legend = element("ul", { class: "legend", "aria-label": "colours" }, left);
    const right = element("div", {}, sides);
    const about = element("div", { class: "about", "aria-live": "polite" }, right);
    const over = element("div", { class: "over", "aria-live": "polite" }, right);
    const refresh = alternative(root, "The same as a table", fill);

    const grid = shape("g", {}, picture);
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      shape("line", { class: "grid", x1: across(tick), x2: across(tick), y1: up(0), y2: up(1) }, grid);
      shape("line", { class: "grid", y1: up(tick), y2: up(tick), x1: across(0), x2: across(1) }, grid);
      shape("text", { x: across(tick), y: up(0) + 18, "text-anchor": tick === 1 ? "end" : "middle" }, grid, `${100 * tick} %`);
      if (tick) shape("text", { x: LEFT - 5, y: up(tick) + 5, "text-anchor": "end" }, grid, `${100 * tick}`);
    }
    shape("line", { class: "grid", x1: across(0), y1: up(0), x2: across(1), y2: up(1) }, grid);
    shape("rect", { class: "frame", x: LEFT, y: TOP, width: SIDE, height: SIDE }, picture);
    const below = shape("text", { x: across(0.5), y: up(0) + 36, "text-anchor": "middle" }, picture);
    const beside = shape("text", { transform: `translate(14 ${up(0.5)}) rotate(-90)`, "text-anchor": "middle" }, picture);
    const rectangle = shape("rect", { class: "region", visibility: "hidden" }, picture);
    const cloud = shape("g", {}, picture);
    const ring = shape("circle", { class: "current", r: 9, visibility: "hidden" }, picture);
    const dots = points.map((_, i) => shape("path", { class: "dot" + (playable && !heard(i) ? " mute" : ""), "data-i": i }, cloud));

    // ------------------------------------------------------------------ colours

    function palette() {
      const by = data.colours.find(({ name }) => name === colour);
      if (!by) return { of: () => [COLOURS[0], "circle"], keys: [] };
      const values = points.map((p) => p.about[colour]);
      if (by.ordered) {
        const numbers = values.filter((v) => v !== null).sort((a, b) => a - b);
        const ends = [numbers[Math.floor(0.02 * numbers.length)], numbers[Math.ceil(0.98 * numbers.length) - 1]];
        const scale = (v) => (v - ends[0]) / (ends[1] - ends[0] || 1);
        return { of: (i) => (values[i] === null ? ["#999999", "pentagon"] : [among(scale(values[i])), "circle"]), ends };
      }
      const counts = new Map();
      for (const v of values) counts.set(v, (counts.get(v) || 0) + 1);
      if (counts.size > COLOURS.length) { // too many for colours: those like the one that is heard
        const own = current < 0 ? undefined : values[current];
        const keys = own === undefined ? [] : [[own, COLOURS[1], "diamond"], ["others", "#777777", "circle"]];
        return { of: (i) => (own !== undefined && values[i] === own ? [COLOURS[1], "diamond"] : ["#777777", "circle"]), keys, own: true };
      }
      const order = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || String(a).localeCompare(String(b)));
      const style = new Map(order.map((v, n) => [v, [COLOURS[n], SHAPES[n]]]));
      return { of: (i) => style.get(values[i]), keys: order.map((v) => [v, ...style.get(v)]) };
    }

    function paint() {
      const { of, keys, ends, own } = palette();
      points.forEach((_, i) => {
        const [fill, kind] = of(i);
        dots[i].setAttribute("fill", fill);
        dots[i].setAttribute("d", outline(kind, playable && !heard(i) ? 2.6 : 4));
      });
      legend.textContent = "";
      for (const [value, fill, kind] of keys || []) {
        const line = element("li", {}, legend);
        const small = shape("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, line);
        shape("path", { d: outline(kind, 5), fill }, small);
        line.append(value === null ? "unknown" : String(value));
      }
      if (own && !keys.length) element("li", {}, legend, "choose a dot: those like it are marked");
      if (ends) {
        const line = element("li", {}, legend);
        line.append(shown(ends[0]) + " ");
        element("span", { class: "ramp", style: `background: linear-gradient(to right, ${RAMP.join(",")})` }, line);
        line.append(" " + shown(ends[1]));
      }
    }

    // ------------------------------------------------------------------ axes

    function moved() {
      const [ax, ay] = [axes.get(x), axes.get(y)], [a, b] = [ax.label, ay.label];
      const methods = ax.method && ay.method; // an SNR or a length queries nothing: it is large or small
      const rank = (axis) => `rank by ${axis.label} (0: ${axis.method ? "queried first" : "the largest"})`;
      const corner = (p, q) => `corner: ${methods ? `${p} would, ${q} would not` : `first by ${p}, last by ${q}`}`;
      below.textContent = rank(ax);
      beside.textContent = methods ? `rank by ${b}` : rank(ay);
      first.textContent = `red circle: ${b} far before ${a}`;
      first.disabled = x === y;
      corners[0].textContent = corner(a, b);
      corners[1].textContent = corner(b, a);
      const there = points.filter((_, i) => drawn(i)).length, [p, q] = [data.y, data.x].map((name) => axes.get(name).label);
      seen.textContent = `${there} of ${pool.size} utterances shown` + (sampled
        ? `: both ends of the gap between ${p} and ${q}, of the others a random sample. Ranks are those in the whole pool.`
        : there < pool.size ? ": the others have no such rank." : ".");
      points.forEach((_, i) => {
        dots[i].setAttribute("visibility", drawn(i) ? "visible" : "hidden");
        if (drawn(i)) dots[i].setAttribute("transform", `translate(${across(at(i)[0]).toFixed(1)} ${up(at(i)[1]).toFixed(1)})`);
      });
      root.dataset.x = x; root.dataset.y = y;
      board.setAttribute("aria-label", `Scatter plot of ${there} of ${pool.size} utterances: rank by ${a} across, by ${b} up`);
      select(null);
      mark();
    }

    // ------------------------------------------------------------------ a region, and what is in it

    function select(box, red = null) {
      region = box; circle = red && { ...red, members: new Set(red.points) };
      rectangle.setAttribute("visibility", box ? "visible" : "hidden");
      if (box) {
        const [a, b, c, d] = box;
        for (const [key, value] of Object.entries({ x: across(a), y: up(d), width: (c - a) * SIDE, height: (d - b) * SIDE }))
          rectangle.setAttribute(key, value);
      }
      told();
    }

    const within = (i) => {
      if (circle) return circle.members.has(i);
      if (!region) return true;
      const [a, b] = at(i);
      return drawn(i) && a >= region[0] && a <= region[2] && b >= region[1] && b <= region[3];
    };

    function told() {
      const chosen = circle ? circle.points : points.map((_, i) => i).filter((i) => drawn(i) && within(i));
      const some = Boolean(region || circle);
      points.forEach((_, i) => dots[i].classList.toggle("outside", some && !within(i)));
      root.dataset.selected = some ? chosen.length : "";
      over.textContent = "";
      if (some) {
        const here = circle?.whole ?? counted(chosen), known = points.filter((_, i) => drawn(i)).length;
        element("h4", {}, over, circle?.whole ? `In the region: ${here.size} of ${pool.size} utterances, ${chosen.length} of them shown`
          : `In the region: ${chosen.length} of ${known} utterances` + (sampled ? ` shown, about ${Math.round(here.size)} of all ${pool.size}` : ""));
        if (here.size && pool.seconds)
          element("p", {}, over, `They are ${shown(here.seconds / pool.seconds, 2)} times as long as all of the pool.`);
        const by = data.colours.find(({ name }) => name === colour && name in pool.counts) || data.colours.find(({ ordered }) => !ordered);
        if (here.size && by) shares(by, here);
        const players = chosen.filter(heard).slice(0, 8);
        if (players.length) {
          element("h4", {}, over, "Listen");
          const list = element("div", { class: "controls" }, over);
          for (const i of players) button(list, `▶ ${points[i].text || "(no words)"}`, () => go(i));
        }
      }
      refresh();
    }

    // what the pool is told by, of these points, each for as many as it stands for
    function counted(who) {
      const sum = (of) => who.reduce((all, i) => all + of(points[i]), 0), size = sum(({ weight }) => weight);
      const counts = Object.fromEntries(Object.keys(pool.counts).map((name) => {
        const found = new Map();
        for (const i of who) found.set(points[i].about[name], (found.get(points[i].about[name]) || 0) + points[i].weight);
        return [name, [...found]];
      }));
      return { size, seconds: sum(({ weight, about }) => weight * about.duration) / size, counts };
    }

    function shares(by, here) {
      const inside = new Map(here.counts[by.name]);
      const rows = pool.counts[by.name].map(([value, n]) => {
        const a = (inside.get(value) || 0) / here.size, b = n / pool.size;
        return [value, a, b, a / b];
      }).sort((a, b) => b[3] - a[3]).slice(0, 8);
      table(over, [by.label, "in it", "of the pool", "times"], rows.map(([value, a, b, ratio]) =>
        [value === null ? "unknown" : String(value), `${(100 * a).toFixed(0)} %`, `${(100 * b).toFixed(0)} %`, ratio.toFixed(1)]));
    }

    // ------------------------------------------------------------------ one utterance

    function mark() {
      const there = current >= 0 && drawn(current);
      ring.setAttribute("visibility", there ? "visible" : "hidden");
      if (there) { ring.setAttribute("cx", across(at(current)[0])); ring.setAttribute("cy", up(at(current)[1])); }
    }

    function go(i) {
      current = i;
      mark();
      if (data.colours.some(({ name, ordered }) => name === colour && !ordered)) paint();
      describe(points[i]);
      play(points[i]);
    }

    function describe(point) {
      root.dataset.current = point.id;
      about.textContent = "";
      element("p", { class: "said" }, about, point.text ? `“${point.text}”` : "(no words)");
      const facts = data.colours.map(({ name, label, unit }) =>
        point.about[name] === null ? "" : `${label} ${shown(point.about[name])}${unit ? ` ${unit}` : ""}`);
      element("p", { class: "facts" }, about, facts.filter(Boolean).join(" · "));
      if (data.clips[point.id] !== undefined) button(about, "▶ again", () => play(point));
      else element("p", { class: "why" }, about, data.silent || "Its recording is not among those that are kept here.");
      element("p", { class: "status", role: "status" }, about, "");
      if (point.nbest.length) {
        element("h4", {}, about, "What the recogniser believes");
        table(about, ["transcript", "p", ""], point.nbest.map(([text, p]) => [
          text || "(nothing)", p < 0.0005 ? p.toExponential(1) : p.toFixed(3),
          element("span", { class: "bar", style: `width: ${(6 * p).toFixed(3)}em` })])).classList.add("nbest");
      }
      element("h4", {}, about, "Its scores");
      table(about, ["score", "value", "place"], data.axes.filter(({ name }) => point.scores[name] !== null).map(({ name, label }) => {
        return [label, shown(point.scores[name]), `${Math.round(point.places[name])} of ${axes.get(name).of}`];
      })).classList.add("scores");
    }

    function play(point) {
      const clip = data.clips[point.id];
      if (sound) sound.pause();
      if (clip === undefined) return;
      sound = new Audio(`data:${data.mime};base64,${clip}`);
      const status = about.querySelector(".status");
      sound.play().then(() => { root.dataset.heard = point.id; })
        .catch((reason) => { if (reason.name !== "AbortError") status.textContent = `cannot be played: ${reason.message}`; });
    }

    // ------------------------------------------------------------------ pointer and keys

    function place(event) { // in shares of the square
      const box = picture.getBoundingClientRect(), scale = SIZE / box.width;
      return [((event.clientX - box.left) * scale - LEFT) / SIDE, 1 - ((event.clientY - box.top) * scale - TOP) / SIDE];
    }
    const clipped = (value) => Math.min(1, Math.max(0, value));
    let began = null;
    picture.addEventListener("pointerdown", (event) => { if (event.button === 0) began = [place(event), event.clientX, event.clientY, false]; });
    picture.addEventListener("pointermove", (event) => {
      if (!began) return;
      if (!began[3] && Math.hypot(event.clientX - began[1], event.clientY - began[2]) > 6) {
        began[3] = true;
        picture.setPointerCapture(event.pointerId);
      }
      if (began[3]) stretch(began[0], place(event));
    });
    function stretch(a, b) {
      select([Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])].map(clipped));
    }
    picture.addEventListener("pointercancel", () => { began = null; });
    picture.addEventListener("pointerup", (event) => {
      const was = began;
      began = null;
      if (!was || was[3]) return;
      const here = place(event), reach = 14 / picture.getBoundingClientRect().width;
      const distance = (i) => Math.hypot(at(i)[0] - here[0], at(i)[1] - here[1]);
      const near = points.map((_, i) => i).filter((i) => drawn(i) && distance(i) < 2 * reach);
      // the nearest, but one that can be heard comes before one that cannot
      const best = near.sort((a, b) => distance(a) - reach * heard(a) - (distance(b) - reach * heard(b)))[0];
      if (best !== undefined) go(best);
    });

    const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    board.addEventListener("keydown", (event) => {
      if (event.key in WAYS) {
        event.preventDefault();
        if (!event.shiftKey) anchor = -1;
        else if (anchor < 0) anchor = current;
        go(next(WAYS[event.key]));
        if (event.shiftKey && anchor >= 0) stretch(at(anchor), at(current));
      } else if ((event.key === "Enter" || event.key === " ") && current >= 0) {
        event.preventDefault();
        play(points[current]);
      } else if (event.key === "Escape") select(null);
    });
    // the nearest dot that lies within 45 degrees of the way, or else on that side
    function next([dx, dy]) {
      const all = points.map((_, i) => i).filter((i) => can(i));
      if (current < 0 || !drawn(current)) return all.sort((a, b) => Math.hypot(...at(a)) - Math.hypot(...at(b)))[0];
      const [a, b] = at(current);
      let best = current, least = Infinity;
      for (const i of all) {
        const [u, v] = [at(i)[0] - a, at(i)[1] - b];
        const along = u * dx + v * dy, off = Math.abs(u * dy) + Math.abs(v * dx);
        const cost = along + 2 * off + (off > along ? 10 : 0);
        if (along > 0 && cost < least) { least = cost; best = i; }
      }
      return best;
    }

    function fill(inside) {
      const who = points.map((_, i) => i).filter((i) => drawn(i) && within(i));
      const facts = data.colours.filter(({ name }) => !axes.has(name));
      const head = ["", "transcript", ...facts.map(({ label }) => label), ...data.axes.map(({ label }) => `rank by ${label}`)];
      table(inside, head, who.map((i) => [
        heard(i) ? button(null, "▶", () => go(i), { "aria-label": `play: ${points[i].text || "no words"}` }) : "",
        points[i].text, ...facts.map(({ name }) => shown(points[i].about[name])),
        ...data.axes.map(({ name }) => (ranks.get(name)[i] === null ? "–" : `${(100 * ranks.get(name)[i]).toFixed(0)} %`)),
      ]), `${who.length} utterances; a rank of 0 % is the first of the pool`);
    }

    paint();
    moved();
    current = data.circles[x]?.[y]?.points.find(can) ?? -1; // something to read before the first click; it is silent
    if (current >= 0) { mark(); describe(points[current]); }
  });
})();
