"""Tabs that show matrices: every head at a glance, the microscope, similarity of activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from workbench.errors import BadInput
from workbench.widgets.app_controls import button, chosen, dropdown, note, offer, pressed, row
from workbench.widgets.app_parts import HeadPicker
from workbench.widgets.app_samples import held_out
from workbench.widgets.app_state import calm
from workbench.widgets.app_tab import Tab, as_array, bytes_text, img, plane_stack, seconds_text
from workbench.widgets.matrix import MatrixView, trace_source

if TYPE_CHECKING:
    from workbench.models import Trace

#: Cells a side of a thumbnail; thumbnails of all layers only up to this many attention cells, else one layer.
THUMB, ALL_LAYERS_CELLS = 40, 48 * 1024**2
MEAN_OF_HEADS = "mean"
POOLINGS = [("mean of a cell's pairs", "mean"), ("largest of a cell's pairs", "max")]
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
#: Lengths offered beside these where the model is on a GPU.
GPU_LENGTHS = (32768, 65536, 131072)
#: A map that is predicted to take longer shows a bar.
SHOW_AFTER_SECONDS = 2.0


def show_attention(tab: Tab, trace: Trace, layer: int, head: int | None) -> None:
    """Put one head (None: the mean over heads) of a trace on the tab's canvas."""
    tokens, reduce, model = trace.tokens[0], tab.state.reduce, tab.session.model

    def source(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        seconds = trace.cost("map", layer=layer, head=head, rows=rows, cols=cols).seconds
        with calm(model, len(tokens)), counted(tab, seconds) as progress:
            return trace_source(trace, layer, head, reduce=reduce, progress=progress)(rows, cols, max_shape)

    who = "mean of all heads" if head is None else f"head {head}"
    tab.map.update(
        source,
        shape=(len(tokens), len(tokens)),
        row_labels=tokens,
        col_labels=tokens,
        pooling=reduce,
        title=f"Layer {layer}, {who}",
    )


@contextlib.contextmanager
def counted(tab: Tab, seconds: float) -> Iterator[Any]:
    """A progress callback for a map that is predicted to take over two seconds, else None."""
    if seconds <= SHOW_AFTER_SECONDS:
        yield None
        return
    with tab.app.status.counting(f"a map, predicted {seconds_text(seconds)}") as tell:
        yield tell


#: What the maps say of a model whose layers are memories.
NO_ATTENTION = (
    "This model mixes its tokens by memories and has no attention to draw. <b>Memory</b> shows what each layer's state "
    "holds, <b>Timeline</b> every token's write, <b>Similarity</b> the hidden states."
)


def attends(tab: HeadsTab | MicroscopeTab) -> bool:
    """Whether the text's trace has attention; if not, the tab says so instead of its maps."""
    found = bool(tab.session.layers)
    tab.body.layout.display, tab.nothing.value = ("", "") if found else ("none", NO_ATTENTION)
    return found


def canvas(**traits: Any) -> MatrixView:
    return MatrixView(
        np.zeros((1, 1)), units="p", row_label="token that looks", col_label="token looked at", scaling="sqrt", **traits
    )


class HeadsTab(Tab):
    """Thumbnails of every head and, large, the chosen one."""

    name, title, follows = "heads", "Heads", frozenset({"layer", "head", "reduce", "token"})

    def build(self) -> list[w.Widget]:
        self.picker, self.map = HeadPicker(), canvas(height=500)
        self.pooling = dropdown(
            "A cell shows", "how a cell of a pooled map is made", POOLINGS, self.state.reduce, "270px"
        )
        self.layer = dropdown("Layer", "the layer shown when there are too many heads for one grid", [0], 0, "130px")
        self.caption = note()
        self._thumbs_of: tuple[Any, ...] = ()
        self._shown: tuple[Any, ...] = ()
        self.picker.observe(self._pick, ["layer", "head"])
        self.map.observe(lambda change: self.state.set_trait("token", change.new[0] if change.new else -1), "selected")
        chosen(self.pooling, lambda value: self.state.set_trait("reduce", value))
        chosen(self.layer, lambda value: self.state.set_trait("layer", value))
        left = w.VBox(
            [row(self.layer, self.pooling), self.picker, self.caption],
            layout=w.Layout(flex="0 1 350px", min_width="260px"),
        )
        right = w.VBox([self.map], layout=w.Layout(flex="1 1 450px", min_width="360px"))
        pair = row(left, right)
        pair.layout.align_items = "flex-start"
        self.body, self.nothing = pair, note()
        return [pair, self.nothing]

    def _pick(self, _: Any) -> None:
        """Layer and head are one choice: following them one by one would draw a head that nobody chose."""
        with self.state.hold_trait_notifications():
            self.state.layer, self.state.head = self.picker.layer, self.picker.head

    def draw(self) -> None:
        trace, state = self.session.need_trace(), self.state
        if not attends(self):
            return
        self._draw_thumbs(trace)
        self.picker.layer, self.picker.head = state.layer, state.head
        shown = (self.session.reads, state.layer, state.head, state.reduce)
        if shown != self._shown:
            show_attention(self, trace, state.layer, state.head)
            self.write_down(f"trace.map({state.layer}, {state.head}, reduce={state.reduce!r})")
            self._shown = shown
        self.caption.value = (
            "Each row of a picture is a token that looks back, each column a token it looks at; brighter is more. "
            f"The big picture is layer {state.layer}, head {state.head}: click a cell to keep its token."
        )

    def _draw_thumbs(self, trace: Trace) -> None:
        model = self.session.need_model()
        cells = len(self.session.layers) * model.n_heads * len(trace.tokens[0]) ** 2
        every = cells <= ALL_LAYERS_CELLS
        layers = self.session.layers if every else [self.state.layer]
        wanted = (self.session.reads, tuple(layers), self.state.reduce)
        if wanted == self._thumbs_of:
            return
        offer(self.layer, self.state.layer, self.session.layers)
        self.layer.layout.display = "none" if every else ""
        maps = [plane_stack(trace.map(layer, None, size=THUMB, reduce=self.state.reduce)) for layer in layers]
        self.picker.show(layers, np.stack(maps), [""] * (len(layers) * model.n_heads))
        self._thumbs_of = wanted

    def static(self) -> str:
        state = self.state
        alt = f"attention of layer {state.layer}, head {state.head}"
        if self.nothing.value:
            return self.nothing.value
        return img(self.map.figure(ratio=1.0), alt) if self.session.trace is not None else ""


class MicroscopeTab(Tab):
    """Any head of any layer on a text of any length; what it will cost stands there before it runs."""

    name, title, follows = "microscope", "Microscope", frozenset({"layer", "head", "reduce"})

    def build(self) -> list[w.Widget]:
        self.source = dropdown(
            "Source",
            "what the microscope reads",
            sources(LENGTHS),
            0,
            "280px",
        )
        self.layer = dropdown("Layer", "layer to look into", [0], 0, "120px")
        self.head = dropdown("Head", "head to look into, or the mean of all", [0], 0, "150px")
        self.show = button("Show", "compute the map; the cost stands beside", primary=True, width="90px")
        self.cost, self.map = note(), canvas(height=600)
        self.hint = note(
            "drag or arrow keys move, wheel or + and - zoom, hover reads one pair; the save buttons are on the picture"
        )
        self._trace: Trace | None = None
        self._traced: tuple[Any, ...] = ()
        self._mean = False
        chosen(self.source, lambda _: self.tell_cost())
        chosen(self.layer, lambda value: self.state.set_trait("layer", value))
        chosen(self.head, self._choose_head)
        pressed(self.show, self.look)
        self.body = w.VBox([row(self.source, self.layer, self.head, self.show), self.cost, self.map, self.hint])
        self.nothing = note()
        return [self.body, self.nothing]

    def _choose_head(self, head: Any) -> None:
        self._mean = head == MEAN_OF_HEADS
        if not self._mean:
            self.state.head = head
        self.app.redraw(self.name)

    def draw(self) -> None:
        model, state = self.session.need_model(), self.state
        if not attends(self):
            return
        longer = GPU_LENGTHS if model.device.type == "cuda" else ()
        offered = sources((*LENGTHS, *longer))
        offer(self.source, self.source.value if self.source.value in dict(offered).values() else 0, offered)
        heads = [*((str(head), head) for head in range(model.n_heads)), ("mean of all", MEAN_OF_HEADS)]
        offer(self.layer, state.layer, self.session.layers)
        offer(self.head, MEAN_OF_HEADS if self._mean else state.head, heads)
        self.tell_cost()
        if not self.source.value:
            self._trace, self._traced = self.session.need_trace(), ()
        if self._trace is not None and (not self.source.value or self._traced == self._wanted()):
            head = None if self._mean else state.head
            show_attention(self, self._trace, state.layer, head)
            self.write_down(f"trace.map({state.layer}, {head}, reduce={state.reduce!r})")

    def _wanted(self) -> tuple[Any, ...]:
        return self.session.loads, self.state.kernel, self.source.value

    def tell_cost(self) -> None:
        """Bytes and seconds of the forward pass's attention and of one map, predicted, nothing run."""
        from workbench.models.tracing import trace_cost
        from workbench_kernels import predicted_cost

        model = self.session.need_model()
        n = self.source.value or len(self.session.tokens())
        heads = model.n_heads if self._mean else 1
        reading = trace_cost(model, n, hidden=False)
        one = predicted_cost(
            "map",
            batch=1,
            queries=n,
            keys=n,
            heads=heads,
            head_dim=model.head_dim,
            kv_heads=min(heads, model.n_kv_heads),
            dtype=model.dtype,
            device=model.device,
        )
        self.cost.value = (
            f"{n:,} tokens. Predicted: reading them {seconds_text(reading.seconds)} and {bytes_text(reading.bytes)}, "
            f"then one map {seconds_text(one.seconds)} and {bytes_text(one.bytes)} "
            f"(stored N × N: {bytes_text(4.0 * n * n)} a head)."
        )
        if model.max_positions and n > model.max_positions:
            self.cost.value += (
                f" The model was made for {model.max_positions:,} positions; what lies beyond is a guess."
            )

    def look(self) -> None:
        """Trace the chosen text and draw; a book is cut to the length chosen."""
        if not self.source.value:
            self.app.redraw(self.name)
            return
        with self.app.working(f"reading {self.source.value:,} tokens") as status:
            model = self.session.need_model()
            ids = book_ids(model, self.source.value)
            beyond = bool(model.max_positions and len(ids) > model.max_positions)
            with model.use(memory=None):
                self._trace = model.trace(ids, hidden=False, beyond_positions=beyond, progress=fraction_of(status))
            self._traced = self._wanted()
            self.write_down(
                "from workbench.widgets.app_tabs_maps import book_ids",
                f"ids = book_ids(model, {self.source.value})",
                f'with model.use(memory="none"): trace = model.trace(ids, hidden=False, beyond_positions={beyond})',
            )
        self.app.redraw(self.name)

    def static(self) -> str:
        if self.nothing.value:
            return self.nothing.value
        return img(self.map.figure(ratio=1.0), "attention map of the microscope") if self._trace is not None else ""


def sources(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """What the microscope can read: (words, tokens of a held-out book, 0 for the app's text)."""
    return [("the text above", 0), *((f"a held-out book, {n:,} tokens", n) for n in lengths)]


def fraction_of(status: Any) -> Any:
    """A progress callback that moves the app's bar; takes a fraction or (done, total)."""

    def tell(done: float, total: float = 1.0, *_: Any) -> None:
        status.fraction = float(done) / float(total or 1.0)

    return tell


def book_ids(model: Any, length: int) -> list[int]:
    """The first ``length`` token ids of a held-out book's text."""
    characters = 8 * length
    ids = as_array(model.encode(held_out(characters))["input_ids"])[0].astype(int).tolist()
    if len(ids) < length:
        raise BadInput(f"the held-out book gives {len(ids):,} tokens, {length:,} were asked for")
    return ids[:length]


class SimilarityTab(Tab):
    """Cosine between the activations of two layers, token by token."""

    name, title, follows = "similarity", "Similarity", frozenset({"similar"})

    def build(self) -> list[w.Widget]:
        self.first = dropdown("Rows", "activations of the rows", [0], 0, "230px")
        self.second = dropdown("Columns", "activations of the columns", [0], 0, "230px")
        self.centre = w.Checkbox(
            value=True,
            description="subtract the mean token",
            indent=False,
            tooltip="what all tokens share hides what tells them apart",
        )
        self.map = MatrixView(
            np.zeros((1, 1)),
            units="cosine",
            scheme="blue-orange",
            row_label="token",
            col_label="token",
            domain=[-1.0, 1.0],
            height=520,
        )
        for control in (self.first, self.second):
            chosen(control, lambda _: self._choose())
        chosen(self.centre, lambda _: self.app.redraw(self.name))
        return [
            row(self.first, self.second, self.centre),
            self.map,
            note("Orange pairs point the same way, blue pairs the opposite way."),
        ]

    def _choose(self) -> None:
        self.state.similar = [self.first.value, self.second.value]

    def draw(self) -> None:
        trace = self.session.need_trace()
        last = len(trace.hidden) - 1
        pair = [index % (last + 1) for index in self.state.similar]
        names = [(("embedding" if i == 0 else f"after layer {i - 1}"), i) for i in range(last + 1)]
        for control, value in zip((self.first, self.second), pair):
            offer(control, value, names)
        tokens = trace.tokens[0]
        first, second = (as_array(trace.hidden[index])[0] for index in pair)
        values = cosine(first, second, centred=self.centre.value)
        self.map.update(
            values, row_labels=tokens, col_labels=tokens, title=f"{names[pair[0]][0]} × {names[pair[1]][0]}"
        )
        self.write_down(
            "from workbench.widgets.app_tabs_maps import cosine",
            "first, second = (trace.hidden[index][0].float().numpy() for index in " + f"{tuple(pair)})",
            f"cosine(first, second, centred={self.centre.value})",
        )

    def static(self) -> str:
        return img(self.map.figure(ratio=1.0), "cosine similarity of activations")


def cosine(first: np.ndarray, second: np.ndarray, *, centred: bool = True) -> np.ndarray:
    """Cosine of every row of (n, d) with every row of (m, d): (n, m) in [-1, 1]; rows of length zero give NaN."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise BadInput(f"activations must be (n, d) and (m, d) of one width, got {first.shape} and {second.shape}")
    if centred:
        first, second = first - first.mean(0), second - second.mean(0)
    lengths = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, first @ second.T / lengths, np.nan)
