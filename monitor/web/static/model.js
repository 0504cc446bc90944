// One model: charts over time, features of one window, decisions, jobs.
import { ask } from "./actions.js";
import { colour, heat, lines, MARKS, phases } from "./charts.js";
import { ago, clock, get, h, number, odds, percent, pill, shares, spark } from "./dom.js";

const EVERY = 10_000, SHOWN = 20, ESTIMATE = "estimate, without labels";
const RANGES = [1, 7, 30];
const share = { format: (v) => percent(v), range: [0, 1] }, score = { format: (v) => number(v) }, seconds = { format: (v) => `${number(v)} s` };
const SECOND = {
  drift_share: { title: "Features drifted", short: "features drifted", measure: "drift_share", ...share },
  prediction_drift: { title: "Drift of the predictions", short: "prediction drift", measure: "prediction_drift", ...score },
  label_drift: { title: "Drift of the labels", short: "label drift", measure: "label_drift", ...score },
  coverage: { title: "Predictions that have their label", short: "labelled", measure: "label_coverage", ...share },
  label_delay: { title: "Median delay of labels", short: "label delay", measure: "label_delay", ...seconds },
  volume: { title: "Predictions per window", short: "volume", measure: "volume", format: (v) => number(v, 0) },
  latency_p95: { title: "Latency, 95th percentile", short: "latency", measure: "latency_p95", ...seconds },
};

export async function showModel(main, name, first) {
  const page = new ModelPage(main, name, first);
  page.draw();
  setInterval(() => page.refresh(), EVERY);
  addEventListener("resize", debounce(() => page.drawCharts(), 150));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.drawCharts());
}

class ModelPage {
  constructor(main, name, first) {
    Object.assign(this, { main, name, data: first, days: first.days, picked: null, plots: [], all: false, shapes: null, second: "drift_share" });
    this.api = `/api/v1/models/${encodeURIComponent(name)}`;
    const part = () => h("section", {});
    this.parts = { head: part(), charts: part(), features: part(), rules: part(), segments: part(), log: part(), jobs: part(), audit: part() };
    this.audit = { entries: [], more: true, open: false };
    this.problem = h("div", { role: "alert" });
    main.replaceChildren(this.problem, ...Object.values(this.parts));
  }

  async refresh(days = this.days) {
    try {
      const before = this.newest();
      this.data = await get(`${this.api}/timeline?days=${days}`);
      this.days = days;
      this.problem.replaceChildren();
      if (this.newest() !== before && this.picked === null) this.shapes = null;
      this.draw();
    } catch (error) {
      this.problem.replaceChildren(h("p", { class: "notice" }, `Not refreshed: ${error.message}`));
    }
  }

  newest() {
    return this.data.windows.end.at(-1) ?? null;
  }

  // The index of the window that is looked at: the one that was picked, wherever it is by now, or the newest.
  at() {
    const { end, version } = this.data.windows, newest = end.length - 1;
    if (this.picked === null) return newest;
    const found = end.findIndex((e, i) => e === this.picked.end && version[i] === this.picked.version);
    return found < 0 ? newest : found;
  }

  draw() {
    const { data } = this;
    document.title = `${data.model} · driftd`;
    this.drawHead();
    this.drawCharts();
    this.drawFeatures();
    this.drawRules();
    this.drawSegments();
    this.drawLog();
    this.drawJobs();
    this.drawAudit();
  }

  drawHead() {
    const { data } = this, waiting = data.jobs.find((j) => ["awaiting_approval", "shadow", "canary"].includes(j.state));
    const done = () => setTimeout(() => this.refresh(), 800);
    const act = (title, path, explain, field) => () => ask(title, path, { explain, field, done });
    const earlier = [...new Set(data.champions.map((c) => c.version))].filter((v) => v !== data.champion).map((v) => [v, `version ${v}`]);
    const buttons = [
      h("button", { onclick: act("Retrain", `${this.api}/retrain`, `Ask for a retrain of ${data.model} now. Only a job under way or a pause can refuse it.`) }, "Retrain…"),
      h("button", { onclick: act("Roll back", `${this.api}/rollback`, `Make an earlier version of ${data.model} the champion again.`, { name: "to", label: "To", options: [["", "the version before"], ...earlier] }) }, "Roll back…"),
    ];
    buttons.push(data.paused
      ? h("button", { onclick: act("Resume", `${this.api}/resume`, `End the pause of ${data.model}.`) }, "Resume…")
      : h("button", { onclick: act("Pause", `${this.api}/pause`, `Leave ${data.model} as it is until it is resumed: no retrain, no promotion. Rolling back stays possible.`, { name: "for", label: "For", placeholder: "2h, 1d; empty: until it is resumed" }) }, "Pause…"));
    if (waiting) {
      const path = `/api/v1/jobs/${encodeURIComponent(waiting.id)}`, which = `version ${waiting.version}`;
      buttons.unshift(h("button", { onclick: act("Reject", `${path}/reject`, `Do not promote ${which}${waiting.state === "canary" ? ", and give it no more traffic" : ""}.`) }, "Reject…"));
      if (waiting.state === "awaiting_approval") buttons.unshift(h("button", { class: "primary", onclick: act("Approve", `${path}/approve`, `Promote ${which}.`) }, "Approve…"));
    }
    keepFocus(this.parts.head, [
      h("p", { class: "soft" }, h("a", { href: "/" }, "All models"), ` / ${data.model}`),
      h("h1", {}, data.model, pill(data.state), h("span", { class: "soft" }, data.champion ? `champion: version ${data.champion}` : "no champion recorded yet")),
      h("p", { class: "words" }, data.summary),
      data.traffic.challenger ? h("p", { class: "words pending" }, `Version ${data.traffic.challenger} should answer ${percent(data.traffic.shares[data.traffic.challenger])} of the requests, version ${data.traffic.champion} the others.`) : "",
      data.held ? h("p", { class: "notice" }, `Held: ${data.held}`) : "",
      data.faults.length ? h("ul", { class: "notice faults", "aria-label": "What failed" }, data.faults.map((f) => h("li", {}, f))) : "",
      h("div", { class: "toolbar" }, buttons),
    ]);
  }

  drawCharts() {
    const { data } = this, w = data.windows, box = this.parts.charts;
    const choice = h("span", { class: "choice", role: "group", "aria-label": "Days shown" }, RANGES.map((d) =>
      h("button", { "aria-pressed": String(d === this.days), onclick: () => this.refresh(d) }, d === 1 ? "1 day" : `${d} days`)));
    const head = h("h2", {}, "Over time ", h("small", {}, "UTC, by end of window · click a window to see its features "));
    this.plots.forEach((p) => p.destroy());
    this.plots = [];
    if (!w.end.length) {
      keepFocus(box, [head, h("p", {}, choice), h("p", { class: "empty" }, `No window of the last ${this.days} day(s) has been measured. Windows are ${duration(data.window_seconds)} long; events come in as docs/events.md describes.`)]);
      return;
    }
    const holders = { performance: h("div", { class: "chart" }), second: h("div", { class: "chart" }), rules: h("div", { class: "chart" }), heat: h("div", { class: "chart" }) };
    const titled = (title, key, element) => [h("h2", {}, title), key ? h("div", { class: "legend" }, key) : "", element];
    const key = (style, kind, text) => h("span", {}, h("i", { class: kind, style }), text);
    const marks = data.marks, known = (values) => values?.some((v) => v !== null);
    const limited = known(w.limit), estimated = known(w.estimated[data.metric]?.value);
    const kinds = [...new Set(marks.map((m) => m.kind))].filter((k) => MARKS[k]);
    const legend = [
      key("border-color: var(--measured)", "", data.metric), key("border-color: var(--pending)", "", "provisional: labels still come"), key("", "band", "95 % interval"),
      estimated ? key("border-color: var(--estimate)", "dashed", ESTIMATE) : "",
      limited ? key("border-color: var(--firing)", "dashed", "rule's limit") : "",
      ...kinds.map((k) => key(`border-color: var(${MARKS[k][0]})`, k === "promoted" ? "" : "dashed", MARKS[k][1])),
    ];
    keepFocus(box, [
      head, h("p", {}, choice),
      titled(`Performance: ${data.metric}`, legend, holders.performance), estimation(data.estimation),
      h("h2", {}, SECOND[this.second].title),
      h("p", {}, h("span", { class: "choice", role: "group", "aria-label": "What is drawn" }, Object.entries(SECOND).map(([name, s]) =>
        h("button", { "aria-pressed": String(name === this.second), onclick: () => { this.second = name; this.drawCharts(); } }, s.short)))),
      holders.second,
      data.rules.length ? titled("Rules", [key("border-color: var(--firing)", "", "firing"), key("border-color: var(--pending)", "", "pending")], holders.rules) : "",
      titled("Drift by feature", [key("border-color: var(--firing)", "", "drifted, the darker the further beyond its threshold"), key("border-color: var(--ok-tint)", "", "not drifted")], holders.heat),
    ]);
    const [from, to] = span(w.end, data.window_seconds);
    const common = { x: w.end, from, to, marks, picked: () => this.at(), onPick: (i) => this.pick(i) };
    this.plots.push(lines(holders.performance, { ...common, height: 230, format: (v) => number(v), ...performance(w, data.metric, estimated, limited) }));
    const second = SECOND[this.second], rule = data.rules.find((r) => r.measure === second.measure && !r.subject);
    const limit = rule?.above ?? rule?.below ?? null;
    this.plots.push(lines(holders.second, {
      ...common, height: 150, format: second.format, range: second.range,
      series: [
        { label: second.short, values: w[this.second], colour: "--measured", gaps: true },
        ...(limit === null ? [] : [{ label: "rule's limit", values: w.end.map(() => limit), colour: "--firing", dash: [6, 4] }]),
      ],
    }));
    if (data.rules.length) this.plots.push(phases(holders.rules, { ...common, rules: data.rules }));
    this.plots.push(heat(holders.heat, { ...common, features: data.features.filter((f) => f.history?.length).slice(0, SHOWN) }));
  }

  pick(index) {
    const { end, version } = this.data.windows;
    this.picked = index === end.length - 1 ? null : { end: end[index], version: version[index] };
    this.shapes = null;
    this.plots.forEach((p) => p.redraw(false));
    this.drawFeatures();
  }

  async drawFeatures() {
    const { data } = this, w = data.windows, box = this.parts.features, at = this.at();
    if (at < 0) return box.replaceChildren();
    const [end, version] = [w.end[at], w.version[at]];
    const step = (by) => () => this.pick(Math.min(w.end.length - 1, Math.max(0, at + by)));
    const stamp = new Date(1e3 * end).toISOString().replace(/[-:]/g, "").slice(0, 15);
    const reports = data.reports.find((r) => r.name === `${version.replaceAll("/", "_")}-${stamp}`);
    const shown = this.all ? data.features : data.features.slice(0, SHOWN);
    const head = h("tr", {}, ["feature", "drift against its threshold", "#by chance", "#impact", "over time", "window (filled) and reference (line)", "#missing", "#unseen or out of range"].map((t) => h("th", { scope: "col", class: t.startsWith("#") ? "number" : null }, t.replace("#", ""))));
    const rows = shown.map((f) => this.featureRow(f));
    if (this.shapes?.prediction) rows.push(this.predictionRow(this.shapes.prediction));
    keepFocus(box, [
      h("h2", {}, "Features ", h("small", {}, `window that ended ${clock(end)}, version ${version}${this.picked === null ? " (newest)" : ""} · most ${data.features.some((f) => f.impact !== null) ? "impact (drift × importance to the model)" : "drift"} first`)),
      h("div", { class: "toolbar" },
        h("button", { onclick: step(-1), disabled: at === 0 }, "Earlier window"),
        h("button", { onclick: step(1), disabled: at === w.end.length - 1 }, "Later window"),
        reports ? h("a", { class: "button", href: reports.url }, "Evidently report of this window") : ""),
      h("div", { class: "table-box" }, h("table", { class: "plain" }, h("thead", {}, head), h("tbody", {}, rows))),
      data.features.length > SHOWN ? h("p", {}, h("button", { onclick: () => { this.all = !this.all; this.drawFeatures(); } }, this.all ? "Show fewer" : `Show all ${data.features.length} features`)) : "",
      h("p", { class: "answer soft", role: "status" }, this.shapes?.error ?? (this.shapes && !this.shapes.reference_rows ? "No reference yet: it is made from the first windows." : "")),
    ]);
    if (!this.shapes || this.shapes.at !== `${version}/${end}`) {
      const asked = `${version}/${end}`;
      this.shapes = { at: asked, features: {} };
      try {
        const found = await get(`${this.api}/features?version=${encodeURIComponent(version)}&end=${end}`);
        if (this.shapes.at === asked) this.shapes = { ...found, at: asked };
      } catch (error) {
        this.shapes = { at: asked, features: {}, error: error.message };
      }
      this.drawFeatures();
    }
  }

  // Numbers are those of the window that is looked at; until they have come, those of the newest.
  featureRow(listed) {
    const shape = this.shapes?.features[listed.feature], f = shape ?? (this.picked === null ? listed : {});
    const { value = null, threshold = null, drifted = false } = f, below = f.statistic === "p_value";
    const beyond = value === null || !threshold ? 0 : below ? threshold / Math.max(value, 1e-12) : value / threshold;
    const about = threshold ? `threshold ${number(threshold)}${below ? ", drifted below it" : ""}` : "";
    const unlike = drifted && value !== null && f.reason, breach = drifted && !unlike; // by its missing values, not by those that are left
    const gauge = h("span", { class: `gauge ${breach ? "breach" : ""}`, title: about }, h("b", { style: `width: ${Math.min(100, 50 * beyond)}%` }), threshold ? h("s", { style: "left: 50%" }) : "");
    const odd = [f.unseen, f.out_of_range].filter((v) => v !== null && v !== undefined);
    return h("tr", {},
      h("td", {}, listed.feature),
      h("td", { class: "numbers" }, h("div", { class: "drift" }, gauge, " ", h("span", { class: breach ? "breach" : "" }, value === null ? f.reason || "–" : number(value), breach ? " drifted" : "")), h("div", { class: "soft" }, f.method || "", unlike ? [" · ", h("span", { class: "breach" }, `drifted: ${f.reason}`)] : "")),
      h("td", { class: "number" }, odds(f.p_value)),
      h("td", { class: "number" }, f.impact === null || f.impact === undefined ? "–" : f.impact.toFixed(2)),
      h("td", {}, spark(listed.history ?? [], 110, 26)),
      h("td", { style: "width: 232px; height: 56px" }, shape ? shares(shape) : ""),
      h("td", { class: "number" }, percent(f.missing)),
      h("td", { class: "number" }, odd.length ? percent(Math.max(...odd)) : "–"));
  }

  predictionRow(shape) {
    const none = () => h("td", { class: "number" }, "–");
    return h("tr", {}, h("td", {}, "prediction"), none(), none(), none(), h("td", {}, spark(this.data.windows.prediction_drift, 110, 26)),
      h("td", { style: "width: 232px; height: 56px" }, shares(shape)), none(), none());
  }

  drawRules() {
    const beyond = (r) => (r.auto ? "above auto" : r.above !== null ? `above ${number(r.above)}` : r.below !== null ? `below ${number(r.below)}` : "its method's threshold");
    const limit = (r) => `${beyond(r)}${r.significant ? ", beyond chance" : ""}`;
    const rows = this.data.rules.map((r) => h("tr", {}, h("td", {}, pill(r.phase)), h("td", {}, r.rule), h("td", {}, [r.measure.replaceAll("_", " "), r.subject, limit(r)].filter(Boolean).join(" ")), h("td", {}, r.for_auto ? `auto: ${r.for}` : r.for), h("td", { class: "number" }, odds(r.p_value)), h("td", {}, r.severity), h("td", {}, r.action), h("td", { class: "soft" }, r.reason)));
    keepFocus(this.parts.rules, [h("h2", {}, "Rules"), rows.length ? plain(["phase", "rule", "breaches when", "for", "#newest, by chance", "severity", "action", "last judged"], rows) : h("p", { class: "empty" }, "This model has no rules.")]);
  }

  drawSegments() {
    const rows = this.data.segments.map((s) => h("tr", {}, h("td", {}, s.segment), h("td", { class: "number" }, number(s.value)), h("td", { class: "number" }, s.lower === null || s.lower === undefined ? "–" : `${number(s.lower)} to ${number(s.upper)}`), h("td", { class: "number" }, number(s.drop)), h("td", { class: "number" }, number(s.rows)), h("td", { class: "soft" }, s.reason || "")));
    this.parts.segments.replaceChildren(...(rows.length ? [h("h2", {}, "Segments ", h("small", {}, `${this.data.metric}, newest window, worst first`)), plain(["segment", "#value", "#95 % interval", "#worse than reference by", "#rows", ""], rows)] : []));
  }

  drawLog() {
    const items = this.data.activity.map((a) => h("li", {}, h("time", { datetime: a.at, title: ago(a.at) }, clock(a.at)), h("span", { class: a.kind }, h("span", { class: "mark" }), h("span", { class: "text" }, a.text))));
    keepFocus(this.parts.log, [h("h2", {}, "What happened, and why"), items.length ? h("ol", { class: "log" }, items) : h("p", { class: "empty" }, "Nothing yet: no rule has fired and nobody has asked for a retrain.")]);
  }

  drawJobs() {
    const { data } = this, open = new Set([...this.parts.jobs.querySelectorAll("details[open]")].map((d) => d.dataset.id));
    const jobs = data.jobs.map((j, i) => this.job(j, open.size ? open.has(j.id) : i === 0));
    const champions = data.champions.map((c) => h("tr", {}, h("td", { class: "tight" }, clock(c.since)), h("td", {}, `version ${c.version}`), h("td", {}, c.by), h("td", { class: "soft" }, c.reason)));
    keepFocus(this.parts.jobs, [
      h("h2", {}, "Retrain jobs"),
      jobs.length ? jobs : h("p", { class: "empty" }, "No job yet."),
      champions.length ? [h("h2", {}, "Champions"), plain(["since", "version", "by", "why"], champions)] : [],
      data.reports.length ? [h("h2", {}, "Evidently reports"), h("p", {}, data.reports.slice(0, 12).flatMap((r) => [h("a", { href: r.url }, r.name), " "]))] : [],
    ]);
  }

  // Read when it is looked at: a log is long.
  drawAudit() {
    const { entries, more, open } = this.audit;
    const rows = entries.map((e) => h("tr", {}, h("td", { class: "number" }, String(e.number)), h("td", { class: "tight" }, clock(e.at)), h("td", {}, e.kind.replaceAll("_", " ")), h("td", {}, e.actor), h("td", {}, e.subject), h("td", { class: "soft" }, e.detail)));
    const details = h("details", { class: "fold", open, ontoggle: () => this.toggleAudit(details.open) },
      h("summary", {}, "Every decision and every action, from the audit log"),
      h("div", { class: "inside" },
        rows.length ? plain(["#entry", "at", "kind", "by", "about", ""], rows) : "",
        more ? h("p", {}, h("button", { onclick: () => this.readAudit() }, "Older entries")) : "",
        this.audit.error ? h("p", { class: "failed" }, this.audit.error) : ""));
    keepFocus(this.parts.audit, [h("h2", {}, "Audit log"), details]);
  }

  toggleAudit(open) {
    if (open === this.audit.open) return;
    this.audit = { entries: [], more: true, open };
    if (open) this.readAudit();
  }

  async readAudit() {
    const last = this.audit.entries.at(-1)?.number;
    try {
      const found = await get(`/api/v1/audit?model=${encodeURIComponent(this.name)}&limit=50${last ? `&before=${last}` : ""}`);
      this.audit = { ...this.audit, entries: [...this.audit.entries, ...found.entries], more: found.entries.length === 50, error: null };
    } catch (error) {
      this.audit = { ...this.audit, error: error.message };
    }
    this.drawAudit();
  }

  job(j, open) {
    const steps = j.steps.map((s) => h("tr", {}, h("td", { class: "tight" }, clock(s.at)), h("td", {}, s.state.replaceAll("_", " ")), h("td", {}, s.actor), h("td", { class: "soft" }, s.detail)));
    return h("details", { class: "job", open, "data-id": j.id },
      h("summary", {}, pill(j.state), h("span", {}, j.id), h("span", { class: "soft" }, `${clock(j.created_at)} · ${j.reason}`)),
      h("div", { class: "inside" },
        j.error ? h("p", { class: "failed" }, j.error) : "",
        j.waiting ? h("p", { class: "soft" }, `waits: ${j.waiting}`) : "",
        j.gates?.length ? gateTable(j.gates) : h("p", { class: "soft" }, "No gate was judged."),
        j.trials.flatMap(trial),
        j.validation.length ? [h("h3", {}, "Data validation"), plain(["", "check", "of", ""], j.validation.map((c) => h("tr", {}, h("td", {}, pill(c.level)), h("td", {}, c.name), h("td", {}, c.subject), h("td", { class: "soft" }, c.detail))))] : "",
        h("p", { class: "soft" }, j.mlflow ? h("a", { href: j.mlflow }, "MLflow run") : j.run_id ? `MLflow run ${j.run_id}` : "", j.version ? ` · version ${j.version} against ${j.compared_with ?? "no champion"}` : "", " · ", h("a", { href: `/jobs/${encodeURIComponent(j.id)}/card` }, "model card")),
        plain(["at", "state", "by", ""], steps)));
  }
}

function gateTable(gates) {
  const rows = gates.map((g) => h("tr", {}, h("td", {}, pill(g.passed ? "ok" : g.asks ? "asks" : "failed")), h("td", {}, g.name), h("td", { class: "number" }, number(g.value)), h("td", { class: "number" }, g.interval ? `${number(g.interval[0])} to ${number(g.interval[1])}` : "–"), h("td", { class: "number" }, number(g.limit)), h("td", { class: "soft" }, g.detail)));
  return plain(["", "gate", "#value", "#interval", "#limit", ""], rows);
}

// A shadow, or the steps of a canary: how far it is, and what it was held against.
function trial(t) {
  const judged = t.steps ?? (t.gates ? [t] : []), undecided = t.passed === undefined;
  const far = undecided && t.needed ? `${t.share ? `share ${percent(t.share)}, ` : ""}${t.rows} of ${t.needed} labelled rows` : "";
  return [
    h("h3", {}, `${t.name[0].toUpperCase()}${t.name.slice(1)} `, h("small", { class: "soft" }, far || t.detail || "")),
    ...judged.flatMap((s) => [s.share ? h("p", { class: "soft" }, `share ${percent(s.share)}, ${s.rows} labelled rows`) : "", gateTable(s.gates)]),
  ];
}

// What the performance chart draws: from labels, and without them what the estimate says.
function performance(w, metric, estimated, limited) {
  const measured = w.performance[metric], estimate = w.estimated[metric], { value } = measured;
  const unlabelled = (values) => values.map((v, i) => (value[i] === null ? v : null));
  const around = ({ lower, upper }) => (v, i) => `${number(v)}${lower[i] === null ? "" : ` (${number(lower[i])} to ${number(upper[i])})`}`;
  const series = [
    { label: metric, values: value, colour: "--measured", gaps: true, readout: around(measured) },
    { label: "provisional", values: value.map((v, i) => (w.final[i] === false ? v : null)), colour: "--pending" },
    { label: "lower", values: measured.lower, hidden: true, unlisted: true, gaps: true },
    { label: "upper", values: measured.upper, hidden: true, unlisted: true, gaps: true },
  ];
  const bands = [{ series: [4, 3], fill: colour("--band") }];
  if (estimated) {
    series.push(
      { label: ESTIMATE, values: estimate.value, colour: "--estimate", dash: [5, 4], gaps: true, readout: around(estimate) },
      { label: "estimate, lower", values: unlabelled(estimate.lower), hidden: true, unlisted: true },
      { label: "estimate, upper", values: unlabelled(estimate.upper), hidden: true, unlisted: true },
    );
    bands.push({ series: [7, 6], fill: colour("--estimate-band") });
  }
  if (limited) series.push({ label: "limit", values: w.limit, colour: "--firing", dash: [6, 4], gaps: true });
  return { series, bands };
}

// How the newest estimate turned out once its labels came.
function estimation(found) {
  if (!found) return "";
  const soFar = found.final ? "" : ", so far";
  return h("p", { class: "soft estimation" }, `Window that ended ${clock(found.window_end)}, version ${found.version}${soFar}: `, h("span", { class: found.outside ? "pending" : "" }, found.text), ".");
}

const plain = (heads, rows) => h("div", { class: "table-box" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map((t) => h("th", { scope: "col", class: t.startsWith("#") ? "number" : null }, t.replace("#", ""))))), h("tbody", {}, rows)));

// Redrawing must not take the keyboard's place away: the same button, by its text, keeps the focus.
function keepFocus(box, children) {
  const held = box.contains(document.activeElement) ? document.activeElement.textContent : null;
  box.replaceChildren(...children.flat(3).filter((c) => c !== ""));
  if (held !== null) [...box.querySelectorAll("button, a, summary")].find((b) => b.textContent === held)?.focus({ preventScroll: true });
}

function span(ends, size) {
  return [Math.min(ends[0] - size, ends.at(-1) - 3 * size), ends.at(-1) + size / 2];
}

function duration(seconds) {
  const [size, unit] = [[86400, "day(s)"], [3600, "hour(s)"], [60, "minute(s)"], [1, "second(s)"]].find(([s]) => seconds >= s);
  return `${number(seconds / size, 1)} ${unit}`;
}

function debounce(action, wait) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}
