"""A live view in a notebook and, under it, a still picture that is only seen where no kernel runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from workbench.widgets.app_chart import warm_up

#: Seconds of quiet before the still picture is drawn anew.
STATIC_DELAY = 0.5


def framed(name: str, html: str) -> str:
    """``html`` as the still picture called ``name``, which also hides a widget above it that has no kernel."""
    mine = f"wb-static-{name}"
    dead = f".jp-OutputArea-child:has(+ .jp-OutputArea-child .{mine}):not(:has(.wb-app))"
    plain = f".{mine} :is(td, th, caption) {{ text-align: left !important; }} .{mine} b {{ margin-right: .6em; }}"
    return f'<style>{dead} {{ display: none; }} {plain}</style><div class="{mine}">{html}</div>'


class Still:
    """Shows a view once and renews its still picture whenever the view has changed and then rested for a moment.

    ``draw`` gives the picture as HTML; ``working`` runs the renewal where an error can be shown.
    """

    def __init__(self, name: str, draw: Callable[[], str], working: Callable[..., AbstractContextManager[Any]]):
        self.name, self._draw, self._working = name, draw, working
        self._display: Any = None
        self._renewal: asyncio.TimerHandle | None = None

    def show(self, view: Any) -> None:
        from IPython.display import HTML, display

        display(view)
        warm_up()
        self._display = display(HTML(self._draw()), display_id=f"workbench-{self.name}")

    def renew(self) -> None:
        """Replace the picture, once nothing has happened for a moment: it must not delay the live one."""
        if self._display is None:
            return
        if self._renewal is not None:
            self._renewal.cancel()
        try:
            self._renewal = asyncio.get_running_loop().call_later(STATIC_DELAY, self._replace)
        except RuntimeError:  # no event loop runs (a plain script): do it now
            self._replace()

    def _replace(self) -> None:
        from IPython.display import HTML

        with self._working("keeping a still picture", keep_error=True):
            self._display.update(HTML(self._draw()))
