"""One memory of items in a notebook cell: what it holds, what it gives back and why, its past; and hands to change it.

>>> from workbench.widgets import StoreView
>>> view = StoreView(memory)                                  # doctest: +SKIP
>>> view.ask("What does Ada keep under the mat?").frame()     # doctest: +SKIP
"""

from __future__ import annotations

import html
import uuid
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.errors import BadInput
from workbench.memory.stores.base import StoreMemory
from workbench.widgets.app_parts import CodeStrip, StatusStrip
from workbench.widgets.app_state import HALFWAY, TURN
from workbench.widgets.still import Still, framed
from workbench.widgets.store_history import History
from workbench.widgets.store_inspector import Inspector

if TYPE_CHECKING:
    from workbench.memory.stores.base import Reading


class StoreView:
    """An inspector bound to a live memory: leaf, ask, edit, delete, bring back, undo, and compare two moments.

    Args:
        memory: any ``StoreMemory``; what is changed here is changed there, and ``refresh()`` shows what was changed
            elsewhere.

    ``status.error`` holds the last error of a widget, ``code.lines`` the code that does the same without one. Raises
    BadInput for anything that is not a memory of items.
    """

    def __init__(self, memory: StoreMemory):
        if not isinstance(memory, StoreMemory):
            raise BadInput(
                f"StoreView shows memories of items (StoreMemory), got {type(memory).__name__}; a token cache is shown "
                "by views.memory_table(memory.contents()) or in the Workbench app"
            )
        self.memory, self.id = memory, uuid.uuid4().hex[:12]
        self.status, self.code = StatusStrip(), CodeStrip(app_id=self.id)
        self.still = Still(self.id, self.static, self.working)
        self.moment, self.compared = -1, HALFWAY
        self.inspector = Inspector(lambda: self.memory, self.working, self.code.add, changed=self._changed)
        self.history = History(self._scrub, self.code.add)
        self._pages = w.Tab([self.inspector.view, self.history.view], titles=["Items", "Past"], selected_index=0)
        self._pages.observe(lambda _: self.refresh(), "selected_index")
        self._header = w.HTML()
        self.view = w.VBox([self._header, self.status, self._pages, self.code])
        self.view.add_class("wb-app")
        self.view.add_class("wb-store")
        self.refresh()

    # ---- doing ----------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> Reading:
        """Read the memory and show what it gives back. Raises what ``read`` raises."""
        with TURN:
            self.inspector.read(question)
            if self.status.error or self.inspector.reading is None:
                raise BadInput(self.status.error)
            return self.inspector.reading

    def refresh(self) -> None:
        """Draw what the memory holds now, whoever changed it."""
        with self.working("drawing"):
            self._head()
            if self._pages.selected_index == 1:
                self.history.draw(self.memory, self.moment, self.compared)
            else:
                self.inspector.show()
        self.still.renew()

    def working(self, what: str, *, keep_error: bool = False) -> AbstractContextManager[StatusStrip]:
        return self.status.working(what, keep_error=keep_error)

    def _scrub(self, name: str, value: int) -> None:
        setattr(self, name, value)
        self.refresh()

    def _changed(self) -> None:
        """The memory was changed or read here: the newest moment is the one to look at."""
        self.moment = -1
        self._head()
        self.still.renew()

    def _head(self) -> None:
        name = html.escape(getattr(self.memory, "slug", type(self.memory).__name__))
        self._header.value = f'<div class="wb-head-line"><b>{name}</b><span>{len(self.memory):,} items</span></div>'

    # ---- showing --------------------------------------------------------------------------------------------------

    def static(self) -> str:
        """What a reopened notebook shows without a kernel: the page of items and the last reading."""
        return framed(self.id, self._header.value + self.inspector.static())

    def _ipython_display_(self) -> None:
        self.still.show(self.view)

    def __repr__(self) -> str:
        return f"StoreView({self.memory!r})"
