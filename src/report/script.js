"use strict";
// Conveniences alone: without them the page says the same.
const root = document.documentElement;

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// A heading sorts its table; again, the other way round. What has no value stays at the end.
for (const heading of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const numeric = heading.dataset.sort === "number";
    const sorted = heading.getAttribute("aria-sort");
    const down = numeric ? sorted !== "descending" : sorted === "ascending";
    const value = (row) => {
      const text = (row.cells[column].firstChild?.textContent ?? "").trim();
      return numeric ? parseFloat(text) : text.toLowerCase();
    };
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) body.append(...[...body.rows].sort(order));
  });
}

// A picture enlarges; any click or Escape closes it.
const dialog = document.querySelector("dialog");
dialog.addEventListener("click", () => dialog.close());
for (const zoom of document.querySelectorAll(".zoom")) {
  zoom.addEventListener("click", () => {
    const picture = zoom.querySelector("img").cloneNode();
    picture.removeAttribute("width");
    picture.removeAttribute("height");
    picture.loading = "eager";
    dialog.replaceChildren(picture);
    dialog.showModal();
  });
}

// A link to a class opens it.
const open = () => {
  const target = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", open);
open();

root.dataset.ready = "yes";
