// Where everything stands: clients left, servers right, a namespace a band. The same graph always gets the same places.

export const WIDTH = 176;
export const HEIGHT = 34;
// Between columns, and between rows, at least and at most: more where a page has room.
const COLUMN_GAP = [84, 190];
const ROW_GAP = [14, 56];
const SUB_GAP = 26;
const PAD = 14;
const TITLE = 24;
const BAND_GAP = 22;
const MARGIN = 24;
// An edge keeps so far from nodes that it passes.
const CLEAR = 7;
// More layers than this are drawn together: nobody follows a longer way across a page.
const LAYERS = 6;
// Nodes above one another in a band, before another column is begun.
const STACK = 12;
// Rounds of bringing neighbours closer: more change hardly anything.
const ROUNDS = 4;

const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);

// nodes: [{ id, band, folded }], edges: [{ id, from, to }]. Returns places by id, boxes by band, ways of edges through columns
// that they only cross, and the size.
export function layout(nodes, edges, room) {
  const all = [...nodes].sort((one, other) => compare(one.id, other.id));
  const layers = layered(all, edges);
  const bands = new Map();
  for (const node of all) {
    if (!bands.has(node.band)) bands.set(node.band, { name: node.band, columns: new Map(), folded: true });
    const band = bands.get(node.band);
    const layer = layers.get(node.id);
    if (!band.columns.has(layer)) band.columns.set(layer, []);
    band.columns.get(layer).push(node.id);
    band.folded &&= node.folded;
  }
  const ordered = order([...bands.values()], edges);
  const least = place(ordered, layers, COLUMN_GAP[0], ROW_GAP[0]);
  const between = ([low, high], value) => Math.max(low, Math.min(high, Math.floor(value)));
  const columns = Math.max(1, ...layers.values());
  const gap = between(COLUMN_GAP, COLUMN_GAP[0] + (room.width - least.width) / columns);
  const rows = Math.max(1, Math.floor((least.height - 2 * MARGIN) / (HEIGHT + ROW_GAP[0])));
  const row = between(ROW_GAP, ROW_GAP[0] + (0.8 * room.height - least.height) / rows);
  const laid = place(ordered, layers, gap, row);
  return { ...laid, ways: ways(edges, laid) };
}

// The longest way to each node from one that nobody calls, with edges left out that lead back.
function layered(all, edges) {
  const out = new Map(all.map((node) => [node.id, []]));
  const calls = new Map(all.map((node) => [node.id, 0]));
  for (const edge of edges) {
    if (edge.from === edge.to || !out.has(edge.from) || !out.has(edge.to)) continue;
    out.get(edge.from).push(edge.to);
    calls.set(edge.to, calls.get(edge.to) + 1);
  }
  for (const targets of out.values()) targets.sort(compare);
  // Whoever is called by few and calls many comes first, so that a circle is cut where it begins.
  const weight = (id) => calls.get(id) / (1 + calls.get(id) + out.get(id).length);
  const starts = all.map((node) => node.id).sort((one, other) => weight(one) - weight(other) || compare(one, other));
  const done = new Map();
  const finished = [];
  const forward = [];
  for (const start of starts) {
    if (done.has(start)) continue;
    const stack = [[start, 0]];
    done.set(start, false);
    while (stack.length) {
      const top = stack[stack.length - 1];
      const target = out.get(top[0])[top[1]++];
      if (target === undefined) {
        done.set(top[0], true);
        finished.push(top[0]);
        stack.pop();
      } else if (!done.has(target)) {
        forward.push([top[0], target]);
        done.set(target, false);
        stack.push([target, 0]);
      } else if (done.get(target)) {
        forward.push([top[0], target]);
      }
    }
  }
  const next = new Map();
  for (const [from, to] of forward) {
    if (!next.has(from)) next.set(from, []);
    next.get(from).push(to);
  }
  const layers = new Map(all.map((node) => [node.id, 0]));
  for (const id of finished.reverse()) {
    for (const to of next.get(id) ?? []) layers.set(to, Math.max(layers.get(to), layers.get(id) + 1));
  }
  const deepest = Math.max(0, ...layers.values());
  if (deepest >= LAYERS) {
    for (const [id, layer] of layers) layers.set(id, Math.floor((layer * LAYERS) / (deepest + 1)));
  }
  return layers;
}

// Brings what belongs together close: bands, and nodes in a column, by the mean place of those that they talk to.
function order(bands, edges) {
  const first = (band) => Math.min(...band.columns.keys());
  bands.sort((one, other) => first(one) - first(other) || compare(one.name, other.name));
  const neighbours = new Map();
  const meet = (one, other) => neighbours.set(one, [...(neighbours.get(one) ?? []), other]);
  for (const edge of edges) {
    if (edge.from === edge.to) continue;
    meet(edge.from, edge.to);
    meet(edge.to, edge.from);
  }
  const places = new Map();
  const note = () => {
    let row = 0;
    for (const band of bands) {
      for (const column of band.columns.values()) column.forEach((id, at) => places.set(id, row + at - column.length / 2));
      row += Math.max(...[...band.columns.values()].map((column) => column.length)) + 1;
    }
  };
  const mean = (id) => {
    const known = (neighbours.get(id) ?? []).map((other) => places.get(other)).filter((place) => place !== undefined);
    return known.length ? known.reduce((sum, place) => sum + place, 0) / known.length : places.get(id);
  };
  note();
  for (let round = 0; round < ROUNDS; round++) {
    for (const band of bands) {
      for (const column of band.columns.values()) {
        const means = new Map(column.map((id) => [id, mean(id)]));
        column.sort((one, other) => means.get(one) - means.get(other) || compare(one, other));
      }
    }
    note();
  }
  return bands;
}

function place(bands, layers, gap, row) {
  const count = Math.max(0, ...layers.values()) + 1;
  const subs = (column) => Math.ceil(column.length / STACK);
  const widest = Array.from({ length: count }, (_, layer) =>
    Math.max(1, ...bands.map((band) => subs(band.columns.get(layer) ?? []))));
  const lefts = [MARGIN + PAD];
  for (const width of widest) lefts.push(lefts[lefts.length - 1] + width * (WIDTH + SUB_GAP) - SUB_GAP + gap);
  const filled = Array(count).fill(MARGIN);
  const places = new Map();
  const boxes = new Map();
  for (const band of bands) {
    const own = [...band.columns.keys()].sort((one, other) => one - other);
    const [begin, end] = [own[0], own[own.length - 1]];
    const top = Math.max(...filled.slice(begin, end + 1));
    const rows = Math.max(...own.map((layer) => {
      const column = band.columns.get(layer);
      return Math.ceil(column.length / subs(column));
    }));
    const head = band.folded ? 0 : TITLE;
    const inner = rows * (HEIGHT + row) - row;
    let right = 0;
    for (const layer of own) {
      const column = band.columns.get(layer);
      const high = Math.ceil(column.length / subs(column));
      const down = top + head + PAD + (inner - (high * (HEIGHT + row) - row)) / 2;
      column.forEach((id, at) => {
        const x = lefts[layer] + Math.floor(at / high) * (WIDTH + SUB_GAP);
        places.set(id, { x, y: down + (at % high) * (HEIGHT + row) });
        right = Math.max(right, x + WIDTH);
      });
    }
    const height = head + inner + 2 * PAD;
    if (!band.folded) {
      boxes.set(band.name, { x: lefts[begin] - PAD, y: top, width: right - lefts[begin] + 2 * PAD, height });
    }
    for (let layer = begin; layer <= end; layer++) filled[layer] = top + height + row - ROW_GAP[0] + (band.folded ? 0 : BAND_GAP);
  }
  return {
    places,
    boxes,
    width: lefts[count] - gap + PAD + MARGIN,
    height: Math.max(...filled, MARGIN) + MARGIN,
  };
}

// How an edge crosses the columns between its ends: at the height next to the straight line where no node and no title is.
function ways(edges, { places, boxes }) {
  const columns = new Map();
  const block = (x, top, bottom) => {
    if (!columns.has(x)) columns.set(x, []);
    columns.get(x).push([top - CLEAR, bottom + CLEAR]);
  };
  for (const { x, y } of places.values()) block(x, y, y + HEIGHT);
  for (const box of boxes.values()) {
    if (columns.has(box.x + PAD)) block(box.x + PAD, box.y + 4, box.y + TITLE);
  }
  const found = new Map();
  for (const edge of edges) {
    const [from, to] = [places.get(edge.from), places.get(edge.to)];
    const [left, right] = from.x < to.x ? [from, to] : [to, from];
    const way = [];
    const crossed = [...columns.keys()].filter((x) => x > left.x && x < right.x).sort((one, other) => one - other);
    for (const x of crossed) {
      const middle = HEIGHT / 2 + left.y + ((right.y - left.y) * (x - left.x)) / (right.x - left.x);
      const blocks = columns.get(x);
      const isFree = (y) => y > CLEAR && !blocks.some(([top, bottom]) => y > top && y < bottom);
      const free = [middle, ...blocks.flat()].filter(isFree);
      way.push({ x, y: free.reduce((best, y) => (Math.abs(y - middle) < Math.abs(best - middle) ? y : best), free[0] ?? middle) });
    }
    found.set(edge.id, from.x < to.x ? way : way.reverse());
  }
  return found;
}
