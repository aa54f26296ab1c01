"""The past of a memory of items: scrub through its log, and see what two moments have and say differently."""

from __future__ import annotations

import html
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.widgets.app_chart import ChartPane
from workbench.widgets.app_controls import chosen, note, offer, row
from workbench.widgets.app_state import HALFWAY
from workbench.widgets.app_tab import table
from workbench.widgets.store_table import brief, moment

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.base import Event, EventLog
    from workbench.memory.durable import Snapshot
    from workbench.memory.stores.base import StoreMemory

#: Items whose stay is drawn as a bar; a log of more shows its events.
MOST_BARS = 120
#: Events that are drawn and listed, the last ones.
MOST_EVENTS, MOST_LISTED = 4000, 300
#: Differences that are written out.
MOST_CHANGES = 100
#: What a difference may be in.
FIELDS = ("text", "tags", "links", "strength", "key", "meta")
#: Characters of an item's text beside its bar.
LABEL = 44


class History:
    """Two sliders over the log of a memory, the difference between the moments, and the log as a picture.

    ``choose(name, value)`` is told of a person's choice of ``moment`` or ``compared`` and must draw; ``write_down``
    takes lines of code, in which the memory is called ``name``.
    """

    def __init__(self, choose: Callable[[str, int], Any], write_down: Callable[[str], Any], *, name: str = "memory"):
        self.write_down, self.name = write_down, name
        self.moment = _slider("Moment", "after which event the memory is shown; arrow keys step")
        self.compared = _slider("against", "the moment to compare with; -1 is before the first event")
        self.event, self.changes, self.log = note(), w.HTML(), w.HTML()
        self.chart = ChartPane("event timeline")
        chosen(self.moment, lambda value: choose("moment", value))
        chosen(self.compared, lambda value: choose("compared", value))
        self.view = w.VBox([row(self.moment, self.compared), self.event, self.changes, self.chart.view, self.log])
        self._drawn: Any = None

    def draw(self, memory: StoreMemory, now: int, before: int) -> None:
        """``now`` -1 is the last moment, ``before`` HALFWAY the middle of the log (and -1 the empty store)."""
        events = memory.events()
        if not len(events):
            self.event.value = "Nothing has happened yet: the log is empty."
            self.changes.value = self.log.value = ""
            self.chart.hide()
            return
        now, before = self._fill(len(events) - 1, now, before)
        listed = list(events)
        self._draw_log(memory, events, listed, before, now)
        self.event.value = described(listed[now]) if now >= 0 else "before the first event the memory is empty"
        self.changes.value = difference_html(memory, listed, before, now)
        self.chart.set("before", before)
        self.chart.set("after", now)
        self.write_down(f"{self.name}.events().diff({before}, {now}), {self.name}.store.at({now}).contents()")

    def _fill(self, last: int, now: int, before: int) -> tuple[int, int]:
        now = now if -1 < now <= last else last
        before = last // 2 if before == HALFWAY else min(before, last)
        for slider, value in ((self.moment, now), (self.compared, before)):
            slider.offering = True
            slider.max = max(last, 0)
            offer(slider, value)
        return now, before

    def _draw_log(self, memory: StoreMemory, events: EventLog, listed: list[Event], before: int, now: int) -> None:
        drawn = (weakref.ref(memory), len(events))
        if self._drawn == drawn:
            return
        shown = events_frame(listed[-MOST_LISTED:])
        rows = table(shown.iloc[::-1], most=MOST_LISTED, caption="the newest first")
        which = f"all {len(listed):,}" if len(listed) <= MOST_LISTED else f"the last {MOST_LISTED} of {len(listed):,}"
        self.log.value = f"<details><summary>{which} events as a table</summary>{rows}</details>"
        self.chart.show(history_chart(memory, events, listed, before, now))
        self._drawn = drawn

    def static(self) -> str:
        return self.event.value + self.changes.value


def _slider(name: str, tooltip: str) -> w.IntSlider:
    layout, style = w.Layout(width="460px"), {"description_width": "70px"}
    return w.IntSlider(0, -1, 0, description=name, tooltip=tooltip, style=style, layout=layout)


def described(event: Event) -> str:
    """One event in words: what, which items, when, why, and what a field said before and after."""
    named = ", ".join(f"#{item}" for item in event.items[:6]) + (" …" if len(event.items) > 6 else "")
    at = f" at {moment(event.detail['time'])}" if "time" in event.detail else ""
    parts = [f"event {event.step}: <b>{html.escape(event.kind)}</b> of {named or 'nothing'}{at}"]
    why = event.why or event.detail.get("query", "")
    if why:
        parts.append(html.escape(str(why)))
    if "query" in event.detail and event.detail["query"] != why:
        parts.append(f"“{html.escape(brief(event.detail['query']))}”")
    if "field" in event.detail:
        old, new = (html.escape(brief(event.detail.get(side))) for side in ("old", "new"))
        parts.append(f"{html.escape(str(event.detail['field']))}: <s>{old}</s> → <b>{new}</b>")
    return " · ".join(parts)


def events_frame(events: list[Event]) -> pd.DataFrame:
    """step, kind, items, n, why, change of each event."""
    import pandas as pd

    rows = [
        (
            e.step,
            e.kind,
            brief(e.items),
            len(e.items),
            e.why or brief(e.detail.get("query")),
            brief(e.detail.get("field")),
        )
        for e in events
    ]
    return pd.DataFrame(rows, columns=["step", "kind", "items", "n", "why", "field"])


def history_chart(memory: StoreMemory, events: EventLog, listed: list[Event], before: int, now: int) -> Any:
    """Every item's stay as a bar while there are few, moved by the sliders; else the last events."""
    import altair as alt

    from workbench.views import event_log, frames, memory_timeline

    if sum(len(event.items) for event in listed if event.kind == "write") <= MOST_BARS:
        held = [*memory.store.items(), *memory.store.forgotten()]
        spans = frames.spans(events, {item.id: _short(item.text) for item in held})
        if len(spans):
            chart = memory_timeline(spans, width=520, before=before, after=now)
            for parameter in chart.params:
                parameter.bind = alt.Undefined
            return chart
    return event_log(events_frame(listed[-MOST_EVENTS:]), width=760)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


# -- two moments ------------------------------------------------------------------------------------------------------


def difference(memory: StoreMemory, events: list[Event], before: int, now: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """What differs at ``now`` from ``before`` (steps of the log, in any order).

    Returns a row for each item that came or left and for each field that says something else (change, id, field,
    before, now; at most ``MOST_CHANGES`` rows), and how many items came, left, stayed but were touched, and are held.
    """
    import pandas as pd

    low, high = sorted((before, now))
    touched = {
        item for event in events[low + 1 : high + 1] for item in (*event.items, *event.detail.get("unlinked", ()))
    }
    old, new = memory.store.at(before), memory.store.at(now)
    count = {"came": 0, "left": 0, "touched": 0, "held": len(new)}
    rows: list[tuple[Any, ...]] = []
    for item in sorted(touched):
        was, here = item in old, item in new
        change = "touched" if was and here else "came" if here else "left" if was else ""
        if not change:
            continue
        count[change] += 1
        if len(rows) < MOST_CHANGES:
            rows += _rows(change, item, old, new)
    return pd.DataFrame(rows, columns=["change", "id", "field", "before", "now"]), count


def _rows(change: str, item: int, old: Snapshot, new: Snapshot) -> list[tuple[Any, ...]]:
    if change == "came":
        return [(change, item, "", "", brief(new.get(item).text))]
    if change == "left":
        return [(change, item, "", brief(old.get(item).text), "")]
    one, two = old.get(item), new.get(item)
    pairs = [(field, getattr(one, field), getattr(two, field)) for field in FIELDS]
    return [("changed", item, field, brief(was), brief(here)) for field, was, here in pairs if was != here]


def difference_html(memory: StoreMemory, events: list[Event], before: int, now: int) -> str:
    """The difference in a sentence and as a table with what came in green and what left struck out."""
    rows, count = difference(memory, events, before, now)
    changed = int((rows["change"] == "changed").sum())
    told = (
        f'<div class="wb-note">{count["held"]:,} items held after event {now}; since event {before} '
        f'<span class="wb-word held entered">{count["came"]} came</span>, '
        f'<span class="wb-word gone left">{count["left"]} left</span>, {changed} fields changed.</div>'
    )
    if not len(rows):
        return told
    body = "".join(_row_html(*record) for record in rows.itertuples(index=False))
    head = "".join(f'<th scope="col">{name}</th>' for name in rows.columns)
    title = f"<caption>what differs between event {before} and event {now}</caption>"
    inside = f"{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    shown = f'<div class="wb-scroll wb-diff"><table class="wb-table">{inside}</table></div>'
    more = count["came"] + count["left"] + count["touched"] - len(set(rows["id"]))
    left_out = (
        f'<div class="wb-note">{more:,} more items are not listed</div>' if len(rows) >= MOST_CHANGES and more else ""
    )
    return told + shown + left_out


def _row_html(change: str, item: int, field: str, before: str, now: str) -> str:
    kinds = {"came": ("", "entered"), "left": ("left", ""), "changed": ("left", "entered")}
    was, here = kinds[change]
    cells = [
        f"<td>{change}</td><td>#{item}</td><td>{html.escape(field)}</td>",
        f'<td><span class="wb-word {was}">{html.escape(before)}</span></td>',
        f'<td><span class="wb-word {here}">{html.escape(now)}</span></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"
