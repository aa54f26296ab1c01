"""A page with nothing but matrix.js on it, wired to a real MatrixView: what Jupyter does, without Jupyter."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.widgets import matrix

ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SYNCED = [
    "shape", "title", "units", "row_label", "col_label", "height", "scheme", "scaling", "domain", "selected",
    "viewport", "revision", "still_class", "palettes", "diverging",
]  # fmt: skip

MODEL_JS = """
window.makeModel = (state) => {
  const heard = {};
  const call = (name, ...args) => (heard[name] || []).slice().forEach((f) => f(...args));
  return {
    dirty: new Set(),
    get: (name) => state[name],
    set(name, value) { state[name] = value; this.dirty.add(name); call(`change:${name}`); },
    save_changes() {
      for (const name of this.dirty) window.toPython("save", { name, value: state[name] });
      this.dirty.clear();
    },
    on(name, f) { (heard[name] ||= []).push(f); },
    off(name, f) { heard[name] = (heard[name] || []).filter((g) => g !== f); },
    send(content) { window.toPython("message", content); },
    listeners: () => Object.values(heard).flat().length,
    receive(content, base) {
      const bytes = base ? Uint8Array.from(atob(base), (c) => c.charCodeAt(0)) : null;
      call("msg:custom", content, bytes ? [new DataView(bytes.buffer)] : []);
    },
  };
};
window.mount = async (source, css, state) => {
  document.head.appendChild(Object.assign(document.createElement("style"), { textContent: css }));
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  window.widget = (await import(url)).default;
  window.model = window.makeModel(state);
  window.unmount = window.widget.render({ model: window.model, el: document.querySelector("#here") });
};
"""


def chromium() -> str:
    """The browser's path; without one the test skips, except in CI where that is a failure."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no chromium on PATH (set CHROMIUM to its path)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return str(path)


class Canvas:
    """A MatrixView on a page. ``requests`` lists every URL the page asked for beyond itself."""

    def __init__(self, page: Any, view: matrix.MatrixView, *, dark: bool = False, width: int = 760):
        self.page, self.view, self.requests, self.problems = page, view, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.expose_function("toPython", self._heard)
        view.send = self._send  # the transport, which Jupyter would be
        ink, paper = ("#fff", "#111") if dark else ("#1f2933", "#fff")
        colours = f"background:{paper};--jp-ui-font-color0:{ink};--jp-ui-font-color1:{ink};--jp-layout-color1:{paper}"
        page.set_content(f"<body style='margin:8px;{colours}'><div id=here style='width:{width}px'></div></body>")
        page.add_script_tag(content=MODEL_JS)
        folder = Path(matrix.__file__).parent
        state = {name: getattr(view, name) for name in SYNCED}
        page.evaluate("([source, css, state]) => window.mount(source, css, state)",
                      [(folder / "matrix.js").read_text(), (folder / "matrix.css").read_text(), state])  # fmt: skip

    def _heard(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "save":
            setattr(self.view, content["name"], content["value"])
        else:
            self.view._answer(self.view, content, [])

    def _send(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        data = base64.b64encode(buffers[0]).decode() if buffers else ""
        self.page.evaluate(f"setTimeout(() => window.model.receive({json.dumps(content)}, {json.dumps(data)}), 0)")

    def push(self, name: str) -> None:
        """A trait that changed in Python, told to the page."""
        self.page.evaluate("([name, value]) => window.model.set(name, value)", [name, getattr(self.view, name)])

    @property
    def readout(self) -> str:
        return str(self.page.inner_text(".wbm-read"))

    def wait_for(self, text: str) -> None:
        self.page.wait_for_function(
            "(text) => document.querySelector('.wbm-read').textContent.includes(text)"
            " && !document.querySelector('.wbm').classList.contains('wbm-busy')", arg=text, timeout=60_000)  # fmt: skip

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until Python has heard of it; a message takes as long as the machine is busy."""
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, f"after a minute still not so: {what}"
            self.page.wait_for_timeout(20)

    def settle(self) -> None:
        """Until the canvas has rested, asked for its cells and got them.

        The pause is one of the page's own timers, longer than WAIT_MS in matrix.js: on a busy machine too, it is over
        only after the canvas's.
        """
        self.page.evaluate("new Promise((done) => setTimeout(done, 100))")
        self.page.wait_for_function("!document.querySelector('.wbm').classList.contains('wbm-busy')")

    def point(self, down: float, right: float) -> tuple[float, float]:
        """Page coordinates of a fraction of the map (0, 0 is its upper left corner)."""
        x, y, w, h = (float(part) for part in self.page.get_attribute(".wbm-stage", "data-map").split())
        box = self.page.locator(".wbm canvas").bounding_box()
        return box["x"] + x + right * w, box["y"] + y + down * h


TEXT = "the key of Ada is under the old mat and Tom has the lamp in his box today, said Ada; where is the key of Ada?"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LoadedModel with two layers of four heads (two key/value heads) and a byte-level tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from workbench.models import load

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    raw.train_from_iterator([TEXT] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    for value in network.parameters():
        if value.ndim == 2:
            torch.nn.init.normal_(value, std=0.25)  # attention far from uniform, so that a wrong cell is seen
    folder = tmp_path_factory.mktemp("tiny-llama")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


@pytest.fixture(scope="session")
def trace(model: Any) -> Any:
    """A real trace of TEXT under the exact tiled kernel."""
    with model.use(attention="flash-attention"):
        return model.trace(TEXT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium for all pages of a file; while it is up, an event loop runs in this thread."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def canvas(browser: Any) -> Iterator[Callable[..., Canvas]]:
    """``canvas(view, dark=False, width=760)`` puts a MatrixView on a page."""
    context = browser.new_context(viewport={"width": 820, "height": 760}, accept_downloads=True)
    yield lambda view, **options: Canvas(context.new_page(), view, **options)
    context.close()
