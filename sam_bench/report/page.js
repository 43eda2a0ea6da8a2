"use strict";
const tip = document.getElementById("tip");

for (const panel of document.querySelectorAll(".panel")) {
  const cells = (index) => panel.querySelectorAll(`[data-cell="${index}"]`);

  // pointing at a cell of a plot or at a row highlights it everywhere
  const point = (index) => {
    panel.querySelectorAll(".on").forEach((each) => each.classList.remove("on"));
    panel.classList.toggle("pointing", index !== undefined);
    if (index !== undefined) cells(index).forEach((each) => each.classList.add("on"));
  };
  panel.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("[data-cell]");
    point(cell?.dataset.cell);
    tip.hidden = !cell?.dataset.text;
    if (!tip.hidden) tip.textContent = cell.dataset.text;
  });
  panel.addEventListener("pointerleave", () => { point(); tip.hidden = true; });
  panel.addEventListener("pointermove", (event) => {
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });

  // the variant of a figure with the chosen options; if there is none, the first one with the changed option
  for (const family of panel.querySelectorAll(".family")) {
    const selects = [...family.querySelectorAll("select")];
    const variants = [...family.querySelectorAll(".variant")];
    for (const changed of selects) {
      changed.addEventListener("change", () => {
        const options = (variant) => JSON.parse(variant.dataset.options);
        const fits = (variant, some) => some.every((select) => options(variant)[select.dataset.option] === select.value);
        const chosen = variants.find((each) => fits(each, selects)) ?? variants.find((each) => fits(each, [changed]));
        variants.forEach((each) => { each.hidden = each !== chosen; });
        selects.forEach((select) => { select.value = options(chosen)[select.dataset.option]; });
      });
    }
  }

  // filter
  const filter = panel.querySelector(".filter");
  const rows = [...panel.querySelectorAll("tbody tr")];
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.cells[0].textContent.toLowerCase();
      const visible = !words.length || words.some((word) => text.includes(word));
      shown += visible;
      row.hidden = !visible;
      cells(row.dataset.cell).forEach((each) => { if (each !== row) each.classList.toggle("off", !visible); });
    }
    panel.querySelector(".count").textContent = words.length ? `${shown} of ${rows.length}` : "";
  });

  // sort: numbers by value, empty cells last
  const heads = [...panel.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (one, two) => {
        const [a, b] = [value(one), value(two)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
        return down ? -order : order;
      };
      rows.sort(compare).forEach((row) => row.parentNode.append(row));
    });
  });
}
