"""The inspector of a memory of items: leaf through it, ask it, see why it found what it found, edit, take back.

It works on the live memory and keeps nothing of its own but the page, the chosen item and the last two readings.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.widgets.app_chart import ChartPane, after_warm_up
from workbench.widgets.app_controls import NARROW, button, chosen, dropdown, note, pressed, row
from workbench.widgets.app_tab import bytes_text, table
from workbench.widgets.store_parts import MOST_READ, edited, entered, heading, taken_back, text_field, trace_chart
from workbench.widgets.store_table import StoreTable, in_words, items_frame, worth_showing

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable import Item
    from workbench.memory.stores.base import Reading, StoreMemory

#: Items on a page; no more of them ever travel to the browser.
PAGE = 15
HELD, FORGOTTEN = "items held", "forgotten items"
BY_HAND = "by hand"


class Inspector:
    """Widgets on a live memory. The host says how work is shown, where code is written down and what else to redraw.

    Args:
        memory: gives the memory that is looked into.
        working: ``working("what")`` is a context in which an error is shown and not raised.
        write_down: takes a line of code.
        name: what the memory is called in these lines.
        changed: called after every change of the memory.
        extra: widgets of the host in the row of changes.
    """

    def __init__(
        self,
        memory: Callable[[], StoreMemory],
        working: Callable[[str], AbstractContextManager[Any]],
        write_down: Callable[[str], Any],
        *,
        name: str = "memory",
        changed: Callable[[], Any] = lambda: None,
        extra: Sequence[w.Widget] = (),
    ):
        self._memory, self.working, self.write_down = memory, after_warm_up(working), write_down
        self.name, self.changed = name, changed
        self._shown: Any = None
        self.start, self.item = 0, -1
        self.reading: Reading | None = None
        self._ranks: dict[int, int] | None = None
        self._marking = False
        self._build_asking()
        self._build_pages()
        self._build_editor()
        self._build_changes(extra)
        self.view = w.VBox([self.asking, self.changing, self.answer, self.editor, self.pager, self.items])
        self._connect()

    # ---- building -------------------------------------------------------------------------------------------------

    def _build_asking(self) -> None:
        self.question = text_field(
            "Ask", "what should it remember?", "a question: see what the memory gives back", "420px"
        )
        self.ask = button("Ask", "read the memory: what it gives back for the question, and why", primary=True)
        self.told = note()
        self.why = ChartPane("what was given back")
        self.found = StoreTable("nothing was given back")
        self.asking = row(self.question, self.ask, self.told)
        self.answer = w.VBox([self.why.view, self.found], layout=w.Layout(display="none"))

    def _build_pages(self) -> None:
        self.which = dropdown("Show", "what the memory holds, or what was deleted", [HELD, FORGOTTEN], HELD, "180px")
        self.first, self.previous = button("« First", "the oldest items"), button("‹ Previous", "the page before")
        self.next, self.last = button("Next ›", "the page after"), button("Last »", "the newest items")
        self.number = w.BoundedIntText(
            1,
            min=0,
            max=2**31,
            description="Item",
            style=NARROW,
            layout=w.Layout(width="130px"),
            tooltip="the id of an item",
        )
        self.open = button("Open", "show the item with this id below the table")
        self.summary = note()
        self.items = StoreTable("nothing here", lambda pages: self.turn(pages))
        self.pager = row(
            self.which, self.first, self.previous, self.next, self.last, self.number, self.open, self.summary
        )

    def _build_editor(self) -> None:
        wide = w.Layout(width="auto")
        self.heading = note()
        self.text = w.Textarea(
            description="Its text", rows=3, style=NARROW, layout=wide, tooltip="the text of the item"
        )
        self.tags = text_field("Its tags", "tags, with commas between them", "the tags of the item", "420px")
        self.save = button("Save", "write the changed text and tags into the memory", primary=True)
        self.delete = button("Delete", "forget this item; it can be brought back")
        self.restore = button("Bring back", "hold this forgotten item again")
        self.close = button("Close", "leave the item as it is")
        buttons = row(self.tags, self.save, self.delete, self.restore, self.close)
        self.editor = w.VBox([self.heading, self.text, buttons], layout=w.Layout(display="none"))
        self.editor.add_class("wb-editor")

    def _build_changes(self, extra: Sequence[w.Widget]) -> None:
        self.new = text_field("New", "something to remember", "a text that is written as one more item", "420px")
        self.write = button("Write", "write this text into the memory, as feed does")
        self.undo = button("Undo", "take the last change back")
        self.empty = button("Empty", "forget everything; Undo brings it back")
        self.changing = row(self.new, self.write, self.undo, self.empty, *extra)

    def _connect(self) -> None:
        acts: list[tuple[w.Button, Callable[[], Any]]] = [
            (self.ask, lambda: self.read(self.question.value)),
            (self.first, lambda: self.go(0)),
            (self.previous, lambda: self.turn(-1)),
            (self.next, lambda: self.turn(1)),
            (self.last, lambda: self.go(self.total - 1)),
            (self.open, lambda: self.choose(self.number.value)),
            (self.save, self.save_item),
            (self.delete, self.delete_item),
            (self.restore, self.restore_item),
            (self.close, lambda: self.choose(-1)),
            (self.write, lambda: self.write_item(self.new.value)),
            (self.undo, self.undo_last),
            (self.empty, self.empty_all),
        ]
        for control, act in acts:
            pressed(control, act)
        entered(self.question, lambda: self.read(self.question.value))
        entered(self.new, lambda: self.write_item(self.new.value))
        chosen(self.which, lambda _: self.go(0))
        for part in (self.items, self.found):
            part.observe(lambda change: self._clicked(change.new), "selected")

    # ---- showing --------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> StoreMemory:
        return self._memory()

    def show(self) -> None:
        """Draw the memory; another one than before begins at its first page."""
        self.begin()
        self.draw()

    def begin(self) -> None:
        """Forget what was shown of another memory than the one at hand."""
        if self.memory is self._shown:
            return
        self._shown, self.start, self.item, self.reading, self._ranks = self.memory, 0, -1, None, None
        self.answer.layout.display = self.editor.layout.display = "none"
        self.told.value = self.summary.value = ""
        self.items.rows = self.found.rows = []

    @property
    def total(self) -> int:
        return len(self.memory) if self.which.value == HELD else len(self.memory.store.forgotten())

    def draw(self) -> None:
        """The page and the chosen item as they are now."""
        page, total = self._page()
        first = self.start + 1 if total else 0
        label = f"{self.which.value} {first:,} to {self.start + len(page):,} of {total:,}"
        self.items.show(page, label)
        at_start, at_end = self.start == 0, self.start + PAGE >= total
        self.first.disabled = self.previous.disabled = at_start
        self.next.disabled = self.last.disabled = at_end
        self.summary.value = html.escape(self._summary())
        self._draw_editor()

    def _page(self) -> tuple[pd.DataFrame, int]:
        """The items of this page (moved back where the memory has become shorter), and how many there are."""
        total = self.total
        self.start = max(0, min(self.start, (total - 1) // PAGE * PAGE))
        if self.which.value == HELD:
            frame = self.memory.contents(start=self.start, count=PAGE)
            self.write_down(f"{self.name}.contents(start={self.start}, count={PAGE})")
        else:
            frame = items_frame(self.memory.store.forgotten()[self.start : self.start + PAGE])
            self.write_down(f"{self.name}.store.forgotten()")
        return worth_showing(frame), total

    def _summary(self) -> str:
        store = self.memory.store
        where = f"in {store.path}" if store.path else "in memory only, no file"
        return (
            f"{len(self.memory):,} items, {bytes_text(self.memory.nbytes())}, {where}; vectors by {store.encoder_label}"
        )

    def _draw_editor(self) -> None:
        held, item = self._item(self.item)
        self.editor.layout.display = "none" if item is None else ""
        self.item = -1 if item is None else item.id
        self._mark()
        if item is None:
            return
        self.heading.value = heading(item, held)
        self.text.value, self.tags.value = item.text, ", ".join(item.tags)
        self.save.layout.display = self.delete.layout.display = "" if held else "none"
        self.restore.layout.display = "none" if held else ""
        self.text.disabled = self.tags.disabled = not held

    def _mark(self) -> None:
        """Show in both tables which item is chosen, without taking that for another click."""
        self._marking = True
        try:
            self.items.selected = self.found.selected = self.item
        finally:
            self._marking = False

    def _clicked(self, item: int) -> None:
        if item >= 0 and not self._marking:
            self.choose(item)

    def _item(self, id: int) -> tuple[bool, Item | None]:
        """Whether this item is held, and it; None when it never was."""
        if id < 0:
            return False, None
        if id in self.memory.store:
            return True, self.memory.store.get(id)
        return False, next((item for item in self.memory.store.forgotten() if item.id == id), None)

    # ---- leafing --------------------------------------------------------------------------------------------------

    def go(self, start: int) -> None:
        """To the page on which the ``start``-th item stands."""
        with self.working("leafing"):
            self.start = max(0, start) // PAGE * PAGE
            self.draw()

    def turn(self, pages: int) -> None:
        self.go(min(self.start + pages * PAGE, max(0, self.total - 1)))

    def choose(self, item: int) -> None:
        """Show one item in the editor; -1 closes it. An unknown id is shown as an error."""
        with self.working(f"opening item {item}"):
            if item >= 0 and self._item(item)[1] is None:
                self.memory.store.get(item)  # raises, and says what is there
            self.item = item
            self._draw_editor()
            if item >= 0:
                self.number.value = item
                self.write_down(f"{self.name}.store.get({item})")

    # ---- asking ---------------------------------------------------------------------------------------------------

    def read(self, question: str) -> None:
        """What the memory gives back; asked again, also which rank each item had before."""
        with self.working("asking the memory"):
            again = self.reading is not None and self.reading.query == question.strip()
            before = (
                {item.id: rank for rank, item in enumerate(self.reading.items, 1)} if again and self.reading else None
            )
            self.reading = self.memory.read(question)
            self._ranks, self.question.value = before, question
            self.write_down(f"{self.name}.read({question!r}).frame()")
            self._draw_reading()
            self.changed()

    def _draw_reading(self) -> None:
        reading = self.reading
        if reading is None:
            return
        frame = self.reading_frame()
        self.found.show(frame, f"given back for “{reading.query}”, best first", bars=("score",))
        self.why.show(trace_chart(reading))
        self.answer.layout.display = ""
        parts = [f"{len(reading.items)} items, {reading.tokens} tokens", reading.note]
        self.told.value = html.escape("; ".join(filter(None, parts)))

    def reading_frame(self) -> pd.DataFrame:
        """The last reading: rank, id, how, via, score, text; ``was`` is the rank before, if it was asked again."""
        if self.reading is None:
            raise BadInput("nothing was asked yet")
        frame = self.reading.frame().head(MOST_READ)
        if self._ranks is not None:
            frame.insert(1, "was", [str(self._ranks.get(item, "new")) for item in frame["id"]])
        return frame

    # ---- changing -------------------------------------------------------------------------------------------------

    def _changed(self, line: str) -> None:
        self.write_down(f"{self.name}.{line}")
        if self.reading is not None:
            self.told.value = "the memory has changed since: ask again to see what it gives back now"
        self.draw()
        self.changed()

    def save_item(self) -> None:
        with self.working("saving"):
            item = self.memory.store.get(self.item)
            fields = edited(item, self.text.value, self.tags.value)
            if not fields:
                raise BadInput("nothing was changed; edit the text or the tags, then save")
            self.memory.edit(item.id, why=f"edited {BY_HAND}", **fields)
            arguments = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            self._changed(f"edit({item.id}, {arguments}, why='edited {BY_HAND}')")

    def delete_item(self) -> None:
        with self.working("deleting"):
            self.memory.store.delete(self.item, why=f"deleted {BY_HAND}")
            self._changed(f"store.delete({self.item}, why='deleted {BY_HAND}')")

    def restore_item(self) -> None:
        with self.working("bringing back"):
            self.memory.store.restore(self.item, why=f"brought back {BY_HAND}")
            self._changed(f"store.restore({self.item}, why='brought back {BY_HAND}')")

    def write_item(self, text: str) -> None:
        with self.working("writing"):
            item = self.memory.write(text)
            self.item, self.new.value = item, ""
            self.start = max(0, self.total - 1) // PAGE * PAGE if self.which.value == HELD else self.start
            self._changed(f"write({text!r})")

    def undo_last(self) -> None:
        with self.working("taking back"):
            events = self.memory.store.undo()
            if not events:
                raise BadInput("there is nothing left to take back")
            self._changed("store.undo()")
            self.told.value = html.escape("; ".join(taken_back(events)))

    def empty_all(self) -> None:
        with self.working("emptying"):
            self.memory.reset()
            self._changed("reset()")

    # ---- without a kernel -----------------------------------------------------------------------------------------

    def static(self) -> str:
        """The page and the last reading as plain HTML."""
        if self._shown is None:
            return ""
        read = ""
        if self.reading is not None:
            caption = f"given back for “{self.reading.query}”"
            read = table(in_words(self.reading_frame(), "score"), caption=caption, bars=("score",))
        page = in_words(worth_showing(self.memory.contents(start=self.start, count=PAGE)))
        return f'<div class="wb-note">{self.summary.value}</div>{read}{table(page, caption=self.items.label)}'
