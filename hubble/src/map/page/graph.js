// Draws the graph as SVG. Elements stay as long as what they stand for does, so that focus stays, too.
import { HEIGHT, WIDTH, layout } from "./layout.js";
import { clean } from "./details.js";

const SVG = "http://www.w3.org/2000/svg";
// What the page needs above and below the map.
const CHROME = 90;
// A wider graph is drawn smaller, but not below this: then it scrolls.
const SMALLEST = 0.75;
// With more edges than this they are drawn thinner.
const MANY = 60;

export function svg(name, attributes = {}, ...inside) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

// Puts in as much of a text as has room. It is measured where it is new only: that costs.
function fit(element, text, room) {
  if (element.fitted === text + room) return;
  element.fitted = text + room;
  element.textContent = text;
  let shown = [...text];
  while (shown.length > 1 && element.getComputedTextLength() > room) {
    shown = shown.slice(0, Math.min(shown.length - 1, Math.ceil((shown.length * room) / element.getComputedTextLength())));
    element.textContent = `${shown.join("")}…`;
  }
}

export class Graph {
  // on: { open(item), fold(band), hover(item, element or null) }
  constructor(root, on) {
    this.root = root;
    this.on = on;
    this.layers = ["boxes", "edges", "nodes"].map((name) => svg("g", { class: name }));
    root.append(...this.layers);
    this.elements = new Map();
    this.places = new Map();
    this.topology = "";
    this.at = null;
    this.near = null;
    root.addEventListener("keydown", (event) => this.key(event));
  }

  // scene: { nodes: [{ id, band, label, sub, folded, bad, item }], edges: [{ id, from, to, kind, rate, silent, item }],
  // aside(item): whether it is not looked for, chosen: an item's id }
  draw(scene) {
    const room = { width: this.root.parentElement.clientWidth, height: innerHeight - CHROME };
    const topology = JSON.stringify([
      room,
      scene.nodes.map((node) => [node.id, node.band, node.folded]),
      scene.edges.map((edge) => [edge.from, edge.to]),
    ]);
    if (topology !== this.topology) {
      this.topology = topology;
      this.laid = layout(scene.nodes, scene.edges, room);
      this.places = this.laid.places;
      const { width, height } = this.laid;
      const scale = Math.max(SMALLEST, Math.min(1, room.width / width));
      set(this.root, { viewBox: `0 0 ${width} ${height}`, width: Math.floor(width * scale), height: Math.floor(height * scale) });
      this.thin = scene.edges.length > MANY ? 0.6 : 1;
      this.ports = ports(scene.edges, this.places);
    }
    const kept = new Set();
    for (const [band, box] of this.laid.boxes) this.box(kept, band, box, scene);
    for (const edge of scene.edges) this.edge(kept, edge, scene);
    for (const node of scene.nodes) this.node(kept, node, scene);
    for (const [key, element] of this.elements) {
      if (kept.has(key)) continue;
      element.remove();
      this.elements.delete(key);
    }
    if (!this.elements.has(this.at)) this.at = null;
    this.at ??= [...this.elements.keys()].find((key) => !key.startsWith("edge:")) ?? null;
    for (const [key, element] of this.elements) {
      if (!key.startsWith("edge:")) element.setAttribute("tabindex", key === this.at ? 0 : -1);
    }
  }

  element(kept, key, layer, make) {
    kept.add(key);
    let element = this.elements.get(key);
    if (!element) {
      element = make();
      element.addEventListener("pointerenter", () => this.hover(key));
      element.addEventListener("pointerleave", () => this.hover(null));
      // An SVG element that listens for the focus gets it from clicks: edges shall not.
      if (!key.startsWith("edge:")) {
        element.addEventListener("focus", () => {
          this.move(key);
          if (element.matches(":focus-visible")) this.hover(key);
        });
        element.addEventListener("blur", () => this.hover(null));
      }
      element.addEventListener("click", (event) => this.activate(key.startsWith("edge:") ? this.nearest(event, key) : key));
      this.elements.set(key, element);
      this.layers[layer].append(element);
    }
    return element;
  }

  box(kept, band, box, scene) {
    const element = this.element(kept, `band:${band}`, 0, () =>
      svg("g", { class: "namespace", role: "button" }, svg("rect", { class: "box", rx: 10 }), svg("text", { class: "title" })));
    const [rect, title] = element.children;
    set(rect, box);
    set(title, { x: box.x + 14, y: box.y + 21 });
    const name = scene.bands.get(band);
    fit(title, `▾ ${clean(name)}`, box.width - 28);
    element.item = { fold: band, lines: [name, "Enter or a click folds it"] };
    element.setAttribute("aria-label", `namespace ${clean(name)}, unfolded; Enter folds it`);
  }

  node(kept, node, scene) {
    const element = this.element(kept, `node:${node.id}`, 2, () =>
      svg("g", { role: "button" }, svg("rect", { class: "back", rx: 7 }), svg("rect", { class: "body", rx: 7 }), svg("text"),
        svg("text", { class: "sub" })));
    const [back, body, label, sub] = element.children;
    const { x, y } = this.places.get(node.id);
    set(body, { x, y, width: WIDTH, height: HEIGHT });
    set(back, { x: x + 4, y: y + 4, width: WIDTH, height: HEIGHT });
    back.style.display = node.folded ? "" : "none";
    set(label, { x: x + 10, y: y + (node.sub ? 15 : 22) });
    set(sub, { x: x + 10, y: y + 28 });
    fit(label, clean(node.label), WIDTH - 20);
    fit(sub, node.sub ?? "", WIDTH - 20);
    body.classList.toggle("bad", node.bad);
    element.item = node.item;
    element.setAttribute("class", classes("node", node.folded && "folded", scene.chosen === node.id && "chosen",
      scene.aside(node.item) && "aside"));
    element.setAttribute("aria-label", node.item.lines.map(clean).join(", "));
  }

  edge(kept, edge, scene) {
    const element = this.element(kept, `edge:${edge.id}`, 1, () =>
      svg("g", {}, svg("path", { class: "hit" }), svg("path", { class: "line" }), svg("path", { class: "head" })));
    const [hit, line, head] = element.children;
    const width = this.thin * (edge.kind === "failing" ? 2.5 : 1.5) + this.thin * Math.min(4, 1.3 * Math.log10(1 + edge.rate * 4));
    const isOwn = edge.from === edge.to;
    const [from, to] = [this.places.get(edge.from), this.places.get(edge.to)];
    const way = isOwn ? loop(from) : route(from, to, this.ports.get(edge.id), this.laid.ways.get(edge.id));
    hit.setAttribute("d", way.path);
    line.setAttribute("d", way.path);
    line.setAttribute("stroke-width", width.toFixed(2));
    const size = 5 + width;
    const [x, y] = way.end;
    head.setAttribute("d", `M${x} ${y}l${way.side * size} ${-size * 0.55}v${size * 1.1}z`);
    element.item = edge.item;
    element.ends = [edge.from, edge.to];
    element.setAttribute("class", classes("edge", edge.kind, edge.silent && "silent", scene.chosen === edge.id && "chosen",
      scene.aside(edge.item) && "aside", this.isFar(element) && "far"));
    element.setAttribute("data-edge", `${clean(edge.from)} ${clean(edge.to)}`);
  }

  // A node that is looked at: the edges of others step back.
  hover(key) {
    const element = this.elements.get(key);
    this.on.hover(element?.item ?? null, element);
    this.near = key?.startsWith("node:") ? key.slice("node:".length) : null;
    for (const edge of this.layers[1].children) edge.classList.toggle("far", this.isFar(edge));
  }

  isFar(edge) {
    return this.near !== null && !edge.ends.includes(this.near);
  }

  activate(key) {
    const { item } = this.elements.get(key);
    if (key.startsWith("edge:")) this.on.open(item, null);
    else {
      this.move(key);
      if (item.fold !== undefined) this.on.fold(item.fold);
      else this.on.open(item, this.elements.get(key));
    }
  }

  // Of the edges below the pointer the one whose line is closest: what may be clicked of them overlaps.
  nearest({ clientX, clientY }, clicked) {
    const below = new Set(document.elementsFromPoint(clientX, clientY).map((element) => element.closest(".edge")));
    let best = [Infinity, clicked];
    for (const [key, element] of this.elements) {
      if (!below.has(element)) continue;
      const line = element.children[1];
      const at = new DOMPoint(clientX, clientY).matrixTransform(line.getScreenCTM().inverse());
      const length = line.getTotalLength();
      for (let step = 0; step <= length; step += 2) {
        const { x, y } = line.getPointAtLength(step);
        const far = Math.hypot(x - at.x, y - at.y);
        if (far < best[0]) best = [far, key];
      }
    }
    return best[1];
  }

  move(key) {
    this.elements.get(this.at)?.setAttribute("tabindex", -1);
    this.at = key;
    this.elements.get(key).setAttribute("tabindex", 0);
  }

  // What the panel has pushed out of sight.
  reveal(party) {
    this.elements.get(`node:${party}`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  focus(key) {
    const to = this.elements.get(key ?? this.at);
    if (!to) return;
    to.focus();
    to.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // The next in the direction of an arrow: what lies straight ahead counts as closer.
  key(event) {
    const ahead = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      this.activate(this.at);
      event.preventDefault();
    } else if (ahead) {
      const centre = (element) => {
        const box = element.querySelector(".body, .title").getBBox();
        return [box.x + box.width / 2, box.y + box.height / 2];
      };
      const [x, y] = centre(this.elements.get(this.at));
      let best = [Infinity, null];
      for (const [key, element] of this.elements) {
        if (key.startsWith("edge:") || key === this.at || element.classList.contains("aside")) continue;
        const [dx, dy] = [centre(element)[0] - x, centre(element)[1] - y];
        const along = dx * ahead[0] + dy * ahead[1];
        const across = Math.abs(dx * ahead[1]) + Math.abs(dy * ahead[0]);
        if (along > 1 && along + 2 * across < best[0]) best = [along + 2 * across, key];
      }
      if (best[1]) this.focus(best[1]);
      event.preventDefault();
    }
  }
}

const set = (element, attributes) => {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
};
const classes = (...names) => names.filter(Boolean).join(" ");

// How far from the middle of a node's side each of its edges begins and ends: in the order of where they lead.
function ports(edges, places) {
  const sides = new Map();
  const add = (id, side, edge, role, other) => {
    const key = `${side} ${id}`;
    if (!sides.has(key)) sides.set(key, []);
    sides.get(key).push({ edge: edge.id, role, y: places.get(other).y });
  };
  for (const edge of edges) {
    if (edge.from === edge.to) continue;
    const [from, to] = [places.get(edge.from), places.get(edge.to)];
    add(edge.from, to.x < from.x ? "left" : "right", edge, "begin", edge.to);
    add(edge.to, to.x > from.x ? "left" : "right", edge, "end", edge.from);
  }
  const shifts = new Map();
  for (const all of sides.values()) {
    all.sort((one, other) => one.y - other.y || (one.edge < other.edge ? -1 : 1));
    const step = Math.min(9, (HEIGHT - 10) / all.length);
    all.forEach((one, at) => {
      const shift = (at - (all.length - 1) / 2) * step;
      shifts.set(one.edge, { ...shifts.get(one.edge), [one.role]: shift });
    });
  }
  return shifts;
}

// Within a folded namespace: a loop above its right corner.
function loop({ x, y }) {
  const right = x + WIDTH;
  return { path: `M${right - 26} ${y}c0 -14 44 -14 36 8l-4 2`, end: [right, y + 11], side: 1 };
}

function route(from, to, shift, way) {
  const [y1, y2] = [from.y + HEIGHT / 2 + shift.begin, to.y + HEIGHT / 2 + shift.end];
  if (to.x === from.x) {
    const x = from.x + WIDTH;
    const bow = 34 + Math.min(30, Math.abs(y2 - y1) * 0.1);
    return { path: `M${x} ${y1}C${x + bow} ${y1} ${x + bow} ${y2} ${x + 4} ${y2}`, end: [x, y2], side: 1 };
  }
  const ahead = to.x > from.x;
  const side = ahead ? -1 : 1;
  let [x, y] = [ahead ? from.x + WIDTH : from.x, y1];
  let path = `M${x} ${y}`;
  const curve = (nextX, nextY) => {
    const bend = Math.max(Math.min(36, Math.abs(nextX - x)), Math.abs(nextX - x) * 0.45) * -side;
    path += `C${x + bend} ${y} ${nextX - bend} ${nextY} ${nextX} ${nextY}`;
    [x, y] = [nextX, nextY];
  };
  for (const crossed of way) {
    // Side by side where several pass: each as it leaves its node.
    const passed = crossed.y + shift.begin * 0.3;
    curve(ahead ? crossed.x : crossed.x + WIDTH, passed);
    x = ahead ? crossed.x + WIDTH : crossed.x;
    path += `H${x}`;
  }
  const end = ahead ? to.x : to.x + WIDTH;
  curve(end + 4 * side, y2);
  return { path, end: [end, y2], side };
}
