// What two rows differ in: settings, and where the numbers come from.

/** [key, value of A, value of B] of the keys that differ, or of all. */
function differing(a, b, all) {
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])];
  const text = (held, key) => (key in held ? String(held[key]) : "-");
  return keys.map((key) => [key, text(a, key), text(b, key)]).filter(([, x, y]) => all || x !== y);
}

panels.push(function settings() {
  const held = read("data-settings");
  if (!held) return;
  const [a, b, all] = ["settings-a", "settings-b", "settings-all"].map(byId);
  const body = byId("settings-table").tBodies[0];

  function refresh() {
    const [first, second] = [held[a.value], held[b.value]];
    body.replaceChildren();
    const told = [];
    for (const group of ["settings", "provenance"]) {
      const lines = differing(first[group], second[group], all.checked);
      told.push(`${differing(first[group], second[group], false).length} of ${group}`);
      const title = element("tr");
      title.append(element("th", group, { scope: "rowgroup", colspan: "3" }));
      if (lines.length) body.append(title);
      for (const [key, x, y] of lines) {
        const line = element("tr");
        line.append(element("th", key, { scope: "row" }), element("td", x), element("td", y));
        body.append(line);
      }
    }
    byId("settings-told").textContent = `They differ in ${told.join(" and ")}.`;
  }

  preselect(b, 1);
  for (const control of [a, b, all]) control.addEventListener("change", refresh);
  refresh();
});
