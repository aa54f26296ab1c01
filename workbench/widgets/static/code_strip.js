// The line of code behind the last action, with a copy button, and the whole session as a script.
// While this widget lives it hides the static picture that stands in for the app in a notebook without a kernel.

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "copied";
  setTimeout(() => (button.textContent = before), 1200);
}

function copyButton(name, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-copy";
  button.textContent = name;
  button.title = `${name} to the clipboard`;
  button.addEventListener("click", () => copy(text(), button));
  return button;
}

function render({ model, el }) {
  el.classList.add("wb-code");
  const hide = document.createElement("style");
  hide.textContent = `.wb-static-${model.get("app_id")} { display: none; }`;
  const row = document.createElement("div");
  row.className = "wb-code-row";
  const line = document.createElement("code");
  line.tabIndex = 0;
  line.setAttribute("aria-label", "The last action as a line of code");
  row.append(line, copyButton("copy", () => model.get("lines").at(-1) ?? ""));
  const session = document.createElement("details");
  const summary = document.createElement("summary");
  const script = document.createElement("pre");
  session.append(summary, copyButton("copy all", () => model.get("lines").join("\n")), script);
  el.append(hide, row, session);

  function show() {
    const lines = model.get("lines");
    line.textContent = lines.at(-1) ?? "";
    summary.textContent = `the whole session as code (${lines.length} lines)`;
    script.textContent = lines.join("\n");
  }

  model.on("change:lines", show);
  show();
}

export default { render };
