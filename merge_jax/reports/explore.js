"use strict";
// The interactive part of a report. The page is whole without it; names are set as text, never as markup.
// First the rule of launch.select (search/wishes.py), which tests also run outside a browser.

/** Fitness of a point: the mean of its parts by importance, or the worst; null where a part is not known. */
function worth(parts, importance, worst) {
  if (parts.includes(null)) return null;
  if (worst) return Math.min(...parts);
  const total = importance.reduce((sum, weight) => sum + weight, 0);
  return total > 0 ? parts.reduce((sum, part, i) => sum + importance[i] * part, 0) / total : null;
}

/** Place of the largest value, the first of those that are equal up to rounding; -1 where none is known. */
function foremost(values, equal) {
  const top = Math.max(...values.filter((value) => value !== null));
  const least = top - equal * Math.max(Math.abs(top), 1);
  return values.findIndex((value) => value !== null && value >= least);
}

/** A word as a POSIX shell takes it. */
function quoted(word) {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\"'\"'") + "'";
}

/** The line that selects a point: by its number, or by importances if they are given. */
function command(run, number, tasks, importance) {
  const weights = importance && tasks.map((task, i) => `${task.name}=${importance[i]}`).join(",");
  const wish = weights ? `--task_weights=${weights}` : `--candidate=${number}`;
  return `python -m merge_jax select ${quoted("--run=" + run)} ${quoted(wish)}`;
}

/** Ends of an axis: where most points are, so that one bad model does not squeeze the rest; sign -1: lower is better. */
function extent(values, sign) {
  const known = values.filter((value) => value !== null).map((value) => sign * value).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const [high, middle] = [known.at(-1), known[Math.floor(known.length / 2)]];
  const spread = high > middle ? high - middle : Infinity;  // where most are as good as the best, all are shown
  const low = known.length < 10 ? known[0] : Math.max(known[0], middle - 4 * spread);
  const margin = 0.06 * Math.max(high - low, 1e-3 * Math.max(Math.abs(high), 1));
  return [sign * (low - margin), sign * (high + margin)].sort((a, b) => a - b);
}

/** Round numbers inside an axis, with as many digits as they need. */
function ticks([low, high]) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), 9);
  const first = Math.ceil(low / step), count = Math.floor(high / step) - first + 1;
  return Array.from({length: count}, (_, i) => [(first + i) * step, ((first + i) * step).toFixed(digits)]);
}

const SHAPES = {  // around 0, told apart by form as well as by colour
  search: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", single: "M-4.5,-4.5h9v9h-9z", known: "M0,-6L5.5,4.5h-11z",
  chosen: "M0,-11L2.8,-3.5L10.5,-3.4L4.4,1.4L6.5,8.9L0,4.5L-6.5,8.9L-4.4,1.4L-10.5,-3.4L-2.8,-3.5z",
  before: "M0,-10L10,0L0,10L-10,0z", ring: "M-8,0a8,8 0 1,0 16,0a8,8 0 1,0 -16,0",
};
const WIDTH = 460, HEIGHT = 330, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 44;  // of a plot, in its own units

function explore(data) {
  const {tasks, points} = data, find = (id) => document.getElementById(id);
  const slides = tasks.length > 1 && !data.worst;
  const state = {importance: tasks.map((task) => task.importance), kept: null, under: null};
  const plots = tasks.length > 1 ? [find("trade-off"), find("course")] : [find("course")];
  const places = new Map();  // of every drawn point, by plot

  const heights = () => points.map((point) => worth(point.parts, state.importance, data.worst));
  const chosen = () => state.kept ?? foremost(heights(), data.equal);

  /** An element with attributes and children; a child that is a string stays text. */
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "text", "line", "g"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const mark = (kind, [x, y], more = {}) =>
    make("path", {d: SHAPES[kind], class: kind, transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, ...more});

  const title = (i) => `#${points[i].number} · ${points[i].label} · ${points[i].method}`;
  const spoken = (i) => `${title(i)}: ${tasks.map((task, t) => `${task.name} ${points[i].texts[t]}`).join(", ")}`;
  const byTask = (t) => ({
    label: tasks[t].name + (tasks[t].lower ? " (lower is better)" : ""), sign: tasks[t].lower ? -1 : 1,
    values: points.map((point) => point.scores[t]),
  });

  function draw(svg, x, y) {
    const ends = [extent(x.values, x.sign), extent(y.values, y.sign)];
    const inside = (value, [low, high]) => (Math.min(Math.max(value, low), high) - low) / (high - low);
    const across = (value) => LEFT + inside(value, ends[0]) * (WIDTH - LEFT - RIGHT);
    const up = (value) => HEIGHT - BOTTOM - inside(value, ends[1]) * (HEIGHT - TOP - BOTTOM);
    const axes = make("g", {"aria-hidden": "true"},
      make("path", {class: "axis", d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}`}),
      ...ticks(ends[0]).map(([at, text]) =>
        make("text", {x: across(at), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle"}, text)),
      ...ticks(ends[1]).map(([at, text]) => make("text", {x: LEFT - 6, y: up(at) + 4, "text-anchor": "end"}, text)),
      make("text", {x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, x.label),
      make("text", {transform: `translate(13,${(HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle"}, y.label));
    const drawn = new Map();
    points.forEach((point, i) => {
      if (x.values[i] !== null && y.values[i] !== null) drawn.set(i, [across(x.values[i]), up(y.values[i])]);
    });
    places.set(svg, drawn);
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const front = (i) => (points[i].front ? " front" : "");
    svg.replaceChildren(axes, ...[...drawn].map(([i, place]) => mark(points[i].family, place, {
      class: `point ${points[i].family}${front(i)}`, role: "option", id: `${svg.id}-${i}`, "aria-label": spoken(i),
    })), make("g", {class: "marks", "aria-hidden": "true"}));
  }

  /** Everything that moves when a point is under the pointer or kept. */
  function show() {
    const at = chosen(), shown = state.under ?? at;
    for (const svg of plots) {
      const drawn = places.get(svg);
      const there = [["before", data.selected], ["chosen", at], ["ring", state.under]].filter(([, i]) => drawn.has(i));
      svg.querySelector(".marks").replaceChildren(...there.map(([kind, i]) => mark(kind, drawn.get(i))));
      svg.querySelectorAll("[aria-selected]").forEach((node) => node.removeAttribute("aria-selected"));
      document.getElementById(`${svg.id}-${at}`)?.setAttribute("aria-selected", "true");
    }
    const byImportance = slides && data.named && state.kept === null;
    const run = find("run").value;
    find("command").textContent = at < 0 ? "Give at least one task some importance."
      : command(run, points[at].number, tasks, byImportance ? state.importance : null);
    find("command").dataset.candidate = at < 0 ? "" : points[at].number;
    find("copy").disabled = at < 0;
    find("about").replaceChildren(...(shown < 0 ? [] : about(shown, shown === at)));
  }

  /** Scores and weights of a point, beside those of the merge that the run selected. */
  function about(i, marked) {
    const point = points[i], before = points[data.selected];
    const gain = (t) => {
      if (!before || point.scores[t] === null || before.scores[t] === null) return "";
      const value = (point.scores[t] - before.scores[t]) * (tasks[t].lower ? -1 : 1);
      return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
    };
    const row = (...cells) => make("tr", {}, ...cells.map((cell) => (cell.nodeType ? cell : make("td", {}, cell))));
    const head = (...cells) => make("tr", {}, ...cells.map((cell) => make("th", {scope: "col"}, cell)));
    const most = Math.max(...point.weights.map(Math.abs), 1e-9);
    const bar = (weight) => make("td", {class: "wide-bar"}, make("span", {
      class: weight < 0 ? "bar negative" : "bar", style: `width:${(100 * Math.abs(weight) / most).toFixed(0)}%`,
    }));
    const names = [...point.rows, ...point.numbers, ...(i === data.selected ? ["the run's selected merge"] : [])];
    return [
      make("h3", {}, (marked ? (state.kept === null ? "★ " : "★ kept: ") : "") + title(i)),
      make("p", {class: "small"}, names.join(", ") || "\u00a0"),
      make("table", {}, head("search score", "", "gain over selected"),
        ...tasks.map((task, t) => row(task.name, point.texts[t], gain(t)))),
      make("p"), make("table", {}, head("checkpoint", data.weight, ""),
        ...data.checkpoints.map((name, k) => row(name, point.weights[k].toFixed(3), bar(point.weights[k])))),
    ];
  }

  function redraw() {
    const better = slides ? "fitness by these importances" : "fitness";
    const order = {label: "evaluation", sign: 1, values: points.map((point) => point.number)};
    if (tasks.length > 1) draw(find("trade-off"), byTask(+find("across").value), byTask(+find("up").value));
    draw(find("course"), order, tasks.length > 1 ? {label: better, sign: 1, values: heights()} : byTask(0));
    show();
  }

  function slider(t) {
    const top = Math.max(4, 2 * Math.max(...tasks.map((task) => task.importance)));
    const input = make("input", {type: "range", id: `importance-${t}`, min: 0, max: top, step: top / 80});
    const value = make("output", {for: input.id});
    const set = (importance) => { state.importance[t] = importance; value.textContent = importance; };
    const reset = () => { input.value = tasks[t].importance; set(tasks[t].importance); };
    input.addEventListener("input", () => { set(+(+input.value).toFixed(4)); state.kept = null; redraw(); });
    find("reset").addEventListener("click", () => { reset(); state.kept = null; redraw(); });
    reset();
    const label = make("label", {for: input.id}, tasks[t].name);
    return make("tr", {}, ...[label, input, value].map((cell) => make("td", {}, cell)));
  }

  /** The pointer finds the nearest point, so that none is out of reach; keys walk from left to right. */
  function listen(svg) {
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), scale = WIDTH / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      const far = [...places.get(svg)].map(([i, [a, b]]) => [Math.hypot(a - x, b - y), i]);
      const [distance, i] = far.reduce((one, other) => (other[0] < one[0] ? other : one), [Infinity, null]);
      return distance < 24 ? i : null;
    };
    const go = (changes) => { Object.assign(state, changes); show(); };
    svg.addEventListener("pointermove", (event) => go({under: nearest(event)}));
    svg.addEventListener("pointerleave", () => go({under: null}));
    svg.addEventListener("click", (event) => go({kept: nearest(event)}));
    svg.addEventListener("blur", () => { svg.removeAttribute("aria-activedescendant"); go({under: null}); });
    svg.addEventListener("keydown", (event) => {
      const order = [...places.get(svg)].sort(([, a], [, b]) => a[0] - b[0] || b[1] - a[1]).map(([i]) => i);
      const at = order.indexOf(state.under ?? chosen()), last = order.length - 1;
      const to = {ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: last}[event.key];
      if (to !== undefined && last >= 0) {
        const under = order[Math.min(Math.max(to, 0), last)];
        svg.setAttribute("aria-activedescendant", `${svg.id}-${under}`);
        go({under});
      } else if (event.key === "Enter" || event.key === " ") go({kept: state.under});
      else if (event.key === "Escape") go({kept: null, under: null});
      else return;
      event.preventDefault();
    });
  }

  async function copy() {
    const code = find("command");
    getSelection().selectAllChildren(code);  // to be seen, and for browsers that keep the clipboard to themselves
    try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
    find("copy").textContent = "Copied";
    setTimeout(() => { find("copy").textContent = "Copy"; }, 1500);
  }

  tasks.forEach((task, t) => ["across", "up"].forEach((id, which) => {
    find(id).append(make("option", {value: t, ...(t === data.axes[which] ? {selected: ""} : {})}, task.name));
  }));
  ["across", "up"].forEach((id) => find(id).addEventListener("change", redraw));
  find("importance").hidden = find("only-sliders").hidden = !slides;
  find("pair").hidden = tasks.length < 2;
  if (slides) find("sliders").append(...tasks.map((_, t) => slider(t)));
  find("legend").append(...[
    ["search", "searched (full: on the Pareto front)"], ["single", "single checkpoint"], ["known", "soup or other known point"],
    ["chosen", "marked"], ["before", "selected by the run"],
  ].map(([kind, text]) => make("li", {}, make("svg", {viewBox: "-12 -12 24 24", "aria-hidden": "true"}, mark(kind, [0, 0])), " " + text)));
  find("run").value = decodeURIComponent(new URL(".", location.href).pathname).replace(/(.)\/$/, "$1");
  find("run").addEventListener("input", show);
  find("copy").addEventListener("click", copy);
  plots.forEach(listen);
  find("explore").hidden = false;
  redraw();
}

if (typeof document !== "undefined") explore(JSON.parse(document.getElementById("points").textContent));
