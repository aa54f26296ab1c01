"""What the user chose (``AppState``) and the session that carries it out (``Session``); no widget in here.

The session holds the model, the last trace and the memory that was fed. Each of its actions either succeeds, and then
leaves behind the line of code that does the same, or raises a ``WorkbenchError`` and leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import traitlets as t

from workbench.errors import BadInput
from workbench.widgets.app_memories import (
    given_memory,
    hyperparameters,
    make_memory,
    memory_names,
    starting_settings,
)

if TYPE_CHECKING:
    from workbench.models import LoadedModel, Swap, Trace
    from workbench.models.edited import PackedEdits

__all__ = [
    "DEFAULT_TEXT",
    "HALFWAY",
    "TABS",
    "TURN",
    "AppState",
    "Session",
    "calm",
    "hyperparameters",
    "make_memory",
    "memory_names",
    "rounds_of",
    "starting_settings",
]

#: Tabs in the order they stand.
TABS = ("heads", "microscope", "similarity", "memory", "timeline", "generation", "conflict", "proof")

DEFAULT_TEXT = (
    "The key of Ada lies under the mat. The lamp of Ben stands on the desk. The boat of Cleo waits at the pier.\n"
    "The key of Ada lies under the mat. The lamp of Ben stands on the desk. The boat of Cleo waits at the pier."
)

#: Weights and tokens up to which one thread is enough.
SMALL_MODEL, SHORT_TEXT = 50_000_000, 2048

#: ``Session.rounds`` of a store that held something when it was opened: the text is not written into it unasked.
FOUND = -1

#: ``AppState.compared`` before anybody chose: the event half-way (-1 is the empty memory before the first event).
HALFWAY = -2


class AppState(t.HasTraits):
    """Everything that was chosen; observe it, set it, save it. Names are those of the code strip."""

    model = t.Unicode("embedded")
    kernel = t.Unicode("sdpa")
    memory = t.Unicode("none")
    settings = t.Dict()
    text = t.Unicode(DEFAULT_TEXT)
    layer = t.Int(0)
    head = t.Int(0)
    token = t.Int(-1)
    colour_by = t.Enum(("surprise", "attention"), "surprise")
    tab = t.Enum(TABS, "heads")
    reduce = t.Enum(("mean", "max"), "mean")
    similar = t.List(t.Int(), default_value=[0, -1])
    pruned = t.List(t.List(t.Int(), minlen=2, maxlen=2))
    moment = t.Int(-1)
    compared = t.Int(HALFWAY)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.trait_names()}

    def update(self, values: Mapping[str, Any]) -> None:
        """Set many at once; an unknown name or a value of the wrong kind changes nothing."""
        unknown = sorted(set(values) - set(self.trait_names()))
        if unknown:
            raise BadInput(f"the app's state has no {unknown[0]!r}; it has {', '.join(sorted(self.trait_names()))}")
        try:
            AppState(**values)
        except t.TraitError as error:
            raise BadInput(f"this state cannot be shown: {error}") from error
        for name, value in values.items():
            setattr(self, name, value)


class Session:
    """The model at hand and what was computed with it."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None
        self.name, self.kernel, self.memory, self.text = "", "", "none", ""
        self.settings: dict[str, Any] = {}
        self.trace: Trace | None = None
        self.mechanism: Any = None
        self.rounds, self.stream = 0, list[str]()
        self.untouched = 0
        self.loads = self.reads = 0
        self.tell: Callable[[float], Any] = lambda fraction: None
        self._lines: list[str] = []
        self._swaps: list[Swap] = []

    def chosen(self) -> dict[str, Any]:
        """The choices in force, under the names of ``AppState``."""
        return {
            "model": self.name,
            "kernel": self.kernel,
            "memory": self.memory,
            "settings": dict(self.settings),
            "text": self.text,
        }

    def need_model(self) -> LoadedModel:
        if self.model is None:
            raise BadInput("no model is loaded; choose one first")
        return self.model

    def need_trace(self) -> Trace:
        if self.trace is None:
            raise BadInput("no text was read yet; type one and press Look")
        return self.trace

    @property
    def layers(self) -> list[int]:
        """The layers whose attention can be drawn: all, those of a hybrid that attend, or none."""
        return [layer.index for layer in self.need_trace().layers]

    def tokens(self) -> list[str]:
        return self.trace.tokens[0] if self.trace is not None else []

    # ---- choosing: all or nothing ---------------------------------------------------------------------------------

    def carry_out(
        self,
        *,
        model: str | None = None,
        kernel: str | None = None,
        memory: Any = None,
        settings: Mapping[str, Any] | None = None,
        text: str | None = None,
        edits: PackedEdits | None = None,
    ) -> list[str]:
        """Make the choices given and trace the text under them; what is not given stays as it is.

        ``memory`` is a name, or a memory of items that lives already. ``edits`` were saved of a memory of that name.

        Returns the lines of code that do the same. Raises what the model, the kernel or the memory raises; everything
        is then as it was before.
        """
        before = dict(vars(self))
        self._lines, self._swaps = [], []
        try:
            self._choose_model(model)
            self._choose_kernel(kernel)
            self._choose_memory(memory, settings, rebind=model is not None)
            self._put_edits(edits)
            self._read(self.text if text is None else text)
            return self._lines
        except BaseException:
            for swap in reversed(self._swaps):
                swap.restore()
            vars(self).update(before)
            raise

    def _choose_model(self, name: str | None) -> None:
        if name is None:
            return
        if not name.strip():
            raise BadInput("the model's name is empty; give 'embedded', a folder or a hub id")
        from workbench.models import load

        self.model, self.name = load(name.strip()), name.strip()
        self._lines.append(f"model = wb.load({self.name!r})")
        self.trace, self.loads = None, self.loads + 1
        if self.kernel in self.model.kernels():
            self._use_kernel(self.kernel)
        self.kernel = self.model.attention

    def _choose_kernel(self, name: str | None) -> None:
        if name is not None and name != self.need_model().attention:
            self._use_kernel(name)

    def _use_kernel(self, name: str) -> None:
        model = self.need_model()
        if name != model.attention:
            self._swaps.append(model.use(attention=name))
            self._lines.append(f"model.use(attention={name!r})")
        self.kernel, self.trace = name, None

    def _choose_memory(self, name: Any, settings: Mapping[str, Any] | None, *, rebind: bool) -> None:
        if name is None and settings is None:
            if rebind and self.memory != "none":
                self._rebind()
            return
        name, before = self.memory if name is None else name, self.mechanism
        settings = dict(self.settings if settings is None else settings)
        if not isinstance(name, str):
            made, lines, name, settings = given_memory(name)
            self.untouched = FOUND  # somebody else's store: it goes on whatever is set
        elif name == "none":
            made, lines, settings = None, ['model.use(memory="none")'], {}
        else:
            keep = before if self._goes_on(name, settings) else None
            made, lines = make_memory(name, settings, keep=keep)
        if made is not None or self.need_model().memory is not None:
            self._swaps.append(self.need_model().use(memory=made))
            self._lines += lines
        self.memory, self.settings, self.mechanism = name, settings, made
        self.rounds = FOUND if self.is_store and len(self.mechanism) else 0

    def _rebind(self) -> None:
        """The same memory for another model: a cache begins anew, a memory of items goes over as it is."""
        if self.is_store:
            self._swaps.append(self.need_model().use(memory=self.mechanism))
            self._lines.append("model.use(memory=memory)")
            return
        self.mechanism, lines = make_memory(self.memory, self.settings)
        self._swaps.append(self.need_model().use(memory=self.mechanism))
        self._lines += lines
        self.rounds = 0

    def _put_edits(self, edits: PackedEdits | None) -> None:
        """The memory as it was saved, edits and all, in place of the empty one."""
        if edits is None:
            return
        self._swaps.append(edits.put_into(self.need_model()))
        self.mechanism, self.trace = self.need_model().memory, None
        self._lines.append("from workbench.widgets.app_file import saved_edits")
        self._lines.append(f"saved_edits({edits.source!r}).put_into(model)")

    def _goes_on(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the store goes on under other settings: it has a file, or was changed since the text went in."""
        same = all(settings.get(key, "") == self.settings.get(key, "") for key in ("path", "encoder"))
        if not self.is_store or name != self.memory or not same:
            return False
        return bool(settings.get("path")) or changes(self.mechanism) != self.untouched

    @property
    def is_store(self) -> bool:
        """Whether the memory in force is one of items."""
        return self.mechanism is not None and hasattr(self.mechanism, "store")

    def _read(self, text: str) -> None:
        """The trace of ``text``; kept, so that another head, tab or token costs no forward pass."""
        if not text.strip():
            raise BadInput("the text is empty; type or paste at least one word")
        if self.trace is not None and text == self.text:
            return
        model = self.need_model()
        with model.use(memory=None) if model.cache is not None else contextlib.nullcontext():
            self.trace = model.trace(text, progress=lambda fraction: self.tell(fraction))
        if text != self.text:
            self._lines.append(f"text = {text!r}")
        alone = 'with model.use(memory="none"): ' if model.cache is not None else ""
        self._lines.append(f"{alone}trace = model.trace(text)")
        self.text, self.reads = text, self.reads + 1
        self._unread()

    def forget(self) -> None:
        """The next ``carry_out`` reads the text anew."""
        self.trace = None
        self._unread()

    def _unread(self) -> None:
        """A cache has not seen the text; what was written into a store stays there until somebody takes it out."""
        if not self.is_store:
            self.rounds = 0

    # ---- memory ---------------------------------------------------------------------------------------------------

    def feed(self, on_round: Callable[[int, int], Any] = lambda done, total: None) -> list[str]:
        """Stream the text through the memory, one line a round, unless that was done; returns the lines of code."""
        model = self.need_model()
        if model.memory is None:
            raise BadInput("no memory is chosen; pick one in the list above")
        if self.rounds:
            return []
        if self.is_store:
            return self.write_text(on_round)
        lines, rounds, stream = self.empty(), rounds_of(self.text), list[str]()
        for index, line in enumerate(rounds):
            stream += model.feed(line).tokens
            on_round(index + 1, len(rounds))
        self.rounds, self.stream = len(rounds), stream
        return [*lines, "for line in filter(str.strip, text.splitlines(keepends=True)): model.feed(line)"]

    def write_text(self, on_round: Callable[[int, int], Any] = lambda done, total: None) -> list[str]:
        """Write every line of the text into the memory of items, on top of what it holds; returns the line of code."""
        model, total, done = self.need_model(), len(rounds_of(self.text)), 0

        def tell(_: Any) -> None:
            nonlocal done
            done += 1
            on_round(done, total)

        model.feed(self.text, on_round=tell)
        self.rounds, self.untouched = total, changes(self.mechanism)
        return ["model.feed(text)"]

    def empty(self) -> list[str]:
        """An empty memory and no stream; returns the line of code."""
        self.need_model().reset()
        self.rounds, self.stream = 0, []
        return ["model.reset()"]

    def went_on(self, ids: list[int]) -> None:
        """The memory has read these tokens as well (a prompt and what was generated)."""
        self.rounds, self.stream = self.rounds + 1, self.stream + self.need_model().tokens(ids)


def changes(memory: Any) -> int:
    """How many events changed what a memory of items holds."""
    return sum(event.kind not in ("read", "rerank", "decay") for event in memory.events())


#: One thing at a time: JupyterLab answers each widget on a thread of its own (kernel subshells), so two quick choices
#: would otherwise be carried out at once.
TURN = threading.RLock()


@contextlib.contextmanager
def calm(model: LoadedModel | None, tokens: int) -> Iterator[None]:
    """Wait for one's turn; then one torch thread while a small model on a CPU does little work.

    Two threads do not help there, and on a machine that is busy with other things they wait for each other: swaps on
    the embedded model were measured to take 20 times as long.
    """
    import torch

    with TURN:
        before = torch.get_num_threads()
        weights = 0 if model is None else model.n_parameters
        little = weights < SMALL_MODEL and tokens <= SHORT_TEXT and (model is None or model.device.type == "cpu")
        try:
            if little:
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(before)


def rounds_of(text: str) -> list[str]:
    """One round a line, with its line break; blank lines are no rounds."""
    return [line for line in text.splitlines(keepends=True) if line.strip()]
