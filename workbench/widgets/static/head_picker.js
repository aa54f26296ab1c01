// A grid of head thumbnails: one button per (layer, head), arrow keys move, a click or Enter chooses.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function paint(canvas, levels, offset, size, palette) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const colour = 3 * levels[offset + i];
    image.data[4 * i] = palette[colour];
    image.data[4 * i + 1] = palette[colour + 1];
    image.data[4 * i + 2] = palette[colour + 2];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({ model, el }) {
  el.classList.add("wb-heads");
  const grid = document.createElement("div");
  grid.className = "wb-heads-grid";
  grid.setAttribute("role", "group");
  el.append(grid);
  let buttons = new Map();

  const key = (layer, head) => `${layer}:${head}`;

  function choose(layer, head) {
    model.set({ layer, head });
    model.save_changes();
  }

  function build() {
    const layers = model.get("layers");
    const heads = model.get("heads");
    grid.replaceChildren();
    buttons = new Map();
    grid.style.gridTemplateColumns = `auto repeat(${heads}, minmax(0, 1fr))`;
    grid.style.maxWidth = `${34 + heads * 60}px`;
    grid.setAttribute("aria-label", `Attention heads: ${layers.length} layers, ${heads} heads each`);
    grid.append(document.createElement("span"));
    for (let head = 0; head < heads; head++) grid.append(label(`H${head}`));
    for (const layer of layers) {
      grid.append(label(`L${layer}`));
      for (let head = 0; head < heads; head++) grid.append(button(layer, head));
    }
  }

  function label(text) {
    const span = document.createElement("span");
    span.className = "wb-heads-label";
    span.textContent = text;
    return span;
  }

  function button(layer, head) {
    const item = document.createElement("button");
    item.type = "button";
    item.className = "wb-head";
    item.dataset.head = key(layer, head);
    item.append(document.createElement("canvas"));
    item.addEventListener("click", () => choose(layer, head));
    item.addEventListener("keydown", (event) => move(event, layer, head));
    buttons.set(key(layer, head), item);
    return item;
  }

  function move(event, layer, head) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const layers = model.get("layers");
    const row = clamp(layers.indexOf(layer) + step[0], 0, layers.length - 1);
    const column = clamp(head + step[1], 0, model.get("heads") - 1);
    choose(layers[row], column);
    buttons.get(key(layers[row], column)).focus();
  }

  function draw() {
    const levels = bytes(model.get("levels"));
    const palette = bytes(model.get("palette"));
    const size = model.get("size");
    const notes = model.get("notes");
    model.get("layers").forEach((layer, row) => {
      for (let head = 0; head < model.get("heads"); head++) {
        const index = row * model.get("heads") + head;
        const item = buttons.get(key(layer, head));
        if (!item || levels.length < (index + 1) * size * size) continue;
        paint(item.firstChild, levels, index * size * size, size, palette);
        item.title = `layer ${layer}, head ${head}${notes[index] ? ": " + notes[index] : ""}`;
        item.setAttribute("aria-label", item.title);
      }
    });
  }

  function mark() {
    const chosen = key(model.get("layer"), model.get("head"));
    for (const [name, item] of buttons) {
      item.setAttribute("aria-pressed", String(name === chosen));
      item.tabIndex = name === chosen ? 0 : -1;
    }
  }

  function rebuild() {
    build();
    draw();
    mark();
  }

  model.on("change:layers change:heads", rebuild);
  model.on("change:levels", draw);
  model.on("change:layer change:head", mark);
  rebuild();
}

export default { render };
