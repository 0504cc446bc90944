// Time charts on uPlot: one shared time axis and cursor, thresholds, version bands, marks of what happened.
/* global uPlot */

const sync = uPlot.sync("model");
const utc = (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC");
const AXIS = 56;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const MARKS = {
  retrain_requested: ["--measured", "retrain requested"],
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
      stroke: s.hidden ? "transparent" : colour(s.colour),
      fill: s.fill ? colour(s.fill) : undefined,
      width: s.hidden ? 0 : 1.75,
      dash: s.dash,
      spanGaps: s.gaps ?? false,
      points: { show: !s.dash && !s.hidden && x.length < 200, size: 5 },
      value: (u, v) => (v === null || v === undefined ? "–" : format(v)),
    })),
  ];
  return new uPlot(options, [x, ...series.map((s) => s.values)], element);
}

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = high === low ? Math.abs(high) * 0.1 || 0.1 : (high - low) * 0.12;
  return [low - room, high + room];
}

// One row per rule; red where it fired, amber where it was pending.
export function phases(element, { x, from, to, rules, picked, onPick }) {
  const options = base(element, 34 + 26 * rules.length, from, to, picked, onPick);
  options.legend = { show: false };
  const splits = rules.map((_, i) => i + 0.5);
  options.scales.y = { range: [0, rules.length] };
  options.axes = axes(() => "");
  options.axes[1] = { ...options.axes[1], splits: () => splits, grid: { show: false }, ticks: { show: false } };
  options.series = [{}, { stroke: "transparent" }];
  options.hooks.drawAxes.push(drawPicked(picked));
  options.hooks.draw.push((u) => {
    const { ctx, bbox } = u, row = bbox.height / rules.length;
    ctx.save();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    rules.forEach((rule, i) => {
      const top = bbox.top + i * row + row * 0.18, tall = row * 0.64;
      ctx.fillStyle = colour("--ok-tint");
      ctx.fillRect(bbox.left, top, bbox.width, tall);
      for (const span of rule.spans) {
        const a = Math.max(bbox.left, u.valToPos(span.from, "x", true));
        const b = Math.min(bbox.left + bbox.width, u.valToPos(span.to ?? to, "x", true));
        if (b < a) continue;
        ctx.fillStyle = colour(span.phase === "firing" ? "--firing" : "--pending");
        ctx.fillRect(a, top, Math.max(2 * devicePixelRatio, b - a), tall);
      }
      ctx.fillStyle = colour("--ink");
      ctx.fillText(rule.rule, bbox.left + 6 * devicePixelRatio, top + tall / 2);
    });
    ctx.restore();
  });
  return new uPlot(options, [x, x.map(() => null)], element);
}

// Features by windows: the darker, the further beyond its threshold.
export function heat(element, { x, from, to, features, picked, onPick }) {
  const options = base(element, 34 + 20 * features.length, from, to, picked, onPick);
  options.legend = { show: false };
  options.scales.y = { range: [0, features.length] };
  options.axes = axes(() => "");
  options.axes[1] = { ...options.axes[1], splits: () => [], grid: { show: false }, ticks: { show: false } };
  options.series = [{}, { stroke: "transparent" }];
  options.hooks.draw.push((u) => {
    const { ctx, bbox } = u, row = bbox.height / features.length;
    const steps = x.slice(1).map((v, i) => v - x[i]).filter((d) => d > 0);
    const step = steps.length ? Math.min(...steps) : (to - from) / 4;
    ctx.save();
    ctx.font = `${11.5 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    features.forEach((f, i) => {
      const top = bbox.top + i * row;
      x.forEach((end, n) => {
        const b = u.valToPos(end, "x", true), a = u.valToPos(end - step, "x", true);
        if (f.drifted_history[n] === null || f.drifted_history[n] === undefined) return;
        ctx.fillStyle = colour(f.drifted_history[n] ? "--firing" : "--ok");
        ctx.globalAlpha = f.drifted_history[n] ? 0.35 + 0.5 * Math.min(1, strength(f, n)) : 0.1;
        ctx.fillRect(a, top + 1, Math.max(1, b - a - 1), row - 2);
      });
      ctx.globalAlpha = 1;
      ctx.fillStyle = colour("--ink");
      ctx.fillText(f.feature, bbox.left + 6 * devicePixelRatio, top + row / 2);
    });
    ctx.restore();
  });
  options.hooks.drawAxes.push(drawPicked(picked));
  return new uPlot(options, [x, x.map(() => null)], element);
}

function strength(feature, n) {
  const value = feature.history[n], threshold = feature.threshold;
  if (value === null || !threshold) return 1;
  return feature.p_value ? 1 - value / threshold : (value / threshold - 1) / 4;
}
