"""Tabs about what the memory holds: its contents now, and its past moment by moment."""

from __future__ import annotations

import html
import weakref
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.models.edited import is_edits
from workbench.views._check import visible
from workbench.widgets.app_chart import ChartPane, settled
from workbench.widgets.app_controls import NARROW, button, chosen, note, offer, pressed, row
from workbench.widgets.app_state import HALFWAY
from workbench.widgets.app_tab import Tab, as_array, bytes_text, table
from workbench.widgets.edits_pane import EditsPane, prompts
from workbench.widgets.store_history import History
from workbench.widgets.store_inspector import Inspector

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.base import EventLog
    from workbench.models import Trace

#: Tokens that the timeline writes out; a longer stream shows its end.
MOST_TOKENS = 1500
#: Stays that are drawn as bars.
MOST_BARS = 400


def contents_of(tab: Tab) -> pd.DataFrame:
    """What the memory holds of the first text, with each token's text where the memory keeps token ids."""
    memory = tab.session.need_model().memory
    frame = memory.contents()
    if "row" in frame:
        frame = frame[frame["row"] == 0].drop(columns="row")
    if "token_id" in frame:
        words = [visible(word) for word in tab.session.need_model().tokens(frame["token_id"])]
        frame.insert(1, "token", words)
    if "token_ids" in frame:  # a memory of events: their text stands for the ids
        decode = tab.session.need_model().decode
        texts = {event: visible(decode(ids)) for event, ids in zip(frame["event"], frame["token_ids"])}
        frame = frame.drop(columns="token_ids")
        frame.insert(1, "text", [texts[event] for event in frame["event"]])
    return frame


class MemoryTab(Tab):
    """What the memory holds: the slots of a token cache as a table, the items of a store in their inspector."""

    name, title = "memory", "Memory"

    def build(self) -> list[w.Widget]:
        self.again = button(
            "Feed the text", "empty the memory and stream the text through it, one line a round", primary=True
        )
        self.summary, self.table = note(), w.HTML()
        self.question = w.Text(
            placeholder="a question about the text",
            description="Ask",
            style=NARROW,
            layout=w.Layout(width="420px"),
            continuous_update=False,
            tooltip="a text that the model reads with this memory before it",
        )
        self.ask = button(
            "Which slots does it read?", "attention of the chosen layer's heads from your question to each slot"
        )
        self.reading = ChartPane("attention to memory slots")
        self.asking = row(self.question, self.ask)
        pressed(self.ask, self._ask)
        pressed(self.again, self._again)
        self._shown = ""
        self.more = button(
            "Write the text", "write every line of the text above into the memory, as one more item each"
        )
        pressed(self.more, self._more)
        self.inspector = Inspector(
            lambda: self.session.need_model().memory,
            self.app.working,
            self.app.code.add,
            name="model.memory",
            changed=lambda: self.app.redraw("timeline", "generation"),
            extra=[self.more],
        )
        self.slots = w.VBox([row(self.again, self.summary), self.asking, self.reading.view, self.table])
        self.edits = EditsPane(self)
        return [self.slots, self.inspector.view, self.edits.view]

    def _again(self) -> None:
        self.session.rounds = 0
        self.app.redraw("memory", "timeline", "generation")

    def _more(self) -> None:
        settled()
        with self.app.working("writing the text into the memory") as status:
            self.write_down(*self.session.write_text(lambda done, total: status.set_trait("fraction", done / total)))
        self.app.redraw("memory", "timeline", "generation")

    def draw(self) -> None:
        store, edits = self.session.is_store, is_edits(self.session.need_model().memory)
        self.slots.layout.display = "none" if store or edits else ""
        self.inspector.view.layout.display = "" if store else "none"
        self.edits.view.layout.display = "" if edits else "none"
        if edits:
            self.edits.show()
            return
        if self.session.need_model().memory is None:
            self._empty()
            return
        if store:
            self.inspector.begin()
        feed(self)
        if store:
            self.inspector.show()
        else:
            self._draw_slots()

    def _draw_slots(self) -> None:
        frame = contents_of(self)
        memory = self.session.need_model().memory
        slots = getattr(memory, "has_slots", True)
        self.again.layout.display, self.asking.layout.display = "", "" if slots else "none"
        what = f"{len(frame):,} slots hold" if slots else "The states of the layers take"
        self.summary.value = (
            f"{what} {bytes_text(memory.nbytes())} after {self.session.rounds} rounds "
            f"of a text of {len(self.session.tokens()):,} tokens; one line of the text is one round."
        )
        self.reading.show(None if slots else states_chart(frame))
        scores = [str(name) for name in frame if frame[name].dtype.kind == "f"]
        self._shown = self.table.value = table(frame, caption="what the memory holds", bars=scores)
        self.write_down("model.memory.contents()")

    def _ask(self) -> None:
        with self.app.working("asking the memory"):
            question = self.question.value
            if not question.strip():
                raise BadInput("the question is empty; type what the model should look up in its memory")
            memory = self.session.need_model().memory
            if not getattr(memory, "traceable", True):
                raise BadInput(
                    f"{memory.slug} fetches events that are no slots of its cache; the table's columns buffer and "
                    "last_score say which ones each layer read last"
                )
            probe, layer = self.session.need_model().trace(question), self.state.layer
            self.reading.show(slots_chart(probe, layer, self.session.stream))
            slots = stored(probe, layer)
            self.write_down(
                f"probe = model.trace({question!r})",
                f"probe.region({layer}, None, slice(None), slice(0, {slots})).mean(1)  # heads x slots",
            )

    def _empty(self) -> None:
        self._shown = ""
        self.reading.hide()
        self.table.value, self.again.layout.display, self.asking.layout.display = "", "none", "none"
        self.summary.value = (
            "No memory is chosen: the model keeps every token in an ordinary cache. Choose one above; of the token "
            "caches <b>streaming</b> and <b>sirllm</b> forget and <b>full</b> does not; a memory of items such as "
            "<b>flat</b> or <b>a-mem</b> keeps the lines of the text and is asked before the model answers; one of "
            "edits such as <b>wise</b> changes what the model knows."
        )

    def static(self) -> str:
        if is_edits(self.session.need_model().memory):
            return self.edits.static()
        return self.inspector.static() if self.session.is_store else self.summary.value + self._shown


def states_chart(frame: pd.DataFrame) -> Any:
    """Norm and effective rank of every matrix of a model whose layers are memories."""
    from workbench.views import state_table

    return state_table(frame, title="what every layer's state holds")


def stored(probe: Trace, layer: int) -> int:
    """How many of the keys a trace saw were memory slots and not its own tokens."""
    seen = probe.layer(layer)
    return seen.k.shape[1] - seen.q.shape[1]


def slots_chart(probe: Trace, layer: int, stream: list[str]) -> Any:
    """Attention of each head of a layer to each memory slot, averaged over the tokens of a traced text."""
    from workbench.views import frames, slot_attention

    count = stored(probe, layer)
    if count == 0:
        raise BadInput("the memory holds nothing yet; feed it the text first")
    mass = as_array(probe.region(layer, None, slice(None), slice(0, count))).mean(1)
    positions = probe.layer(layer).key_positions[0, :count].tolist()
    words = [stream[position] if 0 <= position < len(stream) else "" for position in positions]
    frame = frames.slots(mass, tokens=words, positions=positions)
    return slot_attention(frame, title=f"layer {layer}: which of {count} slots the question reads", width=760)


def feed(tab: Tab) -> None:
    """Stream the text through the memory if that has not been done, with progress."""
    status = tab.app.status
    if is_edits(tab.session.need_model().memory):  # written one by one, not fed; the timeline shows their prompts
        tab.session.stream = prompts(tab.session.need_model().memory)
        return

    def tell(done: int, total: int) -> None:
        status.fraction = done / total

    if tab.session.is_store:
        settled()
    tab.write_down(*tab.session.feed(tell))


class TimelineTab(Tab):
    """The log of the memory: scrub through it, and compare two moments."""

    name, title, follows = "timeline", "Timeline", frozenset({"moment", "compared"})

    def build(self) -> list[w.Widget]:
        wide = w.Layout(width="520px")
        style = {"description_width": "90px"}
        self.moment = w.IntSlider(
            0,
            0,
            0,
            description="Moment",
            style=style,
            layout=wide,
            tooltip="after which event the memory is shown; arrow keys step",
        )
        self.compared = w.IntSlider(
            -1,
            -1,
            0,
            description="against",
            style=style,
            layout=wide,
            tooltip="the earlier or later moment to compare with; -1 is the empty memory",
        )
        self.event, self.stream, self.chart, self.log = note(), w.HTML(), ChartPane("event timeline"), w.HTML()
        chosen(self.moment, lambda value: self.state.set_trait("moment", value))
        chosen(self.compared, lambda value: self.state.set_trait("compared", value))
        self._drawn: Any = None
        self.tokens = w.VBox([row(self.moment, self.compared), self.event, self.stream, self.chart.view, self.log])
        self.history = History(self.state.set_trait, self.app.code.add, name="model.memory")
        return [self.tokens, self.history.view]

    def draw(self) -> None:
        store = self.session.is_store
        self.tokens.layout.display = "none" if store else ""
        self.history.view.layout.display = "" if store else "none"
        if store:
            feed(self)
            self.history.draw(self.session.need_model().memory, self.state.moment, self.state.compared)
        else:
            self._draw_tokens()

    def _draw_tokens(self) -> None:
        if self.session.need_model().memory is None:
            self.event.value = "No memory is chosen, so there are no events. Choose one above."
            self.stream.value = self.log.value = ""
            self.chart.hide()
            return
        feed(self)
        events = self.session.need_model().memory.events()
        now = self._fill(events)
        self._draw_log(events)
        list_ = list(events)
        self.event.value = describe(list_[now]) if list_ and now >= 0 else "before the first event the memory is empty"
        self.stream.value = stream_html(self._words(), events, now, self.compared.value)
        self.chart.set("before", self.compared.value)
        self.chart.set("after", now)
        self.write_down(f"model.memory.events().diff({self.compared.value}, {now})")

    def _fill(self, events: EventLog) -> int:
        """Sliders over this log; a moment never chosen is the last one."""
        last = len(events) - 1
        now = last if not -1 < self.state.moment <= last else self.state.moment
        other = last // 2 if self.state.compared == HALFWAY else min(self.state.compared, last)
        for slider, value in ((self.moment, now), (self.compared, other)):
            slider.offering = True
            slider.max = max(last, 0)
            offer(slider, value)
        return now

    def _draw_log(self, events: EventLog) -> None:
        drawn = (weakref.ref(self.session.need_model().memory), len(events))
        if self._drawn == drawn:
            return
        frame = events.frame()
        rows = table(frame.drop(columns="items"), caption="all events")
        self.log.value = f"<details><summary>all {len(frame):,} events as a table</summary>{rows}</details>"
        scalars, words = getattr(self.session.need_model().memory, "scalars", None), self._words()
        self.chart.show(timeline_chart(events, words) if scalars is None else writes_chart(scalars(), words))
        self._drawn = drawn

    def _words(self) -> list[str]:
        return self.session.stream

    def static(self) -> str:
        return self.history.static() if self.session.is_store else self.event.value + self.stream.value


def timeline_chart(events: EventLog, words: list[str]) -> Any:
    """Every token's stay as a bar, its moments moved by the sliders above; a long stream shows the log alone."""
    import altair as alt

    from workbench.views import event_log, frames, memory_timeline

    if not len(events):
        return None
    spans = frames.spans(events, words)
    if len(spans) > MOST_BARS:
        return event_log(frames.events(events))
    chart = memory_timeline(spans)
    for parameter in chart.params:
        parameter.bind = alt.Undefined
    return chart


def writes_chart(scalars: pd.DataFrame, words: list[str]) -> Any:
    """What each layer did at each token, for a memory that keeps no single token."""
    from workbench.views import token_scalars

    return token_scalars(scalars, words, title="every layer's write, token by token") if len(scalars) else None


def describe(event: Any) -> str:
    """One event in words."""
    first, last = (min(event.items), max(event.items)) if event.items else (None, None)
    where = f", stream positions {first} to {last}" if first is not None else ""
    what = f"<b>{html.escape(event.kind)}</b> of {len(event.items)} tokens{where}"
    return f"event {event.step}: {what}: {html.escape(event.why)}"


def stream_html(words: list[str], events: EventLog, now: int, before: int) -> str:
    """The stream as text: what is held now, what was lost and what came since ``before``."""
    if not len(events):
        raise BadInput("this memory has no events yet; feed it a text")
    held, difference = events.held(now), events.diff(before, now)
    start = max(0, len(words) - MOST_TOKENS)
    spans = []
    for position, word in enumerate(words[start:], start):
        kind = "held" if position in held else "gone"
        kind += " entered" if position in difference["entered"] else " left" if position in difference["left"] else ""
        spans.append(f'<span class="wb-word {kind}" title="position {position}: {kind}">{html.escape(word)}</span>')
    legend = (
        f'<div class="wb-note">{len(held)} tokens held; since the other moment '
        f'<span class="wb-word held entered">{len(difference["entered"])} came</span> and '
        f'<span class="wb-word gone left">{len(difference["left"])} left</span>; '
        f'<span class="wb-word gone">pale</span> words are not in memory.</div>'
    )
    return f'{legend}<div class="wb-stream">{"".join(spans)}</div>'
