"""The controls above the picture: model, kernel, memory with its hyper-parameters, text. They only set the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.widgets.app_samples import SAMPLES, sample
from workbench.widgets.app_state import TURN, hyperparameters, memory_names

if TYPE_CHECKING:
    from workbench.widgets.app import Workbench

ANOTHER = "another model …"
KNOWN_MODELS = ("embedded", "embedded-relu")
NARROW = {"description_width": "initial"}


def dropdown(label: str, tooltip: str, options: list[Any], value: Any, width: str = "195px") -> w.Dropdown:
    return w.Dropdown(
        options=options, value=value, description=label, tooltip=tooltip, style=NARROW, layout=w.Layout(width=width)
    )


def offer(control: w.Widget, value: Any, options: Sequence[Any] | None = None) -> None:
    """Show ``value`` (and other options) without anybody taking it for a person's choice."""
    control.offering = True
    try:
        if options is not None and tuple(options) != tuple(control.options):
            control.options = options
        control.value = value
    finally:
        control.offering = False


def chosen(control: w.Widget, act: Callable[[Any], Any]) -> None:
    """Call ``act`` with every value that a person chooses, one choice at a time."""

    def choose(change: Any) -> None:
        with TURN:
            if not getattr(control, "offering", False):
                act(change.new)

    control.observe(choose, "value")


def pressed(control: w.Button, act: Callable[[], Any]) -> None:
    """Call ``act`` at every press, one press at a time."""

    def press(_: Any) -> None:
        with TURN:
            act()

    control.on_click(press)


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
    kind = w.IntText if isinstance(value, int) else w.FloatText if isinstance(value, float) else w.Text
    wide = max(150, 15 * len(name))  # room for 0.00001 beside weight_decay
    return kind(value=value, continuous_update=False, layout=w.Layout(width=f"{wide}px"), **common)


class Controls:
    """Widgets bound to an ``AppState``: a change here sets the state, a change there shows here."""

    def __init__(self, app: Workbench):
        self.app, self.state, self.session = app, app.state, app.session
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
        self.memory = dropdown(
            "Memory",
            "token caches hold the model's past; then memories of items, which are asked",
            [],
            None,
        )
        self.settings = row()
        self.sample = dropdown(
            "Sample", "put one of these texts into the box", ["your text", *SAMPLES], "your text", "200px"
        )
        self.text = w.Textarea(
            value=app.state.text,
            description="Text",
            rows=3,
            continuous_update=False,
            style=NARROW,
            tooltip="the text the model reads; leave the box or press Look to see it",
            layout=w.Layout(width="auto"),
        )
        self.look = button("Look", "run the model on the text", primary=True, width="76px")
        self.view = w.VBox(
            [
                row(self.model, self.other, self.kernel, self.memory, self.sample, self.look),
                self.settings,
                self.text,
            ]
        )
        self.show_all()
        self._connect()

    # ---- state to controls ----------------------------------------------------------------------------------------

    def show_all(self) -> None:
        """Bring every control to what the state says; a refused choice goes back through here."""
        state, model = self.state, self.session.model
        names = list(dict.fromkeys([*KNOWN_MODELS, state.model]))
        offer(self.model, state.model, [*names, ANOTHER])
        self.other.layout.display = "none"
        offer(self.kernel, state.kernel, model.kernels() if model else [state.kernel])
        offer(self.memory, state.memory, list(dict.fromkeys([*memory_names(), state.memory])))
        offer(self.text, state.text)
        self._show_settings()

    def _show_settings(self) -> None:
        values = {**hyperparameters(self.state.memory), **self.state.settings}
        shown = {item.description: item for item in self.settings.children}
        if list(shown) != list(values):
            self.settings.children = [self._setting(name, value) for name, value in values.items()]
            self.settings.layout.display = "" if values else "none"
            return
        for name, value in values.items():
            offer(shown[name], value)

    def _setting(self, name: str, value: Any) -> w.ValueWidget:
        control = field(name, value)
        chosen(control, lambda new: self.state.set_trait("settings", {**self.state.settings, name: new}))
        return control

    # ---- controls to state ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        chosen(self.model, self._choose_model)
        chosen(self.other, self._name_model)
        chosen(self.kernel, lambda name: self.state.set_trait("kernel", name))
        chosen(self.memory, lambda name: self.state.set_trait("memory", name))
        chosen(self.text, lambda text: self.state.set_trait("text", text))
        chosen(self.sample, self._choose_sample)
        pressed(self.look, self.app.look)

    def _choose_model(self, name: str) -> None:
        self.other.layout.display = "" if name == ANOTHER else "none"
        if name != ANOTHER:
            self.state.model = name

    def _name_model(self, name: str) -> None:
        if name.strip():
            self.state.model = name.strip()

    def _choose_sample(self, name: str) -> None:
        if name not in SAMPLES:
            return
        text = ""
        with self.app.working(f"sample {name}"):
            text = sample(name)
        if text:
            self.state.text = text
