// Draws the edges or the positions of a text that are kept, with what the pointer or the arrow keys pick.
const LEFT = 62, TOP = 24; // room for the labels
const box = (cx, cy, width, height) => `M${cx - width / 2} ${cy - height / 2}h${width}v${height}h${-width}z`;
const isPoint = ({ source, target }) => source === target;
class TokenMap {
  constructor(figure) {
    this.figure = figure;
    [this.svg, this.frame, this.info, this.body, this.details] = ["svg", ".frame", ".picked-pair", "tbody", "details"].map((part) => figure.querySelector(part));
    this.pairs = [];
    this.frame.addEventListener("pointermove", (event) => this.point(event));
    this.frame.addEventListener("click", (event) => this.point(event));
    this.frame.addEventListener("keydown", (event) => this.step(event));
    this.details.addEventListener("toggle", () => this.list());
  }

  get ofPositions() { return this.bank.unit === "positions"; }
  get layerHeight() { return this.y(0) - this.y(1); }

  draw(bank, input, size, whole, count) {
    const map = whole && input.words ? ["counted"] : input.maps?.[size];
    const isListed = map?.[0] === "listed", isOther = this.input !== input;
    Object.assign(this, { bank, input, tokens: (input.words ?? []).map((i) => bank.tokens[i]), drawn: Boolean(map) });
    this.figure.hidden = bank.unit === "nodes";
    this.figure.dataset.unit = bank.unit;
    if (this.figure.hidden) return;
    const n = this.tokens.length;
    this.pairs = !map ? [] : whole ? wholePairs(bank, n) : keptPairs(bank, n, map);
    this.grid(n);
    if (map && !isListed) this.drawShades();
    if (this.ofPositions && isListed) this.drawPositions(); else this.drawEdges();
    this.explain(isListed, count);
    this.details.hidden = !isListed;
    this.show();
    this.list();
    if (isOther) this.frame.scrollLeft = this.frame.scrollWidth; // to the output
  }

  explain(isListed, count) {
    const put = (selector, text) => { this.figure.querySelector(selector).textContent = text; };
    const shaded = this.ofPositions ? "the share of the heads at a token" : "the share of the attention edges into a token";
    put(".picked-note", isListed ? ""
      : this.drawn ? `${count} are too many to draw one by one: shades of blue are ${shaded} that is kept.`
      : `The page holds no drawing of ${count}: those of smaller sizes took its room.`);
    put(".picked-meaning", this.ofPositions ? "In every cell: heads, and the MLP last."
      : isListed ? "A line runs from the token that is read, and is thicker where more heads keep it." : "");
    put(".key.attention", this.ofPositions ? "head" : "attention");
  }

  add(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    if (text !== undefined) element.textContent = text;
    this.svg.append(element);
  }

  path(kind, parts, attributes = {}) {
    if (parts.length) this.add("path", { class: kind, d: parts.join(""), ...attributes });
  }

  line({ layer, source, target }) {
    const [x, from, to] = [this.x(target), this.y(layer), this.y(layer + this.middle)];
    return source === target ? `M${x} ${from}q${-this.column / 3} ${(to - from) / 2} 0 ${to - from}` : `M${this.x(source)} ${from}L${x} ${to}`;
  }

  place(n, foot) { // scales of the drawing, and its size
    const { layers, heads, parallel } = this.bank;
    const row = Math.min(56, Math.max(20, 760 / layers));
    this.column = this.ofPositions ? Math.max(42, 4 * (heads + 1)) : n > 32 ? 28 : 42;
    this.middle = parallel ? 1 : 0.6;
    this.x = (token) => LEFT + this.column * (token + 0.5);
    this.y = (level) => TOP + row * (layers - level);
    const [width, height] = [LEFT + this.column * n + 30, TOP + row * layers + foot];
    const size = { viewBox: `0 0 ${width} ${height}`, width, height };
    Object.entries(size).forEach(([key, value]) => this.svg.setAttribute(key, value));
  }

  grid(n) {
    const { layers } = this.bank;
    const labels = this.tokens.map(word).map((text) => (text.length > 11 ? `${text.slice(0, 10)}\u2026` : text));
    this.place(n, 24 + 5 * Math.max(...labels.map((text) => text.length), 0));
    this.svg.replaceChildren();
    const right = LEFT + this.column * n;
    this.path("guide", labels.map((_, token) => `M${this.x(this.ofPositions ? token - 0.5 : token)} ${this.y(0)}V${this.y(layers)}`));
    this.path("guide", Array.from({ length: layers + 1 }, (_, level) => `M${LEFT} ${this.y(level)}H${right}`));
    for (let layer = 0; layer < layers; layer += Math.ceil(14 / this.layerHeight)) {
      this.add("text", { x: LEFT - 8, y: this.y(layer + 0.5) + 4, class: "end" }, layer);
      this.add("text", { x: right + 8, y: this.y(layer + 0.5) + 4 }, layer);
    }
    this.add("text", { transform: `translate(12 ${this.y(layers / 2)}) rotate(-90)`, class: "middle" }, "layer");
    this.add("text", { x: this.x(n - 1), y: TOP - 9, class: "middle" }, "output");
    labels.forEach((text, i) => this.add("text", { transform: `translate(${this.x(i) + 4} ${this.y(0) + 14}) rotate(-45)`, class: "end" }, text));
  }

  drawEdges() {
    const { pairs, middle, bank } = this;
    const direct = (bit) => pairs.filter(({ bits }) => bits & bit);
    this.path("residual", [
      ...direct(RESIDUAL_ATTENTION).map(({ layer, target }) => `M${this.x(target)} ${this.y(layer)}V${this.y(layer + middle)}`),
      ...direct(RESIDUAL_MLP).map(({ layer, target }) => `M${this.x(target)} ${this.y(layer + middle)}V${this.y(layer + 1)}`),
    ]);
    for (let n = 1; n <= bank.heads; n += 1) {
      const share = bank.heads > 1 ? (n - 1) / (bank.heads - 1) : 0;
      const some = pairs.filter(({ heads }) => heads.length === n);
      this.path("attention", some.map((pair) => this.line(pair)), { "stroke-width": 1.2 + 3.3 * share, "stroke-opacity": 0.65 + 0.3 * share });
    }
    const height = bank.parallel || this.ofPositions ? 0.5 : (1 + middle) / 2;
    this.path("mlp", direct(MLP).map(({ layer, target }) => box(this.x(target), this.y(layer + height), 8, Math.min(8, 0.36 * this.layerHeight))));
  }

  drawPositions() {
    const { heads } = this.bank;
    const width = (0.86 * this.column) / (heads + 1), height = 0.7 * this.layerHeight;
    const slot = ({ layer, target }, head) => box(this.x(target) + width * (head - heads / 2), this.y(layer + 0.5), 0.86 * width, height);
    this.path("attention filled", this.pairs.flatMap((pair) => pair.heads.map((head) => slot(pair, head))));
    this.path("mlp", this.pairs.filter(({ bits }) => bits & MLP).map((pair) => slot(pair, heads)));
  }

  drawShades() {
    const steps = 20;
    for (let step = 1; step <= steps; step += 1) {
      const shaded = this.pairs.filter(({ count, target }) => Math.ceil((steps * count) / mostHeads(this.bank, target)) === step);
      const cells = shaded.map(({ layer, target }) => box(this.x(target), this.y(layer + 0.5), this.column, this.layerHeight));
      this.path("attention filled", cells, { "fill-opacity": (0.85 * step) / steps });
    }
  }

  token(i) { return `${i + 1} \u201c${word(this.tokens[i])}\u201d`; }

  where({ source, target }) {
    return source === target ? `at ${this.token(target)}` : `from ${this.token(source)} to ${this.token(target)}`;
  }

  names({ layer, heads, count, bits, target }) {
    const of = this.ofPositions ? "heads" : "attention edges";
    return [
      ...heads.map((head) => `a${layer}.h${head}`),
      ...(count === undefined ? [] : [`${count} of ${mostHeads(this.bank, target)} ${of}`]),
      ...(bits & MLP ? [`m${layer}`] : []),
      ...(bits & RESIDUAL_ATTENTION ? [this.bank.parallel ? "residual" : "residual past the attention"] : []),
      ...(bits & RESIDUAL_MLP ? ["residual past the MLP"] : []),
    ].join(", ");
  }

  show(pair) {
    this.picked = pair;
    this.svg.querySelector(".now")?.remove();
    this.info.textContent = pair ? `Layer ${pair.layer}, ${this.where(pair)}: ${this.names(pair) || "nothing"}` : this.drawn ? this.info.dataset.hint : "";
    if (!pair) return;
    const cell = () => box(this.x(pair.target), this.y(pair.layer + 0.5), 0.94 * this.column, this.layerHeight);
    this.path("now", [isPoint(pair) ? cell() : this.line(pair)]);
  }

  distance(pair, px, py) { // from a point to the line of a pair, in pixels
    const [x0, y0] = [this.x(pair.source), this.y(pair.layer)];
    const [x1, y1] = [this.x(pair.target), this.y(pair.layer + (isPoint(pair) ? 1 : this.middle))];
    const along = ((px - x0) * (x1 - x0) + (py - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2);
    const t = Math.min(1, Math.max(0, along));
    return Math.hypot(px - x0 - t * (x1 - x0), py - y0 - t * (y1 - y0));
  }

  point(event) {
    const shown = this.svg.getBoundingClientRect(), scale = this.svg.viewBox.baseVal.width / shown.width;
    const [px, py] = [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale];
    const near = this.pairs.map((pair) => [this.distance(pair, px, py), pair]).filter(([far]) => far < this.column / 3);
    this.show(near.sort((a, b) => a[0] - b[0])[0]?.[1]);
  }

  step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !this.pairs.length) return;
    event.preventDefault();
    const { pairs, picked } = this;
    this.show(pairs[(pairs.indexOf(picked) + by + pairs.length + (picked || by > 0 ? 0 : 1)) % pairs.length]);
    const shown = this.x(this.picked.target) * (this.svg.getBoundingClientRect().width / this.svg.viewBox.baseVal.width);
    this.frame.scrollTo({ left: shown - this.frame.clientWidth / 2 });
  }

  list() {
    if (!this.details.open) return;
    this.body.replaceChildren(...this.pairs.filter(({ count }) => count === undefined).map((pair) => {
      const row = document.createElement("tr");
      const cells = [pair.layer, this.token(pair.source), this.token(pair.target), this.names(pair)];
      cells.forEach((text) => { row.insertCell().textContent = text; });
      return row;
    }));
  }
}
