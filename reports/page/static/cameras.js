// Rank-1 by camera pair of a chosen row.

/** The grid's columns: pairs that were asked, with ink that reads on their tint. */
function cameraPairs({ cameras, rank1, queries }) {
  const data = { query: [], gallery: [], value: [], text: [], count: [], ink: [] };
  cameras.forEach((from, i) => cameras.forEach((to, j) => {
    const value = rank1[i][j];
    if (value === null) return;
    data.query.push(`q${from}`);
    data.gallery.push(`g${to}`);
    data.value.push(value);
    data.text.push(value.toFixed(0));
    data.count.push(queries[i][j]);
    data.ink.push(value < 75 ? "#FFFFFF" : "#000000");
  }));
  return data;
}

panels.push(function cameras() {
  const held = read("data-cameras");
  if (!held) return;
  const row = byId("camera-row");

  function refresh() {
    const chosen = held[row.value];
    const data = cameraPairs(chosen);
    models["camera-pairs"].x_range.factors = chosen.cameras.map((camera) => `g${camera}`);
    models["camera-pairs"].y_range.factors = chosen.cameras.map((camera) => `q${camera}`).reverse();
    part("camera-pairs", "pairs").data = data;
    const worst = data.value.indexOf(Math.min(...data.value));
    byId("camera-told").textContent = worst < 0 ? "No two cameras share a person." :
      `${chosen.run}; hardest: ${data.query[worst]} to ${data.gallery[worst]}, ` +
      `${data.value[worst].toFixed(1)} % of ${data.count[worst]} queries`;
  }

  row.addEventListener("change", refresh);
  refresh();
});
