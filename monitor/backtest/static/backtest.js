// The charts of a backtest. `dom.js` stands before this in the same script: h, svg, number, percent, clock come from it.
/* global uPlot, h, number, percent, clock */

const LANE = 16, GUTTER = 72, CROWDED = 40, ROLLING = 5;
const doc = JSON.parse(document.getElementById("document").textContent);
const runs = doc.runs ?? [], loop = doc.closed_loop, size = doc.history?.window_seconds ?? 3600;
const seconds = (iso) => (iso ? Date.parse(iso) / 1000 : null);
const ascending = (values) => [...new Set(values.filter((v) => v !== null))].sort((a, b) => a - b);
const ends = ascending([...runs.flatMap((r) => (r.measured ?? []).map((w) => w.window_end)), ...(loop?.window_ends ?? [])].map(seconds));
const numberOf = new Map(ends.map((end, n) => [end, n + 1]));
const changes = ascending((doc.history?.changes ?? []).map(seconds));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plots = new Map();

// -- a chart: lines on a time axis, lanes of marks above it

function chart(box, { height, x, series, bands = [], lanes = [], verticals = [], format, range, moments, group, show }) {
  plots.get(box)?.destroy();
  box.replaceChildren();
  const stroke = css("--soft"), grid = { stroke: css("--line"), width: 1 }, font = "12px system-ui, sans-serif";
  const from = moments.reduce((a, b) => Math.min(a, b), x[0] - size), to = moments.reduce((a, b) => Math.max(a, b), x.at(-1));
  const room = Math.max(size, (to - from) * 0.01);
  const plot = new uPlot({
    width: Math.max(240, box.clientWidth),
    height: height + lanes.length * LANE,
    tzDate: (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC"),
    padding: [8 + lanes.length * LANE, 12, 0, 0],
    cursor: { sync: { key: group, setSeries: false }, drag: { x: true, y: false }, y: false },
    legend: { show: false },
    scales: { x: { time: true, range: (u, low, high) => (low === x[0] && high === x.at(-1) ? [from, to + room] : [low, high]) }, y: { range: range ?? ((u, low, high) => padded(low, high)) } },
    axes: [
      { stroke, grid, ticks: grid, font, space: 76, values: (u, ticks) => times(ticks) },
      { stroke, grid, ticks: grid, font, size: GUTTER, values: (u, ticks) => ticks.map(format) },
      { stroke, grid: { show: false }, ticks: { show: false }, font, space: 76, scale: "x", side: 2, size: 20, gap: 2, values: (u, ticks) => ticks.map((t) => windowAt(t)) },
    ],
    bands,
    series: [{}, ...series.map(({ values, ...drawn }) => drawn)],
    hooks: {
      drawClear: [(u) => verticals.forEach((v) => drawVertical(u, v))],
      draw: [(u) => lanes.forEach((lane, n) => drawLane(u, lane, n))],
      setCursor: [(u) => show(u.cursor.idx)],
    },
  }, [x, ...series.map((s) => s.values)], box);
  plots.set(box, plot);
  return plot;
}

const windowAt = (time) => {
  const n = ends.findIndex((end) => end >= time);
  return n < 0 ? "" : `#${n + 1}`;
};

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const spare = high === low ? Math.abs(high) * 0.1 || 0.1 : (high - low) * 0.08;
  return [low - spare, high + spare];
}

// 24 hours, UTC; the date, or the year, where it changes.
function times(ticks) {
  let last = "";
  const step = ticks[1] - ticks[0];
  return ticks.map((t) => {
    const iso = new Date(1e3 * t).toISOString();
    if (step >= 86400 * 300) return iso.slice(0, 4);
    const [fine, coarse] = step >= 86400 ? [iso.slice(5, 10), iso.slice(0, 4)] : [iso.slice(11, 16), iso.slice(0, 10)];
    const text = coarse === last ? fine : `${fine}\n${coarse}`;
    last = coarse;
    return text;
  });
}

function drawVertical(u, { at, tint, width, dash, text }) {
  const { ctx, bbox } = u, px = devicePixelRatio, x = Math.round(u.valToPos(at, "x", true));
  if (!(x >= bbox.left && x <= bbox.left + bbox.width)) return;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = css(tint);
  ctx.lineWidth = width * px;
  ctx.setLineDash(dash.map((d) => d * px));
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  if (text) {
    ctx.font = `600 ${12 * px}px system-ui, sans-serif`;
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = x > bbox.left + bbox.width * 0.8 ? "right" : "left";
    ctx.fillText(text, x + (ctx.textAlign === "left" ? 5 : -5) * px, bbox.top + bbox.height - 6 * px);
  }
  ctx.restore();
}

// What happened, in a row of its own: marks of { at, shape, tint, text } and spans of { from, to, tint }.
function drawLane(u, { label, sample, marks, spans = [] }, n) {
  const { ctx, bbox } = u, px = devicePixelRatio, y = (6 + (n + 0.5) * LANE) * px, edge = bbox.left + bbox.width;
  ctx.save();
  ctx.font = `${11 * px}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.fillStyle = css("--soft");
  ctx.textAlign = "right";
  if (label) ctx.fillText(label, bbox.left - 6 * px, y);
  if (sample) line(ctx, bbox.left - 46 * px, bbox.left - 10 * px, y, sample, px);
  line(ctx, bbox.left, edge, y + (LANE / 2) * px, { stroke: css("--line"), width: 1, dash: [] }, px);
  for (const s of spans) line(ctx, Math.max(bbox.left, u.valToPos(s.from, "x", true)), Math.min(edge, u.valToPos(s.to, "x", true)), y, { stroke: css(s.tint), width: 3, dash: [] }, px);
  let free = -Infinity;
  const here = marks.findLast((m) => m.text !== undefined && u.valToPos(m.at, "x", true) < bbox.left);
  for (const mark of marks) {
    const x = mark === here ? bbox.left : u.valToPos(mark.at, "x", true);
    if (!(x >= bbox.left - 1 && x <= edge + 1)) continue;
    ctx.fillStyle = ctx.strokeStyle = mark.stroke ?? css(mark.tint);
    if (mark.text === undefined) SHAPES[mark.shape](ctx, x, y, px);
    else {
      SHAPES.tick(ctx, x, y, px);
      const wide = ctx.measureText(mark.text).width + 10 * px;
      if (x < free || x + wide > edge + 12 * px) continue;
      ctx.textAlign = "left";
      ctx.fillText(mark.text, x + 4 * px, y);
      free = x + wide;
    }
  }
  ctx.restore();
}

function line(ctx, a, b, y, { stroke, width, dash }, px) {
  if (!(b >= a)) return;
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = width * px;
  ctx.setLineDash(dash.map((d) => d * px));
  ctx.beginPath();
  ctx.moveTo(a, y);
  ctx.lineTo(b, y);
  ctx.stroke();
  ctx.restore();
}

const SHAPES = {
  down: (ctx, x, y, px) => triangle(ctx, x, y, 5 * px, 1),
  up: (ctx, x, y, px) => triangle(ctx, x, y, 5 * px, -1),
  tick: (ctx, x, y, px) => ctx.fillRect(x - px, y - 6 * px, 2 * px, 12 * px),
  cross(ctx, x, y, px) {
    const a = 3.5 * px;
    ctx.lineWidth = 1.75 * px;
    ctx.beginPath();
    ctx.moveTo(x - a, y - a);
    ctx.lineTo(x + a, y + a);
    ctx.moveTo(x - a, y + a);
    ctx.lineTo(x + a, y - a);
    ctx.stroke();
  },
};

function triangle(ctx, x, y, a, way) {
  ctx.beginPath();
  ctx.moveTo(x - a, y - way * a);
  ctx.lineTo(x + a, y - way * a);
  ctx.lineTo(x, y + way * a);
  ctx.fill();
}

// -- one run

// One entry per window: where several versions answered, the one with most rows.
function served(run) {
  const best = new Map();
  for (const w of run.measured ?? []) {
    const end = seconds(w.window_end), other = best.get(end);
    if (end !== null && (!other || (w.rows ?? 0) > (other.rows ?? 0))) best.set(end, w);
  }
  return [...best.entries()].sort(([a], [b]) => a - b).map(([end, w]) => ({ ...w, end }));
}

function happenings(run) {
  const moved = (run.transitions ?? []).map((t) => ({ ...t, time: seconds(t.at) })).filter((t) => t.time !== null);
  const decided = (run.decisions ?? []).map((d) => ({ ...d, time: seconds(d.at) })).filter((d) => d.time !== null);
  return { moved, decided, fired: moved.filter((t) => t.after === "firing") };
}

// From firing to the next transition; a version that is gone took the state of its rules with it.
function firingSpans(run, rule, moved) {
  const last = {};
  for (const w of run.measured ?? []) last[w.version] = Math.max(last[w.version] ?? 0, seconds(w.window_end) ?? 0);
  const mine = moved.filter((t) => t.rule === rule);
  return mine.flatMap((t, i) => {
    if (t.after !== "firing") return [];
    const next = mine.slice(i + 1).find((later) => later.version === t.version);
    return [{ from: t.time, to: next ? next.time : Math.max(t.time, last[t.version] ?? 0), tint: "--firing" }];
  });
}

function runLanes(run, windows, { moved, decided, fired }) {
  const versions = windows.filter((w, i) => i === 0 || w.version !== windows[i - 1].version);
  const rules = (run.rules ?? []).map((r, n) => ({ name: r.rule, label: `rule ${n + 1}` })).filter((r) => fired.some((t) => t.rule === r.name));
  const asked = (d) => d.outcome === "requested", mark = (shape, tint) => (d) => ({ at: d.time, shape, tint });
  return [
    { label: "version", marks: versions.map((w) => ({ at: w.end, tint: "--soft", text: shortened(w.version ?? "–") })) },
    ...rules.map((r) => ({ label: r.label, spans: firingSpans(run, r.name, moved), marks: fired.filter((t) => t.rule === r.name).map((t) => ({ at: t.time, shape: "down", tint: "--firing" })) })),
    { label: "retrain", marks: decided.filter(asked).map(mark("up", "--measured")) },
    { label: "suppressed", marks: decided.filter((d) => !asked(d)).map(mark("cross", "--soft")) },
  ];
}

const shortened = (text) => (text.length > 10 ? `${text.slice(0, 9)}…` : text);

function runVerticals(windows) {
  const others = windows.filter((w, i) => i > 0 && w.version !== windows[i - 1].version);
  return [
    ...(others.length <= CROWDED ? others : []).map((w) => ({ at: w.end, tint: "--soft", width: 1, dash: [1, 3] })),
    ...changes.map((at) => ({ at, tint: "--ink", width: 2, dash: [], text: changes.length <= 12 ? "change" : "" })),
  ];
}

function drawRun(n) {
  const run = runs[n], windows = served(run), found = happenings(run);
  const readout = document.querySelector(`.readout[data-run="${n}"]`);
  const [perf, drift] = ["performance", "drift"].map((c) => document.querySelector(`.chart[data-run="${n}"][data-chart="${c}"]`));
  if (!windows.length) {
    for (const box of [perf, drift]) box.replaceChildren(h("p", { class: "empty" }, "No window was measured."));
    return;
  }
  const x = windows.map((w) => w.end), column = (name) => windows.map((w) => w[name] ?? null);
  const dots = { ...(perf.clientWidth > 9 * x.length ? { show: true } : {}), size: 5 };
  const hidden = { stroke: "transparent", width: 0, points: { show: false } };
  const show = (i) => say(readout, i === null || i === undefined ? null : runWords(windows, found, i));
  const common = { x, show, group: `run-${n}`, verticals: runVerticals(windows), moments: [...found.moved, ...found.decided].map((e) => e.time) };
  chart(perf, {
    ...common, height: 250, format: (v) => number(v), lanes: runLanes(run, windows, found),
    bands: [{ series: [4, 3], fill: css("--band") }],
    series: [
      { values: column("performance"), stroke: css("--measured"), width: 2, points: { ...dots, fill: css("--measured") } },
      { values: column("estimated"), stroke: css("--estimate"), width: 1.5, dash: [6, 4], points: { show: false } },
      { values: column("lower"), ...hidden },
      { values: column("upper"), ...hidden },
    ],
  });
  chart(drift, {
    ...common, height: 150, format: percent, range: [0, 1],
    series: [{ values: column("drift_share"), stroke: css("--measured"), width: 2, points: { ...dots, fill: css("--measured") } }],
  });
}

const interval = (w) => (w.lower === null || w.lower === undefined ? "" : ` (${number(w.lower)} to ${number(w.upper)})`);

function runWords(windows, { fired, decided }, i) {
  const w = windows[i], near = (e) => nearest(windows, e.time) === i;
  return [
    `window #${numberOf.get(w.end)}, ends ${clock(w.window_end)} UTC`, `version ${w.version ?? "–"}`, `${number(w.rows)} rows, ${number(w.labelled)} labelled`,
    `measured ${number(w.performance)}${interval(w)}`, `estimate ${number(w.estimated)}`, `drifted ${percent(w.drift_share)}`,
    ...fired.filter(near).map((t) => `▼ ${t.rule ?? "–"} fired at ${clock(t.at)}`),
    ...decided.filter(near).map((d) => (d.outcome === "requested" ? `▲ retrain requested at ${clock(d.at)}` : `× suppressed at ${clock(d.at)}: ${(d.outcome ?? "–").replaceAll("_", " ")}`)),
  ];
}

// Index of the window whose end is nearest: the one the pointer finds there.
function nearest(windows, time) {
  let [low, high] = [0, windows.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (windows[middle].end < time) low = middle + 1;
    else high = middle;
  }
  return low > 0 && time - windows[low - 1].end <= windows[low].end - time ? low - 1 : low;
}

function say(readout, parts) {
  const rest = "Point at a chart, or use the arrow keys once it has the focus, to read a window. Drag to zoom in, double-click to zoom out.";
  readout.replaceChildren(...(parts ?? [rest]).map((p) => h("span", {}, ...[p].flat())));
}

// -- the loop closed

function rolling(values) {
  return values.map((value, i) => {
    if (value === null) return null;
    const known = values.slice(Math.max(0, i - ROLLING + 1), i + 1).filter((v) => v !== null);
    return known.reduce((a, b) => a + b, 0) / known.length;
  });
}

function policies() {
  const known = (loop.window_ends ?? []).map((iso, n) => [seconds(iso), n]).filter(([end]) => end !== null);
  return { x: known.map(([end]) => end), each: (loop.policies ?? []).map((p) => ({ ...p, values: known.map(([, n]) => p.windows?.[n] ?? null), by: known.map(([, n]) => p.versions?.[n] ?? null) })) };
}

// A policy's colour and dash are those of its sample in the legend.
function styleOf(n) {
  const style = getComputedStyle(document.querySelector(`.sample.policy-${n % 12} path`));
  const dash = style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(/[ ,]+/).map(parseFloat);
  return { stroke: style.stroke, width: parseFloat(style.strokeWidth), dash };
}

function drawLoop() {
  const box = document.querySelector('.chart[data-chart="policies"]'), { x, each } = policies();
  if (!x.length || !each.length) {
    box.replaceChildren(h("p", { class: "empty" }, "No window was answered."));
    return;
  }
  const styles = each.map((_, n) => styleOf(n)), means = each.map((p) => rolling(p.values));
  const lanes = each.map((p, n) => ({ sample: styles[n], marks: (p.jobs ?? []).filter((j) => j.at).map((j) => ({ at: seconds(j.at), shape: j.state === "promoted" ? "tick" : "cross", stroke: styles[n].stroke })) }));
  const readout = document.querySelector('.readout[data-run="closed"]'), samples = [...document.querySelectorAll("#closed .legend .sample")];
  const words = (i) => [
    `window #${numberOf.get(x[i])}, ends ${clock(x[i])} UTC`,
    ...each.map((p, n) => [samples[n].cloneNode(true), `${p.name ?? "–"} ${number(p.values[i])}, mean ${number(means[n][i])}, version ${p.by[i] ?? "–"}`]),
  ];
  chart(box, {
    x, height: 290, lanes, format: (v) => number(v), group: "closed",
    moments: lanes.flatMap((lane) => lane.marks.map((m) => m.at)),
    verticals: runVerticals([]),
    show: (i) => say(readout, i === null || i === undefined ? null : words(i)),
    series: means.map((values, n) => ({ ...styles[n], values, points: { show: false } })),
  });
}

// -- every window in numbers, made when it is opened: a backtest may have thousands

const COLUMNS = [
  ["window", (w) => `#${numberOf.get(seconds(w.window_end)) ?? "–"}`], ["end (UTC)", (w) => clock(w.window_end)], ["version", (w) => w.version ?? "–"],
  ["rows", (w) => number(w.rows)], ["labelled", (w) => number(w.labelled)], ["performance", (w) => number(w.performance, 4)],
  ["95 % from", (w) => number(w.lower, 4)], ["to", (w) => number(w.upper, 4)], ["worse than reference by", (w) => number(w.drop, 4)],
  ["estimate", (w) => number(w.estimated, 4)], ["features drifted", (w) => percent(w.drift_share)],
];

function everyWindow(which) {
  if (which !== "closed") return [COLUMNS.map(([head]) => head), (runs[which].measured ?? []).map((w) => COLUMNS.map(([, cell]) => cell(w)))];
  const { x, each } = policies();
  return [["window", "end (UTC)", ...each.map((p) => p.name ?? "–")], x.map((end, i) => [`#${numberOf.get(end)}`, clock(end), ...each.map((p) => number(p.values[i], 4))])];
}

for (const fold of document.querySelectorAll("details[data-windows]")) {
  fold.addEventListener("toggle", () => {
    if (fold.querySelector("table")) return;
    const [heads, rows] = everyWindow(fold.dataset.windows);
    fold.append(h("div", { class: "table-box", tabindex: 0 }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, heads.map((t) => h("th", { scope: "col", class: "number" }, t)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", { class: "number" }, cell))))))));
  });
}

// -- drawing, and drawing again when the room or the colours change

function draw() {
  runs.forEach((_, n) => {
    if (document.getElementById(`run-${n}`).open !== false) drawRun(n);
  });
  if (loop) drawLoop();
}

for (const run of document.querySelectorAll("details.run")) run.addEventListener("toggle", () => run.open && drawRun(Number(run.id.slice(4))));
addEventListener("hashchange", () => document.querySelector("details.run:target")?.setAttribute("open", ""));
for (const readout of document.querySelectorAll(".readout")) say(readout, null);
for (const box of document.querySelectorAll(".chart")) {
  box.addEventListener("keydown", (event) => {
    const plot = plots.get(box), step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!plot || !step) return;
    event.preventDefault();
    const x = plot.data[0], at = plot.cursor.idx ?? (step > 0 ? -1 : x.length);
    const next = Math.min(x.length - 1, Math.max(0, at + step));
    plot.setCursor({ left: plot.valToPos(x[next], "x"), top: 0 });
  });
}
let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(draw, 150);
});
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
draw();
