// The matrix canvas: tiles of float16 come from Python by message; panning, zooming, reading and exporting happen here.
// One self-contained module: nothing is imported and nothing is fetched.

const TILE_SIDE = 480; // cells a side: 480 x 480 float16 is 460,800 bytes
const WAIT_MS = 70; // a pan or zoom asks for cells once it has rested this long
const LEAST_SPAN = 4; // cells a side when zoomed in fully
const NAN_GREY = [150, 158, 168];
const caches = new WeakMap(); // model -> tiles, so that a picture scrolled away and back need not be fetched again

// ---- numbers ----------------------------------------------------------------------------------------------------

const halves = (() => {
  let table = null;
  const build = () => {
    table = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      table[bits] = exponent === 0 ? sign * fraction * 2 ** -24
        : exponent === 31 ? (fraction ? NaN : sign * Infinity)
        : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
    }
    return table;
  };
  return () => table || build();
})();

function decode(view, count, factor) {
  const table = halves(), out = new Float32Array(count);
  for (let n = 0; n < count; n++) out[n] = table[view.getUint16(2 * n, true)] * factor;
  return out;
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

function short(x) {
  if (!Number.isFinite(x)) return "not a number";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size < 1e-3 || size >= 1e5 ? x.toExponential(2).replace("e+", "e") : String(+x.toPrecision(4));
  return text.replaceAll("-", "\u2212");
}

function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) out.push(+(k * step).toPrecision(12));
  return out;
}

// Value to [0, 1]; log spans at most six decades.
function unit(x, [low, high], scaling) {
  if (scaling === "log" && high > 0) {
    const floor = Math.max(low, high * 1e-6);
    return clamp(Math.log(Math.max(x, floor) / floor) / (Math.log(high / floor) || 1), 0, 1);
  }
  const t = clamp((x - low) / (high - low), 0, 1);
  return scaling === "sqrt" ? Math.sqrt(t) : t;
}

function barTicks([low, high], scaling) {
  if (scaling !== "log" || !(high > 0)) return ticks(low, high, 5);
  const out = [], floor = Math.max(low, high * 1e-6);
  for (let p = Math.ceil(Math.log10(floor) - 1e-9); p <= Math.log10(high) + 1e-9; p++) out.push(10 ** p);
  return out.length ? out : [high];
}

function ramp(stops) {
  const rgb = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16))), out = new Uint8ClampedArray(768);
  for (let n = 0; n < 256; n++) {
    const at = (n / 255) * (rgb.length - 1), k = Math.min(Math.floor(at), rgb.length - 2), f = at - k;
    for (let c = 0; c < 3; c++) out[3 * n + c] = Math.round(rgb[k][c] * (1 - f) + rgb[k + 1][c] * f);
  }
  return out;
}

// ---- tiles ------------------------------------------------------------------------------------------------------

function tileFrom(message, buffer) {
  const [height, width] = message.shape;
  return { ...message, height, width, values: decode(buffer, height * width, message.factor), painted: null, key: "" };
}

const covers = (tile, box) => tile && tile.rows[0] <= Math.floor(box[0]) && tile.rows[1] >= Math.ceil(box[1])
  && tile.cols[0] <= Math.floor(box[2]) && tile.cols[1] >= Math.ceil(box[3]);

function paintTile(tile, look) {
  const key = `${look.scheme}|${look.scaling}|${look.domain}`;
  if (tile.key === key) return tile.painted;
  const canvas = tile.painted || document.createElement("canvas");
  canvas.width = tile.width;
  canvas.height = tile.height;
  const context = canvas.getContext("2d"), image = context.createImageData(tile.width, tile.height);
  for (let n = 0; n < tile.values.length; n++) {
    const x = tile.values[n], k = 3 * Math.round(255 * unit(x, look.domain, look.scaling)), grey = !Number.isFinite(x);
    for (let c = 0; c < 3; c++) image.data[4 * n + c] = grey ? NAN_GREY[c] : look.ramp[k + c];
    image.data[4 * n + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  tile.key = key;
  return (tile.painted = canvas);
}

// The tile's cell at matrix position (i, j): its value and the positions it stands for, or null outside.
function cellAt(tile, i, j) {
  if (!tile || i < tile.rows[0] || i >= tile.rows[1] || j < tile.cols[0] || j >= tile.cols[1]) return null;
  const high = (tile.rows[1] - tile.rows[0]) / tile.height, wide = (tile.cols[1] - tile.cols[0]) / tile.width;
  const r = Math.min(Math.floor((i - tile.rows[0]) / high), tile.height - 1);
  const c = Math.min(Math.floor((j - tile.cols[0]) / wide), tile.width - 1);
  return {
    value: tile.values[r * tile.width + c],
    rows: [Math.floor(tile.rows[0] + r * high), Math.max(Math.ceil(tile.rows[0] + (r + 1) * high), 1)],
    cols: [Math.floor(tile.cols[0] + c * wide), Math.max(Math.ceil(tile.cols[0] + (c + 1) * wide), 1)],
  };
}

// ---- pens: the same scene drawn on a canvas or written as SVG -----------------------------------------------------

function drawScene(scene, context) {
  for (const mark of scene.marks) {
    context.save();
    if (mark.clip) {
      context.beginPath();
      context.rect(...mark.clip);
      context.clip();
    }
    if (mark.image) {
      context.imageSmoothingEnabled = false;
      context.drawImage(mark.image, mark.x, mark.y, mark.w, mark.h);
    } else if (mark.text !== undefined) {
      context.fillStyle = mark.colour;
      context.font = `${mark.bold ? 600 : 400} ${mark.size}px ${scene.font}`;
      context.textAlign = mark.anchor === "middle" ? "center" : mark.anchor;
      context.translate(mark.x, mark.y);
      if (mark.turned) context.rotate(-Math.PI / 2);
      context.fillText(mark.text, 0, 0);
    } else if (mark.line) {
      context.strokeStyle = mark.colour;
      context.beginPath();
      context.moveTo(mark.line[0], mark.line[1]);
      context.lineTo(mark.line[2], mark.line[3]);
      context.stroke();
    } else {
      context.strokeStyle = mark.colour;
      context.lineWidth = mark.thick || 1;
      context.strokeRect(mark.x, mark.y, mark.w, mark.h);
    }
    context.restore();
  }
}

const safe = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function writeSvg(scene) {
  const defs = [], body = scene.marks.map((mark, n) => {
    const clip = mark.clip ? ` clip-path="url(#clip${n})"` : "";
    if (mark.clip) {
      const [x, y, w, h] = mark.clip;
      defs.push(`<clipPath id="clip${n}"><rect x="${x}" y="${y}" width="${w}" height="${h}"/></clipPath>`);
    }
    if (mark.image)
      return `<g${clip}><image x="${mark.x}" y="${mark.y}" width="${mark.w}" height="${mark.h}" preserveAspectRatio="none" ` +
        `style="image-rendering:pixelated" href="${mark.image.toDataURL("image/png")}"/></g>`;
    if (mark.text !== undefined)
      return `<text x="${mark.x}" y="${mark.y}" font-size="${mark.size}" font-weight="${mark.bold ? 600 : 400}" ` +
        `fill="${mark.colour}" text-anchor="${mark.anchor}"` +
        `${mark.turned ? ` transform="rotate(-90 ${mark.x} ${mark.y})"` : ""}>${safe(mark.text)}</text>`;
    if (mark.line) {
      const [x1, y1, x2, y2] = mark.line;
      return `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${mark.colour}"/>`;
    }
    return `<rect x="${mark.x}" y="${mark.y}" width="${mark.w}" height="${mark.h}" fill="none" stroke="${mark.colour}" ` +
      `stroke-width="${mark.thick || 1}"${clip}/>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${scene.width}" height="${scene.height}" ` +
    `viewBox="0 0 ${scene.width} ${scene.height}" font-family='${scene.font}'><defs>${defs.join("")}</defs>` +
    `<rect width="100%" height="100%" fill="#ffffff"/>${body.join("")}</svg>`;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- the picture --------------------------------------------------------------------------------------------------

const LIGHT = { ink: "#1f2933", muted: "#5f6b7a", line: "#b8c0ca" };
const FONT = "system-ui, 'Helvetica Neue', Helvetica, Arial, sans-serif";
const FOCUS = "#E69F00";

class MatrixPicture {
  constructor(model, el) {
    this.model = model;
    this.cache = caches.get(model) || caches.set(model, { overview: null, detail: null, revision: -1 }).get(model);
    this.hover = this.cursor = null;
    this.asked = 0;
    this.cleanups = [];
    this.buildDom(el);
    this.box = this.boxOrHome(model.get("viewport"));
    this.listen();
    this.refresh();
  }

  // -- document --
  buildDom(el) {
    const root = (this.root = document.createElement("div"));
    root.className = "wbm";
    root.innerHTML = `
      <div class="wbm-bar" role="toolbar" aria-label="Map controls">
        <span class="wbm-group"><button data-do="out" aria-label="Zoom out" title="Zoom out (−)">−</button>
        <button data-do="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
        <button data-do="home" aria-label="Show the whole matrix" title="Whole matrix (Home)">Home</button></span>
        <label>Colours <select data-set="scheme" aria-label="Colour scheme"></select></label>
        <label>Scale <select data-set="scaling" aria-label="Colour scale"></select></label>
        <label title="Keep the colour range while panning and zooming"><input type="checkbox" data-set="lock"> hold range</label>
        <span class="wbm-space"></span>
        <span class="wbm-group"><button data-do="png" aria-label="Download as PNG">PNG</button>
        <button data-do="svg" aria-label="Download as SVG">SVG</button></span>
      </div>
      <div class="wbm-stage" tabindex="0" role="application" data-lm-suppress-shortcuts="true"><canvas></canvas></div>
      <div class="wbm-read" role="status" aria-live="polite"></div>`;
    const hide = document.createElement("style"); // the still picture of a notebook without kernel is not needed now
    hide.textContent = `.${this.model.get("still_class")} { display: none !important; }`;
    root.appendChild(hide);
    this.stage = root.querySelector(".wbm-stage");
    this.canvas = root.querySelector("canvas");
    this.read = root.querySelector(".wbm-read");
    this.fill("scheme", Object.keys(this.model.get("palettes")));
    this.fill("scaling", ["linear", "log", "sqrt"]);
    el.appendChild(root);
  }

  fill(name, choices) {
    const select = this.root.querySelector(`[data-set=${name}]`);
    select.replaceChildren(...choices.map((value) => new Option(value, value)));
  }

  on(target, name, handler, options) {
    target.addEventListener(name, handler, options);
    this.cleanups.push(() => target.removeEventListener(name, handler, options));
  }

  onModel(name, handler) {
    this.model.on(name, handler);
    this.cleanups.push(() => this.model.off(name, handler));
  }

  listen() {
    const { stage, model } = this;
    this.onModel("msg:custom", (message, buffers) => this.receive(message, buffers));
    this.onModel("change:revision", () => this.refresh());
    for (const name of ["scheme", "scaling", "domain", "selected", "title", "units", "height"])
      this.onModel(`change:${name}`, () => this.draw());
    this.onModel("change:viewport", () => this.look(this.boxOrHome(model.get("viewport")), false));
    this.on(this.root, "click", (event) => this.act(event.target.dataset.do));
    this.on(this.root, "change", (event) => this.set(event.target.dataset.set, event.target));
    this.on(stage, "keydown", (event) => this.key(event));
    this.on(stage, "wheel", (event) => this.wheel(event), { passive: false });
    this.on(stage, "pointerdown", (event) => this.press(event));
    this.on(stage, "pointermove", (event) => this.move(event));
    this.on(stage, "pointerup", (event) => this.release(event));
    this.on(stage, "pointercancel", () => (this.drag = null));
    this.on(stage, "pointerleave", () => this.leave());
    this.on(stage, "focus", () => this.draw());
    this.on(stage, "blur", () => this.draw());
    const resize = new ResizeObserver(() => this.draw());
    resize.observe(this.root);
    const theme = new MutationObserver(() => this.draw());
    theme.observe(document.body, { attributes: true });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    this.on(dark, "change", () => this.draw());
    this.cleanups.push(() => resize.disconnect(), () => theme.disconnect());
  }

  destroy() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    for (const undo of this.cleanups) undo();
    this.root.remove();
  }

  // -- cells --
  get shape() { return this.model.get("shape"); }
  home() { return [0, this.shape[0], 0, this.shape[1]]; }
  boxOrHome(box) { return box && box.length === 4 && box[1] > box[0] && box[3] > box[2] ? this.fit(box) : this.home(); }

  // The box inside the matrix, its spans between LEAST_SPAN cells and everything.
  fit([r0, r1, c0, c1]) {
    const [rows, cols] = this.shape;
    const high = clamp(r1 - r0, Math.min(LEAST_SPAN, rows), rows), wide = clamp(c1 - c0, Math.min(LEAST_SPAN, cols), cols);
    const top = clamp((r0 + r1 - high) / 2, 0, rows - high), left = clamp((c0 + c1 - wide) / 2, 0, cols - wide);
    return [top, top + high, left, left + wide];
  }

  refresh() {
    const revision = this.model.get("revision");
    if (this.cache.revision !== revision) Object.assign(this.cache, { overview: null, detail: null, revision });
    this.box = this.boxOrHome(this.model.get("viewport")); // home when another shape has cleared it
    this.ask(this.home(), "overview");
    this.look(this.box, false);
  }

  look(box, save = true) {
    this.box = this.fit(box);
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(save), WAIT_MS);
  }

  settle(save) {
    this.say();
    if (save) {
      this.model.set("viewport", this.box.map((x) => +x.toFixed(3)));
      this.model.save_changes();
    }
    const { overview, detail } = this.cache;
    if (overview && !overview.pooled) return;
    if (detail && !detail.pooled && covers(detail, this.box)) return;
    if (!this.isHome()) this.ask(this.roomy(this.box), "detail");
  }

  isHome() { return this.home().every((x, n) => Math.abs(x - this.box[n]) < 1e-6); }

  // Whole cells, with a margin for panning when that still comes at full resolution.
  roomy([r0, r1, c0, c1]) {
    const grow = (low, high, size) => {
      const margin = clamp(Math.floor((TILE_SIDE - (high - low)) / 2) - 1, 0, Math.ceil((high - low) / 3));
      return [Math.max(0, Math.floor(low) - margin), Math.min(size, Math.ceil(high) + margin)];
    };
    return [...grow(r0, r1, this.shape[0]), ...grow(c0, c1, this.shape[1])];
  }

  ask(box, role) {
    if (role === "overview" && this.cache.overview) return;
    const ratio = devicePixelRatio || 1, { w, h } = this.place || { w: TILE_SIDE, h: TILE_SIDE };
    const cap = (pixels, cells) => Math.max(1, Math.min(TILE_SIDE, cells, Math.max(64, Math.ceil(pixels * ratio))));
    const [r0, r1, c0, c1] = box;
    const exact = r1 - r0 <= TILE_SIDE && c1 - c0 <= TILE_SIDE;
    this.asked += 1;
    this.root.classList.add("wbm-busy");
    this.model.send({
      kind: "tile", id: this.asked, role, revision: this.cache.revision, rows: [r0, r1], cols: [c0, c1],
      max: role === "overview" ? [TILE_SIDE, TILE_SIDE] : exact ? [r1 - r0, c1 - c0] : [cap(h, r1 - r0), cap(w, c1 - c0)],
    });
  }

  receive(message, buffers) {
    if (message.kind === "error") {
      this.root.classList.remove("wbm-busy");
      this.failure = message.message;
      this.say();
    }
    if (message.kind !== "tile" || message.revision !== this.model.get("revision")) return;
    this.failure = "";
    this.root.classList.remove("wbm-busy");
    this.cache[message.role] = tileFrom(message, buffers[0]);
    this.draw();
    this.say();
  }

  best() {
    const { overview, detail } = this.cache;
    return !this.isHome() && covers(detail, this.box) ? detail : overview;
  }

  valueAt(i, j) {
    const { overview, detail } = this.cache;
    const hit = (this.isHome() ? null : cellAt(detail, i, j)), tile = hit ? detail : overview;
    const cell = hit || cellAt(overview, i, j);
    return cell && { ...cell, tile };
  }

  // -- drawing --
  palette() {
    const scheme = this.model.get("scheme"), palettes = this.model.get("palettes");
    const scaling = this.model.get("scaling"), tile = this.best(), held = this.model.get("domain");
    let domain = held.length === 2 ? held : tile ? [tile.low, tile.high] : [0, 1];
    if (held.length !== 2 && this.model.get("diverging").includes(scheme)) {
      const most = Math.max(Math.abs(domain[0]), Math.abs(domain[1])) || 1;
      domain = [-most, most];
    }
    if (!(domain[1] > domain[0])) domain = [domain[0], domain[0] + 1];
    return { scheme, scaling, domain, ramp: ramp(palettes[scheme]) };
  }

  // Where the map lies: its sides follow the matrix, within the room there is.
  measure(width, names) {
    const [rows, cols] = this.shape, most = this.model.get("height");
    const left = 46 + names.rowWide, right = 84, top = this.model.get("title") ? 40 : 14, under = 34 + names.colWide;
    const roomW = Math.max(80, width - left - right), roomH = Math.max(80, most - top - under);
    const aspect = clamp(cols / rows, 0.1, 10), w = Math.min(roomW, roomH * aspect), h = clamp(w / aspect, 60, roomH);
    return { x: left, y: top, w: Math.max(60, w), h, height: top + h + under, under };
  }

  labels(axis, start, stop, pixels) {
    const tile = this.best(), names = tile && !tile.pooled ? tile[axis === "r" ? "row_tokens" : "col_tokens"] : null;
    const span = stop - start, each = pixels / span, out = [];
    if (names && names.length && each >= 10) {
      const origin = tile[axis === "r" ? "rows" : "cols"][0];
      for (let i = Math.ceil(start - 0.5); i + 0.5 <= stop; i++)
        out.push([i + 0.5, names[i - origin] === undefined ? "" : names[i - origin], true]);
      return out;
    }
    for (const t of ticks(start, stop - 1, Math.max(2, pixels / 80)))
      if (Number.isInteger(t)) out.push([t + 0.5, t.toLocaleString("en"), false]);
    return out;
  }

  scene(width, theme) {
    const [r0, r1, c0, c1] = this.box, look = this.palette(), room = this.model.get("height") - 110;
    const long = (list) => Math.min(110, 6.2 * Math.max(1, ...list.map((l) => l[1].length)));
    const guess = Math.min(room, width - 200);
    const rowNames = this.labels("r", r0, r1, guess), colNames = this.labels("c", c0, c1, guess * clamp((c1 - c0) / (r1 - r0), 0.1, 10));
    const turned = colNames.some((l) => l[2]);
    const place = (this.place = this.measure(width, { rowWide: long(rowNames), colWide: turned ? long(colNames) : 10 }));
    const { x, y, w, h } = place, marks = [], clip = [x, y, w, h];
    const X = (c) => x + ((c - c0) / (c1 - c0)) * w, Y = (r) => y + ((r - r0) / (r1 - r0)) * h;
    const frame = (a, b, c, d, colour, thick) => marks.push({ x: X(c), y: Y(a), w: X(d) - X(c), h: Y(b) - Y(a), colour, thick, clip });
    for (const tile of [this.cache.overview, this.isHome() ? null : this.cache.detail])
      if (tile) marks.push({
        image: paintTile(tile, look), x: X(tile.cols[0]), y: Y(tile.rows[0]),
        w: X(tile.cols[1]) - X(tile.cols[0]), h: Y(tile.rows[1]) - Y(tile.rows[0]), clip,
      });
    marks.push({ x: x - 0.5, y: y - 0.5, w: w + 1, h: h + 1, colour: theme.line });
    for (const [at, text] of rowNames) this.tick(marks, theme, [x - 4, Y(at), x, Y(at)], { x: x - 7, y: Y(at) + 4, text, anchor: "end" });
    for (const [at, text] of colNames)
      this.tick(marks, theme, [X(at), y + h, X(at), y + h + 4],
        turned ? { x: X(at) + 4, y: y + h + 8, text, anchor: "end", turned } : { x: X(at), y: y + h + 17, text, anchor: "middle" });
    const name = { size: 12, colour: theme.ink, anchor: "middle" };
    marks.push({ ...name, text: this.model.get("row_label"), x: 14, y: y + h / 2, turned: true });
    marks.push({ ...name, text: this.model.get("col_label"), x: x + w / 2, y: place.height - 6 });
    if (this.model.get("title")) marks.push({ text: this.model.get("title"), x: 4, y: 22, size: 15, bold: true, colour: theme.ink, anchor: "start" });
    this.colourBar(marks, theme, look, x + w + 18, y, Math.min(h, 200));
    const chosen = this.model.get("selected");
    if (chosen && chosen.length === 2) frame(chosen[0], chosen[0] + 1, chosen[1], chosen[1] + 1, FOCUS, 2.5);
    return { width, height: place.height, marks, frame, font: FONT };
  }

  tick(marks, theme, line, text) {
    const most = 17, label = text.text.length > most ? text.text.slice(0, most - 1) + "…" : text.text;
    marks.push({ line, colour: theme.line }, { ...text, text: label, size: 11, colour: theme.muted });
  }

  colourBar(marks, theme, look, x, y, h) {
    const strip = document.createElement("canvas");
    [strip.width, strip.height] = [1, 256];
    const context = strip.getContext("2d"), image = context.createImageData(1, 256);
    for (let n = 0; n < 256; n++) for (let c = 0; c < 4; c++) image.data[4 * n + c] = c === 3 ? 255 : look.ramp[3 * (255 - n) + c];
    context.putImageData(image, 0, 0);
    marks.push({ image: strip, x, y, w: 12, h });
    for (const value of barTicks(look.domain, look.scaling)) {
      const at = y + (1 - unit(value, look.domain, look.scaling)) * h;
      this.tick(marks, theme, [x + 12, at, x + 16, at], { x: x + 19, y: at + 4, text: short(value), anchor: "start" });
    }
    const units = this.model.get("units") + (look.scaling === "linear" ? "" : ` (${look.scaling})`);
    marks.push({ text: units, x, y: y + h + 17, size: 11, colour: theme.muted, anchor: "start" });
  }

  theme() {
    const style = getComputedStyle(this.root), read = getComputedStyle(this.read);
    return { ink: style.color, muted: read.color, line: style.borderTopColor };
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const width = this.root.clientWidth;
    if (!width) return; // not on screen; the resize observer calls again
    this.syncControls();
    const scene = this.scene(width, this.theme()), ratio = devicePixelRatio || 1;
    const spot = this.cursor && document.activeElement === this.stage ? this.cursor : this.hover;
    const cell = spot && this.valueAt(...spot);
    if (cell) scene.frame(cell.rows[0], cell.rows[1], cell.cols[0], cell.cols[1], "#ffffff", 1.5);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(scene.height * ratio);
    this.canvas.style.height = `${scene.height}px`;
    this.stage.dataset.map = [this.place.x, this.place.y, this.place.w, this.place.h].join(" ");
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    drawScene(scene, context);
  }

  syncControls() {
    for (const name of ["scheme", "scaling"]) this.root.querySelector(`[data-set=${name}]`).value = this.model.get(name);
    this.root.querySelector("[data-set=lock]").checked = this.model.get("domain").length === 2;
    const [rows, cols] = this.shape;
    this.stage.setAttribute("aria-label", `${this.model.get("title") || "Matrix"}: ${rows} rows by ${cols} columns. ` +
      "Arrow keys pan, plus and minus zoom, Home shows everything, Shift with arrows moves the cell cursor, Enter selects.");
  }

  // -- reading --
  say() {
    const spot = this.cursor && document.activeElement === this.stage ? this.cursor : this.hover;
    if (this.failure) return void (this.read.textContent = this.failure);
    const cell = spot && this.valueAt(...spot);
    if (!cell) return void (this.read.textContent = this.hint());
    const side = (name, [a, b], tokens, origin) => b - a > 1
      ? `${name} ${a.toLocaleString("en")}–${(b - 1).toLocaleString("en")}`
      : `${name} ${a.toLocaleString("en")}${tokens && tokens[a - origin] !== undefined ? ` “${tokens[a - origin]}”` : ""}`;
    const { tile } = cell, units = this.model.get("units");
    const many = cell.rows[1] - cell.rows[0] > 1 || cell.cols[1] - cell.cols[0] > 1;
    this.read.textContent = `${side(this.model.get("row_label"), cell.rows, tile.row_tokens, tile.rows[0])} · ` +
      `${side(this.model.get("col_label"), cell.cols, tile.col_tokens, tile.cols[0])} · ` +
      `${many ? `${tile.pooled} ` : ""}${short(cell.value)}${units ? ` ${units}` : ""}`;
  }

  hint() {
    const [r0, r1, c0, c1] = this.box.map(Math.round), tile = this.best();
    const what = !tile ? "loading" : tile.pooled ? `${tile.pooled} over cells of ` +
      `${((tile.rows[1] - tile.rows[0]) / tile.height).toFixed(1)} × ${((tile.cols[1] - tile.cols[0]) / tile.width).toFixed(1)}` : "exact values";
    return `rows ${r0.toLocaleString("en")}–${(r1 - 1).toLocaleString("en")}, columns ${c0.toLocaleString("en")}–` +
      `${(c1 - 1).toLocaleString("en")} · ${what}${tile && tile.nan ? ` · ${tile.nan} not a number (grey)` : ""}`;
  }

  // -- acting --
  act(what) {
    if (what === "in") this.zoom(0.6);
    if (what === "out") this.zoom(1 / 0.6);
    if (what === "home") this.look(this.home());
    if (what === "png" || what === "svg") this.save(what);
  }

  set(name, control) {
    if (name === "scheme" || name === "scaling") this.model.set(name, control.value);
    if (name === "lock") this.model.set("domain", control.checked ? this.palette().domain : []);
    if (name) this.model.save_changes();
  }

  zoom(factor, at) {
    const [r0, r1, c0, c1] = this.box, [i, j] = at || [(r0 + r1) / 2, (c0 + c1) / 2], [rows, cols] = this.shape;
    const least = Math.max(Math.min(LEAST_SPAN, rows) / (r1 - r0), Math.min(LEAST_SPAN, cols) / (c1 - c0));
    const most = Math.min(rows / (r1 - r0), cols / (c1 - c0)), f = clamp(factor, Math.min(least, 1), Math.max(most, 1));
    if (f !== 1) this.look([i - (i - r0) * f, i + (r1 - i) * f, j - (j - c0) * f, j + (c1 - j) * f]);
  }

  pan(down, right) {
    const [r0, r1, c0, c1] = this.box, dr = down * (r1 - r0), dc = right * (c1 - c0);
    this.look([r0 + dr, r1 + dr, c0 + dc, c1 + dc]);
  }

  key(event) {
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, arrow = arrows[event.key];
    const known = arrow || ["+", "=", "-", "_", "0", "Home", "Enter", " ", "Escape"].includes(event.key);
    if (!known || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (arrow && event.shiftKey) this.step(arrow);
    else if (arrow) this.pan(arrow[0] * 0.1, arrow[1] * 0.1);
    else if (event.key === "+" || event.key === "=") this.act("in");
    else if (event.key === "-" || event.key === "_") this.act("out");
    else if (event.key === "0" || event.key === "Home") this.act("home");
    else if (event.key === "Escape") this.choose([]);
    else if (this.cursor) this.choose(this.cursor);
  }

  // Moves the cell cursor by one drawn cell and keeps it in sight.
  step([down, right]) {
    const [r0, r1, c0, c1] = this.box, [rows, cols] = this.shape;
    const from = this.cursor || [Math.floor((r0 + r1) / 2), Math.floor((c0 + c1) / 2)], cell = this.valueAt(...from);
    const high = cell ? cell.rows[1] - cell.rows[0] : 1, wide = cell ? cell.cols[1] - cell.cols[0] : 1;
    const i = clamp(from[0] + down * high, 0, rows - 1), j = clamp(from[1] + right * wide, 0, cols - 1);
    this.cursor = [i, j];
    if (i < r0 || i + 1 > r1 || j < c0 || j + 1 > c1) this.pan(down * 0.25, right * 0.25);
    this.draw();
    this.say();
  }

  choose(cell) {
    this.model.set("selected", cell);
    this.model.save_changes();
  }

  spot(event) {
    const frame = this.canvas.getBoundingClientRect(), p = this.place;
    if (!p) return null;
    const fx = (event.clientX - frame.left - p.x) / p.w, fy = (event.clientY - frame.top - p.y) / p.h;
    const [r0, r1, c0, c1] = this.box;
    return fx < 0 || fy < 0 || fx >= 1 || fy >= 1 ? null : [r0 + fy * (r1 - r0), c0 + fx * (c1 - c0)];
  }

  wheel(event) {
    const at = this.spot(event);
    if (!at || (event.deltaY > 0 && this.isHome())) return; // zoomed out already: let the page scroll
    event.preventDefault();
    this.zoom(Math.exp(clamp(event.deltaY, -120, 120) * 0.0035), at);
  }

  press(event) {
    if (event.button !== 0 || !this.spot(event)) return;
    this.drag = { x: event.clientX, y: event.clientY, box: this.box, moved: false };
    this.stage.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (this.drag) {
      const dx = event.clientX - this.drag.x, dy = event.clientY - this.drag.y, [r0, r1, c0, c1] = this.drag.box;
      this.drag.moved = this.drag.moved || Math.hypot(dx, dy) > 3;
      const dr = (-dy / this.place.h) * (r1 - r0), dc = (-dx / this.place.w) * (c1 - c0);
      if (this.drag.moved) this.look([r0 + dr, r1 + dr, c0 + dc, c1 + dc]);
      return;
    }
    const at = this.spot(event);
    this.cursor = null;
    this.hover = at && at.map(Math.floor);
    this.draw();
    this.say();
  }

  release(event) {
    const drag = this.drag, at = this.spot(event);
    this.drag = null;
    if (drag && !drag.moved && at) this.choose(at.map(Math.floor));
  }

  leave() {
    this.hover = null;
    this.draw();
    this.say();
  }

  save(kind) {
    const scene = this.scene(Math.max(480, Math.min(this.root.clientWidth, 1200)), LIGHT), ratio = 2;
    scene.width = Math.ceil(Math.min(scene.width, this.place.x + this.place.w + 100)); // no empty margin on the right
    const name = (this.model.get("title") || "matrix").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase();
    if (kind === "svg") return download(new Blob([writeSvg(scene)], { type: "image/svg+xml" }), `${name}.svg`);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [scene.width * ratio, Math.ceil(scene.height * ratio)];
    const context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.scale(ratio, ratio);
    drawScene(scene, context);
    canvas.toBlob((blob) => download(blob, `${name}.png`), "image/png");
    this.draw();
  }
}

export default {
  render({ model, el }) {
    const picture = new MatrixPicture(model, el);
    return () => picture.destroy();
  },
};
