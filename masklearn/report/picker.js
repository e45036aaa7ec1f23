const source = document.getElementById("picker-data");
if (source) {
  const banks = JSON.parse(source.textContent);
  const form = document.querySelector("form.picker");
  const { bank: bankSelect, input: inputSelect, size: slider } = form.elements;
  const put = (selector, text) => { document.querySelector(selector).textContent = text; };
  const options = (select, labels) => select.replaceChildren(...labels.map((label, i) => new Option(label, i)));
  const tokenMap = new TokenMap(document.querySelector(".token-map"));
  const drawMap = (bank, kept) => {
    const map = document.querySelector(".picked-map");
    const columns = bank.heads + 1;
    map.setAttribute("viewBox", `0 0 ${columns + 0.4} ${bank.layers}`);
    map.replaceChildren(...kept.map((isKept, node) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const layer = Math.floor(node / columns), head = node % columns;
      const at = { x: head + (head === bank.heads ? 0.45 : 0.05), y: bank.layers - 1 - layer + 0.05, width: 0.9, height: 0.9 };
      Object.entries(at).forEach(([key, value]) => rect.setAttribute(key, value));
      rect.setAttribute("class", isKept ? "kept" : "closed");
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = head === bank.heads ? `m${layer}` : `a${layer}.h${head}`;
      rect.append(title);
      return rect;
    }));
  };
  const drawTokens = (bank, one, size) => {
    const full = one.top[one.top.length - 1];
    const rows = [];
    for (let i = 0; i < full.length; i += 2) {
      const row = document.createElement("tr");
      [one.top[size], full].forEach((top) => {
        const [token, p] = [document.createElement("td"), document.createElement("td")];
        const known = top[i + 1] !== null; // a subgraph's output may have no finite probabilities
        token.append(Object.assign(document.createElement("code"), { textContent: known ? visible(bank.tokens[top[i]]) : "-" }));
        p.textContent = known ? (top[i + 1] / 1000).toFixed(2) : "-";
        p.style.setProperty("--share", top[i + 1] / 1000);
        row.append(token, p);
      });
      rows.push(row);
    }
    document.querySelector(".picked-tokens tbody").replaceChildren(...rows);
  };
  const draw = () => {
    const bank = banks[bankSelect.value];
    const one = bank.inputs[inputSelect.value];
    const size = Number(slider.value), whole = size === one.top.length - 1;
    const n = bank.layers * (bank.heads + 1);
    const bytes = Uint8Array.from(atob(one.kept), (c) => c.charCodeAt(0));
    const bit = (i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1;
    const kept = Array.from({ length: n }, (_, node) => whole || bit(size * n + node) === 1);
    const percent = whole ? 100 : Number((100 * bank.fractions[size]).toPrecision(3));
    const count = whole ? "all" : bank.unit === "nodes" ? bank.sizes[size] : one.units[size].reduce((a, b) => a + b);
    form.querySelector("output").textContent = `${count} ${bank.unit} (${percent} %)`;
    slider.setAttribute("aria-valuetext", `${count} ${bank.unit}`);
    put(".picked-text", one.text);
    const parts = one.units && !whole ? ` (${bank.parts.map((part, i) => `${part} ${one.units[size][i]}`).join(", ")})` : "";
    const heads = kept.filter((isKept, node) => isKept && node % (bank.heads + 1) < bank.heads).length;
    const mlps = kept.filter(Boolean).length - heads;
    const density = one.density === null ? "" : `Density ${one.density}. `;
    put(".picked-numbers", `${density}${bank.kind}, ${count} ${bank.unit}${parts}: ${heads} heads, ${mlps} MLPs; TV from the full model ${whole ? 0 : one.tv[size] ?? "-"}.`);
    put(".picked-name", `${bank.name}, input ${one.name}`);
    put(".picked-nodes", { nodes: "Nodes kept", edges: "Nodes with an edge on a path to the output", positions: "Nodes kept at some token" }[bank.unit]);
    drawMap(bank, kept);
    tokenMap.draw(bank, one, size, whole, `${count} ${bank.unit}`);
    drawTokens(bank, one, size);
  };
  const pickBank = () => {
    const bank = banks[bankSelect.value];
    options(inputSelect, bank.inputs.map((one) => `${one.name}: ${one.text.slice(0, 60)}`));
    slider.max = bank.inputs[0].top.length - 1; // the last is the full model
    slider.value = Math.floor(bank.sizes.length / 2);
    draw();
  };
  const remember = () => history.replaceState(null, "", `#inputs/${bankSelect.value}/${inputSelect.value}/${slider.value}`);
  const recall = () => {
    const [bank, input, size] = (/^#inputs\/(\d+)\/(\d+)\/(\d+)$/.exec(location.hash) || []).slice(1).map(Number);
    if (banks[bank] && banks[bank].inputs[input]) {
      bankSelect.value = bank;
      pickBank();
      inputSelect.value = input;
      slider.value = size;
      draw();
      document.getElementById("inputs").scrollIntoView();
    }
  };
  options(bankSelect, banks.map((bank) => bank.name));
  pickBank();
  recall();
  bankSelect.addEventListener("change", () => { pickBank(); remember(); });
  inputSelect.addEventListener("change", () => { draw(); remember(); });
  slider.addEventListener("input", () => { draw(); });
  slider.addEventListener("change", remember);
  addEventListener("hashchange", recall);
  form.addEventListener("submit", (event) => event.preventDefault());
}
