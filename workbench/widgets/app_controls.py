"""The controls above the picture: model, kernel, memory with its hyper-parameters, text. They only set the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from workbench.widgets.app_samples import SAMPLES, sample
from workbench.widgets.app_state import AppState, Session, hyperparameters, memory_names

ANOTHER = "another model …"
KNOWN_MODELS = ("embedded", "embedded-relu")
NARROW = {"description_width": "initial"}


def dropdown(label: str, tooltip: str, options: list[Any], value: Any, width: str = "195px") -> w.Dropdown:
    return w.Dropdown(
        options=options, value=value, description=label, tooltip=tooltip, style=NARROW, layout=w.Layout(width=width)
    )


def button(label: str, tooltip: str, *, primary: bool = False, width: str = "auto") -> w.Button:
    return w.Button(
        description=label, tooltip=tooltip, button_style="primary" if primary else "", layout=w.Layout(width=width)
    )


def row(*children: w.Widget) -> w.Box:
    box = w.Box(children)
    box.add_class("wb-row")
    return box


def note(html: str = "") -> w.HTML:
    widget = w.HTML(html)
    widget.add_class("wb-note")
    return widget


def field(name: str, value: Any) -> w.ValueWidget:
    """A control for one hyper-parameter, by the type of its value."""
    common = {"description": name, "tooltip": f"hyper-parameter {name} of the memory", "style": NARROW}
    if isinstance(value, bool):
        return w.Checkbox(value=value, indent=False, layout=w.Layout(width="auto"), **common)
    if isinstance(value, int):
        return w.IntText(value=value, continuous_update=False, layout=w.Layout(width="190px"), **common)
    if isinstance(value, float):
        return w.FloatText(value=value, continuous_update=False, layout=w.Layout(width="190px"), **common)
    return w.Text(value=value, continuous_update=False, layout=w.Layout(width="190px"), **common)


class Controls:
    """Widgets bound to an ``AppState``: a change here sets the state, a change there shows here."""

    def __init__(self, state: AppState, session: Session, look: Callable[[], None]):
        self.state, self.session = state, session
        self.model = dropdown("Model", "the language model; 'another model' takes a folder or a hub id", [], None)
        self.other = w.Text(
            placeholder="folder or hub id, then Enter",
            description="Name",
            style=NARROW,
            continuous_update=False,
            tooltip="a folder with a safetensors model, or a Hugging Face id",
            layout=w.Layout(width="320px", display="none"),
        )
        self.kernel = dropdown("Kernel", "the attention kernel that computes the model's attention", [], None)
        self.memory = dropdown("Memory", "the memory that holds the model's past", memory_names(), state.memory)
        self.settings = row()
        self.sample = dropdown(
            "Sample", "put one of these texts into the box", ["your text", *SAMPLES], "your text", "200px"
        )
        self.text = w.Textarea(
            value=state.text,
            description="Text",
            rows=3,
            continuous_update=False,
            style=NARROW,
            tooltip="the text the model reads; leave the box or press Look to see it",
            layout=w.Layout(width="100%"),
        )
        self.look = button("Look", "run the model on the text", primary=True, width="76px")
        self.view = w.VBox(
            [
                row(self.model, self.other, self.kernel, self.memory, self.sample, self.look),
                self.settings,
                self.text,
            ]
        )
        self._showing = False
        self.show_all()
        self._connect(look)

    # ---- state to controls ----------------------------------------------------------------------------------------

    def show_all(self) -> None:
        """Bring every control to what the state says; a refused choice goes back through here."""
        self._showing = True
        try:
            names = list(dict.fromkeys([*KNOWN_MODELS, self.state.model]))
            self._offer(self.model, [*names, ANOTHER], self.state.model)
            kernels = self.session.model.kernels() if self.session.model else [self.state.kernel]
            self._offer(self.kernel, kernels, self.state.kernel)
            self._offer(self.memory, memory_names(), self.state.memory)
            self.text.value = self.state.text
            self._show_settings()
        finally:
            self._showing = False

    @staticmethod
    def _offer(control: w.Dropdown, options: list[str], value: str) -> None:
        options = options if value in options else [*options, value]
        if list(control.options) != options:
            control.options = options
        control.value = value

    def _show_settings(self) -> None:
        values = {**hyperparameters(self.state.memory), **self.state.settings}
        shown = {item.description: item for item in self.settings.children}
        if list(shown) != list(values):
            self.settings.children = [self._setting(name, value) for name, value in values.items()]
            self.settings.layout.display = "" if values else "none"
            return
        for name, value in values.items():
            shown[name].value = value

    def _setting(self, name: str, value: Any) -> w.ValueWidget:
        control = field(name, value)
        control.observe(lambda change: self._set("settings", {**self.state.settings, name: change.new}), "value")
        return control

    # ---- controls to state ----------------------------------------------------------------------------------------

    def _connect(self, look: Callable[[], None]) -> None:
        self.model.observe(self._choose_model, "value")
        self.other.observe(lambda change: self._set("model", change.new.strip() or None), "value")
        self.kernel.observe(lambda change: self._set("kernel", change.new), "value")
        self.memory.observe(lambda change: self._set("memory", change.new), "value")
        self.text.observe(lambda change: self._set("text", change.new), "value")
        self.sample.observe(self._choose_sample, "value")
        self.look.on_click(lambda _: look())

    def _set(self, name: str, value: Any) -> None:
        if not self._showing and value is not None:
            setattr(self.state, name, value)

    def _choose_model(self, change: Any) -> None:
        asks = change.new == ANOTHER
        self.other.layout.display = "" if asks else "none"
        if not asks:
            self._set("model", change.new)

    def _choose_sample(self, change: Any) -> None:
        if change.new in SAMPLES:
            self._set("text", sample(change.new))
