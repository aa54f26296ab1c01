// What is going on: a line of text, a progress bar, and errors that a screen reader announces.

function render({ model, el }) {
  el.classList.add("wb-status");
  const error = document.createElement("div");
  error.className = "wb-error";
  error.setAttribute("role", "alert");
  const line = document.createElement("div");
  line.className = "wb-status-line";
  line.setAttribute("aria-live", "polite");
  const bar = document.createElement("div");
  bar.className = "wb-bar";
  bar.setAttribute("role", "progressbar");
  const fill = document.createElement("div");
  bar.append(fill);
  el.append(error, line, bar);

  function showError() {
    error.textContent = model.get("error");
    error.hidden = !model.get("error");
  }

  function showProgress() {
    const fraction = model.get("fraction");
    line.textContent = model.get("message");
    bar.style.visibility = fraction < 0 ? "hidden" : "visible";
    bar.setAttribute("aria-valuenow", Math.round(100 * Math.max(0, fraction)));
    fill.style.width = `${100 * Math.min(1, Math.max(0, fraction))}%`;
  }

  model.on("change:error", showError);
  model.on("change:message change:fraction", showProgress);
  showError();
  showProgress();
}

export default { render };
