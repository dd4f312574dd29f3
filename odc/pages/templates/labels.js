// ---- what a person says of the clusters: names, merged ones, marks, labels of single images

const KEY = `odc-clusters-${DATA.key}`;
const LONGEST = 200; // letters of a name
const said = { names: new Map(), group: new Map(), mixed: new Set(), seen: new Set(), images: new Map() };
let keeps = true; // whether the browser keeps what is said
let touched = false;
const PLACE = new Map(DATA.path.map((path, i) => [path, i]));

const groupOf = c => said.group.has(c) ? said.group.get(c) : c;
const groupMembers = g => DATA.clusters.map(c => c.id).filter(c => groupOf(c) === g);
const mergedWith = c => groupMembers(groupOf(c)).filter(other => other !== c);

// The name of a cluster: what was said of those merged with it, or else what it had before.
function nameOf(c) {
  const g = groupOf(c);
  if (said.names.has(g)) return said.names.get(g);
  for (const member of [g, ...groupMembers(g)]) {
    const had = CLUSTERS.get(member);
    if (had && had.name) return had.name;
  }
  return "";
}

// What a cluster's images are labelled as; nothing where nobody said anything. A name that a cluster had before, by a
// program perhaps, counts once a person has looked at it.
function labelOf(c) {
  const all = groupMembers(groupOf(c)), name = nameOf(c).trim();
  if (name && (said.names.has(groupOf(c)) || all.some(one => said.seen.has(one)))) return name;
  return all.length > 1 ? all.join("+") : "";
}

function titleOf(c) {
  if (c < 0) return "no cluster";
  const name = nameOf(c).trim();
  return `cluster ${c}` + (name ? ` (${shown(name)})` : "");
}

function merge(a, b) {
  if (groupOf(a) === groupOf(b)) return;
  const name = nameOf(b).trim() || nameOf(a).trim(), to = groupOf(b), from = groupOf(a);
  for (const c of groupMembers(from)) said.group.set(c, to);
  said.names.delete(from);
  if (name) said.names.set(to, name);
  changed();
}

function separate(c) {
  const g = groupOf(c), name = nameOf(c), rest = mergedWith(c);
  if (!rest.length) return;
  const head = Math.min(...rest);
  said.names.delete(g);
  for (const other of rest) said.group.set(other, head);
  if (name) said.names.set(head, name);
  said.group.set(c, c);
  changed();
}

// Rows [image, label] of the table that is downloaded.
function labelRows() {
  const rows = [];
  for (const c of DATA.clusters) {
    const label = said.mixed.has(c.id) ? "" : labelOf(c.id);
    const plain = (MEMBERS.get(c.id) || []).filter(i => !OUTLIER.has(i) && !FIRST.has(i));
    const surer = new Set(plain.slice(0, Math.ceil(plain.length / 2)));
    for (const i of MEMBERS.get(c.id) || []) {
      const own = said.images.get(DATA.path[i]);
      if (own) rows.push([i, own]);
      else if (label && surer.has(i)) rows.push([i, label]);
    }
  }
  for (const i of MEMBERS.get(-1) || []) if (said.images.has(DATA.path[i])) rows.push([i, said.images.get(DATA.path[i])]);
  return rows.sort((a, b) => a[0] - b[0]);
}

const quoted = text => /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
const asTable = rows =>
  "path,label\n" + rows.map(([i, label]) => `${quoted(DATA.path[i])},${quoted(label.trim())}\n`).join("");

// Names of files may be bytes that are no text: those stand as lone halves of pairs, and leave as the bytes they were.
function bytesOf(text) {
  const encoder = new TextEncoder(), parts = [];
  for (const part of text.split(/([\udc80-\udcff])/u)) {
    const code = part.length === 1 ? part.charCodeAt(0) : 0;
    parts.push(code >= 0xdc80 && code <= 0xdcff ? new Uint8Array([code - 0xdc00]) : encoder.encode(part));
  }
  return parts;
}

function download() {
  const file = new Blob(bytesOf(asTable(labelRows())), { type: "text/csv" });
  const link = el("a", { href: URL.createObjectURL(file), download: "labels.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  touched = false;
}

// ---- kept in the browser where it allows that; what is read back may be anything

function keep() {
  const kept = {
    names: [...said.names], group: [...said.group], mixed: [...said.mixed], seen: [...said.seen], images: [...said.images],
  };
  try {
    localStorage.setItem(KEY, JSON.stringify(kept));
  } catch {
    keeps = false;
  }
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY) || "{}") || {};
  } catch {
    keeps = false;
  }
  const list = name => Array.isArray(kept[name]) ? kept[name] : [];
  const cluster = c => CLUSTERS.has(c), text = t => typeof t === "string" && t.length <= LONGEST;
  for (const pair of list("names")) if (Array.isArray(pair) && cluster(pair[0]) && text(pair[1])) said.names.set(...pair);
  for (const pair of list("group")) if (Array.isArray(pair) && pair.every(cluster)) said.group.set(pair[0], pair[1]);
  for (const c of list("mixed")) if (cluster(c)) said.mixed.add(c);
  for (const c of list("seen")) if (cluster(c)) said.seen.add(c);
  for (const pair of list("images"))
    if (Array.isArray(pair) && PLACE.has(pair[0]) && text(pair[1])) said.images.set(...pair);
}

let waiting = 0;

// Something was said: every place that tells of it follows.
function changed() {
  touched = true;
  keep();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(tell);
}

function tell() {
  for (const c of DATA.clusters) tellCard(c.id);
  tellLabels();
}

function tellLabels() {
  const rows = labelRows(), counts = new Map();
  for (const [, label] of rows) counts.set(label.trim(), (counts.get(label.trim()) || 0) + 1);
  const clusters = new Map([...counts.keys()].map(label => [label, []]));
  for (const c of DATA.clusters) {
    const label = said.mixed.has(c.id) ? "" : labelOf(c.id);
    if (clusters.has(label)) clusters.get(label).push(c.id);
  }
  const ordered = [...counts].sort((a, b) => b[1] - a[1]);
  byId("labelled").textContent = number(counts.size);
  byId("table").replaceChildren(...ordered.map(([label, count]) => el("tr", {},
    el("th", { scope: "row" }, shown(label)), el("td", {}, clusters.get(label).join(", ") || "–"), el("td", {}, number(count)))));
  if (!ordered.length) byId("table").append(el("tr", {}, el("td", { colSpan: 3, className: "soft" }, "Nothing is named yet.")));
  byId("download").disabled = !rows.length;
  byId("kept").textContent = keeps
    ? "What you say is kept in this browser, for this page, until you forget it."
    : "This browser keeps nothing for a page in a file: download labels.csv before you close it.";
  byId("names").replaceChildren(...[...new Set(ordered.map(([label]) => label))].map(value => el("option", { value })));
  const single = [...said.images.keys()].map(path => PLACE.get(path));
  byId("single").replaceChildren();
  if (single.length) {
    const grid = el("div", { className: "gallery" });
    byId("single").append(el("h3", {}, `${counted(single.length, "image", "images")} with a label of their own`), grid);
    gallery(grid, single);
  }
}

byId("download").onclick = download;
byId("forget").onclick = () => {
  if (!confirm("Forget all names, merges, marks and labels of this page?")) return;
  for (const part of Object.values(said)) part.clear();
  changed();
  touched = false;
};
addEventListener("beforeunload", event => {
  if (!keeps && touched) event.preventDefault();
});
