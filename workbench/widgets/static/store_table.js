// A page of items as a table: arrow keys move, Enter or a click chooses, Page Up and Page Down ask for another page.

const MOVES = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
// Cells up to this many characters are never broken into lines.
const SHORT = 18;
const PAGES = { PageDown: 1, PageUp: -1 };

function render({ model, el }) {
  el.classList.add("wb-items");
  const table = document.createElement("table");
  table.className = "wb-table";
  table.setAttribute("role", "grid");
  const caption = document.createElement("caption");
  const head = document.createElement("thead");
  const body = document.createElement("tbody");
  table.append(caption, head, body);
  const scroll = document.createElement("div");
  scroll.className = "wb-scroll";
  scroll.append(table);
  const empty = document.createElement("div");
  empty.className = "wb-note";
  el.append(scroll, empty);
  let focused = false;

  function choose(id) {
    model.set("selected", id);
    model.save_changes();
  }

  function rowOf(entry, place) {
    const row = document.createElement("tr");
    row.dataset.id = entry.id;
    row.className = entry.mark ?? "";
    row.addEventListener("click", () => choose(entry.id));
    row.addEventListener("keydown", (event) => press(event, place, entry.id));
    entry.cells.forEach((text, column) => {
      const cell = document.createElement("td");
      cell.setAttribute("role", "gridcell");
      const share = entry.shares?.[column];
      if (share > 0) {
        cell.classList.add("wb-bar-cell");
        cell.style.setProperty("--share", `${100 * share}%`);
      }
      if (text.length <= SHORT) cell.classList.add("wb-short");
      cell.textContent = text;
      row.append(cell);
    });
    return row;
  }

  function press(event, place, id) {
    if (event.key === "Enter" || event.key === " ") choose(id);
    else if (event.key in MOVES) step(place + MOVES[event.key]);
    else if (event.key in PAGES) model.send({ page: PAGES[event.key] });
    else return;
    event.preventDefault();
  }

  function step(to) {
    const place = Math.max(0, Math.min(body.rows.length - 1, to));
    for (const row of body.rows) row.tabIndex = -1;
    body.rows[place].tabIndex = 0;
    body.rows[place].focus();
  }

  function draw() {
    focused = body.contains(document.activeElement);
    const rows = model.get("rows");
    caption.textContent = model.get("label");
    table.setAttribute("aria-label", model.get("label"));
    const titles = model.get("columns").map((name) => {
      const title = document.createElement("th");
      title.scope = "col";
      title.textContent = name;
      return title;
    });
    const line = document.createElement("tr");
    line.append(...titles);
    head.replaceChildren(line);
    body.replaceChildren(...rows.map(rowOf));
    scroll.hidden = rows.length === 0;
    empty.hidden = rows.length > 0;
    empty.textContent = model.get("empty");
    mark();
    if (focused && rows.length) step([...body.rows].findIndex((row) => row.tabIndex === 0));
  }

  function mark() {
    const chosen = [...body.rows].findIndex((row) => Number(row.dataset.id) === model.get("selected"));
    [...body.rows].forEach((row, place) => {
      row.setAttribute("aria-selected", String(place === chosen));
      row.tabIndex = place === Math.max(0, chosen) ? 0 : -1;
    });
  }

  model.on("change:columns change:rows change:label change:empty", draw);
  model.on("change:selected", mark);
  draw();
}

export default { render };
