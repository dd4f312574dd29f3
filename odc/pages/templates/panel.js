// ---- one image: where it is, what is told of it, what is near it

const panel = byId("panel");
const before = []; // images that were looked at before this one
let current = -1;

function openPanel(i, back = false) {
  if (panel.open && current >= 0 && current !== i && !back) before.push(current);
  if (!panel.open) before.length = 0;
  current = i;
  const c = DATA.cluster[i], path = DATA.path[i];
  byId("panel-title").textContent = fileName(i);
  byId("panel-path").textContent = shown(path);
  byId("large").textContent = "";
  byId("large").classList.remove("word");
  paint(byId("large"), i);
  byId("large").setAttribute("role", "img");
  byId("large").setAttribute("aria-label", shown(path));
  const values = byId("values");
  values.replaceChildren();
  const tell = (word, ...what) => values.append(el("dt", {}, word), el("dd", {}, ...what));
  if (c >= 0 && CLUSTERS.has(c)) {
    const go = el("button", { type: "button" }, titleOf(c));
    go.onclick = () => {
      panel.close();
      goTo(c);
    };
    tell("Cluster", go);
  } else tell("Cluster", c < 0 ? "none" : String(c));
  if (c >= 0) {
    tell("Confidence", `surer than ${percent(DATA.confidence[i])} of the images`);
    tell("Consistency", `${percent(DATA.consistent[i])} of its neighbours are in the cluster`);
    tell("Distance", `${decimal(DATA.distance[i] / 1000, 3)} to the cluster’s middle`);
  }
  if (OUTLIER.has(i)) tell("Outlier", "far from all other images");
  if (FIRST.has(i)) {
    const go = el("button", { type: "button" }, shown(DATA.path[FIRST.get(i)]));
    go.onclick = () => openPanel(FIRST.get(i));
    tell("Repeats", go);
  }
  if (DATA.folder) {
    const href = DATA.folder + path.split("/").map(part => encoded(part)).join("/");
    tell("File", el("a", { href, target: "_blank", rel: "noopener" }, "open"));
  }
  byId("own").value = said.images.get(path) || "";
  const members = MEMBERS.get(c), k = members.indexOf(i);
  byId("position").textContent = `${number(k + 1)} of ${number(members.length)}`;
  byId("previous").disabled = k === 0;
  byId("next").disabled = k === members.length - 1;
  byId("back").disabled = !before.length;
  const near = byId("nearest");
  near.replaceChildren();
  near.setAttribute("role", "group");
  near.setAttribute("aria-label", "Nearest images; arrow keys move");
  tiles(near, DATA.nearest[i], other => DATA.cluster[other] === c ? "same cluster" : titleOf(DATA.cluster[other]));
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}

function encoded(part) {
  try {
    return encodeURIComponent(part);
  } catch { // bytes that are no text
    return [...part].map(c => /[\udc80-\udcff]/u.test(c) ? "%" + (c.charCodeAt(0) - 0xdc00).toString(16) : encodeURIComponent(c)).join("");
  }
}

function step(by) {
  const members = MEMBERS.get(DATA.cluster[current]), to = members[members.indexOf(current) + by];
  if (to !== undefined) openPanel(to);
}

byId("previous").onclick = () => step(-1);
byId("next").onclick = () => step(1);
byId("back").onclick = () => before.length && openPanel(before.pop(), true);
byId("own").oninput = event => {
  const value = event.target.value.trim();
  if (value) said.images.set(DATA.path[current], value);
  else said.images.delete(DATA.path[current]);
  changed();
};
panel.addEventListener("keydown", event => {
  if (event.target.closest("input, .tile")) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  }
});
document.addEventListener("click", event => {
  const made = event.target.closest("button.tile");
  if (made) openPanel(+made.dataset.i);
  const close = event.target.closest("dialog .close");
  if (close) close.closest("dialog").close();
  if (event.target.matches("dialog")) event.target.close(); // the ground beside it
});
