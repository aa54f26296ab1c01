"""An Altair chart in the app: interactive, from this machine alone, made when it is first shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets as w

_READY = threading.Lock()


def offline_altair() -> Any:
    """Altair with its browser script bundled from this machine; the first call takes a second or two."""
    with _READY:
        import altair
        import pandas  # noqa: F401  (every table needs it, and it is slow to come)

        altair.JupyterChart.enable_offline()
        return altair


_warming: list[threading.Thread] = []


def warm_up() -> None:
    """Do that first call on a thread of its own while the user looks at something else."""
    thread = threading.Thread(target=offline_altair, name="workbench-charts", daemon=True)
    _warming[:] = [thread]
    thread.start()


def settled() -> None:
    """Wait until that thread is done.

    To be called before a sentence encoder is loaded: it imports packages that Altair imports as well, and Python's
    import system gives up (``_DeadlockError``) when two threads import the same circle of modules from two ends.
    """
    for thread in _warming:
        thread.join()


def after_warm_up(
    working: Callable[[str], AbstractContextManager[Any]],
) -> Callable[[str], AbstractContextManager[Any]]:
    """``working``, begun only when the charts are ready."""

    def begin(what: str) -> AbstractContextManager[Any]:
        settled()
        return working(what)

    return begin


class ChartPane:
    """Holds one ``JupyterChart`` whose spec is replaced; its script is bundled here and never fetched."""

    def __init__(self, label: str):
        self.label = label
        self.view = w.VBox([], layout=w.Layout(overflow="auto"))
        self._live: Any = None

    def show(self, chart: Any) -> None:
        """Draw ``chart``; None hides the pane."""
        if chart is None:
            self.hide()
            return
        if self._live is None:
            alt = offline_altair()
            self._live = alt.JupyterChart(
                chart, embed_options={"actions": {"export": True, "source": False, "compiled": False, "editor": False}}
            )
            self.view.children = [self._live]
        else:
            self._live.chart = chart
        self.view.layout.display = ""

    def set(self, name: str, value: float) -> None:
        """Move a parameter of the chart that is shown, without a new spec."""
        if self._live is not None and self.view.layout.display != "none" and name in self._live.params.trait_names():
            self._live.params.set_trait(name, value)

    def hide(self) -> None:
        self.view.layout.display = "none"
