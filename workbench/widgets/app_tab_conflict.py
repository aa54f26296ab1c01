"""The tab that silences heads: tick them on the plane of scores, see what the model answers before and after.

Heads are scored on prompts that contradict what the model knows (path patching, ``knowledge-conflict-heads``) and tried
on others. Silencing lasts for the passes of one comparison; between them the model is bit for bit what it was.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from workbench.errors import BadInput
from workbench.views import palettes
from workbench.widgets.app_chart import ChartPane
from workbench.widgets.app_controls import button, chosen, dropdown, note, offer, pressed, row
from workbench.widgets.app_tab import Tab, table

if TYPE_CHECKING:
    import pandas as pd

    from workbench.probes.heads import Head
    from workbench.probes.knowledge_conflict_heads import ConflictHeads
    from workbench.tasks.conflicts import Conflict

#: Conflicts that heads are found on and tried on, with the seeds that draw them; twins of each that are patched in.
FOUND_ON, TRIED_ON, TWINS = (16, 7), (24, 8), 2
#: Heads up to which the plane has a button each; a larger model takes heads as text.
MOST_BUTTONS = 400
TEXT_ABOVE = -1
#: Tokens of the text above that are read, counted from its end; answers listed.
LAST_TOKENS, BEST = 512, 5


class ConflictTab(Tab):
    """Which heads answer from memory and which from the context; silence some and ask again."""

    name, title, follows = "conflict", "Conflict", frozenset({"pruned"})

    def build(self) -> list[w.Widget]:
        self.find = button("Find heads", "score every head on prompts that contradict the model", primary=True)
        self.memory = button("Tick memory heads", "silence the heads that bring the stored answer")
        self.context = button("Tick context heads", "silence the heads that copy the stated answer")
        self.clear = button("Untick all", "silence nothing")
        self.typed = w.Text(
            description="Silenced", placeholder="layer.head, layer.head", continuous_update=False,
            tooltip="heads that are silenced, as layer.head", layout=w.Layout(width="260px"),
            style={"description_width": "initial"},
        )  # fmt: skip
        self.prompt = dropdown("Prompt", "what the model is asked", [("the text above", TEXT_ABOVE)], TEXT_ABOVE, "98%")
        self.plane, self.legend, self.answers, self.rates = w.VBox(), note(), w.HTML(), ChartPane("who wins")
        self._buttons: dict[Head, w.Button] = {}
        self._forget()
        pressed(self.find, self._find)
        pressed(self.clear, partial(self._tick, []))
        pressed(self.memory, partial(self._tick_kind, "memory"))
        pressed(self.context, partial(self._tick_kind, "context"))
        chosen(self.typed, self._type)
        chosen(self.prompt, lambda _: self.app.redraw(self.name))
        left = w.VBox([self.plane, self.legend], layout=w.Layout(flex="0 1 470px", min_width="300px"))
        right = w.VBox([self.answers, self.rates.view], layout=w.Layout(flex="1 1 420px", min_width="340px"))
        pair = row(left, right)
        pair.layout.align_items = "flex-start"
        return [row(self.find, self.memory, self.context, self.clear, self.typed), self.prompt, pair]

    def _forget(self) -> None:
        """No head has a score, no conflict was asked."""
        self._of = -1
        self._heads: ConflictHeads | None = None
        self._asked: list[Conflict] = []
        self._before: pd.DataFrame | None = None

    # ---- heads ----------------------------------------------------------------------------------------------------

    @property
    def pruned(self) -> list[Head]:
        return [(layer, head) for layer, head in self.state.pruned]

    def _tick(self, heads: Sequence[Head]) -> None:
        self.state.pruned = [list(head) for head in heads]

    def _toggle(self, head: Head) -> None:
        now = self.pruned
        self._tick([other for other in now if other != head] if head in now else [*now, head])

    def _type(self, text: str) -> None:
        heads: list[Head] | None = None
        with self.app.working("reading the heads"):
            heads = parse(text)
        if heads is not None:
            self._tick(heads)
        self._show_ticks()

    def _tick_kind(self, kind: str) -> None:
        """The heads of one kind that stand out, or the first one where none does."""
        heads: list[Head] | None = None
        with self.app.working(f"ranking the {kind} heads"):
            if self._heads is None:
                raise BadInput("no head has a score yet; press Find heads first")
            found = [head for head in self._heads.ranked(kind) if self._heads.kind(head) == kind]
            heads = found or self._heads.ranked(kind, 1)
        if heads is not None:
            self._tick(heads)

    def _find(self) -> None:
        from workbench.probes.knowledge_conflict_heads import find_heads
        from workbench.tasks.conflicts import conflicts, rates

        with self.app.working("scoring every head") as status:
            model = self.session.need_model()
            (n, seed), (more, other) = FOUND_ON, TRIED_ON
            scored = conflicts(model, n, seed=seed, corruptions=TWINS)
            known = frozenset(conflict.subject for conflict in scored)
            asked = conflicts(model, more, seed=other, corruptions=1, without=known)
            heads = find_heads(model, scored, progress=lambda done: status.set_trait("fraction", float(done)))
            self._heads, self._asked, self._before, self._of = heads, asked, rates(model, asked), self.session.loads
            self._make_plane()
            self._offer_prompts()
            self.write_down(
                "from workbench.probes.knowledge_conflict_heads import find_heads, prune",
                "from workbench.tasks.conflicts import conflicts, rates",
                f"scored = conflicts(model, {n}, seed={seed}, corruptions={TWINS})",
                "known = frozenset(c.subject for c in scored)",
                f"asked = conflicts(model, {more}, seed={other}, corruptions=1, without=known)",
                "heads = find_heads(model, scored)",
            )
        self.app.redraw(self.name)

    # ---- drawing --------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        if self._of != self.session.loads:  # another model: its heads have no scores yet
            self._forget()
            self._of = self.session.loads
            self.rates.hide()
            self._make_plane()
            self._offer_prompts()
        self._show_ticks()
        self._compare()

    def _make_plane(self) -> None:
        model = self.session.need_model()
        self._buttons = {}
        if model.n_layers * model.n_heads > MOST_BUTTONS:
            self.plane.children = [note(f"{model.n_layers} layers of {model.n_heads} heads: type the heads above.")]
            return
        size = w.Layout(width="52px", height="26px", margin="1px", padding="0")
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                made = w.Button(layout=size)
                made.add_class("wb-plane-head")
                pressed(made, partial(self._toggle, (layer, head)))
                self._buttons[layer, head] = made
        rows = [[self._buttons[layer, head] for head in range(model.n_heads)] for layer in range(model.n_layers)]
        self.plane.children = [w.HBox(buttons, layout=w.Layout(flex_flow="row wrap")) for buttons in reversed(rows)]
        self._paint()

    def _paint(self) -> None:
        balance = np.zeros((0,)) if self._heads is None else self._heads.balance()
        top = max(float(np.abs(balance).max(initial=0.0)), 1e-9)
        for (layer, head), made in self._buttons.items():
            made.style.button_color = colour(float(balance[layer, head]) / top if balance.size else 0.0)
            told = f": {self._told(layer, head)}" if balance.size else ""
            made.tooltip = f"layer {layer}, head {head}{told}"
        scored = (
            "Blue heads bring what the model knows, orange ones what the prompt states; the deeper, the more "
            f"(strongest {top:.1f} nats, direct effect)."
        )
        self.legend.value = "Each button is a head, layer.head, the last layer on top; ✕ is silenced. " + (
            scored if balance.size else "Press Find heads to score them."
        )

    def _told(self, layer: int, head: int) -> str:
        assert self._heads is not None
        kind = self._heads.kind((layer, head))
        return f"{self._heads.balance()[layer, head]:+.2f} nats{f', a {kind} head' if kind else ''}"

    def _show_ticks(self) -> None:
        gone = set(self.pruned)
        for (layer, head), made in self._buttons.items():
            made.description = f"✕ {layer}.{head}" if (layer, head) in gone else f"{layer}.{head}"
        offer(self.typed, ", ".join(f"{layer}.{head}" for layer, head in self.pruned))

    def _offer_prompts(self) -> None:
        options = [(f"{c.prompt} …", index) for index, c in enumerate(self._asked)]
        offer(self.prompt, 0 if options else TEXT_ABOVE, [("the text above", TEXT_ABOVE), *options])

    def _compare(self) -> None:
        from workbench.probes.knowledge_conflict_heads import prune
        from workbench.tasks.conflicts import rates

        model, heads = self.session.need_model(), self.pruned
        if self.prompt.value == TEXT_ABOVE:
            self.answers.value = self._next_words(heads)
        if self._before is None:
            return
        with prune(model, heads):
            after = rates(model, self._asked)
        if self.prompt.value != TEXT_ABOVE:
            at = int(self.prompt.value)
            self.answers.value = answer_table(self._asked[at], self._before.iloc[at], after.iloc[at])
        self.rates.show(winners_chart(self._before, after, len(heads)))
        self.write_down(f"with prune(model, {heads}): after = rates(model, asked)")

    def _next_words(self, heads: Sequence[Head]) -> str:
        """What follows the text above, with and without the heads."""
        from workbench.probes.knowledge_conflict_heads import prune
        from workbench.tasks.conflicts import first_logits

        model = self.session.need_model()
        ids = model.encode(self.session.text)["input_ids"][0].tolist()[-LAST_TOKENS:]
        before = first_logits(model, [ids])[0].softmax(-1)
        with prune(model, heads):
            after = first_logits(model, [ids])[0].softmax(-1)
        self.write_down(
            "from workbench.probes.knowledge_conflict_heads import prune",
            "from workbench.tasks.conflicts import first_logits",
            f"with prune(model, {list(heads)}): first_logits(model, [model.encode(text)['input_ids'][0].tolist()])",
        )
        best = list(dict.fromkeys([*before.topk(BEST).indices.tolist(), *after.topk(BEST).indices.tolist()]))
        lines = [(model.decode([token]), float(before[token]), float(after[token])) for token in best]
        return compared("what follows the text above", lines)

    def static(self) -> str:
        return self.answers.value


def parse(text: str) -> list[Head]:
    """Heads written as ``layer.head, layer.head``; raises BadInput that shows the part it cannot read."""
    heads = []
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        layer, dot, head = part.strip().partition(".")
        if not (dot and layer.isdecimal() and head.isdecimal()):
            raise BadInput(f"heads are written as layer.head, for example 5.1, 7.3; cannot read {part.strip()!r}")
        heads.append((int(layer), int(head)))
    return list(dict.fromkeys(heads))


def colour(balance: float) -> str:
    """From blue (-1) over pale (0) to orange (1), never so dark that black text cannot be read on it."""
    scale = palettes.table("blue-orange")
    middle = (len(scale) - 1) / 2
    red, green, blue = scale[round(middle + 0.6 * middle * float(np.clip(balance, -1, 1)))]
    return f"#{red:02x}{green:02x}{blue:02x}"


def compared(caption: str, lines: Sequence[tuple[str, float, float]]) -> str:
    """A table of answers with their probabilities before and after."""
    import pandas as pd

    frame = pd.DataFrame(lines, columns=["answer", "before", "after"])
    return table(frame, caption=caption, bars=("before", "after"))


def answer_table(conflict: Conflict, before: Any, after: Any) -> str:
    """One conflict: who wins, and what both answers are worth with nothing and with the heads silenced."""
    lines = [
        (f"{conflict.memory} (memory)", before.p_memory, after.p_memory),
        (f"{conflict.context} (stated)", before.p_context, after.p_context),
    ]
    won = f"Won by <b>{before.winner}</b> before, by <b>{after.winner}</b> after."
    shown = f'<div class="wb-generated">{html.escape(conflict.prompt)} …</div>'
    return f'{shown}{compared("probability of the first token", lines)}<div class="wb-note">{won}</div>'


def winners_chart(before: pd.DataFrame, after: pd.DataFrame, silenced: int) -> Any:
    """Shares of the tried conflicts that memory, context and anything else win."""
    import pandas as pd

    from workbench.views.conflicts import WINNERS, rate_bars

    labels = {"nothing": before, f"{silenced} heads" if silenced != 1 else "1 head": after}
    rows = [
        {"pruned": label, "metric": name, "value": float((frame.winner == name).mean())}
        for label, frame in labels.items()
        for name in WINNERS
    ]
    title = f"Who wins {len(before)} other conflicts"
    return rate_bars(pd.DataFrame(rows), title=title, width=290, legend="bottom")
