// Drawing, as functions of a canvas context: messages (bytes as laid out in frames.py), colour, the window on the plane,
// what stays and what moves. player.js holds the state; esm.py joins the two into the one module that browsers get.

export const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
export const LOOKS = {
  light: { paper: "#ffffff", ink: "#1b1f23", muted: "#59636e", rule: "#c9d0d6", grid: "#e6eaed", field: 0.36, chip: "rgba(255,255,255,.86)" },
  dark: { paper: "#121212", ink: "#f2f4f5", muted: "#a3adb6", rule: "#4a525a", grid: "#262b30", field: 0.4, chip: "rgba(18,18,18,.82)" },
};
// Every eighth entry of the 256 of viridis and cividis, interpolated between (off by at most 4 of 255).
const MAPS = {
  viridis: "440154460c5f47186a482273472c7b4536814240853e49893a528b365a8c32628d2f6a8d2c728e287a8e26818e23898d20908c1e978a1e9e8821a68527ad8031b47a3dbb744cc26c5cc8626ece5881d34c95d73faadb32bfdf24d4e11ae9e419fde724",
  cividis: "00204c00265a002b6800306f05366e1e3c6c2c416b37476b414d6b49536b51586c595e6d60646e686a706f6f727575757c7b788381788b8778938d789b9377a39a75aba174b4a771bcae6ec5b56bcdbc67d6c363dfcb5de8d257f1da50fbe147ffe945",
};
const FAR = 20000; // pixels: beyond this, lines are clamped, canvases misdraw
const TYPES = { f4: Float32Array, i4: Int32Array, i2: Int16Array, u1: Uint8Array };

// ---- messages

const asBytes = (m) => (m instanceof ArrayBuffer ? new Uint8Array(m) : new Uint8Array(m.buffer, m.byteOffset, m.byteLength));

export function decode(message) {
  let bytes = asBytes(message);
  if (bytes.byteOffset % 8) bytes = bytes.slice();
  if (String.fromCharCode(...bytes.subarray(0, 4)) !== "GWP1") throw new Error("not a player message");
  let at = 8 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, at)));
  header.arrays = header.arrays.map((spec) => {
    const [type, count] = spec.split(":");
    const array = new TYPES[type](bytes.buffer, bytes.byteOffset + at, +count);
    at += Math.ceil(array.byteLength / 8) * 8;
    return array;
  });
  for (const layer of [...(header.layers ?? []), header.contours, header.backdrop]) if (layer) unpack(layer, header.arrays);
  if (header.field) header.field.values = header.arrays[header.field.values];
  return header;
}

function unpack(layer, arrays) {
  const [x0, x1, y0, y1] = layer.bounds ?? [];
  for (const name of ["x", "y", "offsets", "colours", "crossed", "tiles"]) if (name in layer) layer[name] = arrays[layer[name]];
  if (!layer.bounds) return;
  layer.x = dequantise(layer.x, x0, x1);
  layer.y = dequantise(layer.y, y0, y1);
}

function dequantise(codes, low, high) {
  const values = new Float64Array(codes.length);
  const quantum = (high - low) / 65534;
  for (let i = 0; i < codes.length; i++) values[i] = codes[i] === -32768 ? NaN : low + (codes[i] + 32767) * quantum;
  return values;
}

// ---- colour

const tables = {};
function colourMap(name) {
  if (tables[name]) return tables[name];
  const stops = MAPS[name].match(/../g).map((h) => parseInt(h, 16));
  const table = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const t = (i / 255) * 32, k = Math.min(31, Math.floor(t));
    for (let c = 0; c < 3; c++) table[3 * i + c] = Math.round(stops[3 * k + c] + (t - k) * (stops[3 * k + 3 + c] - stops[3 * k + c]));
  }
  return (tables[name] = table);
}

function colourOf(layer, index, palette) {
  if (!layer.scale) return palette[index] ?? palette[7];
  const t = colourMap(layer.scale);
  return `rgb(${t[3 * index]},${t[3 * index + 1]},${t[3 * index + 2]})`;
}

let numbers = new Uint32Array(0);
function counted(n) {
  if (numbers.length < n) numbers = Uint32Array.from({ length: 2 * n }, (_, i) => i);
  return numbers.subarray(0, n);
}

// [colour, members] for each colour used, members in order: one change of style a colour, not one a point.
function byColour(layer, n) {
  if (!layer.colours) return [[layer.colour, counted(n)]];
  const starts = new Uint32Array(257), order = new Uint32Array(n);
  for (let i = 0; i < n; i++) starts[layer.colours[i] + 1]++;
  for (let c = 0; c < 256; c++) starts[c + 1] += starts[c];
  const next = starts.slice();
  for (let i = 0; i < n; i++) order[next[layer.colours[i]]++] = i;
  const groups = [];
  for (let c = 0; c < 256; c++) if (starts[c + 1] > starts[c]) groups.push([c, order.subarray(starts[c], starts[c + 1])]);
  return groups;
}

function fieldPicture({ values, shape: [rows, columns], range: [low, high], map }) {
  const picture = canvasOf(columns, rows), ctx = picture.getContext("2d");
  const image = ctx.createImageData(columns, rows), table = colourMap(map);
  for (let i = 0; i < values.length; i++) {
    if (values[i] !== values[i]) continue;
    const row = rows - 1 - Math.floor(i / columns), at = 4 * (row * columns + (i % columns));
    const k = 3 * Math.round(255 * Math.min(1, Math.max(0, (values[i] - low) / (high - low))));
    image.data.set([table[k], table[k + 1], table[k + 2], 255], at);
  }
  ctx.putImageData(image, 0, 0);
  return picture;
}

// ---- the window on the plane

export class Viewport {
  constructor() {
    this.domain = [0, 1, 0, 1];
    this.rect = { l: 0, t: 0, w: 1, h: 1 };
    this.home();
  }
  home() {
    const [x0, x1, y0, y1] = this.domain;
    Object.assign(this, { cx: (x0 + x1) / 2, cy: (y0 + y1) / 2, zoom: 1 });
    this.fit();
  }
  fit() {
    const [x0, x1, y0, y1] = this.domain, { l, t, w, h } = this.rect;
    let sx = w / (x1 - x0), sy = h / (y1 - y0);
    if (this.equal) sx = sy = Math.min(sx, sy);
    this.sx = sx * this.zoom;
    this.sy = sy * this.zoom;
    this.ax = l + w / 2 - this.cx * this.sx;
    this.ay = t + h / 2 + this.cy * this.sy;
  }
  px(x) { return this.ax + x * this.sx; }
  py(y) { return this.ay - y * this.sy; }
  toData(px, py) { return [(px - this.ax) / this.sx, (this.ay - py) / this.sy]; }
  holds(px, py) { const { l, t, w, h } = this.rect; return px >= l && px <= l + w && py >= t && py <= t + h; }
  get moved() { const [x0, x1, y0, y1] = this.domain; return this.zoom !== 1 || this.cx !== (x0 + x1) / 2 || this.cy !== (y0 + y1) / 2; }
  pan(dx, dy) {
    this.cx -= dx / this.sx;
    this.cy += dy / this.sy;
    this.fit();
  }
  zoomAt(px, py, factor) {
    const [x, y] = this.toData(px, py);
    this.zoom = Math.min(1e6, Math.max(0.05, this.zoom * factor));
    this.fit();
    this.pan(px - this.px(x), py - this.py(y));
  }
}

export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(2, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
  const list = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) list.push(k * step);
  const large = Math.max(Math.abs(low), Math.abs(high));
  return list.map((v) => [v, numeral(Math.abs(v) < step / 2 ? 0 : v, step, large)]);
}

export function numeral(v, step, large = Math.abs(v)) {
  const plain = large < 1e5 && step >= 1e-5;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const text = plain ? v.toFixed(Math.min(digits, 10)) : v.toExponential(Math.max(0, Math.min(8, Math.floor(Math.log10(large / step) + 1e-9))));
  return text.replace(/-/g, "−");
}

// A number for reading: `digits` significant ones.
export const short = (v, digits = 4) => (Number.isFinite(v) ? (Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(digits - 2) : String(+v.toPrecision(digits))).replace(/-/g, "−") : "—");

// ---- marks

export function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });
}

const polygon = (ctx, points) => { points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y))); ctx.closePath(); };
const spokes = (ctx, r, angles) => angles.forEach((a) => { ctx.moveTo(-r * Math.cos(a), -r * Math.sin(a)); ctx.lineTo(r * Math.cos(a), r * Math.sin(a)); });
const around = (n, turn, radius) => Array.from({ length: n }, (_, i) => { const a = turn + (2 * Math.PI * i) / n, r = radius(i); return [r * Math.cos(a), r * Math.sin(a)]; });
const SHAPES = {
  dot: (ctx, r) => ctx.arc(0, 0, r, 0, 2 * Math.PI),
  ring: (ctx, r) => ctx.arc(0, 0, r, 0, 2 * Math.PI),
  square: (ctx, r) => ctx.rect(-0.88 * r, -0.88 * r, 1.76 * r, 1.76 * r),
  triangle: (ctx, r) => polygon(ctx, around(3, -Math.PI / 2, () => 1.2 * r)),
  diamond: (ctx, r) => polygon(ctx, around(4, 0, () => 1.2 * r)),
  star: (ctx, r) => polygon(ctx, around(10, -Math.PI / 2, (i) => (i % 2 ? 0.55 : 1.35) * r)),
  plus: (ctx, r) => spokes(ctx, 1.15 * r, [0, Math.PI / 2]),
  cross: (ctx, r) => spokes(ctx, 1.2 * r, [Math.PI / 4, -Math.PI / 4]),
};
const OPEN = new Set(["ring", "plus", "cross"]);

export function mark(ctx, shape, px, py, r, colour, halo) {
  ctx.save();
  ctx.translate(px, py);
  ctx.beginPath();
  SHAPES[shape](ctx, r);
  const line = OPEN.has(shape) ? Math.max(1.4, r * 0.42) : 0;
  Object.assign(ctx, { lineJoin: "round", lineCap: "round", strokeStyle: halo, lineWidth: line + 2.2 });
  if (halo) ctx.stroke();
  Object.assign(ctx, { strokeStyle: colour, fillStyle: colour, lineWidth: line });
  line ? ctx.stroke() : ctx.fill();
  ctx.restore();
}

// ---- what stays: field, contours, axes, markers, title, legend

export function drawStill(ctx, p) {
  const { look, scene, view, width, height } = p, { l, t, w, h } = view.rect;
  Object.assign(ctx, { fillStyle: look.paper });
  ctx.fillRect(0, 0, width, height);
  drawHead(ctx, p);
  if (!scene.axes) return;
  const xs = axisTicks(p, 0, w / 72), ys = axisTicks(p, 1, h / 44);
  clipped(ctx, view.rect, () => {
    drawGrid(ctx, p, xs, ys);
    drawField(ctx, p);
    if (scene.backdrop) drawPoints(ctx, scene.backdrop, p);
    drawContours(ctx, p);
    for (const panel of scene.panels ?? []) drawPanel(ctx, p, panel);
    for (const m of scene.markers) drawMarker(ctx, p, m);
  });
  ctx.strokeStyle = look.rule;
  ctx.lineWidth = 1;
  ctx.strokeRect(Math.round(l) - 0.5, Math.round(t) - 0.5, Math.round(w) + 1, Math.round(h) + 1);
  drawAxes(ctx, p, xs, ys);
  if (p.bar) drawBar(ctx, p);
}

// The ticks of an axis, [place, words]: of each panel its own, where there are several.
function axisTicks({ scene, view }, axis, count) {
  const [low, high] = span(view, axis);
  if (!scene.panels) return ticks(low, high, count);
  const shifts = [...new Set(scene.panels.map((panel) => (axis ? panel.dy : panel.dx)))], [from, to] = scene.panels[0][axis ? "y" : "x"];
  // the outermost ones of two neighbours would run into each other
  const parts = ticks(from, to, Math.min(7, (count * (to - from)) / (high - low))).filter(([v]) => Math.abs(v - (from + to) / 2) < 0.46 * (to - from));
  return shifts.flatMap((shift) => parts.map(([v, words]) => [v + shift, words])).filter(([v]) => v >= low && v <= high);
}

function drawPanel(ctx, { look, view }, { title, dx, dy, x, y }) {
  const l = view.px(x[0] + dx), t = view.py(y[1] + dy), w = view.px(x[1] + dx) - l, h = view.py(y[0] + dy) - t;
  ctx.strokeStyle = look.rule;
  ctx.lineWidth = 1;
  ctx.strokeRect(Math.round(l) + 0.5, Math.round(t) + 0.5, Math.round(w) - 1, Math.round(h) - 1);
  Object.assign(ctx, { lineJoin: "round", strokeStyle: look.chip, lineWidth: 4 });
  text(ctx, "", 0, 0, { size: 12, weight: 600 });
  ctx.strokeText(title, l + 8, t + 14);
  text(ctx, title, l + 8, t + 14, { size: 12, weight: 600, colour: look.ink });
}

// A place in the coordinates of the panel it lies in.
export function inPanel({ panels }, x, y) {
  const inside = (panel) => x >= panel.x[0] + panel.dx && x <= panel.x[1] + panel.dx && y >= panel.y[0] + panel.dy && y <= panel.y[1] + panel.dy;
  const found = panels?.find(inside);
  return found ? [x - found.dx, y - found.dy] : [x, y];
}

function span(view, axis) {
  const { l, t, w, h } = view.rect, [x0, y1] = view.toData(l, t), [x1, y0] = view.toData(l + w, t + h);
  return axis ? [y0, y1] : [x0, x1];
}

export function clipped(ctx, { l, t, w, h }, draw) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(l, t, w, h);
  ctx.clip();
  draw();
  ctx.restore();
}

// What is wider than `room` is set narrower, so that no letter is cut off.
export function text(ctx, value, x, y, { size = 12, weight = 400, colour, align = "left", base = "middle", room }) {
  Object.assign(ctx, { font: `${weight} ${size}px ${FONT}`, fillStyle: colour, textAlign: align, textBaseline: base });
  if (room > 0) ctx.fillText(value, x, y, room);
  else ctx.fillText(value, x, y);
}

function drawGrid(ctx, { look, view }, xs, ys) {
  const { l, t, w, h } = view.rect;
  ctx.fillStyle = look.grid;
  for (const [v] of xs) ctx.fillRect(Math.round(view.px(v)), t, 1, h);
  for (const [v] of ys) ctx.fillRect(l, Math.round(view.py(v)), w, 1);
}

function drawField(ctx, { look, scene, view }) {
  if (!scene.field) return;
  const [x0, x1] = scene.x, [y0, y1] = scene.y, [rows, columns] = scene.field.shape;
  scene.field.picture ??= fieldPicture(scene.field);
  // Samples sit on the ends of the domain, so the picture reaches half a cell beyond them.
  const hx = (x1 - x0) / (columns - 1) / 2, hy = (y1 - y0) / (rows - 1) / 2;
  const l = view.px(x0), t = view.py(y1), w = view.px(x1) - l, h = view.py(y0) - t;
  clipped(ctx, { l, t, w, h }, () => {
    ctx.fillStyle = look.paper;
    ctx.fillRect(l, t, w, h);
    ctx.globalAlpha = look.field;
    ctx.imageSmoothingQuality = "high";
    ctx.drawImage(scene.field.picture, view.px(x0 - hx), view.py(y1 + hy), w + 2 * hx * view.sx, h + 2 * hy * view.sy);
  });
}

function drawContours(ctx, { look, scene, view }) {
  if (!scene.contours) return;
  ctx.beginPath();
  for (let k = 0; k + 1 < scene.contours.offsets.length; k++) trace(ctx, scene.contours, view, k);
  Object.assign(ctx, { globalAlpha: 0.28, strokeStyle: look.ink, lineWidth: 0.8 });
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function drawMarker(ctx, p, { x, y, shape, colour }) {
  mark(ctx, shape, p.view.px(x), p.view.py(y), 6, p.palette[colour], p.look.paper);
}

// The words beside markers, over all that moves: away from the middle where they fit, else towards it.
export function drawMarkerLabels(ctx, { scene, view, look }) {
  const { l, w } = view.rect;
  for (const { x, y, label } of scene.markers) {
    const px = view.px(x), py = view.py(y);
    if (!label || !view.holds(px, py)) continue;
    Object.assign(ctx, { lineJoin: "round", strokeStyle: look.chip, lineWidth: 3.5 });
    text(ctx, "", 0, 0, { size: 11, weight: 500 });
    const room = ctx.measureText(label).width + 12, left = px < l + w / 2 ? px - room >= l : px + room > l + w;
    ctx.textAlign = left ? "right" : "left";
    ctx.strokeText(label, px + (left ? -12 : 12), py);
    ctx.fillStyle = look.ink;
    ctx.fillText(label, px + (left ? -12 : 12), py);
  }
}

function drawAxes(ctx, { look, scene, view, width }, xs, ys) {
  const { l, t, w, h } = view.rect, bottom = t + h, small = { size: 11, colour: look.muted };
  ctx.fillStyle = look.rule;
  for (const [v] of xs) ctx.fillRect(Math.round(view.px(v)), bottom, 1, 4);
  for (const [v] of ys) ctx.fillRect(l - 4, Math.round(view.py(v)), 4, 1);
  for (const [v, s] of xs) text(ctx, s, Math.min(view.px(v), width - 10), bottom + 13, { ...small, align: "center" });
  for (const [v, s] of ys) text(ctx, s, l - 8, view.py(v), { ...small, align: "right" });
  text(ctx, scene.labels[0], l + w / 2, bottom + 30, { colour: look.ink, align: "center", room: w });
  ctx.save();
  ctx.translate(13, t + h / 2);
  ctx.rotate(-Math.PI / 2);
  text(ctx, scene.labels[1], 0, 0, { colour: look.ink, align: "center", room: h });
  ctx.restore();
}

function drawBar(ctx, { look, scene, view }) {
  const { l, t, w, h } = view.rect, x = l + w + 14, { range: [low, high], label, map } = scene.field;
  const shade = ctx.createLinearGradient(0, t + h, 0, t), table = colourMap(map);
  for (let i = 0; i <= 32; i++) shade.addColorStop(i / 32, `rgb(${table.subarray(24 * i - (i === 32 ? 3 : 0), 24 * i + 3).slice(0, 3).join()})`);
  Object.assign(ctx, { fillStyle: shade, globalAlpha: look.field });
  ctx.fillRect(x, t, 10, h);
  ctx.globalAlpha = 1;
  for (const [v, s] of ticks(low, high, h / 70)) text(ctx, s, x + 15, t + h - ((v - low) / (high - low)) * h, { size: 11, colour: look.muted });
  ctx.save();
  ctx.translate(x + 50, t + h / 2);
  ctx.rotate(-Math.PI / 2);
  text(ctx, label, 0, 0, { size: 11, colour: look.muted, align: "center", room: h });
  ctx.restore();
}

function drawHead(ctx, { look, scene, palette, head, width }) {
  text(ctx, scene.title, 12, 15, { size: 13, weight: 600, colour: look.ink, room: width - 20 });
  for (const { entry, x, y } of head.entries) {
    mark(ctx, entry.marker, x + 6, y, 4.5, palette[entry.colour], null);
    text(ctx, entry.name, x + 16, y + 0.5, { size: 12, colour: look.ink });
  }
}

// Title at the left, legend at the right of the same line where it fits, else on lines of its own: it never hides data.
export function headLayout(ctx, scene, width) {
  ctx.font = `600 13px ${FONT}`;
  const titled = scene.title ? ctx.measureText(scene.title).width + 36 : 12;
  ctx.font = `400 12px ${FONT}`;
  const sizes = scene.legend.map((entry) => 16 + ctx.measureText(entry.name).width + 14);
  const total = sizes.reduce((a, b) => a + b, 0), beside = titled + total <= width - 4;
  let x = beside ? width - total : 12, y = beside || !scene.title ? 15 : 36;
  const entries = scene.legend.map((entry, i) => {
    if (x + sizes[i] > width && x > 12) [x, y] = [12, y + 20];
    x += sizes[i];
    return { entry, x: x - sizes[i], y };
  });
  return { entries, height: scene.title || entries.length ? y + 15 : 10 };
}

// ---- what moves: points, paths, images

function trace(ctx, { x, y, offsets }, view, k) {
  const { ax, ay, sx, sy } = view;
  let down = false;
  for (let i = offsets[k]; i < offsets[k + 1]; i++) {
    const px = Math.max(-FAR, Math.min(FAR, ax + x[i] * sx)), py = Math.max(-FAR, Math.min(FAR, ay - y[i] * sy));
    if (px !== px || py !== py) down = false;
    else if (down) ctx.lineTo(px, py);
    else { ctx.moveTo(px, py); down = true; }
  }
}

export function drawPaths(ctx, layer, p) {
  const groups = byColour(layer, layer.offsets.length - 1);
  const passes = layer.x.length < 6000 && layer.width >= 1 ? [[p.look.paper, layer.width + 1.6, 0.55]] : [];
  for (const [colour, members] of groups) passes.push([colourOf(layer, colour, p.palette), layer.width, 1, members]);
  ctx.setLineDash(layer.dashed ? [6, 4] : []);
  Object.assign(ctx, { lineJoin: "round", lineCap: layer.dashed ? "butt" : "round" });
  for (const [stroke, width, alpha, members] of passes) {
    ctx.beginPath();
    for (const k of members ?? layer.offsets.subarray(1).keys()) trace(ctx, layer, p.view, k);
    Object.assign(ctx, { strokeStyle: stroke, lineWidth: width, globalAlpha: alpha * (layer.opacity ?? 1) });
    ctx.stroke();
  }
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
  if (layer.crossed) crossEnds(ctx, layer, groups, p);
}

function crossEnds(ctx, layer, groups, { view, palette, look }) {
  for (const [colour, members] of groups) for (const k of members) {
    if (!layer.crossed[k]) continue;
    let i = layer.offsets[k + 1] - 1;
    while (i >= layer.offsets[k] && !(Number.isFinite(layer.x[i]) && view.holds(view.px(layer.x[i]), view.py(layer.y[i])))) i--;
    if (i >= layer.offsets[k]) mark(ctx, "cross", view.px(layer.x[i]), view.py(layer.y[i]), 5, colourOf(layer, colour, palette), look.paper);
  }
}

export function drawPoints(ctx, layer, p) {
  ctx.globalAlpha = layer.opacity ?? 1;
  const tiny = layer.radius <= 2 && layer.marker === "dot";
  let inside = 0;
  for (const [index, members] of byColour(layer, layer.x.length)) {
    const colour = colourOf(layer, index, p.palette), sprite = tiny ? null : p.sprite(layer.marker, colour, layer.radius);
    inside += tiny && !layer.crossed ? squares(ctx, layer, p.view, members, colour) : stamps(ctx, layer, p, members, colour, sprite);
  }
  ctx.globalAlpha = 1;
  return layer.x.length - inside - (layer.hidden ?? 0);
}

function squares(ctx, { x, y, radius }, view, members, colour) {
  const { ax, ay, sx, sy, rect: { l, t, w, h } } = view, r = l + w, b = t + h, side = 2 * radius;
  let inside = 0;
  ctx.fillStyle = colour;
  for (let j = 0; j < members.length; j++) {
    const i = members[j], px = ax + x[i] * sx, py = ay - y[i] * sy;
    if (!(px >= l && px <= r && py >= t && py <= b)) continue; // NaN fails too
    ctx.fillRect(px - radius, py - radius, side, side);
    inside++;
  }
  return inside;
}

function stamps(ctx, { x, y, crossed, radius }, p, members, colour, sprite) {
  const { view } = p, cross = crossed && p.sprite("cross", colour, Math.max(3.5, radius)), plain = sprite ?? p.sprite("dot", colour, radius);
  let inside = 0;
  for (let j = 0; j < members.length; j++) {
    const i = members[j], px = view.px(x[i]), py = view.py(y[i]);
    if (!view.holds(px, py)) continue;
    const { picture, half, side } = crossed && crossed[i] ? cross : plain;
    ctx.drawImage(picture, px - half, py - half, side, side);
    inside++;
  }
  return inside;
}

// The number of columns that makes the tiles largest, the most columns among equals.
function grid(n, w, h, ratio, label) {
  let best = { size: 0 };
  for (let columns = 1; columns <= n; columns++) {
    const rows = Math.ceil(n / columns);
    const size = Math.min(w / columns - 10, (h / rows - 10 - label) / ratio, 112);
    if (size >= best.size) best = { columns, rows, size };
  }
  return best;
}

export function drawImages(ctx, layer, p) {
  const [n, rows, columns] = layer.shape, { l, t, w, h } = p.view.rect, label = layer.labels.length ? 17 : 0;
  const g = grid(n, w, h, rows / columns, label);
  if (!(g.size > 0)) return;
  const picture = tilePicture(layer), tall = (g.size * rows) / columns, stepX = g.size + 10, stepY = tall + 10 + label;
  p.tiles = Array.from({ length: n }, (_, i) => ({ x: l + 5 + (i % g.columns) * stepX, y: t + 5 + Math.floor(i / g.columns) * stepY, w: g.size, h: tall }));
  p.tiles.forEach((tile, i) => drawTile(ctx, p, layer, picture, tile, i));
}

function drawTile(ctx, p, layer, picture, { x, y, w, h }, i) {
  const [, rows, columns] = layer.shape, colour = p.palette[layer.colours ? layer.colours[i] : layer.colour];
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(picture, 0, i * rows, columns, rows, x, y, w, h);
  Object.assign(ctx, { strokeStyle: colour, lineWidth: 2 });
  ctx.strokeRect(x - 1, y - 1, w + 2, h + 2);
  if (layer.crossed?.[i]) mark(ctx, "cross", x + w - 8, y + 8, 4.5, colour, p.look.paper);
  if (layer.labels.length) text(ctx, layer.labels[i], x + w / 2, y + h + 12, { size: 11, colour: p.look.ink, align: "center" });
}

function tilePicture({ tiles, shape: [n, rows, columns] }) {
  const picture = canvasOf(columns, n * rows), ctx = picture.getContext("2d"), image = ctx.createImageData(columns, n * rows);
  const grey = new Uint32Array(image.data.buffer);
  for (let i = 0; i < tiles.length; i++) grey[i] = 0xff000000 | (tiles[i] * 0x010101);
  ctx.putImageData(image, 0, 0);
  return picture;
}

function absent({ layers }, outside) {
  const hidden = (kind) => layers.reduce((sum, layer) => sum + (layer.kind === kind ? layer.hidden ?? 0 : 0), 0);
  const points = hidden("points"), paths = hidden("paths");
  const words = [[points, points === 1 ? "point" : "points", "diverged (not finite)"], [paths, paths === 1 ? "path" : "paths", "cut short (not finite)"], [outside, outside === 1 ? "point" : "points", "outside the picture"]];
  return words.filter(([n]) => n).map((w) => w.join(" ")).join(" · ");
}

// Breaks at the dots between phrases, so that no line is wider than the picture.
function fold(ctx, phrases, width) {
  return phrases.split(" · ").reduce((lines, phrase) => {
    const longer = lines.length ? `${lines[lines.length - 1]} · ${phrase}` : phrase;
    return lines.length && ctx.measureText(longer).width <= width ? [...lines.slice(0, -1), longer] : [...lines, phrase];
  }, []);
}

// Caption and, in words, what the picture does not show.
export function drawCaption(ctx, p, outside) {
  const { frame, view: { rect }, look } = p, lines = [];
  for (const [phrases, style] of [[frame.caption, { size: 12, weight: 500, colour: look.ink }], [absent(frame, outside), { size: 11, colour: look.muted }]]) {
    ctx.font = `${style.weight ?? 400} ${style.size}px ${FONT}`;
    if (phrases) for (const line of fold(ctx, phrases, rect.w - 32)) lines.push([line, style, ctx.measureText(line).width]);
  }
  if (!lines.length) return;
  const h = 18 * lines.length + 6, y = p.scene.axes ? rect.t + rect.h - h - 8 : p.height - h - 2, x = rect.l + (p.scene.axes ? 8 : -4);
  ctx.fillStyle = look.chip;
  ctx.beginPath();
  ctx.roundRect(x, y, Math.max(...lines.map((line) => line[2])) + 16, h, 4);
  ctx.fill();
  lines.forEach(([words, style], i) => text(ctx, words, x + 8, y + 12.5 + 18 * i, style));
}

function drawCursor(ctx, { view, cursor, look }) {
  const px = view.px(cursor[0]), py = view.py(cursor[1]), { l, t, w, h } = view.rect;
  ctx.fillStyle = look.ink;
  ctx.globalAlpha = 0.5;
  ctx.fillRect(l, py - 0.5, w, 1);
  ctx.fillRect(px - 0.5, t, 1, h);
  ctx.globalAlpha = 1;
  mark(ctx, "ring", px, py, 7, look.ink, look.paper);
}

// The field's value at a place, bilinear between samples; null where there is none.
export function fieldAt({ field, x: [x0, x1], y: [y0, y1] }, x, y) {
  if (!field || x < x0 || x > x1 || y < y0 || y > y1) return null;
  const [rows, columns] = field.shape;
  const u = ((x - x0) / (x1 - x0)) * (columns - 1), v = ((y - y0) / (y1 - y0)) * (rows - 1);
  const i = Math.min(columns - 2, Math.floor(u)), j = Math.min(rows - 2, Math.floor(v)), a = u - i, b = v - j;
  const at = (r, c) => field.values[r * columns + c];
  const value = (1 - b) * ((1 - a) * at(j, i) + a * at(j, i + 1)) + b * ((1 - a) * at(j + 1, i) + a * at(j + 1, i + 1));
  return Number.isNaN(value) ? null : value;
}
