"""Small pieces of the inspector: fields, what stands over an item, what an edit changes, why something was found."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.widgets.app_controls import NARROW
from workbench.widgets.app_state import TURN
from workbench.widgets.store_table import moment

if TYPE_CHECKING:
    from workbench.memory.durable import Item
    from workbench.memory.stores.base import Reading

#: Items of a reading that are drawn.
MOST_READ = 40


def text_field(name: str, placeholder: str, tooltip: str, width: str) -> w.Text:
    return w.Text(
        description=name, placeholder=placeholder, tooltip=tooltip, style=NARROW, layout=w.Layout(width=width)
    )


def entered(field: w.Text, act: Callable[[], Any]) -> None:
    """Call ``act`` when Enter is pressed in the field, one thing at a time."""

    def heard(_: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("event") == "submit":
            with TURN:
                act()

    field.on_msg(heard)


def heading(item: Item, held: bool) -> str:
    links = f" · links to {', '.join(f'#{link}' for link in item.links)}" if item.links else ""
    key = f" · {item.key}" if item.key else ""
    state = "" if held else " · <b>forgotten</b>"
    return (
        html.escape(f"item #{item.id} · {item.kind}{key} · {moment(item.time)} · strength {item.strength:.3g}{links}")
        + state
    )


def edited(item: Item, text: str, tags: str) -> dict[str, Any]:
    """The fields that differ."""
    fields: dict[str, Any] = {}
    listed = tuple(tag.strip() for tag in tags.split(",") if tag.strip())
    if text != item.text:
        fields["text"] = text
    if listed != item.tags:
        fields["tags"] = listed
    return fields


def taken_back(events: Sequence[Any]) -> list[str]:
    return [f"taken back: {event.kind} of {', '.join(f'#{item}' for item in event.items[:8])}" for event in events[:4]]


def trace_chart(reading: Reading) -> Any:
    """The reading as ranked bars, or None when there is none."""
    if not reading.items:
        return None
    from workbench.views.retrieval import retrieval_trace

    return retrieval_trace(reading.frame().head(MOST_READ), title="Why these", width=220)
