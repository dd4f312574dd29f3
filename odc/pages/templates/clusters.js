// ---- the clusters: sizes, and a card for each

const CARDS = new Map();

function drawSizes() {
  const box = byId("sizes"), largest = Math.max(...DATA.clusters.map(c => c.size));
  for (const c of DATA.clusters) {
    const bar = el("i");
    bar.style.height = `${(6.6 * c.size / largest).toFixed(2)}rem`;
    const button = el("button", { type: "button", className: "stop", tabIndex: box.children.length ? -1 : 0 },
      el("span", {}, number(c.size)), bar, el("b", {}, String(c.id)));
    button.onclick = () => goTo(c.id);
    button.dataset.cluster = c.id;
    box.append(button);
  }
  box.dataset.tiles = "";
  scrolls(box);
}

function tellSizes() {
  for (const button of byId("sizes").children) {
    const c = CLUSTERS.get(+button.dataset.cluster);
    button.title = titleOf(c.id);
    button.setAttribute("aria-label", `${titleOf(c.id)}: ${counted(c.size, "image", "images")}`);
  }
}

function card(c) {
  const name = el("input", {
    className: "name", placeholder: "Name this cluster", maxLength: LONGEST, autocomplete: "off", list: "names",
    ariaLabel: `Name of cluster ${c.id}`,
  });
  name.oninput = () => {
    said.names.set(groupOf(c.id), name.value);
    changed();
  };
  name.onkeydown = event => {
    if (event.key !== "Enter") return;
    said.seen.add(c.id);
    changed();
    const inputs = [...byId("cards").querySelectorAll(".card:not([hidden]) .name")];
    const next = inputs[inputs.indexOf(name) + 1];
    if (next) next.focus();
  };
  const mark = (set, word) => {
    const button = el("button", { type: "button", ariaPressed: "false" }, word);
    button.onclick = () => {
      if (!set.delete(c.id)) set.add(c.id);
      changed();
    };
    return button;
  };
  const mixed = mark(said.mixed, "Mixed"), looked = mark(said.seen, "Looked at");
  const join = el("button", { type: "button" }, "Merge…");
  join.onclick = () => openMerge(c.id);
  const facts = [
    counted(c.size, "image", "images"), `${decimal(100 * c.size / DATA.total, 1)} %`,
    `consistency ${Math.round(100 * c.consistency)} %`,
  ];
  if (c.silhouette !== null) facts.push(`silhouette ${decimal(c.silhouette)}`);
  const buttons = el("div", { className: "buttons" }, mixed, looked, join);
  const merged = el("p", { className: "merged soft", hidden: true });
  const head = el("header", {}, el("h2", { id: `title-${c.id}` }, String(c.id)), name,
    el("p", { className: "facts-line soft" }, facts.join(" · ")),
    buttons, merged);
  if (c.guesses.length) head.append(guesses(c));
  const strip = el("div", { className: "strip" });
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", `Images of cluster ${c.id}; arrow keys move`);
  const columns = Math.max(1, Math.min(3, Math.ceil(c.strips[0].length / 2)));
  c.strips.forEach((images, k) => {
    if (!images.length) return;
    const grid = el("div", { className: "tiles" });
    grid.style.setProperty("--across", columns);
    strip.append(el("figure", {}, el("figcaption", {}, KINDS[k][0].toUpperCase() + KINDS[k].slice(1)), grid));
    tiles(strip, images, null, grid);
  });
  const made = el("article", { className: "card", id: `cluster-${c.id}`, tabIndex: -1 }, head, strip);
  made.setAttribute("aria-labelledby", `title-${c.id}`);
  scrolls(strip, !CARDS.size); // one hint is enough
  const members = MEMBERS.get(c.id) || [];
  if (members.length > c.strips.flat().length) {
    const all = el("button", { type: "button", ariaExpanded: "false" });
    const grid = el("div", { className: "gallery", hidden: true, ariaLabel: `All images of cluster ${c.id}` });
    const word = () => grid.hidden ? `All ${number(members.length)}${members.length < c.size ? " on this page" : ""}` : "Hide all";
    all.textContent = word();
    all.onclick = () => {
      grid.hidden = !grid.hidden;
      all.ariaExpanded = String(!grid.hidden);
      all.textContent = word();
      if (!grid.hidden && !grid.children.length) gallery(grid, members);
    };
    buttons.prepend(all);
    made.append(grid);
  }
  CARDS.set(c.id, { made, name, mixed, looked, merged });
  return made;
}

function guesses(c) {
  const line = el("p", { className: "guesses soft" }, "Guessed from words:");
  for (const word of c.guesses) {
    const button = el("button", { type: "button", title: "Take this guess as the name" }, shown(word));
    button.onclick = () => {
      said.names.set(groupOf(c.id), word.slice(0, LONGEST));
      changed();
    };
    line.append(button);
  }
  return line;
}

function tellCard(c) {
  const { made, name, mixed, looked, merged } = CARDS.get(c), others = mergedWith(c);
  if (name.value !== nameOf(c)) name.value = nameOf(c);
  mixed.ariaPressed = String(said.mixed.has(c));
  looked.ariaPressed = String(said.seen.has(c));
  made.classList.toggle("is-mixed", said.mixed.has(c));
  merged.hidden = !others.length;
  const told = others.join(",");
  if (merged.dataset.told === told) return;
  merged.dataset.told = told;
  merged.replaceChildren();
  if (!others.length) return;
  merged.append(`Merged with ${others.join(", ")} `);
  const apart = el("button", { type: "button" }, "Separate");
  apart.onclick = () => {
    separate(c);
    name.focus();
  };
  merged.append(apart);
}

// ---- order and filter

const ORDERS = {
  size: (a, b) => b.size - a.size || a.id - b.id,
  id: (a, b) => a.id - b.id,
  consistency: (a, b) => a.consistency - b.consistency || a.id - b.id,
  silhouette: (a, b) => (a.silhouette ?? 2) - (b.silhouette ?? 2) || a.id - b.id,
  name: (a, b) => (nameOf(a.id) || "\uffff").localeCompare(nameOf(b.id) || "\uffff") || a.id - b.id,
};
const FILTERS = {
  all: () => true, unnamed: c => !nameOf(c).trim(), unseen: c => !said.seen.has(c), mixed: c => said.mixed.has(c),
};

function arrange() {
  const wanted = FILTERS[byId("filter").value];
  const order = [...DATA.clusters].sort(ORDERS[byId("order").value]);
  let count = 0;
  for (const c of order) {
    const { made } = CARDS.get(c.id);
    made.hidden = !wanted(c.id);
    count += !made.hidden;
    byId("cards").append(made);
  }
  byId("listed").textContent = count < order.length ? `${number(count)} of ${counted(order.length, "cluster", "clusters")}` : "";
}

function goTo(c) {
  const { made } = CARDS.get(c);
  if (made.hidden) {
    byId("filter").value = "all";
    arrange();
  }
  show("clusters");
  made.scrollIntoView();
  made.focus({ preventScroll: true });
}

// ---- merge

function openMerge(c) {
  const box = byId("merge");
  byId("merge-title").textContent = `Merge ${titleOf(c)} with`;
  byId("other").value = byId("other-wrong").textContent = "";
  const choose = other => {
    merge(c, other);
    box.close();
  };
  byId("choices").replaceChildren(...CLUSTERS.get(c).similar.filter(other => groupOf(other) !== groupOf(c)).map(other => {
    const images = CLUSTERS.get(other).strips.flat().slice(0, 3).map(i => tile(i, "span"));
    const button = el("button", { type: "button" }, ...images,
      el("span", {}, titleOf(other), el("br"), el("span", { className: "soft" }, counted(CLUSTERS.get(other).size, "image", "images"))));
    button.onclick = () => choose(other);
    return button;
  }));
  byId("by-number").onsubmit = event => {
    event.preventDefault();
    const other = byId("other").valueAsNumber;
    if (CLUSTERS.has(other) && groupOf(other) !== groupOf(c)) choose(other);
    else byId("other-wrong").textContent = CLUSTERS.has(other) ? "They are one already." : "There is no such cluster on this page.";
  };
  box.showModal();
}
