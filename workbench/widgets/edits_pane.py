"""Edits in the app: a prompt and its new answer are written into the loaded model, listed, and taken back."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BadInput
from workbench.widgets.app_controls import NARROW, button, note, pressed, row
from workbench.widgets.app_tab import Tab, bytes_text, table

if TYPE_CHECKING:
    from workbench.memory.parametric.base import ParametricMemory


def field(name: str, placeholder: str, tooltip: str, width: str = "440px") -> w.Text:
    return w.Text(
        description=name,
        placeholder=placeholder,
        tooltip=tooltip,
        style=NARROW,
        layout=w.Layout(width=width),
        continuous_update=False,
    )


class EditsPane:
    """What the memory tab shows for a memory of edits."""

    def __init__(self, tab: Tab):
        self.tab, self.app, self.session = tab, tab.app, tab.session
        self.prompt = field(
            "Prompt", "QUESTION: Where does ... live? ANSWER:", "the words after which the answer comes"
        )
        self.target = field("New answer", "the new answer", "what the model shall say after the prompt", "240px")
        self.subject = field("Subject", "who or what it is about", "words of the prompt; rome needs them", "300px")
        self.paraphrase = field("Paraphrase", "the same in other words", "asked beside the edit and never learned from")
        self.edit = button("Edit the model", "write the new answer into the memory", primary=True)
        self.undo = button("Take the last one back", "the memory is then as it was before the last edit")
        self.summary, self.table = note(), w.HTML()
        pressed(self.edit, self.write)
        pressed(self.undo, self.take_back)
        self.view = w.VBox(
            [
                row(self.prompt, self.target),
                row(self.paraphrase, self.subject),
                row(self.edit, self.undo, self.summary),
                self.table,
            ]
        )

    @property
    def memory(self) -> ParametricMemory:
        return self.session.need_model().memory  # type: ignore[no-any-return]

    def write(self) -> None:
        """Write what stands in the fields; the text above serves as the unrelated text that some mechanisms need."""
        with self.app.working("editing the model"):
            name, texts = self._texts()
            given = {
                part: control.value
                for part, control in (("subject", self.subject), ("paraphrase", self.paraphrase))
                if control.value.strip()
            }
            lines = []
            if name:
                setattr(self.memory, name, texts)
                lines = [f"model.memory.{name} = [line.strip() for line in text.splitlines() if line.strip()]"]
            try:
                self.memory.write(self.prompt.value, self.target.value, **given)
            except BaseException:
                if name:  # not written down, so not kept either
                    setattr(self.memory, name, [])
                raise
            said = "".join(f", {part}={value!r}" for part, value in given.items())
            self.tab.write_down(*lines, f"model.memory.write({self.prompt.value!r}, {self.target.value!r}{said})")
            self._changed()

    def _texts(self) -> tuple[str, list[str]]:
        """Which unrelated texts the mechanism wants and has not ("": none), and the lines of the text that serve."""
        for name in ("negatives", "texts"):
            if getattr(self.memory, name, None) == []:
                return name, [line.strip() for line in self.session.text.splitlines() if line.strip()]
        return "", []

    def take_back(self) -> None:
        with self.app.working("taking the last edit back"):
            if not len(self.memory):
                raise BadInput("there is no edit to take back; write one first")
            self.memory.undo()
            self.tab.write_down("model.memory.undo()")
            self._changed()

    def _changed(self) -> None:
        """Every picture of the text is out of date: the model may say something else now."""
        self.session.forget()
        self.session.carry_out()
        self.app.redraw(*self.app.tabs)

    def show(self) -> None:
        """The edits in force and what the model says of them now."""
        memory = self.memory
        frame = memory.contents()
        self.undo.disabled = not len(frame)
        where = f"in <b>{html.escape(memory.slug)}</b> at {html.escape(memory.place.path)}"
        self.summary.value = (
            f"{len(frame)} {'edit' if len(frame) == 1 else 'edits'} {where}, {bytes_text(memory.nbytes())}; "
            "rel and gen: share of the answer's tokens that the edited model says now"
            if len(frame)
            else f"No edit yet {where}: give a prompt and the answer that shall follow it."
        )
        self.table.value = table(frame, caption="edits in force", bars=("delta", "norm")) if len(frame) else ""
        self.tab.write_down("model.memory.contents()")

    def static(self) -> str:
        return str(self.summary.value) + str(self.table.value)


def prompts(memory: Any) -> list[str]:
    """The prompts of the edits, which the timeline shows where a cache has tokens."""
    return [f"{edit.prompt} → {edit.target.strip()} " for edit in memory.edits]
