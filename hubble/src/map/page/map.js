// The page: takes the graph from the relay each second, and shows what of it is asked for.
import { Details, KINDS, WORST, bytes, clean, failures, html, rate } from "./details.js";
import { Graph, svg } from "./graph.js";

// With more workloads than this, namespaces are folded at first.
const READABLE = 40;
// As for addresses outside of the mesh.
const READABLE_OUTSIDE = 6;
// Without news for so many milliseconds, what is shown is called old: the relay tells each second.
const STALE = 5000;
// Waits before the relay is asked again: the first, and the longest.
const RETRY = [1000, 15000];
// Rows of the table.
const ROWS = 500;
// What has no namespace: who calls from there, and who is called there.
const CALLERS = "outside: callers";
const CALLED = "outside: called";

const $ = (id) => document.getElementById(id);
const arrow = (from, to) => `${from} → ${to}`;

let data = null;
let heard = 0;
let isLost = false;
// What the user folded or unfolded.
const folds = new Map();
// { id, pairs(): those that it stands for, title, back: who gets the focus }
let chosen = null;

const graph = new Graph($("graph"), {
  open: (item, element) => open(item, element),
  fold: (band) => {
    folds.set(band, true);
    draw();
    graph.focus(`node:${band}`);
  },
  hover: (item, element) => tip(item, element),
});
const details = new Details($("details"), {
  close: () => close(),
  open: (id) => {
    const pair = data.edges.find((one) => one.id === id);
    if (pair) open(pairItem(pair), chosen?.back);
  },
});

// === what is shown ===

function bandOf(party, isCalled) {
  return party.namespace !== null ? `ns:${party.namespace}` : isCalled.has(party.id) ? CALLED : CALLERS;
}

// From what the relay says: parties by id, with their bands; which bands are folded.
function understood() {
  const isCalled = new Set(data.edges.map((edge) => edge.to.id));
  const parties = new Map();
  for (const edge of data.edges) {
    for (const party of [edge.from, edge.to]) {
      if (!parties.has(party.id)) parties.set(party.id, { ...party, band: bandOf(party, isCalled), pairs: [] });
      const pairs = parties.get(party.id).pairs;
      if (pairs.at(-1) !== edge) pairs.push(edge);
    }
  }
  const bands = new Map();
  for (const party of parties.values()) {
    if (!bands.has(party.band)) bands.set(party.band, { name: party.namespace ?? party.band, parties: [] });
    bands.get(party.band).parties.push(party);
  }
  const outside = (band) => band === CALLERS || band === CALLED;
  for (const [band, own] of bands) {
    const many = outside(band) ? own.parties.length > READABLE_OUTSIDE : parties.size > READABLE && own.parties.length > 1;
    own.folded = folds.get(band) ?? many;
  }
  return { parties, bands };
}

function wanted(edge) {
  const namespace = $("namespace").value;
  if (namespace && edge.from.namespace !== namespace && edge.to.namespace !== namespace) return false;
  const kinds = [$("failing").checked && "failing", $("plaintext").checked && "plaintext"].filter(Boolean);
  return !kinds.length || kinds.includes(edge.kind);
}

const worst = (pairs) => WORST.find((kind) => pairs.some((pair) => pair.kind === kind));
const sum = (pairs, of) => pairs.reduce((all, pair) => all + of(pair), 0);

function summary(pairs) {
  const text = `${rate(sum(pairs, (pair) => pair.rate))} connections/s, ${bytes(sum(pairs, (pair) => pair.bytes))}/s`;
  const bad = sum(pairs, failures);
  return bad ? [text, `${bad} failures`] : [text];
}

const pairItem = (pair) => ({ id: `${pair.id}`, title: arrow(pair.from.id, pair.to.id), of: (edge) => edge.id === pair.id });

function scene() {
  const { parties, bands } = understood();
  const shown = data.edges.filter(wanted);
  const search = $("search").value.trim().toLowerCase();
  const found = (party) => !search || party.id.toLowerCase().includes(search);
  const standIn = (party) => (bands.get(parties.get(party.id).band).folded ? parties.get(party.id).band : party.id);
  const nodes = new Map();
  const edges = new Map();
  for (const edge of shown) {
    for (const { id } of [edge.from, edge.to]) {
      const party = parties.get(id);
      const band = bands.get(party.band);
      if (nodes.has(standIn(party))) continue;
      if (band.folded) nodes.set(party.band, foldedNode(party.band, band, shown, found));
      else nodes.set(id, partyNode(party, shown, found));
    }
    const [from, to] = [standIn(edge.from), standIn(edge.to)];
    const id = from === edge.from.id && to === edge.to.id ? edge.id : JSON.stringify([from, to]);
    if (!edges.has(id)) edges.set(id, { id, from, to, pairs: [] });
    edges.get(id).pairs.push(edge);
  }
  const label = (id) => bands.get(id)?.name ?? id;
  for (const edge of edges.values()) {
    const ids = new Set(edge.pairs.map((pair) => pair.id));
    edge.kind = worst(edge.pairs);
    edge.rate = sum(edge.pairs, (pair) => pair.rate);
    edge.silent = edge.rate === 0 && sum(edge.pairs, (pair) => pair.open + pair.failing + pair.bytes) === 0;
    const title = arrow(label(edge.from), label(edge.to));
    edge.item = {
      id: edge.id, to: edge.to, title, of: (pair) => ids.has(pair.id), found: edge.pairs.some((pair) => found(pair.from) || found(pair.to)),
      lines: [title, `${KINDS[edge.kind]}${edge.pairs.length > 1 ? `, ${edge.pairs.length} pairs` : ""}`, ...summary(edge.pairs)],
    };
  }
  const names = new Map([...bands].map(([band, own]) => [band, own.name]));
  return {
    nodes: [...nodes.values()], edges: [...edges.values()], bands: names, chosen: chosen?.id, aside: (item) => !item.found,
  };
}

function partyNode(party, shown, found) {
  const pairs = party.pairs.filter((pair) => shown.includes(pair));
  const of = (pair) => pair.from.id === party.id || pair.to.id === party.id;
  const item = { id: party.id, title: party.id, of, found: found(party), lines: [party.id, ...summary(pairs)] };
  const bad = pairs.some((pair) => pair.kind === "failing" && pair.to.id === party.id);
  return { id: party.id, band: party.band, label: party.name, folded: false, bad, item };
}

function foldedNode(band, own, shown, found) {
  const ids = new Set(own.parties.map((party) => party.id));
  const inside = shown.filter((pair) => ids.has(pair.from.id) && ids.has(pair.to.id));
  const what = band.startsWith("ns:") ? "workloads" : "addresses";
  const sub = `${own.parties.length} ${own.parties.length === 1 ? what.replace(/e?s$/, "") : what}`;
  const item = {
    id: band, unfold: band, found: own.parties.some(found),
    lines: [own.name, sub, ...(inside.length ? summary(inside) : []), "Enter or a click unfolds it"],
  };
  return { id: band, band, label: own.name, sub, folded: true, bad: inside.some((pair) => pair.kind === "failing"), item };
}

// === drawing ===

function draw() {
  if (!data) return;
  namespaces();
  if (chosen) {
    const pairs = data.edges.filter(chosen.of);
    if (!pairs.length) return close();
    details.show({ title: chosen.title, pairs });
  }
  const isTable = $("view").getAttribute("aria-pressed") === "true";
  const now = scene();
  if (isTable) table();
  else graph.draw(now);
  const nothing = data.edges.length ? "Nothing is like that." : "No connection has been seen yet. It appears here as soon as one is made.";
  $("empty").hidden = now.edges.length > 0;
  $("empty").textContent = nothing;
  $("graph").style.display = now.edges.length ? "" : "none";
  const allFolded = now.nodes.every((node) => node.folded);
  $("fold").textContent = allFolded ? "Unfold all" : "Fold all";
}

function namespaces() {
  const names = [...new Set(data.edges.flatMap((edge) => [edge.from.namespace, edge.to.namespace]))].filter((name) => name !== null).sort();
  const select = $("namespace");
  const before = select.value;
  if (JSON.stringify(names) === select.dataset.names) return;
  select.dataset.names = JSON.stringify(names);
  select.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(clean(name), name)));
  select.value = names.includes(before) ? before : "";
}

const rows = new Map();
function table() {
  const search = $("search").value.trim().toLowerCase();
  const found = (edge) => !search || [edge.from.id, edge.to.id].some((id) => id.toLowerCase().includes(search));
  const all = data.edges.filter((edge) => wanted(edge) && found(edge));
  const shown = all.slice(0, ROWS);
  const kept = new Set(shown.map((edge) => edge.id));
  for (const [id, row] of rows) {
    if (!kept.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  shown.forEach((edge, at) => {
    let row = rows.get(edge.id);
    if (!row) {
      row = html("tr");
      const button = html("button", edge.from.id, { type: "button", "aria-label": clean(`details of ${arrow(edge.from.id, edge.to.id)}`) });
      button.addEventListener("click", () => open(pairItem(edge), button));
      const first = html("td");
      first.append(button);
      row.append(first, ...Array.from({ length: 7 }, (_, column) => html("td", "", column > 1 ? { class: "number" } : {})));
      rows.set(edge.id, row);
    }
    const texts = [edge.to.id, KINDS[edge.kind], rate(edge.rate), bytes(edge.bytes), edge.open, failures(edge), edge.ports.join(", ")];
    texts.forEach((text, column) => {
      const cell = row.children[column + 1];
      if (cell.textContent !== clean(text)) cell.textContent = clean(text);
    });
    row.children[2].className = `word ${edge.kind}`;
    // A row that stands right is not moved: it would lose the focus.
    if ($("rows").children[at] !== row) $("rows").insertBefore(row, $("rows").children[at] ?? null);
  });
  $("more").hidden = all.length <= ROWS;
  $("more").textContent = `${all.length - ROWS} more: search, or choose a namespace.`;
}

function open(item, back) {
  tip(null);
  if (item.unfold !== undefined) {
    folds.set(item.unfold, false);
    draw();
    graph.focus(`band:${item.unfold}`);
    return;
  }
  chosen = { ...item, back: back ?? null };
  draw();
  $("details").scrollTop = 0;
  if (item.to) graph.reveal(item.to);
  if (back && chosen) $("details").focus();
}

function close() {
  const back = chosen?.back;
  chosen = null;
  details.hide();
  draw();
  if (back?.isConnected) back.focus();
}

function tip(item, element) {
  const shown = $("tip");
  shown.hidden = !item;
  if (!item) return;
  shown.replaceChildren(...item.lines.map((line) => html("p", line)));
  const box = element.getBoundingClientRect();
  const [width, height] = [shown.offsetWidth, shown.offsetHeight];
  const below = box.bottom + 8 + height < innerHeight ? box.bottom + 8 : box.top - height - 8;
  shown.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2))}px`;
  shown.style.top = `${Math.max(8, below)}px`;
}

// === controls ===

$("legend").append(...["mtls", "direct", "plaintext", "failing"].map((kind) => {
  const line = html("li", null, { class: kind });
  const drawn = svg("svg", { "aria-hidden": "true" }, svg("line", { class: "line", x1: 0, x2: 44, y1: 5, y2: 5 }));
  line.append(drawn, html("span", { direct: "direct: one node, no TLS needed" }[kind] ?? KINDS[kind]));
  return line;
}));

for (const id of ["search", "namespace", "failing", "plaintext"]) $(id).addEventListener("input", draw);
addEventListener("resize", draw);

$("fold").addEventListener("click", () => {
  const fold = $("fold").textContent === "Fold all";
  for (const band of understood().bands.keys()) folds.set(band, fold);
  draw();
});

$("view").addEventListener("click", () => {
  const isTable = $("view").getAttribute("aria-pressed") !== "true";
  $("view").setAttribute("aria-pressed", isTable);
  $("table").hidden = !isTable;
  $("map").hidden = isTable;
  draw();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
try {
  theme = localStorage.getItem("theme");
} catch {
  // A browser that keeps nothing: the system's choice holds.
}
function paint() {
  const isDark = theme ? theme === "dark" : dark.matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").textContent = isDark ? "Light" : "Dark";
}
dark.addEventListener("change", paint);
$("theme").addEventListener("click", () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // As above.
  }
  paint();
});
paint();

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input[type=search], select");
  if (event.key === "/" && !isTyping) {
    $("search").focus();
    event.preventDefault();
  } else if (event.key === "Escape") {
    tip(null);
    if (isTyping && $("search").value) {
      $("search").value = "";
      draw();
    } else if (chosen) close();
    else if (isTyping) graph.focus();
  } else if (event.key === "Enter" && event.target === $("search")) graph.focus();
});

// === the relay ===

function tell() {
  const old = Date.now() - heard;
  const stale = data && (isLost || old > STALE);
  const parts = [];
  if (!data) parts.push(isLost ? "the relay does not answer" : "connecting");
  else if (stale) parts.push(`stale: nothing heard for ${Math.round(old / 1000)} s, asking again`);
  else {
    parts.push("live");
    if (data.limit) parts.push(`namespaces ${data.limit.join(", ")} only`);
    if (data.away.length) parts.push(`not reached: ${data.away.join(", ")}`);
    if (data.lost) parts.push(`${data.lost} records lost`);
    if (data.left) parts.push(`${data.left} quieter pairs left out`);
  }
  const text = clean(parts.join("; "));
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = stale || isLost ? "stale" : "";
  document.body.classList.toggle("stale-data", Boolean(stale));
}

function listen(wait) {
  const events = new EventSource("events");
  let last = Date.now();
  const again = () => {
    clearInterval(watch);
    events.close();
    isLost = true;
    tell();
    setTimeout(() => listen(Math.min(wait * 2, RETRY[1])), wait);
  };
  // A connection that is gone without a word is not noticed otherwise.
  const watch = setInterval(() => Date.now() - last > 2 * STALE && again(), 1000);
  events.addEventListener("error", again);
  events.addEventListener("message", (event) => {
    last = heard = Date.now();
    [isLost, wait] = [false, RETRY[0]];
    data = JSON.parse(event.data);
    for (const edge of data.edges) edge.id = JSON.stringify([edge.from.id, edge.to.id]);
    draw();
    tell();
  });
}
setInterval(tell, 1000);
listen(RETRY[0]);
