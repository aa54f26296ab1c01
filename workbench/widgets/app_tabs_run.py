"""Tabs that run the model on: generation through the memory, and the proof that a kernel is exact."""

from __future__ import annotations

import contextlib
import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.widgets.app_chart import settled
from workbench.widgets.app_controls import NARROW, button, dropdown, note, offer, pressed, row
from workbench.widgets.app_tab import Tab, table

if TYPE_CHECKING:
    from workbench.models.through_store import Pasted

#: What may stand before a prompt, by whether the memory is one of items.
SOURCES: dict[bool, tuple[tuple[str, str], ...]] = {
    False: (("nothing", "nothing"), ("the text, through the memory", "fed")),
    True: (("nothing", "nothing"), ("what the memory finds", "fed")),
}

#: Up to this many tokens the proof runs as soon as its tab is seen.
PROOF_AT_ONCE = 128


class GenerationTab(Tab):
    """Continue a prompt, token by token, through the memory and whatever was fed into it."""

    name, title = "generation", "Generation"

    def build(self) -> list[w.Widget]:
        self.prompt = w.Textarea(
            "",
            description="Prompt",
            rows=2,
            style=NARROW,
            layout=w.Layout(width="auto"),
            placeholder="empty: the text above",
            tooltip="what the model continues",
        )
        self.length = w.BoundedIntText(
            40,
            min=1,
            max=2000,
            description="New tokens",
            style=NARROW,
            tooltip="how many tokens to write",
            layout=w.Layout(width="170px"),
        )
        self.temperature = w.BoundedFloatText(
            0.0,
            min=0.0,
            max=5.0,
            step=0.1,
            description="Temperature",
            style=NARROW,
            tooltip="0 takes the likeliest token every time",
            layout=w.Layout(width="170px"),
        )
        self.source = dropdown(
            "Before it",
            "what the model has read before the prompt",
            list(SOURCES[False]),
            "nothing",
            "280px",
        )
        self.go = button("Generate", "continue the prompt; interrupt the kernel to stop", primary=True)
        self.out, self.rate, self.pasted = w.HTML(), note(), w.HTML()
        pressed(self.go, self.generate)
        controls = row(self.source, self.length, self.temperature, self.go, self.rate)
        return [self.prompt, controls, self.out, self.pasted]

    def draw(self) -> None:
        """What may stand before the prompt depends on the kind of memory."""
        offered = SOURCES[self.session.is_store]
        if tuple(self.source.options) != offered:
            offer(self.source, offered[-1][1] if self.session.is_store else "nothing", offered)
            self.pasted.value = ""

    def generate(self) -> None:
        prompt = self.prompt.value or self.session.text
        written: list[str] = []

        def on_token(piece: str, _: int) -> None:
            written.append(piece)
            self._show(prompt, "".join(written))
            status.fraction = len(written) / self.length.value

        with self.app.working("generating") as status:
            self._prepare()
            self.pasted.value = ""
            model, store = self.session.need_model(), self.session.is_store
            options: dict[str, Any] = {
                "max_new_tokens": self.length.value,
                "temperature": self.temperature.value,
                "seed": 0,
            }
            if store and prompt.rstrip().endswith("?"):
                options["stop"] = "\n"  # an answer ends with its line; what follows would be the next question
            alone = store and self.source.value == "nothing"
            with model.use(memory=None) if alone else contextlib.nullcontext():
                result = model.generate(prompt, on_token=on_token, **options)
            self._show(prompt, result.new_text)
            self.pasted.value = pasted_html(result.pasted)
            through = "none" if alone else self.state.memory
            self.rate.value = f"{result.tokens_per_second:.0f} tokens/s through memory {through}"
            start = 'with model.use(memory="none"): ' if alone else ""
            end = ".pasted.prompt" if result.pasted is not None else ".new_text"
            arguments = ", ".join(f"{k}={v!r}" for k, v in options.items())
            self.write_down(f"{start}made = model.generate({prompt!r}, {arguments})", f"made.new_text, made{end}")
            if model.cache is not None:
                self.session.went_on(result.ids)
        self.app.redraw("memory", "timeline")

    def _prepare(self) -> None:
        """An empty cache, or one that has just read the text; a memory of items stays as it is."""
        fed = self.source.value == "fed"
        if fed and not self.prompt.value:
            raise BadInput("the text is already in the memory; type a prompt that should follow it")
        if fed and self.session.need_model().memory is None:
            raise BadInput("no memory is chosen that could have read the text; pick one in the list above")
        if not self.session.is_store:
            self.write_down(*self.session.empty())
        if fed and self.session.is_store:
            settled()
        if fed:
            self.write_down(*self.session.feed())

    def _show(self, prompt: str, new: str) -> None:
        self.out.value = (
            f'<div class="wb-generated" aria-live="polite"><span class="wb-prompt">{html.escape(prompt[-600:])}</span>'
            f"<b>{html.escape(new)}</b></div>"
        )

    def static(self) -> str:
        return self.out.value + self.pasted.value


def pasted_html(pasted: Pasted | None) -> str:
    """What a memory of items put before the prompt, and why each of it was found; empty without such a memory."""
    if pasted is None:
        return ""
    reading = pasted.reading
    told = f"the memory was asked “{reading.query}” and put {len(reading.items)} items before the prompt"
    parts = [
        told,
        f"{reading.tokens} of at most {pasted.budget_tokens} tokens" if pasted.budget_tokens else "",
        reading.note,
    ]
    note = f'<div class="wb-note">{html.escape("; ".join(filter(None, parts)))}</div>'
    if not pasted.text:
        return note
    why = table(reading.frame().drop(columns="rank"), caption="why each was found", bars=("score",))
    label = 'class="wb-pasted" tabindex="0" aria-label="What was put before the prompt"'
    return f"{note}<div {label}>{html.escape(pasted.text.strip())}</div>{why}"


class ProofTab(Tab):
    """Every kernel against eager attention in float32 on the very text above."""

    name, title = "proof", "Proof"

    def build(self) -> list[w.Widget]:
        self.go = button("Prove", "run every kernel on the text and compare with eager float32", primary=True)
        self.table, self.text = w.HTML(), note()
        pressed(self.go, self._again)
        self._of: tuple[Any, ...] = ()
        return [row(self.go, self.text), self.table]

    def draw(self) -> None:
        n = len(self.session.tokens())
        self.text.value = (
            "Largest difference of any logit from eager attention in float32, speed of generation, and memory, "
            f"on your {n:,} tokens."
        )
        if n <= PROOF_AT_ONCE:
            self.prove()
        elif self._of != self._key():
            self.table.value = f'<div class="wb-note">{n:,} tokens: press Prove to run every kernel on them.</div>'

    def _key(self) -> tuple[Any, ...]:
        return self.session.loads, self.session.text

    def _again(self) -> None:
        with self.app.working("running every kernel"):
            self._of = ()
            self.prove()

    def prove(self) -> None:
        if self._of == self._key():
            return
        self.table.value = table(self.session.need_model().proof(self.session.text))
        self.write_down("model.proof(text)")
        self._of = self._key()

    def static(self) -> str:
        return self.table.value
