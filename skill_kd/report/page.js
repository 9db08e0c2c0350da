"use strict";
(() => {
  const make = (name, text) => { const made = document.createElement(name); made.textContent = text; return made; };
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const kind = value => value === "" || value === "\u2013" ? 2 : typeof value === "number" ? 0 : 1;
  const order = (a, b, way) => {
    if (kind(a) !== kind(b)) return kind(a) - kind(b);
    return way * (kind(a) === 0 ? a - b : String(a).localeCompare(String(b), "en", {numeric: true}));
  };
  const sortable = table => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => order(key(a, column), key(b, column), up ? 1 : -1)));
      });
    });
  };
  const filterable = table => {
    const field = document.createElement("input"), count = make("output", ""), label = make("label", "Filter rows: ");
    const rows = [...table.tBodies[0].rows];
    field.type = "search";
    label.append(field);
    count.className = "soft";
    const box = document.createElement("div");
    box.className = "find";
    box.append(label, count);
    table.parentElement.before(box);
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every(word => text.includes(word));
      }
      const left = rows.filter(row => !row.hidden).length;
      count.textContent = left === rows.length ? "" : left + " of " + rows.length;
    });
  };
  document.querySelectorAll("table[data-sort]").forEach(sortable);
  document.querySelectorAll("table[data-filter]").forEach(filterable);
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach(each => { each.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach(each => { each.open = false; }));
})();
