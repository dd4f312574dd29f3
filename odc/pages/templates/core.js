// ---- what the page is about, and how its parts are made. Names of files are text here, never HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COUNT = DATA.path.length;
const KINDS = ["most central", "borderline", "random"];
const CLUSTERS = new Map(DATA.clusters.map(c => [c.id, c]));
const OUTLIER = new Set(DATA.outlier);
const FIRST = new Map(DATA.first); // of a repetition the image that it repeats
const byId = id => document.getElementById(id);

// By cluster its images, the surest first.
const MEMBERS = new Map();
for (let i = 0; i < COUNT; i++) {
  if (!MEMBERS.has(DATA.cluster[i])) MEMBERS.set(DATA.cluster[i], []);
  MEMBERS.get(DATA.cluster[i]).push(i);
}
for (const members of MEMBERS.values()) members.sort((a, b) => DATA.confidence[b] - DATA.confidence[a] || a - b);

function el(kind, set, ...inside) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(set || {})) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}

// What would turn the direction of writing, or cannot be seen, is told as an escape.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udfff]/gu;
const shown = text => text.replace(HIDDEN, c => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
const baseName = path => path.slice(path.lastIndexOf("/") + 1);
const number = n => n.toLocaleString("en-US");
const counted = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;
const percent = thousandths => `${Math.round(thousandths / 10)} %`;
const decimal = (x, digits = 2) => x.toFixed(digits).replace("-", "−");

// ---- thumbnails: a sheet becomes a style when the first of its images comes near the screen

const SHEETS = DATA.sheets;
const styled = new Set();
const rules = document.styleSheets[0];

function placeOf(i) {
  const sheet = Math.floor(i / DATA.tiles), [columns, rows] = SHEETS[sheet], k = i % DATA.tiles;
  return { sheet, columns, rows, x: k % columns, y: Math.floor(k / columns) };
}

function paint(element, i) {
  if (!SHEETS.length) {
    element.textContent = fileName(i);
    element.classList.add("word");
    return;
  }
  const { sheet, columns, rows, x, y } = placeOf(i);
  if (!styled.has(sheet)) {
    const source = byId(`sheet-${sheet}`);
    if (!source) { // the end of the file is not here yet
      document.addEventListener("DOMContentLoaded", () => paint(element, i), { once: true });
      return;
    }
    styled.add(sheet);
    rules.insertRule(`.sheet-${sheet}{background-image:url("${source.textContent}")}`, rules.cssRules.length);
  }
  element.classList.forEach(name => name.startsWith("sheet-") && element.classList.remove(name));
  element.classList.add(`sheet-${sheet}`);
  element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  element.style.backgroundPosition =
    `${columns > 1 ? 100 * x / (columns - 1) : 0}% ${rows > 1 ? 100 * y / (rows - 1) : 0}%`;
}

const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    paint(entry.target, +entry.target.dataset.i);
  }
}, { rootMargin: "500px" });

function tile(i, kind = "button") {
  const made = el(kind, { className: "tile", title: shown(DATA.path[i]) });
  made.dataset.i = i;
  if (kind === "button") {
    made.type = "button";
    made.setAttribute("aria-label", `${shown(DATA.path[i])}, ${inWords(i)}`);
  }
  seen.observe(made);
  return made;
}

function inWords(i) {
  const c = DATA.cluster[i];
  const place = c < 0 ? "in no cluster" : `cluster ${c}, confidence ${percent(DATA.confidence[i])}`;
  return place + (OUTLIER.has(i) ? ", outlier" : "") + (FIRST.has(i) ? ", repetition" : "");
}

// ---- groups of tiles, or of bars, have one stop of the tab key; the arrow keys move among them

const STOPS = ".tile, .stop";

// Each with what ``caption`` says of it below, where there is one.
function tiles(group, images, caption = null, into = group) {
  for (const i of images) {
    const made = tile(i);
    made.tabIndex = group.querySelector(".tile") ? -1 : 0;
    into.append(caption ? el("figure", {}, made, el("figcaption", {}, caption(i))) : made);
  }
  group.dataset.tiles = "";
}

const MORE = 120;

const fileName = i => shown(baseName(DATA.path[i]));

function gallery(container, images) {
  container.replaceChildren();
  container.setAttribute("role", "group");
  const add = () => {
    const start = container.querySelectorAll(".tile").length;
    tiles(container, images.slice(start, start + MORE), fileName);
    const left = images.length - start - MORE;
    if (left > 0) {
      const button = el("button", { type: "button", className: "further" }, `Show ${Math.min(MORE, left)} more of ${number(left)}`);
      button.onclick = () => {
        button.remove();
        add();
        focusOn(container, start + MORE);
      };
      container.append(button);
    }
  };
  add();
}

function focusOn(container, k) {
  const all = [...container.querySelectorAll(STOPS)];
  if (!all[k]) return;
  for (const one of all) one.tabIndex = one === all[k] ? 0 : -1;
  all[k].focus();
}

document.addEventListener("keydown", event => {
  const from = event.target.closest && event.target.closest(STOPS), group = from && from.closest("[data-tiles]");
  if (!group || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = [...group.querySelectorAll(STOPS)], k = all.indexOf(from);
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -k, End: all.length - 1 - k };
  let to = event.key in steps ? k + steps[event.key] : -1;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") to = across(all, k, event.key === "ArrowDown");
  if (!(event.key in steps) && !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  event.stopPropagation();
  if (to >= 0 && to < all.length) focusOn(group, to);
});

// The nearest tile in the next row down or up.
function across(all, k, down) {
  const from = all[k].getBoundingClientRect();
  let best = -1, least = Infinity;
  all.forEach((one, j) => {
    const box = one.getBoundingClientRect(), dy = down ? box.top - from.top : from.top - box.top;
    if (dy < from.height / 2) return;
    const far = 1000 * dy + Math.abs(box.left - from.left);
    if (far < least) [best, least] = [j, far];
  });
  return best;
}

// ---- what is wider than the screen fades on the side where there is more

const measured = new ResizeObserver(entries => entries.forEach(entry => fade(entry.target)));

function fade(box) {
  const right = box.scrollWidth - box.clientWidth - box.scrollLeft;
  box.classList.toggle("more-left", box.scrollLeft > 2);
  box.classList.toggle("more-right", right > 2);
  const hint = box.nextElementSibling;
  if (hint && hint.classList.contains("hint")) hint.hidden = box.scrollWidth <= box.clientWidth + 2;
}

function scrolls(box, hint = true) {
  box.classList.add("scrolls");
  box.addEventListener("scroll", () => fade(box), { passive: true });
  if (hint) box.after(el("p", { className: "hint", hidden: true, ariaHidden: "true" }, "scroll sideways for more →"));
  measured.observe(box);
}
