// The fleet: one row per model, worst first, as the server ordered them.
import { ago, clock, get, h, number, percent, pill, spark } from "./dom.js";

const EVERY = 10_000;

export function showFleet(main, first) {
  const filter = h("input", { class: "filter", type: "search", placeholder: "Filter models", "aria-label": "Filter models by name" });
  const body = h("tbody");
  const heads = ["state", "model", "performance", "", "against reference", "features drifted", "labelled", "newest window", "why"];
  const table = h("table", { class: "fleet" }, h("thead", {}, h("tr", {}, heads.map((t) => h("th", { scope: "col" }, t)))), body);
  const problem = h("div", { role: "alert" });
  let models = first.models;
  const draw = () => {
    const wanted = filter.value.trim().toLowerCase();
    body.replaceChildren(...models.filter((m) => m.model.toLowerCase().includes(wanted)).map(row));
  };
  filter.addEventListener("input", draw);
  const none = h("p", { class: "empty" }, "No model is configured. Add a table [models.<name>] to the configuration.");
  main.replaceChildren(
    h("h1", {}, "Models"),
    problem,
    models.length > 8 ? h("p", {}, filter) : "",
    models.length ? h("div", { class: "table-box" }, table) : none,
  );
  draw();
  setInterval(async () => {
    try {
      models = (await get("/api/v1/fleet")).models;
      problem.replaceChildren();
      if (!body.contains(document.activeElement)) draw();
    } catch (error) {
      problem.replaceChildren(h("p", { class: "notice" }, `Not refreshed: ${error.message}`));
    }
  }, EVERY);
}

function row(m) {
  const url = `/models/${encodeURIComponent(m.model)}`;
  const cell = (label, ...content) => h("td", { class: "number numbers", "data-label": label }, ...content);
  const interval = m.lower === null || m.lower === undefined ? "" : h("div", { class: "soft" }, `${number(m.lower)} to ${number(m.upper)}`);
  const of = m.measured_version && m.measured_version !== m.version ? h("div", { class: "soft" }, `of version ${m.measured_version}`) : "";
  const worse = m.drop === null || m.drop === undefined ? "–" : `${number(Math.abs(m.drop))} ${m.drop > 0 ? "worse" : "better"}`;
  const alarm = m.alarms[0];
  const why = alarm ? `${alarm.rule}: ${alarm.reason}` : m.state === "waiting" ? "no window has closed yet" : m.summary;
  const serving = m.version ? `version ${m.version}` : m.champion ? `version ${m.champion}` : m.task;
  return h(
    "tr",
    { class: `is-${m.state}`, onclick: (e) => e.target.closest("a") || location.assign(url) },
    h("td", {}, pill(m.state)),
    h("td", { class: "model" }, h("a", { href: url }, m.model), h("div", { class: "soft" }, serving)),
    h("td", {}, spark(m.spark)),
    cell(null, h("div", {}, h("span", { class: "soft" }, m.metric), ` ${number(m.value)}`, m.final === false ? h("span", { class: "soft" }, " provisional") : ""), interval, of),
    cell("against reference", worse),
    cell("features drifted", percent(m.drift_share)),
    cell("labelled", percent(m.coverage)),
    cell("newest window", h("span", { title: clock(m.window_at) }, ago(m.window_at))),
    h("td", { class: "why" }, why, m.faults.length ? h("div", { class: "failed", title: m.faults.join("\n") }, `${m.faults.length} failing: ${m.faults[0]}`) : ""),
  );
}
