// Plays a recorded run in a page of its own: unpacks the messages (layout: export.py), play, step, slider, curves.

import { canvasOf, decode, FONT, short, text, ticks } from "./draw.js";
import { Player } from "./player.js";

const RATE = 30; // frames a second at speed 1
const ICONS = { play: "M7 4.5v15l12.5-7.5z", pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z" };
const BYTES = { f4: 4, i4: 4, i2: 2, u1: 1 };
const UNSIGNED = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };

// ---- unpacking

async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The heads, each with its arrays' types and lengths.
function readHeads(blob) {
  const numbers = new DataView(blob.buffer), end = 4 + numbers.getUint32(0, true), heads = [];
  for (let at = 4; at < end; ) {
    const bytes = blob.subarray(at, at + 8 + numbers.getUint32(at + 4, true));
    const arrays = JSON.parse(new TextDecoder().decode(bytes.subarray(8))).arrays.map((spec) => spec.split(":"));
    heads.push({ bytes, arrays: arrays.map(([type, count]) => ({ size: BYTES[type], count: +count })) });
    at += bytes.length;
  }
  return [heads, end];
}

function unpackMessages(blob) {
  const [heads, end] = readHeads(blob), all = heads.flatMap((head) => head.arrays), at = [end];
  for (let plane = 0; plane < 3; plane++) at.push(at[plane] + all.reduce((sum, { size, count }) => sum + (size > plane ? count : 0), 0));
  let before = [];
  return heads.map(({ bytes, arrays }) => {
    before = arrays.map((spec, k) => restore(blob, at, spec, before[k]));
    return join([bytes, ...before.flatMap((array) => [new Uint8Array(array.buffer), new Uint8Array((8 - (array.byteLength % 8)) % 8)])]);
  });
}

// Gathers an array from its byte planes, and undoes the difference to the same array of the message before.
function restore(blob, at, { size, count }, before) {
  const bytes = new Uint8Array(size * count), values = new UNSIGNED[size](bytes.buffer);
  for (let plane = 0; plane < size; plane++) {
    for (let i = 0; i < count; i++) bytes[i * size + plane] = blob[at[plane] + i];
    at[plane] += count;
  }
  if (before?.BYTES_PER_ELEMENT === size) for (let i = 0; i < Math.min(count, before.length); i++) values[i] += before[i];
  return values;
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

// ---- the curves under the picture

class Curves {
  constructor(canvas, series, onSeek) {
    Object.assign(this, { canvas, series, onSeek, log: series.length > 0 && series.every(wide) });
    canvas.hidden = !series.length;
    const seek = (event) => event.buttons && this.onSeek(this.stepAt(event.offsetX));
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); seek(event); });
    canvas.addEventListener("pointermove", seek);
  }

  stepAt(px) {
    const { l, w } = this.box, [low, high] = this.steps;
    return low + ((px - l) / w) * (high - low);
  }

  draw(player, step) {
    if (!this.series.length) return;
    const { look } = player, dpr = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.canvas;
    Object.assign(this.canvas, { width: width * dpr, height: height * dpr });
    const ctx = this.canvas.getContext("2d");
    ctx.scale(dpr, dpr);
    this.box = { l: 58, t: 26, w: Math.max(20, width - 58 - (player.bar ? 76 : 14)), h: height - 26 - 20 };
    this.range();
    this.axes(ctx, look);
    for (const curve of this.series) this.line(ctx, curve, player.palette[curve.colour]);
    const px = this.px(step);
    ctx.fillStyle = look.ink;
    ctx.fillRect(Math.round(px) - 0.5, this.box.t, 1, this.box.h);
    this.names(ctx, player, step, width);
  }

  range() {
    const lift = this.log ? Math.log10 : (v) => v, all = this.series.flatMap((c) => c.values.filter((v) => v !== null && (!this.log || v > 0)).map(lift));
    const low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const room = high > low ? 0.06 * (high - low) : 0.5;
    this.lift = lift;
    this.values = Number.isFinite(low) ? [low - room, high + room] : [0, 1];
    const steps = this.series.flatMap((c) => [c.steps[0], c.steps[c.steps.length - 1]]);
    this.steps = [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)];
  }

  px(step) { return this.box.l + ((step - this.steps[0]) / (this.steps[1] - this.steps[0])) * this.box.w; }
  py(value) { return this.box.t + this.box.h * (1 - (this.lift(value) - this.values[0]) / (this.values[1] - this.values[0])); }

  axes(ctx, look) {
    const { l, t, w, h } = this.box, small = { size: 11, colour: look.muted };
    for (const [v, s] of this.heights()) {
      ctx.fillStyle = look.grid;
      ctx.fillRect(l, Math.round(this.py(v)), w, 1);
      text(ctx, s, l - 8, this.py(v), { ...small, align: "right" });
    }
    for (const [v, s] of ticks(...this.steps, w / 80)) text(ctx, s, this.px(v), t + h + 11, { ...small, align: "center" });
    ctx.strokeStyle = look.rule;
    ctx.strokeRect(l - 0.5, Math.round(t) - 0.5, w + 1, Math.round(h) + 1);
  }

  // Powers of ten on a logarithmic axis, at most four.
  heights() {
    const [low, high] = this.values;
    if (!this.log) return ticks(low, high, this.box.h / 34);
    const first = Math.ceil(low), every = Math.max(1, Math.ceil((Math.floor(high) - first + 1) / 4)), list = [];
    for (let k = first; k <= high; k += every) list.push([10 ** k, `1e${k}`.replace("-", "−")]);
    return list.length > 1 ? list : ticks(10 ** low, 10 ** high, 3).filter(([v]) => v > 0);
  }

  line(ctx, { steps, values }, colour) {
    let down = false;
    ctx.beginPath();
    for (let i = 0; i < values.length; i++) {
      if (values[i] === null || (this.log && values[i] <= 0)) { down = false; continue; }
      ctx[down ? "lineTo" : "moveTo"](this.px(steps[i]), this.py(values[i]));
      down = true;
    }
    Object.assign(ctx, { strokeStyle: colour, lineWidth: 1.6, lineJoin: "round" });
    ctx.stroke();
  }

  // Names and values at the cursor; where they do not fit beside each other, the values alone, in the curves' order.
  names(ctx, player, step, width) {
    const values = this.series.map(({ steps, values }) => values[Math.max(0, steps.findLastIndex((s) => s <= step))] ?? NaN);
    let labels = this.series.map(({ name }, i) => `${name} ${short(values[i])}`);
    ctx.font = `400 12px ${FONT}`;
    const room = (list) => list.reduce((sum, label) => sum + ctx.measureText(label).width + 32, 0);
    if (room(labels) > width - this.box.l) labels = values.map((v) => short(v, 3));
    const gap = Math.min(32, (width - this.box.l - room(labels) + 32 * labels.length) / labels.length);
    let x = this.box.l;
    this.series.forEach(({ colour }, i) => {
      ctx.fillStyle = player.palette[colour];
      ctx.fillRect(x, 11, 9, 3);
      text(ctx, labels[i], x + 13, 13, { colour: player.look.ink });
      x += ctx.measureText(labels[i]).width + gap;
    });
  }
}

const wide = ({ values }) => {
  const set = values.filter((v) => v !== null);
  return set.length > 0 && set.every((v) => v > 0) && set.reduce((a, b) => Math.max(a, b)) / set.reduce((a, b) => Math.min(a, b)) > 50;
};

// ---- playing

class Replay {
  constructor([scene, ...frames], { series }) {
    Object.assign(this, { frames, index: 0, playing: false, speed: 1, steps: frames.map((f) => decode(f).step) });
    this.player = new Player(byId("picture"), { emit: (message) => message.kind === "action" && this.act(message.name) });
    this.player.receive("scene", scene);
    this.curves = new Curves(byId("curves"), series, (step) => this.go(nearest(this.steps, step)));
    this.wire();
    this.dress(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    this.go(0);
    new ResizeObserver(() => this.show()).observe(document.body);
  }

  wire() {
    const on = (id, event, f) => byId(id).addEventListener(event, f);
    byId("time").max = this.frames.length - 1;
    on("play", "click", () => this.act("play"));
    on("back", "click", () => this.act("back"));
    on("forward", "click", () => this.act("step"));
    on("time", "input", (event) => this.go(+event.target.value));
    on("speed", "change", (event) => (this.speed = +event.target.value));
    on("log", "click", () => this.setLog(!this.curves.log));
    on("theme", "click", () => this.dress(this.player.name === "dark" ? "light" : "dark"));
    byId("log").hidden = !this.curves.series.length;
    this.setLog(this.curves.log);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const name = { " ": "play", ArrowLeft: "back", ArrowRight: "step", Home: "home", End: "end" }[event.key];
    const busy = event.target.closest?.("select, input") || (event.key === " " && event.target.closest?.("button, summary"));
    if (!name || busy || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.act(name);
  }

  act(name) {
    const last = this.frames.length - 1;
    if (name === "play") return this.playing ? this.pause() : this.start();
    this.pause();
    this.go({ back: this.index - 1, step: this.index + 1, home: 0, end: last }[name] ?? this.index);
  }

  start() {
    if (this.index === this.frames.length - 1) this.go(0);
    this.playing = true;
    this.icon("pause", "Pause");
    let last = performance.now(), owed = 0;
    const tick = (now) => {
      if (!this.playing) return;
      owed += ((now - last) / 1000) * RATE * this.speed;
      last = now;
      const whole = Math.floor(owed);
      owed -= whole;
      if (whole) this.go(this.index + whole);
      if (this.index === this.frames.length - 1) return this.pause();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    this.icon("play", "Play");
  }

  icon(name, label) {
    byId("play").setAttribute("aria-label", label);
    byId("play").querySelector("path").setAttribute("d", ICONS[name]);
  }

  go(index) {
    this.index = Math.max(0, Math.min(this.frames.length - 1, index));
    this.player.receive("frame", this.frames[this.index]);
    this.show();
  }

  show() {
    const step = this.steps[this.index];
    byId("time").value = this.index;
    byId("time").setAttribute("aria-valuetext", `step ${step}`);
    byId("step").textContent = `step ${step} / ${this.steps[this.steps.length - 1]}`;
    this.asked ??= requestAnimationFrame(() => {
      this.asked = null;
      this.curves.draw(this.player, this.steps[this.index]);
    });
  }

  setLog(on) {
    this.curves.log = on;
    byId("log").setAttribute("aria-pressed", on);
    if (this.player) this.show();
  }

  dress(theme) {
    document.documentElement.classList.toggle("dark", theme === "dark");
    this.player.setTheme(theme);
    this.show();
  }
}

const byId = (id) => document.getElementById(id);
const nearest = (steps, wanted) => steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);

inflate(byId("recording").textContent)
  .then((blob) => (window.__replay = new Replay(unpackMessages(blob), JSON.parse(byId("options").textContent))))
  .catch((error) => {
    console.error("replay:", error);
    byId("picture").textContent = `This recording could not be read: ${error.message}`;
  });
