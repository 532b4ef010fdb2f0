// The leaderboard: sort by a title, search, filter, and take the rows shown away.

panels.push(function board() {
  const held = read("data-board");
  const table = byId("board-table");
  if (!table) return;
  const body = table.tBodies[0];
  const search = byId("board-search");
  const filters = [...document.querySelectorAll("#board-controls [data-filter]")];

  function shows(row) {
    const wanted = search.value.trim().toLowerCase().split(/\s+/);
    const text = row.textContent.toLowerCase();
    const facet = (filter) => row.getAttribute(`data-${filter.dataset.filter.replaceAll("_", "-")}`);
    return wanted.every((word) => text.includes(word)) && filters.every((f) => !f.value || facet(f) === f.value);
  }

  function refresh() {
    const rows = [...body.rows];
    for (const row of rows) row.hidden = !shows(row);
    const left = rows.filter((row) => !row.hidden).length;
    byId("board-count").textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  }

  function sort(head) {
    const column = [...head.parentNode.cells].indexOf(head);
    const value = (row) => row.cells[column].dataset.value;
    const numeric = [...body.rows].some((row) => row.cells[column].classList.contains("number"));
    // Numbers begin with the largest, texts with the first of the alphabet; empty cells come last either way.
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
    });
    for (const cell of head.parentNode.querySelectorAll("[aria-sort]")) cell.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    body.append(...rows);
  }

  const shown = () => [...body.rows].filter((row) => !row.hidden).map((row) => Number(row.dataset.row));
  for (const head of table.querySelectorAll("th[aria-sort]")) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }
  for (const control of [search, ...filters]) control.addEventListener("input", refresh);
  byId("board-csv").addEventListener("click", () => {
    const lines = [held.csv_header, ...shown().map((row) => held.csv[row])];
    download("leaderboard.csv", "text/csv", `${lines.join("\n")}\n`);
  });
  byId("board-latex").addEventListener("click", () => {
    const lines = [...held.latex_head, ...shown().map((row) => held.latex[row]), ...held.latex_foot];
    download("leaderboard.tex", "application/x-tex", `${lines.join("\n")}\n`);
  });
  refresh(); // a browser may have kept what was typed before the page was read again
});
