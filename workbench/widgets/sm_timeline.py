"""Programs on multiprocessors with controls: batch, heads, length, tile, mask, order and grid of a launch.

Everything it shows is one line of code, and it shows that line. A saved notebook keeps the picture (SVG).
"""

from __future__ import annotations

from typing import Any

import ipywidgets as w
import traitlets

from workbench.errors import BadInput
from workbench.systems.sm_schedule import A100_SMS, GRIDS, HOPPER_SMS, ORDERS, Launch, Schedule, schedule
from workbench.widgets.app_chart import ChartPane
from workbench.widgets.with_picture import WithPicture

_STYLE = {"description_width": "110px"}
_WIDE = w.Layout(width="360px")
MOST_SHOWN = 5_000


class SmTimeline(WithPicture):
    """Controls beside the chart of :func:`workbench.views.flash_attention_2.sm_timeline`.

    Traits: ``batch``, ``heads``, ``n`` (sequence length), ``rows`` (B_r), ``causal``, ``order`` (one of ``ORDERS``),
    ``grid`` ("rows" = FlashAttention-2, "heads" = the first version), ``sms``. ``schedule`` holds what is shown.
    """

    batch = traitlets.Int(1, help="sequences in the batch")
    heads = traitlets.Int(16, help="heads")
    n = traitlets.Int(4096, help="sequence length")
    rows = traitlets.Int(128, help="rows of a tile, B_r")
    causal = traitlets.Bool(True, help="queries see only earlier keys")
    order = traitlets.Enum(ORDERS, "launch", help="in which order programs are started")
    grid = traitlets.Enum(GRIDS, "rows", help="one program a row block, or one a head")
    sms = traitlets.Int(HOPPER_SMS, help="multiprocessors of the card")

    def __init__(self, **state: Any):
        super().__init__()
        self.schedule: Schedule
        self._pane = ChartPane("programs on multiprocessors")
        self._line = w.HTML()
        self.take(state)
        self.children = [w.HBox([w.VBox(half) for half in self._controls()]), self._pane.view, self._line]
        names = ["batch", "heads", "n", "rows", "causal", "order", "grid", "sms"]
        self.observe(self._again, names=names)
        self._again()

    def _controls(self) -> tuple[list[w.Widget], list[w.Widget]]:
        numbers = {
            "batch": ([1, 2, 4, 8, 16], "batch", "sequences in the batch"),
            "heads": ([1, 2, 4, 8, 16, 32], "heads", "heads of the model"),
            "n": ([512, 1024, 2048, 4096, 8192, 16384], "length N", "tokens in a sequence"),
            "rows": ([64, 128, 192], "rows B_r", "queries of a tile"),
        }
        left = [self._select(name, *spec) for name, spec in numbers.items()]
        right = [
            w.Checkbox(value=self.causal, description="causal", tooltip="skip tiles above the diagonal", indent=True),
            self._choice("order", list(ORDERS), "order", "in which order programs are started"),
            self._choice("grid", [("row block (v2)", "rows"), ("head (v1)", "heads")], "a program is a", "the grid"),
            self._choice("sms", self._cards(), "processors", "of the card"),
        ]
        traitlets.link((self, "causal"), (right[0], "value"))
        return left, right

    def _cards(self) -> list[tuple[str, int]]:
        known = [("A100: 108", A100_SMS), ("H100: 132", HOPPER_SMS)]
        return known if self.sms in dict(known).values() else [*known, (f"{self.sms}", self.sms)]

    def _select(self, name: str, options: list[int], label: str, tip: str) -> w.Widget:
        value = getattr(self, name)
        options = sorted({*options, value})
        control = w.SelectionSlider(
            options=options, value=value, description=label, tooltip=tip, style=_STYLE, layout=_WIDE
        )
        traitlets.link((self, name), (control, "value"))
        return control

    def _choice(self, name: str, options: list[Any], label: str, tip: str) -> w.Widget:
        control = w.Dropdown(
            options=options, value=getattr(self, name), description=label, tooltip=tip, style=_STYLE, layout=_WIDE
        )
        traitlets.link((self, name), (control, "value"))
        return control

    def _launch(self) -> Launch:
        return Launch(self.batch * self.heads, self.n, rows=self.rows, causal=self.causal, grid=self.grid)

    def _again(self, change: Any = None) -> None:
        try:
            new = schedule(self._launch(), sms=self.sms, order=self.order)
        except BadInput as error:
            if change is None:  # nothing to keep showing yet
                raise
            self._line.value = f"<b>cannot place:</b> {error}"
            return
        if len(new.placed) > MOST_SHOWN:
            told = f"{len(new.placed):,} programs are more than the {MOST_SHOWN:,} that a chart can hold"
            if change is None:
                raise BadInput(f"SmTimeline: {told}")
            self._line.value = told
            return
        self.schedule = new
        self._pane.show(self.chart())
        self._line.value = f"<code>{self._code()}</code>, utilisation {new.utilisation:.0%}"

    def _code(self) -> str:
        words = f"rows={self.rows}, causal={self.causal}, grid={self.grid!r}"
        return f"schedule(Launch({self.batch * self.heads}, {self.n}, {words}), sms={self.sms}, order={self.order!r})"

    def chart(self) -> Any:
        """The Altair chart of the current schedule."""
        from workbench.views.flash_attention_2 import sm_timeline

        return sm_timeline(self.schedule.frame(), sms=self.sms)
