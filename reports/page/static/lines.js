// The boxes that choose lines: one choice for all line charts, wherever it is made.

panels.push(function lines() {
  const boxes = [...document.querySelectorAll("input[data-row]")];
  const charts = Object.entries(models).filter(([name]) => name.startsWith("curve-") || name === "sorted");

  function show(row, visible) {
    for (const box of boxes) if (box.dataset.row === row) box.checked = visible;
    for (const [, figure] of charts) {
      for (const renderer of figure.renderers) if (renderer.name === `row-${row}`) renderer.visible = visible;
    }
  }

  for (const box of boxes) {
    box.addEventListener("change", () => show(box.dataset.row, box.checked));
    show(box.dataset.row, box.checked);
  }
  for (const button of document.querySelectorAll("button[data-lines]")) {
    button.addEventListener("click", () => {
      for (const box of button.closest("fieldset").querySelectorAll("input")) {
        show(box.dataset.row, button.dataset.lines === "all");
      }
    });
  }
});
