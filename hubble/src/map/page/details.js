// Text for people, and the panel at the side. All text becomes a page's by textContent: names come from pods.

// What would act where it is shown: control characters, and those that turn the direction of what follows.
const ACTS = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
// What a shell takes as it is.
const PLAIN = /^[A-Za-z0-9_.:\/-]+$/;
// Pairs that the panel names.
const NAMED = 60;

export const KINDS = { mtls: "mTLS", direct: "direct", plaintext: "plaintext", failing: "failing" };
// The first says most about what should be looked at.
export const WORST = ["failing", "plaintext", "direct", "mtls"];

export const clean = (text) =>
  String(text).replace(ACTS, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);

export const rate = (value) => (value === 0 ? "0" : value < 0.1 ? "<0.1" : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export const micros = (value) => (value < 1000 ? `${value} µs` : value < 1e6 ? `${(value / 1000).toFixed(1)} ms` : `${(value / 1e6).toFixed(1)} s`);

export const failures = (pair) => pair.denied + pair.failed;

export function html(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = clean(text);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// A shell's word, or null if nobody could type it.
function word(text) {
  if (text.match(ACTS)) return null;
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

const end = (peer) => (peer.namespace && peer.pod ? `${peer.namespace}/${peer.pod}` : peer.address.replace(/:\d+$/, "").replace(/^\[|\]$/g, ""));
const port = (address) => address.slice(address.lastIndexOf(":") + 1);

// What `weir explain` is asked about a flow; null if its names cannot be typed.
export function command(flow) {
  const asked = flow.originalDestination ?? flow.destination.address;
  const to = flow.service ? `svc/${flow.service}` : end(flow.destination);
  const words = ["weir", "explain", "--from", word(end(flow.source)), "--to", word(to), "--port", word(port(asked))];
  return words.includes(null) ? null : words.join(" ");
}

const PATHS = { tunnel: "mTLS", plaintext: "plaintext", kernel: "plaintext (not through the agent)", direct: "direct", nowhere: "" };
const colour = { tunnel: "mtls", plaintext: "plaintext", kernel: "plaintext", direct: "direct" };

function flowLine({ flow, explanation }) {
  const line = html("li");
  const isBad = flow.event === "refused";
  const what = isBad ? (flow.verdict === "denied" ? "denied" : "failed") : flow.event === "open" ? "opened" : "closed";
  line.append(html("span", new Date(flow.time).toLocaleTimeString("en-GB"), { class: "dim" }), " ");
  line.append(html("span", what, { class: isBad ? "word failing" : "word" }), " ");
  if (!isBad) line.append(html("span", PATHS[flow.path], { class: `word ${colour[flow.path] ?? ""}` }), " ");
  line.append(html("span", `${flow.source.pod ?? flow.source.address} → ${flow.destination.pod ?? ""}:${port(flow.destination.address)}`));
  const more = [];
  if (flow.service) more.push(`via ${flow.service}`);
  if (flow.event === "close") more.push(`${bytes(flow.bytesSent)} out, ${bytes(flow.bytesReceived)} in, ${micros(flow.durationUs)}`);
  if (flow.process) more.push(`process ${flow.process.name}`);
  if (flow.reason !== "none") more.push(`${flow.reason}: ${explanation}`);
  if (flow.policy) more.push(`by ${flow.policy.policy}`);
  if (flow.dryRun) more.push(`would be denied by ${flow.dryRun.policy}`);
  if (flow.detail) more.push(flow.detail);
  if (more.length) line.append(html("div", more.join(" · "), { class: "dim" }));
  return line;
}

function facts(pairs) {
  const sum = (of) => pairs.reduce((all, pair) => all + of(pair), 0);
  const list = html("dl");
  const fact = (name, text) => list.append(html("dt", name), html("dd", text));
  fact("Now", `${rate(sum((pair) => pair.rate))} connections/s, ${bytes(sum((pair) => pair.bytes))}/s, ${sum((pair) => pair.open)} open, ${rate(sum((pair) => pair.failing))} failures/s`);
  const paths = Object.keys(KINDS).filter((kind) => kind !== "failing").map((kind) => [KINDS[kind], sum((pair) => pair.paths[kind])]);
  fact("Opened", `${sum((pair) => pair.opened)}${paths.filter((one) => one[1]).map(([kind, count]) => `, ${count} ${kind}`).join("")}`);
  fact("Carried", `${bytes(sum((pair) => pair.sent))} out, ${bytes(sum((pair) => pair.received))} in`);
  fact("Failures", `${sum((pair) => pair.denied)} denied, ${sum((pair) => pair.failed)} failed`);
  if (pairs.length === 1) {
    const [pair] = pairs;
    if (pair.problem) fact("Last failure", pair.problem);
    if (pair.rtt !== null) fact("Round trip", micros(pair.rtt));
    fact("Ports", pair.ports.join(", "));
    fact("Last seen", new Date(pair.last).toLocaleTimeString("en-GB"));
  }
  return list;
}

const WAYS = { direct: "direct", tunnel: "mTLS", plaintext: "plaintext", outside: "plaintext, outside of the mesh", itself: "the pod itself" };

// What `weir explain` says, shortened: the verdict, where it would go and why, and each step.
function answerLines(explanation, text) {
  const allowed = explanation.verdict === "forwarded";
  const verdict = html("p");
  verdict.append(html("span", allowed ? "would be let through" : "would be refused", { class: `word ${allowed ? "mtls" : "failing"}` }));
  if (!allowed) verdict.append(" ", html("span", `${explanation.reason}: ${text}`));
  const ends = html("ul", null, { class: "list" });
  for (const one of explanation.candidates.slice(0, 5)) {
    const line = html("li", `${one.end.workload ?? one.address}: ${WAYS[one.path] ?? one.path}`);
    const more = [one.why];
    if (one.policy) more.push(`${one.verdict === "forwarded" ? "allowed" : "refused"} by ${one.policy.policy}`);
    if (one.dryRun) more.push(`would be denied by ${one.dryRun.policy}`);
    line.append(html("div", more.join(" · "), { class: "dim" }));
    ends.append(line);
  }
  const steps = html("ol", null, { class: "dim" });
  for (const step of explanation.steps) steps.append(html("li", `${step.component}: ${step.does}`));
  const all = html("details");
  all.append(html("summary", `Step by step, as ${explanation.node} says`), steps);
  return [verdict, ends, all];
}

// The panel: what is chosen, its pairs, and of a single pair the last flows and how to ask why.
export class Details {
  constructor(root, on) {
    this.root = root;
    this.on = on;
    this.close = html("button", "Close", { class: "close", type: "button" });
    this.close.addEventListener("click", () => on.close());
    this.title = html("h2", "");
    this.kind = html("p");
    this.facts = html("div");
    this.list = html("ul", null, { class: "list", id: "pairs" });
    this.flows = html("ul", null, { class: "list", id: "flows" });
    this.ask = html("div", null, { id: "ask" });
    this.pairsTitle = html("h3", "Pairs");
    this.flowsTitle = html("h3", "Last flows");
    this.askTitle = html("h3", "Would it be let through?");
    root.append(this.close, this.title, this.kind, this.facts, this.pairsTitle, this.list, this.askTitle, this.ask, this.flowsTitle, this.flows);
  }

  show({ title, pairs }) {
    this.root.hidden = false;
    this.title.textContent = clean(title);
    const single = pairs.length === 1 ? pairs[0] : null;
    this.kind.replaceChildren();
    if (single) this.kind.append(html("span", KINDS[single.kind], { class: `word ${single.kind}` }));
    this.facts.replaceChildren(facts(pairs));
    for (const element of [this.pairsTitle, this.list]) element.hidden = Boolean(single);
    for (const element of [this.flowsTitle, this.flows, this.askTitle, this.ask]) element.hidden = !single;
    if (single) this.load(single);
    else this.name(pairs);
  }

  name(pairs) {
    const key = JSON.stringify(pairs.map((pair) => [pair.id, pair.kind]));
    this.pairsTitle.textContent = `Pairs (${pairs.length})`;
    this.loaded = null;
    if (key === this.named) return;
    this.named = key;
    this.list.replaceChildren(...pairs.slice(0, NAMED).map((pair) => {
      const line = html("li");
      const button = html("button", `${pair.from.id} → ${pair.to.id} `, { type: "button" });
      button.append(html("span", KINDS[pair.kind], { class: `word ${pair.kind}` }));
      button.addEventListener("click", () => this.on.open(pair.id));
      line.append(button);
      return line;
    }));
  }

  // Asks for the flows again when there are new ones.
  async load(pair) {
    this.named = null;
    const key = `${pair.id} ${pair.last}`;
    if (key === this.loaded) return;
    if (!this.loaded?.startsWith(`${pair.id} `)) {
      this.flows.replaceChildren(html("li", "loading", { class: "dim" }));
      this.ask.replaceChildren();
    }
    this.loaded = key;
    try {
      const from = encodeURIComponent(pair.from.id), to = encodeURIComponent(pair.to.id);
      const response = await fetch(`flows?from=${from}&to=${to}`);
      if (!response.ok) throw new Error(response.status);
      const { flows } = await response.json();
      if (this.loaded !== key) return;
      const none = html("li", "None of its flows is kept here any more; weir flows asks the nodes.", { class: "dim" });
      this.flows.replaceChildren(...(flows.length ? flows.map(flowLine) : [none]));
      if (flows.length) this.explain(pair, flows[0].flow);
    } catch {
      if (this.loaded === key) this.loaded = null;
    }
  }

  explain(pair, flow) {
    this.id = { from: pair.from.id, to: pair.to.id };
    const text = command(flow);
    if (this.ask.querySelector("pre")?.textContent === text) return;
    if (text === null) {
      this.ask.replaceChildren(html("p", "Its names have characters that cannot be typed.", { class: "dim" }));
      return;
    }
    const code = html("pre", text, { tabindex: 0, "aria-label": "command" });
    const copy = html("button", "Copy", { type: "button" });
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch {
        // Without TLS only loopback may write there: what is marked can be copied by hand.
        getSelection().selectAllChildren(code);
        copy.textContent = "Marked: copy it";
      }
      setTimeout(() => (copy.textContent = "Copy"), 2000);
    });
    const answer = html("div", null, { id: "answer" });
    this.ask.replaceChildren(answer, code, copy);
    this.answer(answer);
  }

  // What the node says whose agent saw the flow. Not everybody may ask: then the command remains.
  async answer(into) {
    const { id } = this;
    try {
      const response = await fetch(`explain?from=${encodeURIComponent(id.from)}&to=${encodeURIComponent(id.to)}`);
      if (!response.ok) return;
      const { text, explanation, problem } = await response.json();
      if (this.id !== id) return;
      if (explanation) into.replaceChildren(...answerLines(explanation, text));
      else if (problem) into.replaceChildren(html("p", problem, { class: "dim" }));
    } catch {
      // The command remains.
    }
  }

  hide() {
    this.root.hidden = true;
    this.loaded = this.named = null;
  }
}
