// A click or Enter on a column's head sorts its table: numbers as numbers, what is absent at the end.
const value = (row, column) => row.cells[column].textContent.trim();
const number = text => {
  const found = text.replace(/\u2212/g, "-").replace(/,/g, "").match(/^(?:< )?([+-]?[\d.]+(?:e[+-]?\d+)?)(?![\w-])/);
  return found ? parseFloat(found[1]) : NaN;
};
const isAbsent = text => ["", "\u2013", "none"].includes(text) || text.startsWith("none:");
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  if (table.tBodies[0].rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const rows = [...table.tBodies[0].rows];
      const there = rows.map(row => value(row, column)).filter(text => !isAbsent(text));
      const areNumbers = there.every(text => !isNaN(number(text)));
      const compare = (a, b) => areNumbers ? number(a) - number(b) : a.localeCompare(b, undefined, {numeric: true});
      rows.sort((x, y) => {
        const [a, b] = [value(x, column), value(y, column)];
        return isAbsent(a) - isAbsent(b) || (isAbsent(a) ? 0 : sign * compare(a, b));
      });
      table.tBodies[0].append(...rows);
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    });
  });
}
