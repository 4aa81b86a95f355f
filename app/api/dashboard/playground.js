// The playground: one prompt at a time to a chosen agent, the answer as it comes, and what it took.
"use strict";

let running = null;

/** The events of an event stream, as [name, data] pairs. */
async function* eventsOf(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    text += done ? decoder.decode() : decoder.decode(value, { stream: true });
    text = text.replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).replace(/^ /, "")).join("\n");
      const data = field("data");
      if (data) yield [field("event") || "message", JSON.parse(data)];
    }
    if (done) return;
  }
}

function say(who, text, isMine) {
  const said = el("div", { class: "said" }, text);
  const about = el("div", { class: "about" });
  const item = el("li", { class: isMine ? "mine" : "" }, el("span", { class: "who" }, who), said, about);
  byId("chat").append(item);
  byId("empty").hidden = true;
  item.scrollIntoView({ block: "nearest" });
  return { item, said, about };
}

function chips(place, answer, headers, firstMs, totalMs) {
  const state = headers.get("X-Cache") || (answer.cached ? "HIT" : "MISS");
  const usage = answer.usage;
  place.replaceChildren(
    el("span", { class: `chip ${answer.cached ? "hit" : ""}` }, `cache ${state}`),
    el("span", { class: "chip" }, answer.model),
    el("span", { class: "chip" }, `${write.number(usage.input_tokens)} in · ${write.number(usage.output_tokens)} out tokens`),
    answer.cost_usd == null ? "" : el("span", { class: "chip" }, write.usd(answer.cost_usd)),
    el("span", { class: "chip" }, `server ${write.ms(answer.processing_time_ms)}`),
    firstMs == null ? "" : el("span", { class: "chip" }, `first text ${write.ms(firstMs)}`),
    el("span", { class: "chip" }, `in all ${write.ms(totalMs)}`),
  );
}

const shown = (response) => typeof response === "string" ? response : JSON.stringify(response, null, 2);

async function send(message) {
  const agent = byId("agent").value || "default";
  const streamed = byId("stream").checked;
  say("You", message, true);
  const { item, said, about } = say(agent, "…", false);
  const began = performance.now();
  running = new AbortController();
  let firstMs = null;
  let answer = null;
  try {
    const reply = await ask("/api/v1/agent/prompt", {
      method: "POST", signal: running.signal,
      headers: { "Content-Type": "application/json", Accept: streamed ? "text/event-stream" : "application/json" },
      body: JSON.stringify({ message, agent, stream: streamed, cache: { mode: byId("use-cache").checked ? "use" : "refresh" } }),
    });
    if ((reply.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
      let text = "";
      for await (const [name, data] of eventsOf(reply.body)) {
        if (name === "delta") {
          firstMs ??= performance.now() - began;
          text += data.text;
          said.textContent = text;
          item.scrollIntoView({ block: "nearest" });
        } else if (name === "done") answer = data;
        else if (name === "error") throw new Error(data.detail || data.title);
      }
      if (!answer) throw new Error("the answer broke off");
    } else {
      answer = await reply.json();
    }
    said.textContent = shown(answer.response);
    chips(about, answer, reply.headers, firstMs, performance.now() - began);
    byId("spoken").textContent = `${agent} answered: ${shown(answer.response)}`;
  } catch (error) {
    if (error instanceof SessionEnded) { item.remove(); return; }
    item.classList.add("failed");
    said.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    byId("spoken").textContent = said.textContent;
  } finally {
    running = null;
  }
}

async function submit() {
  const message = byId("message").value.trim();
  if (!message || running) return;
  byId("message").value = "";
  byId("send").disabled = true;
  byId("stop").hidden = false;
  try {
    await send(message);
  } finally {
    byId("send").disabled = false;
    byId("stop").hidden = true;
    if (session.token) byId("message").focus();
  }
}

async function fillAgents() {
  try {
    const listed = await ask("/api/v1/agents").then((reply) => reply.json());
    const agents = Array.isArray(listed) ? listed : listed.agents || listed.items || listed.data;
    byId("agent").replaceChildren(...agents.map((agent) => el("option", { value: agent.name }, agent.name)));
  } catch (error) {
    if (!(error instanceof SessionEnded)) byId("empty").textContent = `The agents cannot be listed: ${error.message}`;
  }
}

session.started = () => { byId("board").hidden = false; fillAgents(); byId("message").focus(); };
session.ended = () => { byId("board").hidden = true; running?.abort(); };

byId("compose").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("anew").addEventListener("click", () => { running?.abort(); byId("chat").replaceChildren(); byId("empty").hidden = false; byId("message").focus(); });

showTheme();
watchSignIn();
