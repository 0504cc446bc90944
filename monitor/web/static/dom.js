// Building blocks of the page: elements (text is always text, never markup), numbers and times in words.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 10000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 1 : digits, minimumFractionDigits: 0 });
}

export const percent = (value) => (value === null || value === undefined ? "–" : `${number(100 * value, 1)} %`);

// A p-value as people say it: how often chance alone gives such a window.
export function odds(chance) {
  if (chance === null || chance === undefined) return "–";
  if (chance >= 0.05) return `${Math.round(100 * chance)} % of windows`;
  return chance < 1e-6 ? "< 1 in a million" : `1 in ${number(1 / chance, 0)} windows`;
}

export function clock(time) {
  if (!time) return "–";
  const at = typeof time === "number" ? new Date(1000 * time) : new Date(time);
  return `${at.toISOString().slice(0, 10)} ${at.toISOString().slice(11, 16)}`;
}

export function ago(time, now = Date.now()) {
  if (!time) return "–";
  const seconds = Math.round((now - new Date(time)) / 1000);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([s]) => Math.abs(seconds) >= s) || [1, "s"];
  return seconds < 0 ? `in ${Math.round(-seconds / size)} ${unit}` : `${Math.round(seconds / size)} ${unit} ago`;
}

export const pill = (state) => h("span", { class: `pill ${state}` }, state.replaceAll("_", " "));

export function spark(values, width = 120, height = 28) {
  const known = values.map((v, i) => [i, v]).filter(([, v]) => v !== null && v !== undefined);
  const picture = svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  if (known.length < 2) return picture;
  const low = Math.min(...known.map(([, v]) => v)), high = Math.max(...known.map(([, v]) => v));
  const x = (i) => 2 + (i / Math.max(1, values.length - 1)) * (width - 6);
  const y = (v) => (high === low ? height / 2 : height - 3 - ((v - low) / (high - low)) * (height - 6));
  picture.append(svg("path", { d: known.map(([i, v], n) => `${n ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("") }));
  const [i, v] = known.at(-1);
  picture.append(svg("circle", { cx: x(i), cy: y(v), r: 2.2 }));
  return picture;
}

// A share per bin: filled for the window, a line for the reference.
export function shares(found, width = 220, height = 44) {
  const picture = svg("svg", { class: "shares", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const bins = Math.max(found.window.length, found.reference.length);
  if (!bins) return picture;
  const top = Math.max(...found.window, ...found.reference, 1e-9), step = width / bins;
  const name = (i) => (found.categories ? found.categories[i] : `${number(found.edges[i])} to ${number(found.edges[i + 1])}`);
  for (let i = 0; i < bins; i++) {
    const share = found.window[i] ?? 0, tall = (share / top) * height;
    const about = `${name(i)}: window ${percent(share)}, reference ${percent(found.reference[i] ?? null)}`;
    picture.append(
      svg("rect", { class: "window", x: i * step + 0.5, y: height - tall, width: Math.max(1, step - 1), height: tall }),
      svg("rect", { x: i * step, y: 0, width: step, height, fill: "transparent" }, svg("title", {}, about)),
    );
  }
  if (found.reference.length) {
    const line = found.reference.map((s, i) => {
      const y = (height - (s / top) * height).toFixed(1);
      return `${i ? "L" : "M"}${(i * step).toFixed(1)} ${y}L${((i + 1) * step).toFixed(1)} ${y}`;
    });
    picture.append(svg("path", { class: "reference", d: line.join(""), "pointer-events": "none" }));
  }
  return picture;
}

export async function get(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || `${answer.status} ${answer.statusText}`);
  return body;
}
