// ---- the map: every image a mark; clusters are told by numbers, and by shapes and colours that repeat

const COLOURS = ["#1f77b4", "#d95f02", "#1b9e77", "#c2185b", "#7b52ab", "#8c6d31", "#00838f", "#6a8d1f", "#5a626c", "#b7410e"];
const BRIGHT = ["#6cb2ee", "#ff9d4d", "#4fd1a5", "#ff7fb0", "#bd9bff", "#d9b45f", "#4dd0e1", "#b6d957", "#b0b8c0", "#ff8a65"];
const SHAPES = 7;
const MARGIN = 24;
const view = { scale: 1, x: 500, y: 500 }; // what of the map is seen: its middle, of 0..1000, and how enlarged
let spot = -1; // the image that is pointed at
const dark = matchMedia("(prefers-color-scheme: dark)");
const canvas = byId("canvas");
const SPAN = [0, 1].map(k => { // how wide and high the map is
  const all = DATA.xy.map(spot => spot[k]);
  return Math.max(1, Math.max(...all) - Math.min(...all));
});

function shape(path, kind, x, y, r) {
  const q = r * .85;
  switch (kind) {
    case 0: path.moveTo(x + r, y); path.arc(x, y, r, 0, 7); break;
    case 1: path.moveTo(x, y - r * 1.2); path.lineTo(x + r * 1.1, y + r * .8); path.lineTo(x - r * 1.1, y + r * .8); path.closePath(); break;
    case 2: path.rect(x - q, y - q, 2 * q, 2 * q); break;
    case 3: path.moveTo(x, y - r * 1.25); path.lineTo(x + r * 1.25, y); path.lineTo(x, y + r * 1.25); path.lineTo(x - r * 1.25, y); path.closePath(); break;
    case 4: path.rect(x - r * 1.2, y - r * .4, r * 2.4, r * .8); path.rect(x - r * .4, y - r * 1.2, r * .8, r * 2.4); break;
    case 5: path.moveTo(x, y + r * 1.2); path.lineTo(x + r * 1.1, y - r * .8); path.lineTo(x - r * 1.1, y - r * .8); path.closePath(); break;
    default: path.moveTo(x + r, y); path.arc(x, y, r, 0, 7); path.moveTo(x + r * .45, y); path.arc(x, y, r * .45, 0, 7, true);
  }
}

function frame() {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const unit = Math.min((width - 2 * MARGIN) / SPAN[0], (height - 2 * MARGIN) / SPAN[1]) * view.scale;
  return { width, height, unit, at: i => [(DATA.xy[i][0] - view.x) * unit + width / 2, (DATA.xy[i][1] - view.y) * unit + height / 2] };
}

function drawMap() {
  const { width, height, unit, at } = frame(), sharp = devicePixelRatio || 1;
  if (!width) return;
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  const pen = canvas.getContext("2d"), colours = dark.matches ? BRIGHT : COLOURS;
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink"), paper = style.getPropertyValue("--paper");
  const only = byId("only").value === "" ? null : +byId("only").value;
  const r = Math.max(1.8, Math.min(7, .24 * Math.sqrt(view.scale * width * height / COUNT)));
  pen.scale(sharp, sharp);
  const order = [...MEMBERS.keys()].sort((a, b) => (a === only) - (b === only) || a - b);
  for (const c of order) {
    const path = new Path2D(), faint = c < 0 || (only !== null && c !== only);
    for (const i of MEMBERS.get(c)) {
      const [x, y] = at(i);
      if (x > -9 && y > -9 && x < width + 9 && y < height + 9) shape(path, c < 0 ? 0 : c % SHAPES, x, y, faint ? r * .7 : r);
    }
    pen.globalAlpha = faint ? .22 : .8;
    pen.fillStyle = c < 0 ? "#888" : colours[c % colours.length];
    pen.fill(path);
  }
  pen.globalAlpha = 1;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = "600 13px system-ui, sans-serif";
  const taken = [];
  for (const c of DATA.clusters) {
    const members = MEMBERS.get(c.id) || [];
    if (!members.length || (only !== null && c.id !== only)) continue;
    const [x, y] = at(middle(members)), name = nameOf(c.id).trim();
    const word = name && (COUNT < 200 || DATA.clusters.length <= 30 || view.scale > 1.5 || only !== null)
      ? `${c.id} ${shown(name).slice(0, 18)}` : String(c.id);
    const w = pen.measureText(word).width / 2 + 4;
    if (taken.some(([a, b, v]) => Math.abs(a - x) < v + w && Math.abs(b - y) < 15)) continue;
    taken.push([x, y, w]);
    pen.globalAlpha = .82;
    pen.fillStyle = paper;
    pen.fillRect(x - w, y - 8.5, 2 * w, 17);
    pen.globalAlpha = 1;
    pen.fillStyle = ink;
    pen.fillText(word, x, y + 1);
  }
  if (spot >= 0) {
    const [x, y] = at(spot);
    pen.strokeStyle = ink;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(x, y, r + 5, 0, 7);
    pen.stroke();
  }
}

// The image nearest to the median of some images: the median itself may lie between two groups.
const middles = new Map();

function middle(members) {
  if (!middles.has(members)) {
    const half = k => members.map(i => DATA.xy[i][k]).sort((a, b) => a - b)[members.length >> 1];
    const [x, y] = [half(0), half(1)], far = i => (DATA.xy[i][0] - x) ** 2 + (DATA.xy[i][1] - y) ** 2;
    middles.set(members, members.reduce((best, i) => far(i) < far(best) ? i : best));
  }
  return middles.get(members);
}

let drawing = 0;
const redraw = () => {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(drawMap);
};

function nearestTo(x, y, most) {
  const { at } = frame(), only = byId("only").value;
  let best = -1, least = most * most;
  for (let i = 0; i < COUNT; i++) {
    if (only !== "" && DATA.cluster[i] !== +only) continue;
    const [a, b] = at(i), far = (a - x) ** 2 + (b - y) ** 2;
    if (far < least) [best, least] = [i, far];
  }
  return best;
}

function pointAt(i, announce = false) {
  if (spot === i) return;
  spot = i;
  const tip = byId("tip");
  tip.hidden = i < 0;
  if (i >= 0) {
    const { width, height, at } = frame(), [x, y] = at(i), picture = el("div", { className: "tile" });
    paint(picture, i);
    tip.replaceChildren(picture, el("b", {}, titleOf(DATA.cluster[i])), el("br"), fileName(i));
    tip.style.left = `${x > width / 2 ? Math.max(4, x - 14 - tip.offsetWidth) : Math.min(width - tip.offsetWidth - 4, x + 14)}px`;
    tip.style.top = `${Math.max(4, Math.min(height - tip.offsetHeight - 4, y - tip.offsetHeight / 2))}px`;
    if (announce) byId("spot").textContent = `${shown(DATA.path[i])}, ${inWords(i)}`;
  }
  redraw();
}

function zoom(by, x = view.x, y = view.y) {
  const scale = Math.max(1, Math.min(24, view.scale * by)), kept = view.scale / scale;
  view.x = x + (view.x - x) * kept;
  view.y = y + (view.y - y) * kept;
  view.scale = scale;
  if (scale === 1) view.x = view.y = 500;
  canvas.style.touchAction = scale > 1 ? "none" : "auto"; // a finger moves the map, or else the page
  const i = spot;
  spot = -1;
  pointAt(i);
  redraw();
}

// The nearest image in a direction, preferring what lies straight ahead.
function beside(i, dx, dy) {
  const only = byId("only").value;
  let best = -1, least = Infinity;
  for (let j = 0; j < COUNT; j++) {
    if (only !== "" && DATA.cluster[j] !== +only) continue;
    const x = DATA.xy[j][0] - DATA.xy[i][0], y = DATA.xy[j][1] - DATA.xy[i][1];
    const ahead = x * dx + y * dy, off = Math.abs(x * dy) + Math.abs(y * dx);
    if (ahead <= 0 || off > 2 * ahead) continue;
    const far = ahead + 2 * off;
    if (far < least) [best, least] = [j, far];
  }
  return best;
}

function startMap() {
  if (!canvas) return;
  canvas.style.aspectRatio = Math.max(.8, Math.min(1.7, SPAN[0] / SPAN[1]));
  for (const c of [...DATA.clusters].sort((a, b) => a.id - b.id)) byId("only").append(el("option", { value: c.id }));
  byId("only").onchange = redraw;
  byId("nearer").onclick = () => zoom(1.6);
  byId("farther").onclick = () => zoom(1 / 1.6);
  byId("whole").onclick = () => zoom(0);
  const toMap = event => {
    const box = canvas.getBoundingClientRect(), { width, height, unit } = frame();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    return { x, y, u: (x - width / 2) / unit + view.x, v: (y - height / 2) / unit + view.y };
  };
  let held = null, moved = false;
  canvas.onpointerdown = event => {
    const { u, v } = toMap(event);
    held = view.scale > 1 ? { u, v } : null;
    moved = false;
  };
  canvas.onpointermove = event => {
    const { x, y, u, v } = toMap(event);
    if (held && event.buttons) {
      if (Math.hypot(held.u - u, held.v - v) * frame().unit > 4) moved = true;
      if (moved) {
        canvas.setPointerCapture(event.pointerId);
        view.x += held.u - u;
        view.y += held.v - v;
        pointAt(-1);
        redraw();
        return;
      }
    }
    pointAt(nearestTo(x, y, 16));
  };
  canvas.onpointerleave = () => document.activeElement === canvas && canvas.matches(":focus-visible") || pointAt(-1);
  canvas.onclick = event => {
    const { x, y } = toMap(event), i = nearestTo(x, y, 24);
    if (!moved && i >= 0) openPanel(i);
  };
  canvas.addEventListener("wheel", event => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    const { u, v } = toMap(event);
    zoom(Math.exp(-event.deltaY / 300), u, v);
  }, { passive: false });
  canvas.onkeydown = event => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in ways) {
      event.preventDefault();
      const to = spot < 0 ? middle(MEMBERS.get(DATA.clusters[0].id)) : beside(spot, ...ways[event.key]);
      if (to >= 0) pointAt(to, true);
    } else if ((event.key === "Enter" || event.key === " ") && spot >= 0) {
      event.preventDefault();
      openPanel(spot);
    } else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.6 : 1 / 1.6, ...(spot < 0 ? [] : DATA.xy[spot]));
    else if (event.key === "Escape") pointAt(-1);
  };
  new ResizeObserver(redraw).observe(canvas);
  dark.addEventListener("change", redraw);
}

function tellMap() {
  if (!canvas) return;
  for (const option of byId("only").options) if (option.value !== "") option.textContent = titleOf(+option.value);
  redraw();
}
