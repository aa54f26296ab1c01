"""What every memory says that is written into a model's weights: edits, listed, undone, saved, served by routing.

The model's own parameters are never touched. A bound memory hangs one hook on one matrix of one MLP and puts another
output in its place where it decides to; unbinding takes the hook away, and the model is what it was to the last bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.checks import is_whole, whole
from workbench.errors import BadInput, BundleError, MemoryError_
from workbench.memory.base import EventLog, settings_of
from workbench.memory.parametric import _file
from workbench.memory.parametric._bound import Bound
from workbench.memory.parametric._parts import Answers, Edit, Learned, Served, answers_of, copied, edit_of, main_only
from workbench.memory.parametric._place import Prefix
from workbench.memory.parametric._rows import Rows, encode, padded, rows_of, target_ids

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Answers", "Edit", "Learned", "ParametricMemory", "Served", "main_only"]

#: Edits that can be taken back from a kept state; older ones are taken back by writing those after them again.
KEPT_STATES = 4
#: Columns of ``contents()``.
COLUMNS = ("edit", "prompt", "old answer", "new answer", "memory", "delta", "eps", "routed to", "rel", "gen", "steps",
           "norm")  # fmt: skip


class ParametricMemory(Bound):
    """Base of the memories of edits. Subclasses say how one edit is learned, what is served, and what the state is.

    Args of every subclass: ``module``, the path of the matrix ("" is the MLP's second matrix of layer ``layer``).
    """

    needs_subject: ClassVar[bool] = False
    #: Hyper-parameters that suit a model of a few million weights, where the paper's do not.
    small: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._log = EventLog()
        self._edits: list[tuple[Edit, Learned]] = []
        self._kept: list[dict[str, Any]] = []

    # -- the mechanism ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _learn(self, edit: Edit) -> Learned:
        """Write one edit; may leave the state half-changed when it raises (the caller puts it back)."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (replaced, never changed in place) and JSON values that hold all that was learned."""

    @abstractmethod
    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Back to what ``_state`` gave."""

    @abstractmethod
    def _empty(self) -> None:
        """Go to the state before the first edit."""

    def _where(self, number: int) -> str:
        """Which part of the memory holds an edit now."""
        return self._edits[number][1].where

    def _eps_of(self, where: str) -> float:
        """Threshold of a part of the memory; NaN without routes."""
        return float("nan")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def prepare(self, prompts: Sequence[str], targets: Sequence[str]) -> Rows:
        """Prompts with their answers, run up to the matrix once; ``answers`` may be asked of them again and again.

        Raises:
            BadInput: none, of different number, an empty prompt or target. MemoryError_: not bound.
        """
        _ = self.model
        return self._run(rows_of(self.tokenizer, prompts, targets, self.place.weight.device))

    def _run(self, rows: Rows) -> Rows:
        with self.silent():
            rows.prefix = Prefix(self.model, self.place, rows.ids, rows.at, short=self._short)
        return rows

    def _texts(self, texts: Sequence[str]) -> Rows:
        """Texts that are only read, run up to the matrix; ``at`` is empty."""
        _ = self.model
        device = self.place.weight.device
        return self._run(padded([encode(self.tokenizer, text) for text in texts], [[]] * len(texts), device))

    def answers(self, rows: Rows) -> Answers:
        """What the edited model answers to prepared rows (teacher forcing; the route is decided on the prompt)."""
        with torch.no_grad(), self.silent():
            served = self.serve(rows)
            best = rows.prefix.logits(served.output).argmax(-1)
        return answers_of(rows, best, served)

    def serve(self, rows: Rows) -> Served:
        """Output, route and Delta of prepared rows."""
        prefix = rows.prefix
        if not self._edits:
            return main_only(prefix.main)
        return self._serve(prefix.inputs, prefix.main, rows.span, self._forced_route(len(rows.ids)))

    def read(self, prompt: str, new_tokens: int = 1) -> str:
        """What the edited model says after ``prompt``, greedily; the log notes it.

        Raises:
            BadInput: an empty prompt, fewer than one new token. MemoryError_: not bound.
        """
        _ = self.model
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(f"the prompt is empty or no text: {prompt!r}")
        said = self._greedy(prompt, whole("new_tokens", new_tokens))
        self._log.append("read", [], "asked", prompt=prompt, said=said)
        return said

    @torch.no_grad()
    def _greedy(self, prompt: str, new_tokens: int) -> str:
        ids = torch.tensor([encode(self.tokenizer, prompt)], device=self.place.weight.device)
        self.model.eval()
        made = self.model.generate(
            ids, max_new_tokens=new_tokens, do_sample=False, attention_mask=torch.ones_like(ids),
            pad_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        return str(self.tokenizer.decode(made[0, ids.shape[1] :]))

    # -- edits --------------------------------------------------------------------------------------------------------

    def write(self, prompt: str, target: str, *, subject: str = "", paraphrase: str = "", negative: str = "") -> int:
        """Write "after ``prompt`` comes ``target``"; returns the edit's number. See ``Edit`` for the rest.

        Raises:
            BadInput: an empty prompt or target, a subject that is missing or not in the prompt, a negative text that
            the mechanism needs and has not, steps that lead to no numbers. MemoryError_: not bound. The memory is then
            as it was.
        """
        edit = Edit(prompt, target, subject, paraphrase, negative)
        self._check(edit)
        tensors, values = self._state()
        before = {"tensors": dict(tensors), "values": copied(values)}
        try:
            with self.silent():
                old = self._first_answer(edit)
            learned = replace(self._learn(edit), old=old)
            self._check_numbers()
        except BaseException:
            self._restore(before["tensors"], before["values"])
            raise
        self._edits.append((edit, learned))
        self._kept = [*self._kept, before][-KEPT_STATES:]
        number = len(self._edits) - 1
        self._log.append("write", [number], f"{prompt} -> {target.strip()}", steps=learned.steps, delta=learned.delta)
        self._after_write()
        return number

    def _check_numbers(self) -> None:
        for name, value in self._state()[0].items():
            if bool(value.isnan().any()):
                raise BadInput(f"the edit ended in no numbers ({name}); take a smaller lr than {self.settings()['lr']}")

    def _after_write(self) -> None:
        """What is due now that an edit is in (shards, merging); may log events of its own."""

    def _first_answer(self, edit: Edit) -> str:
        return self._greedy(edit.prompt, len(target_ids(self.tokenizer, edit.target))).strip()

    def _check(self, edit: Edit) -> None:
        _ = self.model
        if not isinstance(edit.prompt, str) or not edit.prompt.strip():
            raise BadInput("the prompt of an edit is empty; give the words after which the new answer shall come")
        if not isinstance(edit.target, str) or not edit.target.strip():
            raise BadInput("the target of an edit is empty; give the new answer")
        for name in ("subject", "paraphrase", "negative"):
            if not isinstance(text := getattr(edit, name), str):
                raise BadInput(f"the {name} of an edit is a text, got {text!r}; leave it out where there is none")
        if edit.subject and (edit.subject not in edit.prompt or not edit.subject.strip()):
            raise BadInput(f"the subject {edit.subject!r} is not in the prompt {edit.prompt!r}; copy it from there")
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        length = len(encode(self.tokenizer, edit.prompt)) + len(target_ids(self.tokenizer, edit.target))
        if limit and length > limit:
            raise BadInput(f"prompt and target are {length} tokens and the model reads {limit}; give a shorter prompt")
        if self.needs_subject and not edit.subject:
            raise BadInput(f"{self.slug} writes at the subject's last token; give subject='...', words of the prompt")

    def undo(self, edit: int | None = None) -> int:
        """Take an edit back (default: the last one) and number the ones after it anew; returns how many are left.

        A recent state is put back as it was; behind it, and after an older edit, the later edits are written again.
        When one of them fails, or is interrupted, all edits stay.

        Raises:
            BadInput: there is no such edit.
        """
        if edit is not None and not is_whole(edit):
            raise BadInput(f"undo takes the number of an edit, got {edit!r}")
        if not self._edits:
            raise BadInput("there is no edit to take back")
        number = len(self._edits) - 1 if edit is None else int(edit)
        if not 0 <= number < len(self._edits):
            raise BadInput(f"edit {number} does not exist; there are edits 0 to {len(self._edits) - 1}")
        (tensors, values), log = self._state(), self._log.copy()
        before, edits, kept = copied(values), self._edits, self._kept
        try:
            self._without(number)
        except BaseException:
            self._restore(dict(tensors), before)
            self._edits, self._kept, self._log = edits, kept, log
            raise
        return len(self._edits)

    def _without(self, number: int) -> None:
        later = [given for given, _ in self._edits[number + 1 :]]
        first = self._back_to(number)
        again = [given for given, _ in self._gone[: number - first]] + later
        self._log.append("evict", range(first, first + len(self._gone)), "taken back")
        for given in again:
            self.write(**given.__dict__)

    def _back_to(self, number: int) -> int:
        """State before edit ``number``, or the empty one; returns the number of edits that the state holds."""
        first = len(self._edits) - len(self._kept)
        if number >= first:
            state = self._kept[number - first]
            self._restore(state["tensors"], state["values"])
            self._kept, start = self._kept[: number - first], number
        else:
            self._empty()
            self._kept, start = [], 0
        self._gone, self._edits = self._edits[start:], self._edits[:start]
        self._route = None
        return start

    def reset(self) -> None:
        """Forget every edit."""
        _ = self.model
        self._forget()
        self._log.append("reset", [], "all edits forgotten")

    def _forget(self) -> None:
        self._edits, self._kept, self._route = [], [], None
        self._empty()

    @property
    def edits(self) -> list[Edit]:
        """The edits in force, in the order they were written."""
        return [edit for edit, _ in self._edits]

    def __len__(self) -> int:
        return len(self._edits)

    # -- looking ------------------------------------------------------------------------------------------------------

    def nbytes(self) -> int:
        """Bytes of the state's tensors."""
        _ = self.model
        return sum(value.numel() * value.element_size() for value in self._state()[0].values())

    def contents(self) -> pd.DataFrame:
        """One row an edit: ``COLUMNS``; Rel and Gen as the edited model answers now."""
        import pandas as pd

        if not self._edits:
            return pd.DataFrame(columns=list(COLUMNS))
        targets = [edit.target for edit in self.edits]
        now = self.answers(self.prepare([edit.prompt for edit in self.edits], targets))
        gen = self._paraphrased()
        rows = [
            (i, edit.prompt, learned.old, edit.target.strip(), self._where(i), now.delta[i],
             self._eps_of(self._where(i)),
             "main" if now.side[i] < 0 else "side", now.accuracy()[i], gen.get(i, float("nan")), learned.steps,
             learned.norm)
            for i, (edit, learned) in enumerate(self._edits)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _paraphrased(self) -> dict[int, float]:
        asked = [i for i, edit in enumerate(self.edits) if edit.paraphrase.strip()]
        if not asked:
            return {}
        chosen = [self.edits[i] for i in asked]
        rows = self.prepare([edit.paraphrase for edit in chosen], [edit.target for edit in chosen])
        return dict(zip(asked, self.answers(rows).accuracy()))

    def learned(self) -> list[Learned]:
        """What writing each edit came to."""
        return [learned for _, learned in self._edits]

    def events(self) -> EventLog:
        return self._log

    def settings(self) -> dict[str, Any]:
        """The constructor's hyper-parameters as they stand."""
        return settings_of(self)

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """All edits and what they changed as one safetensors file; entries that did not change take one bit each."""
        return _file.write(path, *self._whole())

    def pack(self) -> tuple[dict[str, Tensor], str]:
        """What ``save`` writes, for a larger file: tensors, and the rest as JSON. ``unpack`` reads it."""
        return _file.pack(*self._whole())

    def _whole(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        _ = self.model
        tensors, values = self._state()
        told = [{**edit.__dict__, **learned.__dict__} for edit, learned in self._edits]
        head = {"slug": self.slug, "settings": self.settings(), "state": values, "edits": told,
                "module": self.place.path, "weight": _file.fingerprint(self.place.weight)}  # fmt: skip
        return tensors, head

    @classmethod
    def load(cls, path: str | Path, model: Any, tokenizer: Any = None) -> ParametricMemory:
        """The memory that ``save`` wrote, bound to ``model``.

        Raises:
            BundleError: damaged, or no file of edits. MemoryError_: edits of another mechanism or of another model.
        """
        tensors, head = _file.read(path)
        return cls._of(tensors, head, model, tokenizer, str(path))

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], text: str, model: Any, tokenizer: Any = None, *, source: str = "this bundle"
    ) -> ParametricMemory:
        """The memory that ``pack`` packed, bound to ``model``; ``source`` names it in messages. Raises what ``load``
        raises."""
        return cls._of(*_file.unpack(tensors, text, source), model, tokenizer, source)

    @classmethod
    def _of(
        cls, tensors: Mapping[str, Tensor], head: Mapping[str, Any], model: Any, tokenizer: Any, source: str
    ) -> ParametricMemory:
        if head.get("slug") != cls.slug:
            raise MemoryError_(
                f"{source} holds edits of {head.get('slug')}, not of {cls.slug}; load it with that class"
            )
        try:
            made = cls(**head["settings"])
            made.bind(model, tokenizer)
            try:
                made._fill(tensors, head, source)
            except BaseException:
                made.unbind()
                raise
        except (KeyError, TypeError) as error:  # a part that is missing or is of another kind
            raise BundleError(f"the edits in {source} are damaged: {error!r}; save them again") from error
        return made

    def _fill(self, tensors: Mapping[str, Tensor], head: Mapping[str, Any], source: str) -> None:
        """Go to the state in ``tensors`` and ``head``, if it was written into this model."""
        found = _file.fingerprint(self.place.weight)
        if (self.place.path, found) != (head["module"], head["weight"]):
            raise MemoryError_(
                f"the edits in {source} were written for {head['module']} {head['weight']}; this model has "
                f"{self.place.path} {found}: open them with the model that they were written into"
            )
        _file.check_like(tensors, self._state()[0], source)
        device = self.place.weight.device
        self._restore({name: value.to(device) for name, value in tensors.items()}, head["state"])
        for told in head["edits"]:
            self._edits.append(edit_of(told))
            self._log.append("restore", [len(self._edits) - 1], f"read from {Path(source).name}")
