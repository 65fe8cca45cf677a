"use strict";

// Sort a table by the column whose heading is clicked; a second click reverses the order.
// Numbers sort by value and names alphabetically. Missing values stay at the end.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      const order = opposite[head.getAttribute("aria-sort")] || button.dataset.first;
      const sign = order === "ascending" ? 1 : -1;
      const isNumber = !head.classList.contains("name");
      const key = (row) => row.cells[column].dataset.value;
      const rows = Array.from(body.rows).sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (isNumber ? x - y : x.localeCompare(y, "en", { numeric: true }));
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  });
}

// Show only the checkpoints of the selected group whose name or network contains all
// typed words, in every table of checkpoints.
const search = document.querySelector("[data-filter]");
if (search) {
  const group = document.querySelector("[data-filter-group]");
  const count = document.querySelector("[data-filter-count]");
  const ranking = document.querySelectorAll("table.ranking tbody tr");
  const about = new Map();
  for (const row of ranking) {
    about.set(row.querySelector(".name").dataset.value, row.dataset.name.toLowerCase());
  }
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const chosen = group ? group.value : "";
    const fits = (row) => {
      const text = about.get(row.dataset.name) || row.dataset.name.toLowerCase();
      const inGroup = !chosen || row.dataset.groups.split(" ").includes(chosen);
      return inGroup && words.every((word) => text.includes(word));
    };
    for (const row of document.querySelectorAll("tr[data-name]")) row.hidden = !fits(row);
    const shown = Array.from(ranking).filter((row) => !row.hidden).length;
    count.textContent = shown === ranking.length ? "" : `${shown} of ${ranking.length}`;
  };
  search.addEventListener("input", apply);
  if (group) group.addEventListener("change", apply);
  // The fields are hidden in the markup because they need this script.
  for (const label of document.querySelectorAll(".tools label")) label.hidden = false;
}

// Show the columns that are checked.
for (const chooser of document.querySelectorAll(".chooser")) {
  const table = chooser.parentNode.querySelector("table[data-sortable]");
  const boxes = Array.from(chooser.querySelectorAll("[data-column]"));
  const apply = () => {
    for (const row of table.rows) {
      for (const box of boxes) row.cells[box.dataset.column].hidden = !box.checked;
    }
    measure();
  };
  chooser.addEventListener("change", apply);
  for (const button of chooser.querySelectorAll("[data-check]")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.check === "all";
      apply();
    });
  }
  chooser.hidden = false;
}

// Say above each table that is wider than the page that it scrolls.
const scrollers = Array.from(document.querySelectorAll(".scroll"));
for (const scroller of scrollers) {
  const text = document.createElement("p");
  text.className = "note more";
  text.textContent = "Scroll sideways to see all columns →";
  scroller.before(text);
}
const measure = () => {
  for (const scroller of scrollers) {
    const isWide = scroller.scrollWidth > scroller.clientWidth;
    scroller.classList.toggle("wide", isWide);
    scroller.previousElementSibling.hidden = !isWide;
  }
};
const observer = new ResizeObserver(measure);
for (const scroller of scrollers) observer.observe(scroller);
measure();

// Copy the command beside a button. The command stays selected, so that it can be copied
// by hand where a browser does not allow it.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// Show the hint of the element under the pointer or with the focus. A point of a plot is
// highlighted in every plot. Without this script the browser shows titles.
const hint = document.getElementById("hint");
const marksByName = new Map();
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentNode;
  mark.dataset.hint = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
  const name = mark.dataset.hint.split("\n")[0];
  if (!marksByName.has(name)) marksByName.set(name, []);
  marksByName.get(name).push(mark);
}
for (const element of document.querySelectorAll("[title]")) {
  element.dataset.hint = element.title;
  element.setAttribute("aria-description", element.title);
  element.removeAttribute("title");
}
let selected = null;
const select = (mark) => {
  if (mark === selected) return;
  const same = (one) => (one && marksByName.get(one.dataset.hint.split("\n")[0])) || [];
  for (const other of same(selected)) other.classList.remove("selected");
  for (const other of same(mark)) other.classList.add("selected");
  selected = mark;
  hint.hidden = !mark;
  if (mark) hint.textContent = mark.dataset.hint;
};
const place = (x, y) => {
  const edge = document.documentElement.clientWidth - hint.offsetWidth - 8;
  hint.style.left = `${Math.max(8, Math.min(x + 14, edge + scrollX))}px`;
  hint.style.top = `${y + 16}px`;
};
const placeBelow = (mark) => {
  const box = mark.getBoundingClientRect();
  place(box.left + scrollX, box.bottom + scrollY - 8);
};
const hinted = (event) => event.target.closest && event.target.closest("[data-hint]");
document.addEventListener("pointermove", (event) => {
  const mark = hinted(event);
  select(mark);
  if (mark) place(event.pageX, event.pageY);
});
document.addEventListener("focusin", (event) => {
  const mark = hinted(event);
  if (!mark || !event.target.matches(":focus-visible")) return;
  select(mark);
  placeBelow(mark);
});
document.addEventListener("focusout", () => select(null));
addEventListener("keydown", (event) => {
  if (event.key === "Escape") select(null);
});

// The arrow keys select the marks of the focused plot from left to right.
for (const plot of document.querySelectorAll("figure svg")) {
  const marks = Array.from(plot.querySelectorAll("[data-hint]"));
  if (!marks.length) continue;
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const left = (mark) => mark.getBoundingClientRect().left;
  plot.tabIndex = 0;
  plot.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    marks.sort((a, b) => left(a) - left(b));
    const start = marks.includes(selected) ? marks.indexOf(selected) : step > 0 ? -1 : 0;
    select(marks[(start + step + marks.length) % marks.length]);
    placeBelow(selected);
  });
}

// Unfold everything for printing.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
