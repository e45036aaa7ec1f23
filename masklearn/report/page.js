"use strict";
const value = (cell) => cell.dataset.key ?? cell.textContent; // of a table
document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => value(row.cells[column]);
      const order = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const gap = Number(a) - Number(b);
        return (up ? 1 : -1) * (Number.isNaN(gap) ? a.localeCompare(b, undefined, { numeric: true }) : gap);
      };
      [...body.rows].map((row) => [key(row), row]).sort((a, b) => order(a[0], b[0])).forEach(([, row]) => body.append(row));
    });
  });
});
document.querySelectorAll("button.csv").forEach((button) => {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.table);
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const cells = (row, text) => [...row.cells].map(text).map(quoted).join(",");
    const lines = [cells(table.tHead.rows[0], (cell) => cell.textContent)];
    lines.push(...[...table.tBodies[0].rows].map((row) => cells(row, value)));
    const href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    const link = Object.assign(document.createElement("a"), { href, download: `${table.id.replace(/^table-/, "")}.csv` });
    link.click();
    URL.revokeObjectURL(href);
  });
});
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not(.table)").forEach((details) => { details.open = true; });
});
