// Distances: the histogram and thresholds of a chosen run.

panels.push(function distances() {
  const held = read("data-distances");
  if (!held) return;
  const [row, run] = ["distance-row", "distance-run"].map(byId);

  /** Counts as densities: each histogram has an area of 1. */
  function density(counts, width) {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count) => count / total / width);
  }

  function refresh() {
    offer(run, held[row.value].map((one, place) => [place, one.name]));
    const chosen = held[row.value][Number(run.value)];
    const { start, width } = chosen;
    const used = chosen.same.map((count, place) => count + chosen.other[place]);
    const [first, last] = [used.findIndex((count) => count > 0), used.findLastIndex((count) => count > 0)];
    part("distance-bins", "bins").data = {
      left: used.map((_, place) => start + place * width),
      right: used.map((_, place) => start + (place + 1) * width),
      same: density(chosen.same, width),
      other: density(chosen.other, width),
    };
    const figure = models["distance-bins"];
    figure.x_range.start = start + (first - 1) * width;
    figure.x_range.end = start + (last + 2) * width;
    figure.y_range.end = 1.05 * Math.max(...density(chosen.same, width), ...density(chosen.other, width));
    for (const name of ["eer", "fpr-0.01", "fpr-0.001"]) {
      const value = chosen.thresholds[name];
      const line = part("distance-bins", name);
      line.visible = value !== null && value !== undefined;
      if (line.visible) line.location = value;
    }
    const at = (name) => (chosen.tpr[name] === null || chosen.tpr[name] === undefined ? "too few pairs to tell" :
      `${printed(100 * chosen.tpr[name], 1)} % of true matches at distance ${printed(chosen.thresholds[name], 3)}`);
    byId("distance-told").textContent = `EER ${printed(100 * chosen.eer, 1)} % at distance ` +
      `${printed(chosen.thresholds.eer, 3)}; 1 % false matches: ${at("fpr-0.01")}; 0.1 %: ${at("fpr-0.001")}`;
  }

  for (const control of [row, run]) control.addEventListener("change", refresh);
  refresh();
});
