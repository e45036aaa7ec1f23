// What is kept of a text, edges or positions, from the page's packed numbers.
const RESIDUAL_ATTENTION = 1, MLP = 2, RESIDUAL_MLP = 4; // bits of what else than heads is kept
const visible = (token) => token.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replace(/^ +$/, (spaces) => "\u2423".repeat(spaces.length));
const word = (token) => visible(token.trimStart() || token);
const unpackNumbers = (packed) => {
  const found = [];
  let number = 0, factor = 1;
  for (const char of atob(packed)) {
    const byte = char.charCodeAt(0);
    number += (byte & 127) * factor;
    factor *= 128;
    if (byte < 128) {
      found.push(number);
      [number, factor] = [0, 1];
    }
  }
  return found;
};
const unitAt = (bank, n, id) => { // layer, head or bit, source and target of an edge or a position
  const { layers, heads } = bank;
  if (bank.unit === "positions") {
    const token = Math.floor(id / (layers * (heads + 1))), node = id % (layers * (heads + 1));
    const head = node % (heads + 1);
    return { layer: Math.floor(node / (heads + 1)), source: token, target: token, ...(head < heads ? { head } : { bit: MLP }) };
  }
  const ofLayer = n * (heads * n + 3), place = id % ofLayer, direct = place - heads * n * n;
  const layer = Math.floor(id / ofLayer), token = direct % n;
  return direct < 0
    ? { layer, head: Math.floor(place / (n * n)), target: Math.floor(place / n) % n, source: place % n }
    : { layer, bit: [MLP, RESIDUAL_ATTENTION, RESIDUAL_MLP][Math.floor(direct / n)], source: token, target: token };
};
// What is kept, by layer, source and target, from the output downwards. Heads are listed, or counted over all sources.
const keptPairs = (bank, n, [name, packed]) => {
  if (name === "counted") {
    return unpackNumbers(packed).map((number, i) => ({ layer: Math.floor(i / n), source: i % n, target: i % n, heads: [], count: number >> 3, bits: number & 7 })).filter(({ count, bits }) => count || bits).reverse();
  }
  const pairs = new Map();
  let id = 0;
  for (const gap of unpackNumbers(packed)) {
    id += gap;
    const { layer, head, bit, source, target } = unitAt(bank, n, id);
    const key = (layer * n + target) * n + source;
    const pair = pairs.get(key) ?? { layer, source, target, heads: [], bits: 0 };
    if (bit) pair.bits |= bit; else pair.heads.push(head);
    pairs.set(key, pair);
  }
  return [...pairs].sort((a, b) => b[0] - a[0]).map(([, pair]) => pair);
};
const wholePairs = (bank, n) => Array.from({ length: (bank.layers - 1) * n + 1 }, (_, i) => {
  const layer = Math.floor(i / n), token = layer === bank.layers - 1 ? n - 1 : i % n; // the last layer's last token alone
  const bits = bank.unit === "positions" ? MLP : bank.parallel ? MLP | RESIDUAL_ATTENTION : 7;
  return { layer, source: token, target: token, heads: [], count: mostHeads(bank, token), bits };
}).reverse();
const mostHeads = (bank, token) => bank.heads * (bank.unit === "positions" ? 1 : token + 1);
