"""The tile walker with controls: walk through FlashAttention's tiles, change the chip, switch tiles off.

Everything it shows is one line of code, and it shows that line. A saved notebook keeps the picture (SVG).
"""

from __future__ import annotations

from typing import Any

import ipywidgets as w
import traitlets

from workbench.errors import BadInput
from workbench.systems import block_patterns
from workbench.systems.flash_walk import Walk, walk
from workbench.systems.io_counts import Tiling
from workbench.widgets.app_chart import ChartPane
from workbench.widgets.with_picture import WithPicture

PATTERNS = ("dense", "band", "butterfly")
_STYLE = {"description_width": "110px"}
_WIDE = w.Layout(width="360px")


class TileWalker(WithPicture):
    """Controls beside the chart of :func:`workbench.views.flash_attention.tile_walker`.

    Traits: ``step``, ``sram`` (elements), ``d`` (head dimension), ``causal``, ``order`` ("v1", "v2"), ``pattern``
    ("dense", "band", "butterfly"), ``toggled`` (tiles (i, j) switched by hand). ``walk`` holds the frames shown.
    """

    step = traitlets.Int(0, help="tile to show")
    sram = traitlets.Int(1024, help="SRAM size in elements")
    d = traitlets.Int(16, help="head dimension")
    causal = traitlets.Bool(False, help="queries see only earlier keys")
    order = traitlets.Enum(["v1", "v2"], "v1", help="key blocks outside (v1) or query blocks outside (v2)")
    pattern = traitlets.Enum(PATTERNS, "dense", help="block mask")
    toggled = traitlets.Tuple(help="tiles (i, j) whose state was switched by hand")

    def __init__(self, n: int = 96, **state: Any):
        super().__init__()
        self.n = n
        self.walk: Walk
        self._pane = ChartPane("tile walker")
        self._line = w.HTML()
        self._tiles = w.VBox([])
        self._slider = w.IntSlider(
            min=0, max=0, description="step", tooltip="one step is one tile", style=_STYLE, layout=_WIDE
        )
        traitlets.link((self, "step"), (self._slider, "value"))
        self.take(state)
        self.children = [w.HBox([w.VBox(self._controls()), self._tiles]), self._pane.view, self._line]
        self.observe(self._again, names=["sram", "d", "causal", "order", "pattern", "toggled"])
        self.observe(self._move, names=["step"])
        self._again()

    def _controls(self) -> list[w.Widget]:
        common: dict[str, Any] = {"style": _STYLE, "layout": _WIDE}
        sram = w.SelectionSlider(
            options=sorted({512, 1024, 2048, 4096, 8192, self.sram}),
            value=self.sram,
            description="SRAM (elements)",
            tooltip="M: what fits on the chip; B_c = M / 4d",
            **common,
        )
        dim = w.SelectionSlider(
            options=sorted({8, 16, 32, self.d}),
            value=self.d,
            description="head dim d",
            tooltip="width of Q, K, V",
            **common,
        )
        causal = w.Checkbox(
            value=self.causal, description="causal", tooltip="skip tiles above the diagonal", indent=True, **common
        )
        order = w.ToggleButtons(
            options=[("v1: keys outside", "v1"), ("v2: queries outside", "v2")],
            value=self.order,
            description="loop order",
            tooltips=["FlashAttention: O, l and m travel to HBM and back", "FlashAttention-2: O stays on the chip"],
            style={**_STYLE, "button_width": "130px"},
        )
        pattern = w.Dropdown(
            options=PATTERNS, value=self.pattern, description="block mask", tooltip="which tiles are live", **common
        )
        for name, control in (("sram", sram), ("d", dim), ("causal", causal), ("order", order), ("pattern", pattern)):
            traitlets.link((self, name), (control, "value"))
        return [self._slider, sram, dim, causal, order, pattern]

    def _live(self) -> Any:
        """Block mask of the current pattern with the hand-switched tiles; None when every tile is live."""
        import torch

        t_r, t_c = Tiling.of_sram(self.sram, self.d).grid(self.n)
        square = max(t_r, t_c)
        if self.pattern == "band":
            live = block_patterns.band(square, 1)[:t_r, :t_c]
        elif self.pattern == "butterfly":
            live = block_patterns.butterfly(1 << (square - 1).bit_length())[:t_r, :t_c]
        else:
            live = torch.ones(t_r, t_c, dtype=torch.bool)
        live = live.clone()
        for i, j in self.toggled:
            if 0 <= i < t_r and 0 <= j < t_c:
                live[i, j] = ~live[i, j]
        return None if bool(live.all()) else live

    def _again(self, change: Any = None) -> None:
        """Walk anew and start from the first tile."""
        try:
            new = walk(n=self.n, d=self.d, sram=self.sram, order=self.order, causal=self.causal, live=self._live())
        except BadInput as error:
            if change is None:  # nothing to keep showing yet
                raise
            self._line.value = f"<b>cannot walk:</b> {error}"
            return
        if not new.steps and change is None:
            raise BadInput("TileWalker: every tile is switched off, so there is nothing to walk")
        if not new.steps:
            self._line.value = "every tile is switched off; switch one on"
            return
        self.walk = new
        self._slider.max = new.steps - 1
        self.step = min(self.step, new.steps - 1)
        self._tiles.children = self._buttons()
        self._pane.show(self.chart())
        self._say()

    def _buttons(self) -> list[w.Widget]:
        """A grid of small switches, one a tile (only for grids that a person can hit)."""
        t_r, t_c = self.walk.tiling.grid(self.n)
        if t_r * t_c > 144:
            return [w.HTML(f"{t_r} x {t_c} tiles: too many to switch by hand")]
        live = {(i, j): step >= 0 for i, j, step in self.walk.tiles[["i", "j", "step"]].to_numpy().tolist()}
        rows = [w.HBox([self._switch(i, j, live[i, j]) for j in range(t_c)]) for i in range(t_r)]
        return [w.HTML("click a tile to switch it"), *rows]

    def _switch(self, i: int, j: int, live: bool) -> w.Button:
        size = w.Layout(width="24px", height="24px", margin="1px", padding="0")
        word = "live" if live else "skipped"
        button = w.Button(tooltip=f"tile ({i}, {j}): {word}", layout=size)
        button.style.button_color = "#56B4E9" if live else "#f0f0f0"
        button.on_click(lambda _: self.toggle(i, j))
        return button

    def toggle(self, i: int, j: int) -> None:
        """Switch tile (i, j) of the block mask."""
        tiles = set(self.toggled)
        self.toggled = tuple(sorted(tiles ^ {(i, j)}))

    def chart(self) -> Any:
        """The Altair chart of the current step."""
        from workbench.views.flash_attention import tile_walker

        return tile_walker(self.walk, step=self.step)

    def _move(self, change: Any = None) -> None:
        """Another step: only a parameter of the chart on the page changes."""
        self._pane.set("step", self.step)
        self._say()

    def _say(self) -> None:
        words = f"n={self.n}, d={self.d}, sram={self.sram}, order={self.order!r}, causal={self.causal}"
        masked = "" if self._live() is None else ", live=mask"
        self._line.value = f"<code>views.flash_attention.tile_walker(walk({words}{masked}), step={self.step})</code>"
