// Query by query: the AP of each query under two chosen rows.

/** Points of the runs that two rows share: tested on the same data, with the same seed. */
function paired(sets, a, b, wanted) {
  const points = { x: [], y: [], query: [], person: [], run: [] };
  for (const one of a) {
    const other = b.find((run) => run.key === one.key);
    if (!other || (wanted && wanted !== one.key)) continue;
    const { query, person } = sets[one.set];
    const place = new Map(sets[other.set].query.map((id, index) => [id, index]));
    query.forEach((id, index) => {
      if (!place.has(id)) return;
      points.x.push(one.ap[index] / 1000);
      points.y.push(other.ap[place.get(id)] / 1000);
      points.query.push(id);
      points.person.push(person[index]);
      points.run.push(one.name);
    });
  }
  return points;
}

/** How two rows divide the queries, in words. */
function comparison(points) {
  const total = points.x.length;
  if (!total) return "These two rows share no query.";
  const gaps = points.y.map((value, index) => value - points.x[index]);
  const [more, less] = [gaps.filter((gap) => gap > 0).length, gaps.filter((gap) => gap < 0).length];
  const mean = gaps.reduce((sum, gap) => sum + gap, 0) / total;
  const sign = mean >= 0 ? "+" : "";
  return `${total} queries: B has more AP on ${more}, A on ${less}, equal on ${total - more - less}; ` +
    `mean of B minus A ${sign}${(100 * mean).toFixed(1)} points`;
}

panels.push(function queries() {
  const held = read("data-queries");
  if (!held) return;
  const [a, b, run] = ["pair-a", "pair-b", "pair-run"].map(byId);
  const axes = () => [part("pairs", "x-axis"), part("pairs", "y-axis")];

  function refresh() {
    const [first, second] = [held.rows[a.value], held.rows[b.value]];
    const shared = first.filter((one) => second.some((other) => other.key === one.key));
    offer(run, [["", "all"], ...shared.map((one) => [one.key, one.name])]);
    const points = paired(held.sets, first, second, run.value);
    part("pairs", "points").data = points;
    const [across, up] = axes();
    across.axis_label = `AP, A: ${a.selectedOptions[0].text}`;
    up.axis_label = `AP, B: ${b.selectedOptions[0].text}`;
    byId("pair-told").textContent = comparison(points);
  }

  preselect(b, 1);
  for (const control of [a, b, run]) control.addEventListener("change", refresh);
  refresh();
});
