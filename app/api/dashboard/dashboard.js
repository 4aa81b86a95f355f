// The dashboard: asks every few seconds, draws, and lets an administrator clear the cache.
"use strict";

const REFRESH_MS = 2000;
const NUMBERS = "/api/v1/performance";

const perSecond = (value) => value == null ? "–" : `${write.number(value, value < 10 ? 2 : 0)}/s`;

// What the charts show: columns of the history, their names and colours (of the style sheet).
const CHARTS = [
  { title: "Requests per second", write: perSecond, series: [["requests_per_second", "requests", "--c1"], ["errors_per_second", "errors", "--bad"]] },
  { title: "Response time", write: write.ms, series: [["response_p50_ms", "P50", "--c1"], ["response_p95_ms", "P95", "--c2"], ["response_p99_ms", "P99", "--c3"]] },
  { title: "Time to first token", write: write.ms, series: [["first_token_p50_ms", "P50", "--c1"], ["first_token_p95_ms", "P95", "--c2"]] },
  { title: "Cache hit ratio", write: write.percent, max: 1, series: [["cache_hit_ratio", "hits", "--c4"]] },
  { title: "Model calls per second", write: perSecond, series: [["model_calls_per_second", "calls", "--c1"], ["model_errors_per_second", "errors", "--bad"]] },
  { title: "Agent pool", whole: true, write: (value) => write.number(value), series: [["agents_live", "live", "--c1"], ["agents_in_use", "in use", "--c2"]] },
  { title: "Database connections", whole: true, write: (value) => write.number(value), series: [["connections_in_use", "in use", "--c1"], ["connections_overflow", "overflow", "--bad"]] },
  { title: "Waiting", write: write.ms, series: [["database_wait_p95_ms", "database P95", "--c2"], ["loop_lag_p99_ms", "event loop P99", "--c3"]] },
  { title: "System", write: (value) => value == null ? "–" : `${write.number(value)} %`, max: 100, series: [["cpu_percent", "CPU", "--c1"]] },
];

// Steps of an axis that counts things.
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

let charts = [];
let columns = null;
let timer = null;
let failing = false;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function drawCharts() {
  for (const chart of charts) { chart.plot.destroy(); chart.resizing.disconnect(); }
  byId("charts").replaceChildren();
  charts = CHARTS.map((spec) => {
    const legend = el("div", { class: "legend", "aria-hidden": "true" }, spec.series.map(([column, label, variable]) => {
      const swatch = el("i");
      swatch.style.background = colour(variable);
      return el("span", {}, swatch, `${label} `, el("b", { "data-column": column }, "–"));
    }));
    const place = el("div", { class: "plot", "aria-hidden": "true" });
    const summary = el("p", { class: "unseen" });
    const nothing = el("p", { class: "nothing muted" }, "nothing measured in this range");
    const figure = el("figure", { class: "card chart" }, el("figcaption", {}, el("h2", {}, spec.title), legend), place, nothing, summary);
    byId("charts").append(figure);
    const grid = { stroke: colour("--line"), width: 1 };
    const font = "11px system-ui, sans-serif";
    const plot = new uPlot({
      width: Math.max(place.clientWidth, 100), height: 170,
      padding: [8, 10, 0, 0], legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, spec.max || (high > 0 ? high * (spec.whole ? 1.25 : 1.1) : 1)] } },
      axes: [
        { stroke: colour("--muted"), grid: { show: false }, ticks: { show: false }, font, space: 70, size: 26,
          values: (_, at) => at.map((second) => new Date(second * 1000).toLocaleTimeString("en-GB", columnsSpan() < 1200 ? {} : { hour: "2-digit", minute: "2-digit" })) },
        { stroke: colour("--muted"), grid, ticks: { show: false }, font, size: 58, space: 36, incrs: spec.whole ? WHOLE : undefined, values: (_, values) => values.map(spec.write) },
      ],
      series: [{}, ...spec.series.map(([, label, variable], index) => ({
        label, stroke: colour(variable), width: 2, spanGaps: true, points: { size: 4, show: (self) => self.data[0].length < 3 || undefined },
        fill: index === 0 ? `${colour(variable)}22` : undefined,
      }))],
      hooks: { setCursor: [(self) => showValues(spec, figure, self.cursor.idx)] },
    }, [[], ...spec.series.map(() => [])], place);
    const resizing = new ResizeObserver(() => plot.setSize({ width: Math.max(place.clientWidth, 100), height: 170 }));
    resizing.observe(place);
    return { spec, plot, figure, summary, nothing, resizing };
  });
  if (columns) fillCharts();
}

function columnsSpan() {
  return columns && columns.at.length ? columns.at[columns.at.length - 1] - columns.at[0] : 0;
}

function lastOf(values) {
  for (let at = values.length - 1; at >= 0; at -= 1) if (values[at] != null) return values[at];
  return null;
}

function showValues(spec, figure, index) {
  if (!columns) return;
  for (const [column] of spec.series) {
    const value = index == null ? lastOf(columns[column]) : columns[column][index];
    figure.querySelector(`[data-column="${column}"]`).textContent = spec.write(value);
  }
}

function fillCharts() {
  for (const { spec, plot, figure, summary, nothing } of charts) {
    nothing.hidden = spec.series.some(([column]) => lastOf(columns[column]) != null);
    plot.setData([columns.at, ...spec.series.map(([column]) => columns[column])]);
    if (plot.cursor.idx == null) showValues(spec, figure, null);
    summary.textContent = `${spec.title}, now: ${spec.series.map(([column, label]) => `${label} ${spec.write(lastOf(columns[column]))}`).join(", ")}.`;
  }
}

function tile(name, value, hint, state = "") {
  return el("div", { class: `tile ${state}` }, el("dt", {}, name), el("dd", {}, value), hint ? el("dd", { class: "muted" }, hint) : null);
}

function fillTiles(picture) {
  const recent = picture.windows["5m"];
  const { cache, model_calls: calls } = picture;
  const first = calls.time_to_first_token_ms;
  const failed = recent.model_calls ? recent.model_errors / recent.model_calls : 0;
  byId("tiles").replaceChildren(
    tile("Requests", perSecond(picture.windows["1m"].per_second), `${write.number(picture.requests.in_flight)} in flight · ${write.number(picture.requests.total)} in all`),
    tile("Response P50", write.ms(recent.response_time_ms.p50), `P95 ${write.ms(recent.response_time_ms.p95)} · P99 ${write.ms(recent.response_time_ms.p99)}`),
    tile("First token", first.count ? write.ms(first.p50) : "–", first.count ? `P95 ${write.ms(first.p95)}` : "no streamed answer yet"),
    tile("Overhead P50", write.ms(picture.requests.overhead_ms.p50), "without the model"),
    tile("Hit ratio", write.percent(cache.hit_ratio), `${write.number(cache.hits)} hits · ${write.number(cache.coalesced)} joined`, cache.hit_ratio > 0 ? "good" : ""),
    tile("Saved", write.usd(cache.saved.cost_usd), `${write.number(cache.saved.requests)} model calls · ${write.duration(cache.saved.seconds)}`),
    tile("Model errors", write.percent(failed), `${write.number(recent.model_errors)} of ${write.number(recent.model_calls)} in 5 min`, failed > 0.05 ? "bad" : ""),
    tile("Cost", write.usd(calls.cost_usd), `${write.number(calls.input_tokens)} in · ${write.number(calls.output_tokens)} out tokens`),
  );
}

function fillTable(id, heads, rows, empty) {
  const body = rows.length ? rows.map((cells) => el("tr", {}, cells.map((cell, at) => el(at ? "td" : "th", at ? { class: heads[at].startsWith("#") ? "number" : null } : { scope: "row" }, cell))))
    : [el("tr", {}, el("td", { colspan: heads.length, class: "muted" }, empty))];
  byId(id).replaceChildren(
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", class: head.startsWith("#") ? "number" : null }, head.replace("#", ""))))),
    el("tbody", {}, body),
  );
}

function fillFacts(id, facts) {
  byId(id).replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function fillAdvice(picture) {
  const found = [...picture.agent_pool.recommendations, ...picture.cache.recommendations];
  byId("advice").replaceChildren(...(found.length ? found.map((advice) => el("li", { class: advice.severity },
    el("span", { class: "badge" }, advice.severity),
    el("div", {}, el("p", {}, advice.message), el("p", {}, el("code", {}, `${advice.setting}=${advice.suggested}`), el("span", { class: "muted" }, ` instead of ${advice.current}`)))))
    : [el("li", { class: "muted" }, "Nothing that was measured asks for another setting.")]));
}

function fill(picture) {
  const { workers, replicas } = picture.scope;
  byId("scope").textContent = `${workers} ${workers === 1 ? "worker" : "workers"}${replicas > 1 ? ` on ${replicas} replicas` : ""} · up ${write.duration(picture.uptime_seconds)}${picture.reach === "store away" ? " · other replicas cannot be asked" : ""}`;
  fillTiles(picture);
  fillAdvice(picture);
  const { cache } = picture;
  fillFacts("cache", [
    ["Kept answers", write.number(cache.entries)],
    ["Size", `${write.bytes(cache.bytes)} of ${write.bytes(cache.max_bytes)}`],
    ["Hits", write.number(cache.hits)], ["Misses", write.number(cache.misses)],
    ["Joined runs", write.number(cache.coalesced)], ["Evicted", write.number(cache.evictions)],
    ["Expired", write.number(cache.expirations)], ["Lives", write.duration(cache.ttl_seconds)],
    ["Kept in", cache.backend], ["Cleaned up", `${write.number(cache.cleanup.runs)} times`],
  ]);
  fillTable("workers", ["Process", "#Up", "#Memory", "#Files", "#In flight"], picture.workers.map((worker) => [
    String(worker.pid), write.duration(worker.uptime_seconds), write.bytes(worker.rss_bytes), write.number(worker.open_files), write.number(worker.in_flight)]), "none");
  fillTable("routes", ["Route", "#Requests", "#Errors", "#P50", "#P95", "#P99", "#Slowest"], picture.requests.routes.filter((route) => route.count).map((route) => [
    el("code", {}, route.route), write.number(route.count), write.number(route.errors),
    ...["p50", "p95", "p99", "max"].map((name) => write.ms(route.response_time_ms[name]))]), "No request yet.");
  fillTable("agents", ["Agent", "Model", "#Uses", "#In use", "#Idle"], picture.agent_pool.agents.map((agent) => [
    agent.agent, agent.model, write.number(agent.uses), write.number(agent.in_use), write.duration(agent.idle_seconds)]), "No agent is live; the first prompt makes one.");
}

function fillSlow(stories) {
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.story : null;
  fillTable("slow", ["Request", "Route", "At", "#Took", "#Status", "Cache"], stories.map((story) => {
    const button = el("button", { type: "button", class: "link", "data-story": story.request_id, "aria-label": `Why did ${story.request_id} take so long?` }, story.request_id.slice(0, 12));
    button.addEventListener("click", () => showStory(story));
    return [button, el("code", {}, story.route), write.time(story.at), write.ms(story.duration_ms), String(story.status), story.cache ? story.cache.state : "–"];
  }), "No request yet.");
  if (focused) byId("slow").querySelector(`[data-story="${CSS.escape(focused)}"]`)?.focus();
}

function showStory(story) {
  byId("story-title").textContent = `${write.ms(story.duration_ms)} · ${story.route}`;
  const longest = Math.max(story.duration_ms, 0.001);
  byId("story").replaceChildren(
    el("p", { class: "muted" }, `${story.request_id} · ${write.time(story.at)} · status ${story.status}${story.model ? ` · ${story.agent} on ${story.model}` : ""}`),
    el("ul", {}, story.explanation.map((sentence) => el("li", {}, sentence))),
    el("ol", { class: "stages", "aria-label": "Stages" }, story.stages.map((stage) => {
      const part = el("i");
      part.style.marginLeft = `${Math.min(99, stage.start_ms / longest * 100)}%`;
      part.style.width = `${Math.max(0.5, Math.min(100, stage.duration_ms / longest * 100))}%`;
      return el("li", {}, el("span", {}, stage.name), el("div", { "aria-hidden": "true" }, part), el("span", { class: "number" }, write.ms(stage.duration_ms)));
    })),
    story.attempts.length ? el("p", {}, `Requests to models: ${story.attempts.map((one) => `${one.model} ${one.outcome} (${write.ms(one.duration_ms)})`).join(", ")}`) : "",
  );
  byId("story-dialog").showModal();
}

function notice(text, isBad = false) {
  const place = byId("notice");
  place.textContent = text;
  place.classList.toggle("error", isBad);
  place.hidden = !text;
}

async function refresh() {
  const range = document.querySelector("input[name=range]:checked").value;
  try {
    const [picture, history, slow, health] = await Promise.all([
      ask(`${NUMBERS}/metrics`).then((reply) => reply.json()),
      ask(`${NUMBERS}/history?range=${range}`).then((reply) => reply.json()),
      ask(`${NUMBERS}/requests`).then((reply) => reply.json()),
      fetch(`${NUMBERS}/health-detailed`, { credentials: "omit" }).then((reply) => reply.json()),
    ]);
    fill(picture);
    fillSlow(slow.slowest);
    columns = history.columns;
    fillCharts();
    const amiss = Object.entries(health.checks).filter(([, check]) => check.status !== "healthy");
    byId("health").hidden = false;
    byId("health").className = `pill ${health.status}`;
    byId("health").title = amiss.map(([name, check]) => `${name}: ${check.reason}`).join("\n");
    const names = amiss.map(([name]) => name).join(", ");
    const words = amiss.length ? `${health.status}: ${names}` : health.status;
    if (byId("health").textContent !== words) byId("health").textContent = words;
    if (failing) notice("");
    failing = false;
  } catch (error) {
    if (error instanceof SessionEnded) return;
    failing = true;
    notice(`The numbers cannot be read: ${error.message}`, true);
  }
}

function again() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (!document.hidden) await refresh();
    if (session.token) again();
  }, REFRESH_MS);
}

session.started = async () => {
  byId("board").hidden = false;
  drawCharts();
  await refresh();
  if (session.token) {
    again();
    const me = await ask("/api/v1/auth/me").then((reply) => reply.json()).catch(() => ({}));
    byId("clear").hidden = me.role !== "admin";
  }
};
session.ended = () => {
  clearTimeout(timer);
  byId("board").hidden = true;
  byId("health").hidden = true;
  notice("");
  columns = null;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close("no");
};
theme.changed = () => { if (session.token && !byId("board").hidden) drawCharts(); };

byId("range").addEventListener("change", () => { refresh(); });
byId("clear").addEventListener("click", () => { byId("clear-dialog").returnValue = "no"; byId("clear-dialog").showModal(); });
byId("clear-dialog").addEventListener("close", async () => {
  if (byId("clear-dialog").returnValue !== "yes") return;
  try {
    const { cleared } = await ask(`${NUMBERS}/cache/clear`, { method: "POST" }).then((reply) => reply.json());
    notice(`The cache was cleared; ${write.number(cleared)} ${cleared === 1 ? "answer was" : "answers were"} forgotten.`);
    await refresh();
  } catch (error) {
    if (!(error instanceof SessionEnded)) notice(`The cache could not be cleared: ${error.message}`, true);
  }
});

showTheme();
watchSignIn();
