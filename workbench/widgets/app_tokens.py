"""The text as tokens under the controls: surprise of each, or what the kept token looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np

from workbench.widgets.app_controls import chosen, dropdown, offer
from workbench.widgets.app_parts import TokenStrip
from workbench.widgets.app_tab import as_array

if TYPE_CHECKING:
    from workbench.widgets.app import Workbench

#: Tokens the strip writes out; of a longer text it shows those around the kept one.
MOST = 600
COLOURS = [("surprise of each token", "surprise"), ("attention from the kept token", "attention")]


class Tokens:
    """Keeps a ``TokenStrip`` in step with the state: its tokens, its values, its selection."""

    def __init__(self, app: Workbench):
        self.app = app
        self.strip = TokenStrip()
        self.colour = dropdown(
            "Bars show", "what the bar under each token stands for", COLOURS, app.state.colour_by, "290px"
        )
        self.view = w.VBox([self.strip, self.colour])
        self.strip.observe(lambda change: app.state.set_trait("token", change.new), "selected")
        chosen(self.colour, lambda value: app.state.set_trait("colour_by", value))

    def draw(self) -> None:
        state, session = self.app.state, self.app.session
        tokens = session.tokens()
        start = max(0, min(max(state.token, 0) - MOST // 2, len(tokens) - MOST))
        values, title, unit = self._values()
        hidden = f" (tokens {start} to {start + MOST - 1} of {len(tokens):,})" if len(tokens) > MOST else ""
        self.strip.show(
            tokens[start : start + MOST], values[start : start + MOST], start=start, title=title + hidden, unit=unit
        )
        self.strip.selected = state.token
        offer(self.colour, state.colour_by)

    def _values(self) -> tuple[np.ndarray, str, str]:
        state, trace = self.app.state, self.app.session.need_trace()
        if state.colour_by == "attention" and state.token >= 0:
            row = slice(state.token, state.token + 1)
            values = as_array(trace.region(state.layer, state.head, row, slice(0, len(trace.tokens[0]))))[0]
            return values, f"attention from token {state.token}, layer {state.layer}, head {state.head}", "attention"
        extra = "; click a token to see what it looks at" if state.colour_by == "attention" else ""
        return as_array(trace.surprise)[0], f"surprise of each token, in nats{extra}", "nats"
