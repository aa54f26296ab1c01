"""The app: one object in a notebook cell with everything to load, swap and look at.

>>> from workbench.widgets import Workbench
>>> app = Workbench("embedded", text="The key of Ada lies under the mat.")    # doctest: +SKIP
>>> app.state.kernel = "flash-attention"                                      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import html
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.widgets.app_chart import settled
from workbench.widgets.app_controls import Controls
from workbench.widgets.app_file import FileRow
from workbench.widgets.app_memories import kind_of
from workbench.widgets.app_parts import CodeStrip, StatusStrip
from workbench.widgets.app_state import DEFAULT_TEXT, HALFWAY, TABS, TURN, AppState, Session, calm, starting_settings
from workbench.widgets.app_tabs import TAB_CLASSES, Tab
from workbench.widgets.app_tokens import Tokens
from workbench.widgets.still import Still, framed

if TYPE_CHECKING:
    from workbench.memory.stores.base import StoreMemory
    from workbench.models.edited import PackedEdits

PRELUDE = ("import workbench as wb", "from workbench.memory.base import MEMORIES")
#: A change of one of these asks the model anew; everything else only draws.
CHOICES = ("model", "kernel", "memory", "settings", "text")

#: Tabs on which another memory can be seen; choosing one elsewhere goes to the first of them.
MEMORY_TABS = ("memory", "timeline", "generation")
#: Tabs that show attention and nothing else.
ATTENTION_TABS = ("heads", "microscope")


class Workbench:
    """Load a model, swap its kernel and its memory, and look.

    Args:
        model: "embedded", a folder, or a hub id.
        text: what the model reads; a short default with two equal halves.
        kernel: an attention kernel's name; the model's own when not given.
        memory, settings: a memory's name and its hyper-parameters; or a memory of items that lives already.

    ``state`` (traitlets) holds every choice: set one and the app follows; a choice that cannot be carried out is shown
    as an error and taken back. ``session`` holds the model, the trace and the memory; ``code`` the lines that do the
    same without the app. Raises WorkbenchError when the first choice cannot be carried out.
    """

    def __init__(
        self,
        model: str = "embedded",
        *,
        text: str | None = None,
        kernel: str | None = None,
        memory: str | StoreMemory = "none",
        settings: Mapping[str, Any] | None = None,
    ):
        self.id = uuid.uuid4().hex[:12]
        self.code = CodeStrip(lines=list(PRELUDE), app_id=self.id)
        self.status = StatusStrip()
        self.session = Session()
        self.session.tell = lambda fraction: self.status.set_trait("fraction", float(fraction))
        first: dict[str, Any] = {
            "model": model,
            "text": DEFAULT_TEXT if text is None else text,
            "memory": memory,
            "settings": dict(settings or {}),
            **({"kernel": kernel} if kernel else {}),
        }
        with calm(None, 0):
            self._write_down(self.session.carry_out(**first))
        self.state = AppState(**{**first, **self.session.chosen()})
        self._build()

    # ---- building -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._quiet, self._attends = False, True
        self._clip_selection()
        self._go_where_something_is()
        self._still = Still(self.id, self.static, self.working)
        self._tokens = Tokens(self)
        self.controls = Controls(self)
        self.tabs: dict[str, Tab] = {name: TAB_CLASSES[name](self) for name in TABS}
        self._stale = set(TABS)
        self._pages = w.Tab([tab.view for tab in self.tabs.values()], titles=[tab.title for tab in self.tabs.values()])
        self._pages.selected_index = TABS.index(self.state.tab)
        self._pages.observe(lambda change: self.state.set_trait("tab", TABS[change.new]), "selected_index")
        self._header = w.HTML()
        self.view = w.VBox(
            [
                self._header,
                self.controls.view,
                self.status,
                self._tokens.view,
                self._pages,
                FileRow(self).view,
                self.code,
            ]
        )
        self.view.add_class("wb-app")
        self.state.observe(self._changed)
        self.refresh()

    def _ipython_display_(self) -> None:
        """Show the app, and under it a static picture that is only seen where no kernel runs."""
        self._still.show(self.view)

    def static(self) -> str:
        """The visible tab as plain HTML with embedded pictures: what a reopened notebook shows without a kernel."""
        return framed(self.id, self._header.value + self.tabs[self.state.tab].static())

    # ---- doing ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the text again and draw anew."""
        with TURN, self.working("reading the text"):
            self.session.forget()
            self._write_down(self.session.carry_out(text=self.controls.text.value))
            self._settle()

    def choose(self, **choices: Any) -> None:
        """Several choices at once (model, kernel, memory, settings, text): all of them or, on an error, none."""
        if kind_of(str(choices.get("memory", self.state.memory))) == "store":
            settled()
        with TURN:
            with self.working("working"):
                self._write_down(self.session.carry_out(**choices))
            self._settle()

    def restore(self, values: Mapping[str, Any], edits: PackedEdits | None = None) -> None:
        """Go to a saved state, and to the edits saved beside it (``app_file.saved_edits``).

        Raises WorkbenchError and changes nothing when it cannot be reached, or the edits are of another model.
        """
        AppState().update(values)
        with TURN:
            choices = {name: values[name] for name in CHOICES if name in values}
            self._write_down(self.session.carry_out(**choices, edits=edits))
            self._attends = bool(self.session.layers)
            with self._silently():
                self.state.update({**values, **self.session.chosen()})
            self._settle()

    def save(self, path: str | Path) -> Path:
        """The state, and the edits of the model if there are any, as one bundle."""
        from workbench.widgets.app_file import save

        return save(self, path)

    @classmethod
    def open(cls, path: str | Path) -> Workbench:
        """An app in the state that was saved at ``path``."""
        from workbench.widgets.app_file import read, saved_edits

        values = read(path)
        app = cls(values["model"], text=values["text"], kernel=values["kernel"])
        app.restore(values, saved_edits(path))
        return app

    # ---- following the state --------------------------------------------------------------------------------------

    def _changed(self, change: Any) -> None:
        with TURN:
            if not self._quiet:
                self._follow(change)

    def _follow(self, change: Any) -> None:
        if change.name in CHOICES:
            self._carry_out(change)
        elif change.name == "tab":
            self._pages.selected_index = TABS.index(change.new)
            self.refresh()
        else:
            self._select(change)

    def _carry_out(self, change: Any) -> None:
        choices = {change.name: change.new}
        done = False
        with self.working(f"{change.name}: {str(change.new)[:60]}"):
            if change.name == "memory":
                if kind_of(change.new) == "store":
                    settled()
                choices["settings"] = starting_settings(change.new, len(self.session.tokens()))
            self._write_down(self.session.carry_out(**choices))
            done = True
        if not done:
            self._take_back(change)
            return
        if change.name == "memory" and change.new != "none" and self.state.tab not in MEMORY_TABS:
            with self._silently():
                self.state.tab = "memory"
        self._settle()

    def _take_back(self, change: Any) -> None:
        with self._silently():
            self.state.set_trait(change.name, change.old)
        self.controls.show_all()

    def _select(self, change: Any) -> None:
        """Another layer, head, token or moment: draw what depends on it, or take back what is not there."""
        with self.working(f"{change.name} {change.new}"):
            self._check_selection(change.name, change.new)
        if self.status.error:
            self._take_back(change)
        self._stale |= {name for name, tab in self.tabs.items() if change.name in tab.follows}
        self.refresh()

    def _check_selection(self, name: str, value: Any) -> None:
        model = self.session.need_model()
        first, most = {
            "layer": (0, model.n_layers - 1),
            "head": (0, model.n_heads - 1),
            "token": (-1, len(self.session.tokens()) - 1),
        }.get(name, (None, None))
        if name == "pruned":
            self._check_heads(value)
        if most is not None and not first <= value <= most:
            raise BadInput(f"{name} must lie in {first} .. {most}, got {value}")
        attending = self.session.layers
        if name == "layer" and attending and value not in attending:
            raise BadInput(f"layer {value} has no attention to show; layers that have: {str(attending)[1:-1]}")

    def _check_heads(self, heads: list[list[int]]) -> None:
        model = self.session.need_model()
        for layer, head in heads:
            if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
                raise BadInput(
                    f"head {layer}.{head} is not in this model: layers 0 .. {model.n_layers - 1}, "
                    f"heads 0 .. {model.n_heads - 1}"
                )

    def _settle(self) -> None:
        """The session changed: bring state, controls and pictures to what it is now."""
        with self._silently():
            self.state.update(self.session.chosen())
            self._clip_selection()
            self._go_where_something_is()
        self.controls.show_all()
        self._pages.selected_index = TABS.index(self.state.tab)
        self._stale = set(TABS)
        self.refresh()

    def _go_where_something_is(self) -> None:
        """After a change between a model that attends and one whose layers are memories, leave a tab that is empty."""
        if self._attends == bool(self.session.layers):
            return
        self._attends, held = not self._attends, self.session.need_model().memory is not None
        if not self._attends and held and self.state.tab in ATTENTION_TABS:
            self.state.tab = "memory"
        elif self._attends and not held and self.state.tab in ("memory", "timeline"):
            self.state.tab = "heads"

    def _clip_selection(self) -> None:
        model = self.session.need_model()
        layers = self.session.layers or range(model.n_layers)
        if self.state.layer not in layers:
            self.state.layer = min(layers, key=lambda layer: abs(layer - self.state.layer))
        self.state.head = min(max(self.state.head, 0), model.n_heads - 1)
        self.state.token = min(self.state.token, len(self.session.tokens()) - 1)
        inside = (model.n_layers, model.n_heads)
        self.state.pruned = [at for at in self.state.pruned if 0 <= at[0] < inside[0] and 0 <= at[1] < inside[1]]
        self.state.moment, self.state.compared = -1, HALFWAY

    def refresh(self) -> None:
        """Draw the token strip and the visible tab, if what they show has changed; other tabs wait until seen."""
        self._header.value = header(self)
        with self.working("drawing", keep_error=True):
            self._tokens.draw()
            name = self.state.tab
            if name in self._stale:
                self.tabs[name].draw()
                self._stale.discard(name)
        self._still.renew()

    def redraw(self, *names: str) -> None:
        """These tabs are out of date; the one that is seen is drawn now."""
        self._stale |= set(names)
        self.refresh()

    @contextlib.contextmanager
    def _silently(self) -> Iterator[None]:
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def working(self, what: str, *, keep_error: bool = False) -> contextlib.AbstractContextManager[StatusStrip]:
        """Show that something runs; an error goes to the error strip instead of up the stack."""
        tokens = len(self.session.tokens())
        return self.status.working(what, keep_error=keep_error, model=self.session.model, tokens=tokens)

    def _write_down(self, lines: list[str]) -> None:
        for line in lines:
            self.code.add(line)


def header(app: Workbench) -> str:
    model, state = app.session.need_model(), app.state
    mixers = getattr(model.config, "mixers", [])  # of a model whose layers are memories
    parts = [
        f"{len(mixers)} layers that are memories: {', '.join(dict.fromkeys(one['mixer'] for one in mixers))}"
        if mixers
        else layers_and_heads(model.n_layers, model.n_heads, len(app.session.layers)),
        *([] if mixers else [f"kernel {state.kernel}"]),
        *([] if mixers and state.memory == "none" else [f"memory {state.memory}"]),
        f"{len(app.session.tokens()):,} tokens",
    ]
    name = html.escape(Path(state.model).name or state.model)
    return f'<div class="wb-head-line"><b>{name}</b><span>{" · ".join(map(html.escape, parts))}</span></div>'


def layers_and_heads(layers: int, heads: int, attending: int) -> str:
    if 0 < attending < layers:
        return f"{layers} layers, {attending} of them of {heads} heads"
    return f"{layers} layers of {heads} heads"
