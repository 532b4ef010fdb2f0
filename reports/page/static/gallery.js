// Failures: the nearest images of the chosen row's worst queries, beside those of another row.

/** How a listed image stands to its query: the same person or not, or the same person under the same camera. */
function verdictOf(held, query, listed) {
  if (held.people[query] !== held.people[listed]) return "wrong";
  return held.cameras[query] === held.cameras[listed] ? "same-camera" : "right";
}

/** Places of the queries in the order that the reader wants; a query without AP comes last. */
function ordered(a, b, order) {
  const sign = order === "best" ? -1 : 1;
  const value = (place) => (order === "lost" ? a.ap[place] - b.ap[place] : sign * a.ap[place]);
  const places = a.ap.map((_, place) => place);
  return places.filter((place) => a.ap[place] !== null).sort((x, y) => value(x) - value(y) || x - y);
}

panels.push(function failures() {
  const held = read("data-failures");
  if (!held) return;
  const [first, second, order, more] = ["failures-a", "failures-b", "failures-order", "failures-more"].map(byId);
  const list = byId("failures-list");
  const step = 6;
  const [width, height] = [1.25 * held.width, 1.25 * held.height]; // as shown
  let shown = step;

  function card(place, kind, told, text) {
    const { across } = held;
    const box = { class: `card ${kind}`, role: "img", "aria-label": told, style: `width:${width + 6}px` };
    const made = element("div", "", box);
    const style = `width:${width}px;height:${height}px;background-size:${across * width}px auto;` +
      `background-position:-${(place % across) * width}px -${Math.floor(place / across) * height}px`;
    made.append(element("span", "", { class: "image", style }), element("span", text));
    return made;
  }

  function strip(name, row, place) {
    const made = element("div");
    const [ap, rank] = [printed(row.ap[place], 2), printed(row.first[place], 0)];
    made.append(element("div", `${name}: AP ${ap}, first match at ${rank}`, { class: "told" }));
    const cards = element("div", "", { class: "strip" });
    const [person, camera] = [held.people[place], held.cameras[place]];
    cards.append(card(place, "query", `query: person ${person}, camera ${camera}`, `${person} c${camera}`));
    row.lists[place].forEach((listed, rankBefore) => {
      const kind = verdictOf(held, place, listed);
      const sign = { right: "✓", wrong: "✗", "same-camera": "=" }[kind];
      const told = `${rankBefore + 1}: person ${held.people[listed]}, camera ${held.cameras[listed]}, ${kind}`;
      cards.append(card(listed, kind, told, `${sign} ${held.people[listed]} c${held.cameras[listed]}`));
    });
    made.append(cards);
    return made;
  }

  function refresh() {
    const [a, b] = [held.rows[first.value], held.rows[second.value]];
    const places = ordered(a, b, order.value);
    list.replaceChildren(...places.slice(0, shown).map((place) => {
      const pair = element("div", "", { class: "strips" });
      pair.append(element("h3", `query ${held.queries[place]}`));
      pair.append(strip(first.selectedOptions[0].text, a, place));
      if (first.value !== second.value) pair.append(strip(second.selectedOptions[0].text, b, place));
      return pair;
    }));
    more.hidden = shown >= places.length;
    byId("failures-told").textContent = `${Math.min(shown, places.length)} of ${places.length} queries, ${a.run}`;
  }

  preselect(second, 1);
  for (const control of [first, second, order]) {
    control.addEventListener("change", () => {
      shown = step;
      refresh();
    });
  }
  more.addEventListener("click", () => {
    shown += step;
    refresh();
  });
  refresh();
});
