// ---- views: one is seen at a time, and has an address

const VIEWS = ["clusters", "map", "outliers", "copies", "labels", "found"];
let last = "clusters";

function show(name) {
  if (byId(name).hidden) scrollTo({ top: Math.min(scrollY, byId("main").offsetTop - document.querySelector(".bar").offsetHeight - 16), behavior: "instant" });
  for (const view of VIEWS) byId(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.ariaCurrent = "page";
    else link.ariaCurrent = null;
  }
  if (name !== "found") last = name;
  if (name === "map") tellMap();
}

function follow() {
  const name = location.hash.slice(1), found = /^cluster-(\d+)$/.exec(name);
  if (found && CLUSTERS.has(+found[1])) goTo(+found[1]);
  else show(VIEWS.includes(name) && name !== "found" ? name : "clusters");
}

document.querySelector("nav").addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  byId("search").value = "";
  try {
    history.pushState(null, "", link.hash);
  } catch { // not allowed for a file everywhere
  }
  show(link.hash.slice(1));
});
addEventListener("popstate", follow);

// ---- search: every word has to be in the path

let typing = 0;
byId("search").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(search, 120);
};

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) {
    show(last);
    return;
  }
  const hits = [];
  DATA.path.forEach((path, i) => {
    const text = path.toLowerCase();
    if (words.every(word => text.includes(word))) hits.push(i);
  });
  byId("hits").textContent = hits.length ? counted(hits.length, "image", "images") : "No image is called that";
  gallery(byId("found").querySelector(".gallery"), hits);
  show("found");
}

// ---- outliers and copies

function drawOutliers() {
  const order = [...DATA.outlier].sort((a, b) => DATA.distance[b] - DATA.distance[a] || a - b);
  const box = byId("outliers").querySelector(".gallery");
  if (order.length) gallery(box, order);
  else box.replaceWith(el("p", {}, "There are none."));
}

function drawCopies() {
  const groups = new Map();
  for (const [i, first] of DATA.first) {
    if (!groups.has(first)) groups.set(first, [first]);
    groups.get(first).push(i);
  }
  const order = [...groups.values()].sort((a, b) => b.length - a.length || a[0] - b[0]);
  const box = byId("copies").querySelector(".groups"), most = 50;
  const add = start => {
    for (const group of order.slice(start, start + most)) {
      const grid = el("div", { className: "gallery" });
      grid.style.setProperty("--across", Math.min(group.length, 8));
      const apart = new Set(group.map(i => DATA.cluster[i])).size;
      const told = counted(group.length, "image", "images") + (apart > 1 ? `, in ${apart} clusters` : "");
      box.append(el("section", {}, el("h3", {}, told), grid));
      gallery(grid, group);
    }
    if (start + most >= order.length) return;
    const button = el("button", { type: "button" }, `Show more of ${number(order.length - start - most)} groups`);
    button.onclick = () => {
      button.remove();
      add(start + most);
    };
    box.append(button);
  };
  add(0);
  if (!order.length) box.append(el("p", {}, "There are none."));
}

// ---- begin: what is seen first comes first

recall();
document.body.classList.toggle("pixelated", DATA.pixelated);
drawSizes();
for (const c of DATA.clusters) byId("cards").append(card(c));
tell();
tellSizes();
byId("order").onchange = byId("filter").onchange = arrange;
follow();
startMap();
setTimeout(() => {
  drawOutliers();
  drawCopies();
});
scrolls(document.querySelector("nav"), false);
for (const table of document.querySelectorAll("main > section > .scrolls")) if (table.id !== "sizes") scrolls(table, false);
