// The live picture on one canvas: what has arrived, when to draw, mouse and keyboard, and the two hosts (Panel's JSComponent
// and anywidget). No dependencies, no build: esm.py joins this with draw.js by text.

import { canvasOf, clipped, decode, drawCaption, drawCursor, drawImages, drawMarkerLabels, drawPaths, drawPoints, drawStill, fieldAt, FONT, headLayout, inPanel, LOOKS, mark, numeral, short, text, Viewport } from "./draw.js";

// ---- the player

const BLANK = { x: [0, 1], y: [0, 1], labels: ["", ""], axes: false, title: "", markers: [], legend: [] };
const KEYS = "Space plays or pauses, left and right arrows step, Shift with arrows moves the start, Enter sets it, plus and minus zoom, 0 resets the view.";

export class Player {
  constructor(el, { emit = () => {}, theme = "auto", tall = 0 } = {}) {
    this.id = Math.random().toString(36).slice(2, 10);
    Object.assign(this, { el, emit, pending: { scene: null, frames: [] }, scene: BLANK, frame: null, still: null, sprites: new Map(), tiles: [], cursor: null });
    this.counts = { received: 0, drawn: 0, lastStep: null, seq: 0, errors: 0, player: this };
    this.view = new Viewport();
    this.build(tall);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.onDark = () => this.setTheme(this.theme);
    this.dark.addEventListener("change", this.onDark);
    this.setTheme(theme);
    this.input = new Input(this);
    this.watch = new ResizeObserver(() => this.restill());
    this.watch.observe(this.root);
    (window.__players ??= {})[this.id] = this.counts;
  }

  build(tall) {
    this.root = document.createElement("div");
    this.root.style.cssText = `height:${tall ? `${tall}px` : "100%"};position:relative;width:100%;min-height:180px;overflow:hidden;contain:strict;box-sizing:border-box`;
    this.canvas = canvasOf(1, 1);
    this.canvas.style.cssText = "position:absolute;inset:0;width:100%;height:100%;display:block;cursor:crosshair;user-select:none;-webkit-user-select:none";
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.readout = document.createElement("div");
    this.readout.setAttribute("aria-hidden", "true");
    this.reset = Object.assign(document.createElement("button"), { type: "button", textContent: "Reset view", title: "Show the whole domain again (0)", hidden: true });
    this.reset.onclick = () => this.home();
    this.root.append(this.canvas, this.readout, this.reset);
    this.el.append(this.root);
    this.ctx = this.canvas.getContext("2d", { alpha: false });
    this.restill();
  }

  receive(kind, message) {
    if (!message?.byteLength) return;
    if (kind === "scene") this.pending.scene = message;
    else {
      this.counts.received++;
      // One older frame may wait its turn: frames that arrive in pairs are then drawn on two refreshes, not on one.
      this.pending.frames = [...this.pending.frames.slice(-1), message];
    }
    this.redraw();
  }

  setTheme(theme) {
    this.theme = theme;
    this.name = theme === "auto" ? (this.dark.matches ? "dark" : "light") : theme;
    this.look = LOOKS[this.name];
    this.palette = this.scene.palette?.[this.name] ?? Array(8).fill(this.look.ink);
    this.sprites.clear();
    const chip = `position:absolute;font:12px ${FONT};color:${this.look.ink};background:${this.look.chip};border-radius:4px;padding:3px 8px;`;
    this.readout.style.cssText = chip + "pointer-events:none;white-space:pre;font-variant-numeric:tabular-nums;display:none";
    this.reset.style.cssText = chip + `border:1px solid ${this.look.rule};cursor:pointer;min-height:28px`;
    this.restill();
  }

  restill() {
    this.still = null;
    this.redraw();
  }

  redraw() {
    this.asked ??= requestAnimationFrame(() => this.draw());
  }

  home() {
    this.view.home();
    this.restill();
  }

  draw() {
    this.asked = null;
    let seq = 0;
    try {
      seq = this.accept();
      this.paint();
    } catch (error) {
      this.fail(error);
    }
    if (seq) this.emit({ kind: "drawn", seq });
  }

  // Takes the next scene and frame that have arrived; the message number to acknowledge, 0 if there is nothing new.
  accept() {
    const { pending } = this, { scene } = pending, frame = pending.frames.shift();
    let seq = 0;
    pending.scene = null;
    if (pending.frames.length) this.redraw();
    if (scene) seq = this.setScene(decode(scene));
    if (frame) seq = this.setFrame(decode(frame));
    this.counts.seq = Math.max(seq, this.counts.seq);
    return seq;
  }

  setScene(scene) {
    const domain = [...scene.x, ...scene.y], same = domain.every((v, i) => v === this.view.domain[i]) && scene.equal === this.view.equal;
    this.scene = scene;
    Object.assign(this.view, { domain, equal: scene.equal });
    if (!same) this.view.home();
    this.setTheme(this.theme);
    this.describe();
    return scene.seq;
  }

  setFrame(frame) {
    this.frame = frame;
    this.counts.lastStep = frame.step;
    this.counts.lastNumber = frame.n;
    this.counts.drawn++;
    const now = performance.now();
    if (now - (this.described ?? 0) > 1000) this.describe();
    return frame.seq;
  }

  describe() {
    this.described = performance.now();
    const names = this.scene.legend.map((entry) => entry.name).join(", ");
    this.canvas.setAttribute("aria-label", [this.scene.title, names, this.frame?.caption, KEYS].filter(Boolean).join(". "));
  }

  size() {
    const dpr = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.root;
    const [w, h] = [Math.max(1, Math.round(width * dpr)), Math.max(1, Math.round(height * dpr))];
    if (this.canvas.width !== w || this.canvas.height !== h || this.dpr !== dpr) {
      Object.assign(this.canvas, { width: w, height: h });
      this.sprites.clear();
      this.still = null;
    }
    Object.assign(this, { dpr, width, height });
  }

  layout(ctx) {
    const { scene, width, height } = this;
    this.head = headLayout(ctx, scene, width);
    this.bar = scene.axes && scene.field && width >= 560;
    const t = this.head.height;
    this.view.rect = scene.axes
      ? { l: 58, t, w: Math.max(20, width - 58 - (this.bar ? 76 : 14)), h: Math.max(20, height - t - 44) }
      : { l: 10, t, w: Math.max(20, width - 20), h: Math.max(20, height - t - (this.frame?.caption ? 36 : 10)) };
    this.view.fit();
    this.canvas.style.touchAction = this.view.moved ? "none" : "pan-y";
    this.reset.hidden = !this.view.moved;
    this.reset.style.display = this.view.moved ? "" : "none";
    Object.assign(this.reset.style, { top: `${t + 8}px`, right: `${width - this.view.rect.l - this.view.rect.w + 8}px` });
  }

  paint() {
    this.size();
    const { ctx, dpr } = this;
    if (!this.still) {
      this.still = canvasOf(this.canvas.width, this.canvas.height);
      const under = this.still.getContext("2d", { alpha: false });
      under.scale(dpr, dpr);
      this.layout(under);
      drawStill(under, this);
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.drawImage(this.still, 0, 0);
    ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
    this.frame ? this.paintFrame(ctx) : text(ctx, "Waiting for the first frame…", this.width / 2, this.height / 2, { size: 13, colour: this.look.muted, align: "center" });
  }

  paintFrame(ctx) {
    let outside = 0;
    this.tiles = [];
    const layers = () => {
      for (const layer of this.frame.layers) {
        if (layer.kind === "points") outside += drawPoints(ctx, layer, this);
        else if (layer.kind === "paths") drawPaths(ctx, layer, this);
        else drawImages(ctx, layer, this);
      }
      if (this.scene.axes) drawMarkerLabels(ctx, this);
      if (this.cursor) drawCursor(ctx, this);
    };
    this.scene.axes ? clipped(ctx, this.view.rect, layers) : layers();
    drawCaption(ctx, this, outside);
  }

  sprite(shape, colour, r) {
    const key = `${shape} ${colour} ${r}`;
    if (!this.sprites.has(key)) {
      const half = Math.ceil(1.4 * r + 2), picture = canvasOf(2 * half * this.dpr, 2 * half * this.dpr), ctx = picture.getContext("2d");
      ctx.scale(this.dpr, this.dpr);
      mark(ctx, shape, half, half, r, colour, r > 2 ? this.look.paper : null);
      this.sprites.set(key, { picture, half, side: picture.width / this.dpr });
    }
    return this.sprites.get(key);
  }

  fail(error) {
    this.counts.errors++;
    console.error("player:", error);
    this.ctx.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
    text(this.ctx, `This frame could not be drawn: ${error.message}`, 12, 40, { colour: this.look.ink });
  }

  savePng(name) {
    const link = Object.assign(document.createElement("a"), { download: `${name}.png`, href: this.canvas.toDataURL("image/png") });
    link.click();
  }

  remove() {
    cancelAnimationFrame(this.asked);
    this.watch.disconnect();
    this.dark.removeEventListener("change", this.onDark);
    this.root.remove();
    delete window.__players[this.id];
  }
}

// ---- mouse, touch, keyboard

const ACTIONS = { " ": "play", ArrowLeft: "back", ArrowRight: "step", Home: "home", End: "end" };
const MOST_INK = 500;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class Input {
  constructor(player) {
    this.player = player;
    this.touches = new Map();
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "wheel", "dblclick", "keydown"])
      player.canvas.addEventListener(name, (event) => this[name](event), { passive: false });
  }

  at(event) {
    const box = this.player.canvas.getBoundingClientRect();
    // A scaled page (projector zoom, CSS transform) must not shift the click.
    return [((event.clientX - box.left) * this.player.width) / box.width, ((event.clientY - box.top) * this.player.height) / box.height];
  }

  pointerdown(event) {
    if (event.button) return;
    const at = this.at(event);
    this.player.canvas.setPointerCapture(event.pointerId);
    this.touches.set(event.pointerId, { at, from: at });
    this.dragged = this.touches.size > 1;
    this.stroke = this.player.scene.draw && !this.dragged ? [this.player.view.toData(...at)] : null;
  }

  pointermove(event) {
    const { player } = this, at = this.at(event), touch = this.touches.get(event.pointerId);
    this.read(event.pointerType === "touch" ? null : at);
    if (!touch) return;
    if (this.stroke) return this.ink(at, touch);
    this.dragged ||= Math.hypot(at[0] - touch.from[0], at[1] - touch.from[1]) > 4;
    const other = [...this.touches].find(([id]) => id !== event.pointerId)?.[1];
    const free = player.scene.axes && (event.pointerType !== "touch" || player.view.moved || other);
    if (this.dragged && free) {
      player.view.pan((at[0] - touch.at[0]) / (other ? 2 : 1), (at[1] - touch.at[1]) / (other ? 2 : 1));
      if (other) this.pinch(at, touch.at, other.at);
      player.restill();
    }
    touch.at = at;
  }

  // A line drawn by hand, in a scene that asks for it: shown at once, sent whole when the pen is lifted.
  ink(at, touch) {
    const { player } = this;
    this.dragged ||= Math.hypot(at[0] - touch.from[0], at[1] - touch.from[1]) > 4;
    if (Math.hypot(at[0] - touch.at[0], at[1] - touch.at[1]) < 3 || this.stroke.length >= MOST_INK) return;
    Object.assign(player.ctx, { strokeStyle: player.look.ink, lineWidth: 3, lineCap: "round" });
    player.ctx.beginPath();
    player.ctx.moveTo(...touch.at);
    player.ctx.lineTo(...at);
    player.ctx.stroke();
    this.stroke.push(player.view.toData(...at));
    touch.at = at;
  }

  pinch(now, before, other) {
    const factor = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
    this.player.view.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, factor);
  }

  pointerup(event) {
    const touch = this.touches.get(event.pointerId);
    this.touches.delete(event.pointerId);
    const fine = (v) => +v.toFixed(3), { stroke } = this;
    this.stroke = null;
    if (stroke && this.dragged) this.player.emit({ kind: "stroke", x: stroke.map((p) => fine(p[0])), y: stroke.map((p) => fine(p[1])) });
    else if (touch && !this.dragged) this.press(...touch.from);
  }

  pointercancel(event) {
    this.touches.delete(event.pointerId);
  }

  pointerleave() {
    this.read(null);
  }

  // A click; while the view is moved it waits, since a double click would mean "reset the view".
  press(px, py) {
    const { player } = this, tile = player.tiles.findIndex(({ x, y, w, h }) => px >= x && px <= x + w && py >= y && py <= y + h);
    if (tile >= 0) return player.emit({ kind: "action", name: "tile", value: tile });
    if (!player.scene.axes || !player.view.holds(px, py)) return;
    clearTimeout(this.later);
    const [x, y] = player.view.toData(px, py), report = () => player.emit({ kind: "click", x, y });
    if (player.view.moved) this.later = setTimeout(report, 260);
    else report();
  }

  dblclick() {
    clearTimeout(this.later);
    if (this.player.view.moved) this.player.home();
  }

  // The wheel scrolls the page until the picture has the focus: a picture in a long notebook must not trap the scroll.
  wheel(event) {
    const { player } = this, at = this.at(event), wanted = event.ctrlKey || event.metaKey || player.canvas.matches(":focus");
    if (!player.scene.axes) return;
    if (!wanted) return this.say("Ctrl + wheel zooms", at);
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    player.view.zoomAt(...at, Math.exp(-Math.max(-60, Math.min(60, event.deltaY * lines)) * (event.ctrlKey ? 0.01 : 0.003)));
    player.restill();
  }

  keydown(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { player } = this, { key } = event, { rect } = player.view;
    if (event.shiftKey && MOVES[key] && player.scene.axes) this.nudge(...MOVES[key]);
    else if (key === "Enter" && player.cursor) player.emit({ kind: "click", x: player.cursor[0], y: player.cursor[1] });
    else if (key === "Escape" && player.cursor) { player.cursor = null; this.read(null); player.redraw(); }
    else if (key === "+" || key === "=" || key === "-") { player.view.zoomAt(rect.l + rect.w / 2, rect.t + rect.h / 2, key === "-" ? 0.8 : 1.25); player.restill(); }
    else if (key === "0") player.home();
    else if (ACTIONS[key] && !event.shiftKey) player.emit({ kind: "action", name: ACTIONS[key] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  nudge(dx, dy) {
    const { player } = this, { view } = player, start = player.scene.markers.find((m) => m.shape === "ring");
    const [x, y] = player.cursor ?? (start ? [start.x, start.y] : [view.cx, view.cy]);
    player.cursor = view.toData(view.px(x) + 8 * dx, view.py(y) + 8 * dy);
    this.read([view.px(player.cursor[0]), view.py(player.cursor[1])]);
    player.redraw();
  }

  read(at) {
    const { player } = this, { view, scene } = player;
    if (!at || !scene.axes || !view.holds(...at)) return this.say("", at);
    const [x, y] = view.toData(...at), fine = 1 / view.sx, value = fieldAt(scene, x, y), [u, v] = inPanel(scene, x, y);
    const words = `${scene.labels[0] || "x"} ${numeral(u, fine)}   ${scene.labels[1] || "y"} ${numeral(v, 1 / view.sy)}`;
    this.say(value === null ? words : `${words}   ${scene.field.label || "value"} ${short(value)}`, at);
  }

  say(words, at) {
    const { readout, view: { rect }, width, height } = this.player;
    readout.textContent = words;
    readout.style.display = words ? "" : "none";
    if (!words) return;
    // Bottom right of the picture, or top left when the mouse is there.
    const low = !(at && at[0] > rect.l + rect.w - 260 && at[1] > rect.t + rect.h - 60);
    Object.assign(readout.style, low
      ? { right: `${width - rect.l - rect.w + 8}px`, bottom: `${height - rect.t - rect.h + 8}px`, left: "", top: "" }
      : { left: `${rect.l + 8}px`, top: `${rect.t + 8}px`, right: "", bottom: "" });
  }
}

// ---- hosts: Panel's JSComponent (send_msg, ArrayBuffer) and anywidget (send, DataView)

function hostOf(model) {
  if (typeof model.send_msg === "function")
    return { get: (name) => model[name], on: (name, f) => model.on(name, f), send: (m) => model.send_msg(m), told: (f) => model.on("msg:custom", f), removed: (f) => model.on("lifecycle:remove", f) };
  return { get: (name) => model.get(name), on: (name, f) => model.on(`change:${name}`, f), off: (name, f) => model.off(`change:${name}`, f), send: (m) => model.send(m), told: (f) => model.on("msg:custom", f), removed: () => {} };
}

// Frames, and the numbers of those that were drawn, on a websocket of the player's own beside the page (see socket.py).
// Whatever it cannot carry goes the host's way, and it tries again a few times.
const WAITS = [1, 2, 4, 8, 16, 32];

class Line {
  constructor(player, token, lost) {
    Object.assign(this, { player, token, lost, socket: null, tries: 0 });
    this.open();
  }

  open() {
    if (this.socket || !this.token || document.hidden || !location.protocol.startsWith("http")) return;
    clearTimeout(this.later);
    const url = new URL(location.href);
    Object.assign(url, { protocol: url.protocol.replace("http", "ws"), pathname: `${url.pathname.replace(/\/$/, "")}/frames`, hash: "" });
    url.search = new URLSearchParams({ player: this.token, view: this.player.id });
    const socket = (this.socket = new WebSocket(url));
    let opened = false;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => ((opened = true), this.drawn(this.player.counts.seq));
    socket.onmessage = ({ data }) => ((this.tries = 0), this.player.receive("frame", data));
    socket.onclose = () => {
      this.socket = null;
      if (opened) this.lost();
      if (this.tries < WAITS.length) this.later = setTimeout(() => this.open(), 1000 * WAITS[this.tries++]);
    };
  }

  // Says that a message was drawn; whether it could.
  drawn(seq) {
    const open = this.socket?.readyState === WebSocket.OPEN;
    if (open) this.socket.send(String(seq));
    return open;
  }

  again() {
    this.tries = 0;
    this.open();
  }

  close() {
    clearTimeout(this.later);
    this.token = "";
    if (this.socket) this.socket.onclose = null;
    this.socket?.close();
  }
}

function render({ model, el }) {
  const host = hostOf(model), tall = host.get("tall"), say = (message) => host.send({ ...message, view: player.id });
  const player = new Player(el, { tall, theme: host.get("theme"), emit: (m) => (m.kind === "drawn" && line.drawn(m.seq)) || say(m) });
  const take = { scene: () => player.receive("scene", host.get("scene")), frame: () => player.receive("frame", host.get("frame")), theme: () => player.setTheme(host.get("theme")) };
  take.scene();
  take.frame();
  for (const name in take) host.on(name, take[name]);
  host.told((message) => message?.kind === "png" && player.savePng(message.name));
  const seen = ["scene", "frame"].map((name) => (host.get(name)?.byteLength ? decode(host.get(name)).seq : 0));
  say({ kind: "ready", seen: Math.max(...seen) });
  const ready = (more) => say({ kind: "ready", seen: player.counts.seq, ...more });
  const line = new Line(player, host.get("line"), () => document.hidden || ready({ lost: true }));
  const looked = () => (document.hidden ? say({ kind: "gone" }) : (ready(), line.again()));
  document.addEventListener("visibilitychange", looked);
  const end = () => {
    player.remove();
    line.close();
    document.removeEventListener("visibilitychange", looked);
    say({ kind: "gone" });
    for (const name in take) host.off?.(name, take[name]);
  };
  host.removed(end);
  return end;
}

export default { render };
