// Time charts on uPlot: one shared time axis and cursor, thresholds, version bands, marks of what happened.
/* global uPlot */

const sync = uPlot.sync("model");
const utc = (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC");
const AXIS = 56;

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const MARKS = {
  retrain_requested: ["--measured", "retrain requested"],
  shadow: ["--measured", "shadow began"],
  canary: ["--measured", "canary began"],
  promoted: ["--ok", "promoted"],
  rejected: ["--pending", "rejected"],
  failed: ["--firing", "failed"],
  rolled_back: ["--firing", "rolled back"],
};

function base(element, height, from, to, picked, onPick) {
  return {
    width: Math.max(260, element.clientWidth),
    height,
    tzDate: utc,
    padding: [8, 8, 0, 0],
    cursor: { sync: { key: sync.key, setSeries: false }, drag: { x: false, y: false }, points: { size: 6 } },
    legend: { live: true },
    scales: { x: { time: true, range: [from, to] } },
    hooks: {
      ready: [
        (u) => {
          const rest = () => u.setLegend({ idx: picked() });
          u.over.addEventListener("click", () => u.cursor.idx !== null && onPick(u.cursor.idx));
          u.over.addEventListener("mouseleave", () => setTimeout(rest));
          rest();
        },
      ],
      drawAxes: [],
      draw: [],
    },
  };
}

function axes(format) {
  const grid = { stroke: colour("--line"), width: 1 }, stroke = colour("--soft");
  const font = "12px system-ui, sans-serif";
  return [
    { stroke, grid, ticks: grid, font, space: 70, values: (u, ticks) => times(ticks) },
    { stroke, grid, ticks: grid, font, size: AXIS, values: (u, ticks) => ticks.map(format) },
  ];
}

// 24 hours, UTC; the date where it changes.
function times(ticks) {
  let day = "";
  return ticks.map((t) => {
    const [date, time] = [new Date(1e3 * t).toISOString().slice(5, 10), new Date(1e3 * t).toISOString().slice(11, 16)];
    const text = ticks[1] - ticks[0] >= 86400 ? date : date === day ? time : `${time}\n${date}`;
    day = date;
    return text;
  });
}

// A vertical line for each mark, under the data.
function drawMarks(marks) {
  return (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    for (const mark of marks) {
      const [name] = MARKS[mark.kind] ?? [];
      const x = u.valToPos(mark.at, "x", true);
      if (!name || x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = colour(name);
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.setLineDash(mark.kind === "promoted" ? [] : [4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };
}

// The window that is looked at below.
function drawPicked(picked) {
  return (u) => {
    const at = picked();
    if (at === null) return;
    const x = u.valToPos(u.data[0][at], "x", true);
    u.ctx.save();
    u.ctx.fillStyle = colour("--band");
    u.ctx.fillRect(x - 5 * devicePixelRatio, u.bbox.top, 10 * devicePixelRatio, u.bbox.height);
    u.ctx.restore();
  };
}

export function lines(element, { height, x, from, to, series, format, marks = [], bands = [], range, picked, onPick }) {
  const options = base(element, height, from, to, picked, onPick);
  options.axes = axes(format);
  options.scales.y = range ? { range } : { range: (u, low, high) => padded(low, high) };
  options.bands = bands;
  options.hooks.drawAxes.push(drawPicked(picked), drawMarks(marks));
  options.series = [
    { label: "window end", value: (u, v) => (v === null ? "–" : new Date(1e3 * v).toISOString().slice(0, 16).replace("T", " ")) },
    ...series.map((s) => ({
      label: s.label,
      class: s.unlisted ? "unlisted" : undefined,
      stroke: s.hidden ? "transparent" : colour(s.colour),
      fill: s.fill ? colour(s.fill) : undefined,
      width: s.hidden ? 0 : 1.75,
      dash: s.dash,
      spanGaps: s.gaps ?? false,
      points: { show: !s.dash && !s.hidden && x.length < 200, size: 5 },
      value: (u, v, at, i) => (v === null || v === undefined ? "–" : s.readout ? s.readout(v, i) : format(v)),
    })),
  ];
  return new uPlot(options, [x, ...series.map((s) => s.values)], element);
}

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = high === low ? Math.abs(high) * 0.1 || 0.1 : (high - low) * 0.12;
  return [low - room, high + room];
}

// Named rows of coloured cells on the time axis; `paint(row, fill)` calls fill(from, to, colour, opacity, room).
function rows(element, { x, from, to, picked, onPick }, tall, names, paint) {
  const options = base(element, 34 + tall * names.length, from, to, picked, onPick);
  options.legend = { show: false };
  options.scales.y = { range: [0, names.length] };
  options.axes = axes(() => "");
  options.axes[1] = { ...options.axes[1], splits: () => [], grid: { show: false }, ticks: { show: false } };
  options.series = [{}, { stroke: "transparent" }];
  options.hooks.drawAxes.push(drawPicked(picked));
  options.hooks.draw.push((u) => {
    const { ctx, bbox } = u, row = bbox.height / names.length;
    ctx.save();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    names.forEach((name, i) => {
      const top = bbox.top + i * row;
      paint(i, (start, end, tint, opacity, room) => {
        const a = Math.max(bbox.left, u.valToPos(start, "x", true));
        const b = Math.min(bbox.left + bbox.width, u.valToPos(end, "x", true));
        if (b < a) return;
        ctx.globalAlpha = opacity;
        ctx.fillStyle = colour(tint);
        ctx.fillRect(a, top + room * row, Math.max(2 * devicePixelRatio, b - a - 1), row * (1 - 2 * room));
      });
      ctx.globalAlpha = 1;
      ctx.fillStyle = colour("--ink");
      ctx.fillText(name, bbox.left + 6 * devicePixelRatio, top + row / 2);
    });
    ctx.restore();
  });
  return new uPlot(options, [x, x.map(() => null)], element);
}

// One row per rule; red where it fired, amber where it was pending.
export function phases(element, { rules, ...common }) {
  const { from, to } = common;
  return rows(element, common, 26, rules.map((r) => r.rule), (i, fill) => {
    fill(from, to, "--ok-tint", 1, 0.18);
    for (const s of rules[i].spans) fill(s.from, s.to ?? to, s.phase === "firing" ? "--firing" : "--pending", 1, 0.18);
  });
}

// Features by windows: the darker, the further beyond its threshold.
export function heat(element, { features, ...common }) {
  const { x, from, to } = common;
  const steps = x.slice(1).map((v, i) => v - x[i]).filter((d) => d > 0);
  const step = steps.length ? Math.min(...steps) : (to - from) / 4;
  return rows(element, common, 20, features.map((f) => f.feature), (i, fill) => {
    const { drifted_history: drifted } = features[i];
    x.forEach((end, n) => {
      if (drifted[n] === null || drifted[n] === undefined) return;
      const opacity = drifted[n] ? 0.35 + 0.5 * Math.max(0, Math.min(1, strength(features[i], n))) : 0.1;
      fill(end - step, end, drifted[n] ? "--firing" : "--ok", opacity, 0.05);
    });
  });
}

function strength(feature, n) {
  const value = feature.history[n], threshold = feature.threshold;
  if (value === null || !threshold) return 1;
  return feature.statistic === "p_value" ? 1 - value / threshold : (value / threshold - 1) / 4;
}
