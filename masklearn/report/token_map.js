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
const createTokenMap = (figure) => {
  const [svg, frame, info, body] = ["svg", ".frame", ".picked-pair", "tbody"].map((part) => figure.querySelector(part));
  const details = figure.querySelector("details");
  const left = 62, top = 24;
  let bank, input, tokens, drawn, at;
  let pairs = [];
  let x, y, column, middle;
  const add = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    if (text !== undefined) element.textContent = text;
    svg.append(element);
    return element;
  };
  const path = (kind, parts, attributes = {}) => { if (parts.length) add("path", { class: kind, d: parts.join(""), ...attributes }); };
  const box = (cx, cy, width, height) => `M${cx - width / 2} ${cy - height / 2}h${width}v${height}h${-width}z`;
  const line = ({ layer, source, target }) => source === target
    ? `M${x(target)} ${y(layer)}q${-column / 3} ${(y(layer + middle) - y(layer)) / 2} 0 ${y(layer + middle) - y(layer)}`
    : `M${x(source)} ${y(layer)}L${x(target)} ${y(layer + middle)}`;
  const grid = (n) => {
    const ofPositions = bank.unit === "positions";
    const labels = tokens.map(word).map((text) => (text.length > 11 ? `${text.slice(0, 10)}\u2026` : text));
    const foot = 24 + 5 * Math.max(...labels.map((text) => text.length), 0);
    column = ofPositions ? Math.max(42, 4 * (bank.heads + 1)) : n > 32 ? 28 : 42;
    const row = Math.min(56, Math.max(20, 760 / bank.layers));
    middle = bank.parallel ? 1 : 0.6;
    [x, y] = [(token) => left + column * (token + 0.5), (level) => top + row * (bank.layers - level)];
    const [width, height] = [left + column * n + 30, top + row * bank.layers + foot];
    const size = { viewBox: `0 0 ${width} ${height}`, width, height };
    Object.entries(size).forEach(([key, value]) => svg.setAttribute(key, value));
    svg.replaceChildren();
    path("guide", tokens.map((_, token) => `M${x(ofPositions ? token - 0.5 : token)} ${y(0)}V${y(bank.layers)}`));
    path("guide", Array.from({ length: bank.layers + 1 }, (_, level) => `M${left} ${y(level)}H${left + column * n}`));
    const every = Math.ceil(14 / row);
    for (let layer = 0; layer < bank.layers; layer += every) {
      add("text", { x: left - 8, y: y(layer + 0.5) + 4, class: "end" }, layer);
      add("text", { x: left + column * n + 8, y: y(layer + 0.5) + 4 }, layer);
    }
    add("text", { transform: `translate(12 ${y(bank.layers / 2)}) rotate(-90)`, class: "middle" }, "layer");
    add("text", { x: x(n - 1), y: top - 9, class: "middle" }, "output");
    labels.forEach((text, i) => add("text", { transform: `translate(${x(i) + 4} ${y(0) + 14}) rotate(-45)`, class: "end" }, text));
  };
  const drawEdges = () => {
    const direct = (bit) => pairs.filter(({ bits }) => bits & bit);
    path("residual", [
      ...direct(RESIDUAL_ATTENTION).map(({ layer, target }) => `M${x(target)} ${y(layer)}V${y(layer + middle)}`),
      ...direct(RESIDUAL_MLP).map(({ layer, target }) => `M${x(target)} ${y(layer + middle)}V${y(layer + 1)}`),
    ]);
    for (let n = 1; n <= bank.heads; n += 1) {
      const share = bank.heads > 1 ? (n - 1) / (bank.heads - 1) : 0;
      path("attention", pairs.filter(({ heads }) => heads.length === n).map(line), { "stroke-width": 1.2 + 3.3 * share, "stroke-opacity": 0.65 + 0.3 * share });
    }
    const mlp = bank.parallel || bank.unit === "positions" ? 0.5 : (1 + middle) / 2;
    path("mlp", direct(MLP).map(({ layer, target }) => box(x(target), y(layer + mlp), 8, Math.min(8, (y(0) - y(1)) * 0.36))));
  };
  const drawPositions = () => {
    const width = (0.86 * column) / (bank.heads + 1), height = 0.7 * (y(0) - y(1));
    const slot = ({ layer, target }, head) => box(x(target) + width * (head - bank.heads / 2), y(layer + 0.5), 0.86 * width, height);
    path("attention filled", pairs.flatMap((pair) => pair.heads.map((head) => slot(pair, head))));
    path("mlp", pairs.filter(({ bits }) => bits & MLP).map((pair) => slot(pair, bank.heads)));
  };
  const drawShades = () => {
    const steps = 20;
    for (let step = 1; step <= steps; step += 1) {
      const shaded = pairs.filter(({ count, target }) => Math.ceil((steps * count) / mostHeads(bank, target)) === step);
      path("attention filled", shaded.map(({ layer, target }) => box(x(target), y(layer + 0.5), column, y(0) - y(1))), { "fill-opacity": (0.85 * step) / steps });
    }
  };
  const token = (i) => `${i + 1} \u201c${word(tokens[i])}\u201d`;
  const names = ({ layer, heads, count, bits, target }) => [
    ...heads.map((head) => `a${layer}.h${head}`),
    ...(count === undefined ? [] : [`${count} of ${mostHeads(bank, target)} ${bank.unit === "positions" ? "heads" : "attention edges"}`]),
    ...(bits & MLP ? [`m${layer}`] : []),
    ...(bits & RESIDUAL_ATTENTION ? [bank.parallel ? "residual" : "residual past the attention"] : []),
    ...(bits & RESIDUAL_MLP ? ["residual past the MLP"] : []),
  ].join(", ");
  const where = ({ source, target }) => source === target ? `at ${token(target)}` : `from ${token(source)} to ${token(target)}`;
  const show = (pair) => {
    at = pair;
    svg.querySelector(".now")?.remove();
    info.textContent = pair ? `Layer ${pair.layer}, ${where(pair)}: ${names(pair) || "nothing"}` : drawn ? info.dataset.hint : "";
    if (pair) path("now", [pair.source === pair.target ? box(x(pair.target), y(pair.layer + 0.5), 0.94 * column, y(0) - y(1)) : line(pair)]);
  };
  const distance = ({ layer, source, target }, px, py) => {
    const [x0, y0, x1, y1] = [x(source), y(layer), x(target), y(layer + (source === target ? 1 : middle))];
    const along = ((px - x0) * (x1 - x0) + (py - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2);
    const t = Math.min(1, Math.max(0, along));
    return Math.hypot(px - x0 - t * (x1 - x0), py - y0 - t * (y1 - y0));
  };
  const point = (event) => {
    const shown = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / shown.width;
    const [px, py] = [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale];
    const near = pairs.map((pair) => [distance(pair, px, py), pair]).filter(([far]) => far < column / 3);
    show(near.sort((a, b) => a[0] - b[0])[0]?.[1]);
  };
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !pairs.length) return;
    event.preventDefault();
    show(pairs[(pairs.indexOf(at) + by + pairs.length + (at || by > 0 ? 0 : 1)) % pairs.length]);
    const shown = x(at.target) * (svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);
    frame.scrollTo({ left: shown - frame.clientWidth / 2 });
  };
  const list = () => {
    if (!details.open) return;
    body.replaceChildren(...pairs.filter(({ count }) => count === undefined).map((pair) => {
      const row = document.createElement("tr");
      [pair.layer, token(pair.source), token(pair.target), names(pair)].forEach((text) => { row.insertCell().textContent = text; });
      return row;
    }));
  };
  frame.addEventListener("pointermove", point);
  frame.addEventListener("click", point);
  frame.addEventListener("keydown", step);
  details.addEventListener("toggle", list);
  return (ofBank, one, size, whole, count) => {
    const map = whole && one.words ? ["counted"] : one.maps?.[size];
    [bank, tokens, drawn] = [ofBank, (one.words ?? []).map((i) => ofBank.tokens[i]), Boolean(map)];
    figure.hidden = bank.unit === "nodes";
    figure.dataset.unit = bank.unit;
    if (figure.hidden) return;
    const n = tokens.length, isListed = map?.[0] === "listed";
    pairs = !drawn ? [] : whole ? wholePairs(bank, n) : keptPairs(bank, n, map);
    grid(n);
    if (drawn && !isListed) drawShades();
    if (bank.unit === "edges" || !isListed) drawEdges(); else drawPositions();
    const shaded = bank.unit === "edges" ? "the share of the attention edges into a token" : "the share of the heads at a token";
    figure.querySelector(".picked-note").textContent = isListed ? ""
      : drawn ? `${count} are too many to draw one by one: shades of blue are ${shaded} that is kept.`
      : `The page holds no drawing of ${count}: those of smaller sizes took its room.`;
    figure.querySelector(".picked-meaning").textContent = bank.unit === "positions" ? "In every cell: heads, and the MLP last."
      : isListed ? "A line runs from the token that is read, and is thicker where more heads keep it." : "";
    figure.querySelector(".key.attention").textContent = bank.unit === "positions" ? "head" : "attention";
    details.hidden = !isListed;
    show();
    list();
    if (input !== one) frame.scrollLeft = frame.scrollWidth; // to the output
    input = one;
  };
};
