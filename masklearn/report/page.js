"use strict";
document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.key;
      const order = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const gap = Number(a) - Number(b);
        return (up ? 1 : -1) * (Number.isNaN(gap) ? a.localeCompare(b, undefined, { numeric: true }) : gap);
      };
      [...body.rows].map((row) => [key(row), row]).sort((a, b) => order(a[0], b[0])).forEach(([, row]) => body.append(row));
    });
  });
});
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not(.table)").forEach((details) => { details.open = true; });
});
