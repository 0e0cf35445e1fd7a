// Draws the charts of open parts, marks a cell in all figures and tables of its study, and hides
// and filters what tables hold.
const theme = JSON.parse(document.getElementById("theme").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const views = new Map();

async function render(chart) {
  if (views.has(chart)) return;
  views.set(chart, null);
  const spec = { ...JSON.parse(chart.querySelector("script").textContent), width: "container" };
  const options = { ast: true, actions: false, renderer: "svg", config: theme,
    tooltip: { theme: "custom", disableDefaultStyle: true } };
  const { view } = await vegaEmbed(chart.querySelector("div"), spec, options);
  views.set(chart, view);
  const study = chart.closest("section");
  view.addEventListener("click", (_, item) => mark(study, item?.datum?.cell ?? null));
  if (study.dataset.marked !== undefined) view.signal("marked", study.dataset.marked).runAsync();
}

function mark(study, cell) {
  const marked = cell === null || cell === study.dataset.marked ? null : cell;
  if (marked === null) delete study.dataset.marked; else study.dataset.marked = marked;
  for (const [chart, view] of views) if (view && study.contains(chart)) view.signal("marked", marked).runAsync();
  for (const row of all("tr[data-cell]", study)) row.classList.toggle("marked", row.dataset.cell === marked);
  for (const select of all(".tools select", study)) select.value = marked ?? "";
}

// A chart of a closed part has no width yet.
const isOpen = chart => !chart.parentElement.closest("details:not([open])");
const renderOpen = within => { for (const chart of all(".chart", within)) if (isOpen(chart)) render(chart); };
for (const part of all("details")) part.addEventListener("toggle", () => part.open && renderOpen(part));
renderOpen(document);

for (const study of all("section")) {
  const rows = all("tr[data-cell]", study);
  for (const row of rows) row.addEventListener("click", () => mark(study, row.dataset.cell));
  const tools = study.querySelector(".tools");
  const names = [...new Set(rows.map(row => row.dataset.cell))].slice(0, 200);
  if (!tools) continue;
  if (names.length > 1) {
    const select = document.createElement("select");
    select.append(new Option("none", ""), ...names.map(name => new Option(name, name)));
    select.addEventListener("change", () => mark(study, select.value || null));
    const label = document.createElement("label");
    label.append("Mark in all figures: ", select);
    tools.append(label);
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Open all";
  button.addEventListener("click", () => { for (const part of all("details", study)) part.open = true; });
  tools.append(button);
}

for (const table of all("table")) {
  const rows = [...table.rows];
  const heads = [...table.tHead.rows[0].cells];
  const frame = table.closest(".scroll");
  if (heads.some(head => head.hidden)) {
    const chosen = document.createElement("details");
    chosen.className = "columns";
    const summary = document.createElement("summary");
    summary.textContent = `Columns: ${heads.filter(head => !head.hidden).length} of ${heads.length}`;
    chosen.append(summary);
    heads.slice(1).forEach((head, i) => {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !head.hidden;
      box.addEventListener("change", () => {
        for (const row of rows) row.cells[i + 1].hidden = !box.checked;
        summary.textContent = `Columns: ${heads.filter(each => !each.hidden).length} of ${heads.length}`;
      });
      const label = document.createElement("label");
      label.append(box, ` ${head.textContent}`);
      chosen.append(label);
    });
    frame.before(chosen);
  }
  if (rows.length > 12) {
    const filter = document.createElement("input");
    filter.className = "filter";
    filter.type = "search";
    filter.placeholder = "Filter rows";
    filter.setAttribute("aria-label", `Filter rows: ${table.caption.textContent}`);
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
    });
    frame.before(filter);
  }
}

function openTarget() {
  const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (part instanceof HTMLDetailsElement) part.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
addEventListener("beforeprint", () => {
  for (const part of all("details")) if (!part.classList.contains("columns")) part.open = true;
  renderOpen(document);
});
