// The text as tokens, each with a bar for its value; hovering reads a token, clicking keeps it.

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function render({ model, el }) {
  el.classList.add("wb-tokens");
  const heading = document.createElement("div");
  heading.className = "wb-tokens-title";
  const reading = document.createElement("span");
  reading.className = "wb-tokens-reading";
  reading.setAttribute("aria-live", "polite");
  const title = document.createElement("span");
  heading.append(title, reading);
  const strip = document.createElement("div");
  strip.className = "wb-tokens-strip";
  strip.setAttribute("role", "listbox");
  strip.setAttribute("aria-label", "Tokens of the text");
  el.append(heading, strip);
  let spans = [];

  function select(index) {
    model.set("selected", index);
    model.save_changes();
  }

  function build() {
    const start = model.get("start");
    strip.replaceChildren();
    spans = model.get("tokens").map((token, offset) => {
      const span = document.createElement("span");
      span.className = "wb-token";
      span.setAttribute("role", "option");
      span.dataset.index = start + offset;
      span.textContent = token.replaceAll("\n", "↵") || "∅";
      span.addEventListener("click", () => select(start + offset === model.get("selected") ? -1 : start + offset));
      span.addEventListener("mouseenter", () => read(offset));
      span.addEventListener("keydown", (event) => move(event, offset));
      strip.append(span);
      if (token.includes("\n")) strip.append(document.createElement("br"));
      return span;
    });
    strip.onmouseleave = () => read(model.get("selected") - start);
    paint();
    mark();
  }

  function move(event, offset) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && spans[offset + step]) {
      event.preventDefault();
      select(model.get("start") + offset + step);
      spans[offset + step].focus();
    } else if (event.key === "Escape") {
      select(-1);
    }
  }

  function paint() {
    const values = floats(model.get("values"));
    const top = model.get("top") || 1;
    spans.forEach((span, offset) => {
      const share = Math.min(1, Math.max(0, (values[offset] || 0) / top));
      span.style.setProperty("--share", share.toFixed(3));
    });
    title.textContent = model.get("title");
    read(model.get("selected") - model.get("start"));
  }

  function read(offset) {
    const span = spans[offset];
    const value = floats(model.get("values"))[offset];
    if (!span) reading.textContent = "hover a token to read it, click to keep it";
    else {
      const number = Number.isFinite(value) ? `${value.toFixed(3)} ${model.get("unit")}` : "no value (nothing before it)";
      reading.textContent = `${model.get("start") + offset} “${span.textContent}”: ${number}`;
    }
  }

  function mark() {
    const chosen = model.get("selected") - model.get("start");
    spans.forEach((span, offset) => {
      span.setAttribute("aria-selected", String(offset === chosen));
      span.tabIndex = offset === Math.max(0, chosen) ? 0 : -1;
    });
    read(chosen);
  }

  model.on("change:tokens change:start", build);
  model.on("change:values change:title change:top change:unit", paint);
  model.on("change:selected", mark);
  build();
}

export default { render };
