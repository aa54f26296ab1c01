"""Tabs that run the model on: generation through the memory, and the proof that a kernel is exact."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.widgets.app_controls import NARROW, button, dropdown, note, pressed, row
from workbench.widgets.app_tab import Tab, table

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
            [("nothing", "nothing"), ("the text, through the memory", "fed")],
            "nothing",
            "280px",
        )
        self.go = button("Generate", "continue the prompt; interrupt the kernel to stop", primary=True)
        self.out, self.rate = w.HTML(), note()
        pressed(self.go, self.generate)
        return [self.prompt, row(self.source, self.length, self.temperature, self.go, self.rate), self.out]

    def generate(self) -> None:
        prompt = self.prompt.value or self.session.text
        written: list[str] = []

        def on_token(piece: str, _: int) -> None:
            written.append(piece)
            self._show(prompt, "".join(written))
            status.fraction = len(written) / self.length.value

        with self.app.working("generating") as status:
            self._prepare()
            options = {"max_new_tokens": self.length.value, "temperature": self.temperature.value, "seed": 0}
            result = self.session.need_model().generate(prompt, on_token=on_token, **options)
            self._show(prompt, result.new_text)
            self.rate.value = f"{result.tokens_per_second:.0f} tokens/s through memory {self.state.memory}"
            self.write_down(
                f"model.generate({prompt!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())}).new_text"
            )
            if self.session.need_model().memory is not None:
                self.session.went_on(result.ids)
        self.app.redraw("memory", "timeline")

    def _prepare(self) -> None:
        """An empty memory, or one that has just read the text."""
        if self.source.value == "fed" and not self.prompt.value:
            raise BadInput("the text is already in the memory; type a prompt that should follow it")
        if self.source.value == "fed" and self.session.need_model().memory is None:
            raise BadInput("no memory is chosen that could have read the text; pick one in the list above")
        self.write_down(*self.session.empty())
        if self.source.value == "fed":
            self.write_down(*self.session.feed())

    def _show(self, prompt: str, new: str) -> None:
        self.out.value = (
            f'<div class="wb-generated" aria-live="polite"><span class="wb-prompt">{html.escape(prompt[-600:])}</span>'
            f"<b>{html.escape(new)}</b></div>"
        )

    def static(self) -> str:
        return self.out.value


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
