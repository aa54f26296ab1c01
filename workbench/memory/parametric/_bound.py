"""A memory of edits on its model: bound, hung on one matrix by a hook, silent or forced for a while."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from workbench.checks import is_whole, whole
from workbench.errors import BadInput, MemoryError_
from workbench.memory.parametric._parts import Edit, Learned, Served
from workbench.memory.parametric._place import Place, can_be_short, decoder_layers, find

T = TypeVar("T", bound="Bound")


class Bound(ABC):
    """The hook and the route of the pass under way; what is served, subclasses say."""

    slug: ClassVar[str]
    module: str
    layer: int | str = -2
    place: Place
    tokenizer: Any
    _edits: list[tuple[Edit, Learned]]

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._handles: list[Any] = []
        self._span: Tensor | None = None  # (B, S) prompt tokens of the pass under way
        self._route: Tensor | None = None  # (B,) decided on the prompt, kept while the answer is generated
        self._silent = 0
        self._forced: int | None = None

    @abstractmethod
    def _serve(self, inputs: Tensor, main: Tensor, span: Tensor, route: Tensor | None) -> Served:
        """The matrix's output for ``inputs`` (B, S, d_in), ``main`` (B, S, d_out); ``span`` (B, S) marks the prompt.

        ``route`` (B,) is given when it was decided before (the tokens of an answer under way)."""

    @abstractmethod
    def _forget(self) -> None:
        """Go to the state before the first edit."""

    def _layer_of(self, depth: int) -> int:
        """The layer of the matrix in a model of ``depth`` layers."""
        self.layer = whole("layer", self.layer, None, more=" (negative: counted from the end)")
        return self.layer

    def _sides(self) -> int:
        """How many memories can answer."""
        return 1

    def bind(self: T, model: Any, tokenizer: Any = None) -> T:
        """Serve ``model`` (a ``LoadedModel``, or a Hugging Face model with its tokenizer) from now on.

        Binding to another model forgets the edits; to the same one it changes nothing.

        Raises:
            MemoryError_: no tokenizer, or no MLP matrix known by name. UnknownName, BadInput: ``module`` or ``layer``.
        """
        if hasattr(model, "tokenizer"):  # a LoadedModel; Hugging Face models have a ``model`` of their own
            tokenizer, model = tokenizer or model.tokenizer, model.model
        if model is self._model and self._handles:
            return self
        if tokenizer is None:
            raise MemoryError_("edits are given as text and this model has no tokenizer; bind(model, tokenizer)")
        if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
            raise BadInput(f"bind takes a LoadedModel or a Hugging Face language model, got {type(model).__name__}")
        place = find(model, self.module, self._layer_of(len(decoder_layers(model)[1])))
        again = model is self._model
        self.unbind()
        self._model, self.tokenizer, self.place = model, tokenizer, place
        self._short = can_be_short(model, place)
        if not again:
            self._forget()
        self._hook()
        return self

    def unbind(self) -> None:
        """Take the hooks off the model. The edits stay and serve again after ``bind`` to the same model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def model(self) -> nn.Module:
        """The model it is bound to; MemoryError_ before ``bind``."""
        if self._model is None:
            raise MemoryError_(f"{self.slug} is not bound to a model yet; call bind(model) or model.use(memory=...)")
        return self._model

    def _hook(self) -> None:
        held = weakref.ref(self)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            owner = held()
            if owner is not None and not owner._silent:
                owner._enter(args, kwargs)

        def matrix(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            owner = held()
            return None if owner is None or owner._silent or not owner._edits else owner._answer(args[0], output)

        self._handles = [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.place.module.register_forward_hook(matrix),
        ]
        for handle in self._handles:
            weakref.finalize(self, handle.remove)

    def _enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A pass begins: which of its tokens are the prompt. With a filled cache the answer goes on, and its route."""
        from workbench.memory.cache._hooks import carried

        cache = carried(kwargs)
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        given = (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds"))
        ids: Any = next(value for value in given if value is not None)
        if past == 0:
            self._route = None
        mask = kwargs.get("attention_mask")
        whole = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
        self._span = mask[:, -ids.shape[1] :].bool() if isinstance(mask, Tensor) and mask.ndim == 2 else whole

    def _answer(self, inputs: Tensor, main: Tensor) -> Tensor | None:
        span = self._span
        if span is None or span.shape != inputs.shape[:2]:
            span = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        route = self._route if self._route is not None and len(self._route) == len(inputs) else None
        with torch.no_grad():
            served = self._serve(inputs, main, span, self._forced_route(len(inputs)) if route is None else route)
        self._route = served.side
        return None if bool((served.side < 0).all()) else served.output

    def _forced_route(self, rows: int) -> Tensor | None:
        return None if self._forced is None else torch.full((rows,), self._forced, device=self.place.weight.device)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The model alone, as if there were no memory."""
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    @contextmanager
    def forced(self, side: int) -> Iterator[None]:
        """Every prompt goes to this memory (counted from 0; -1: main), whatever its Delta.

        Raises:
            BadInput: there is no such memory. MemoryError_: not bound.
        """
        _ = self.model
        most = max(self._sides(), 1) - 1
        if not is_whole(side, -1, most):
            raise BadInput(f"forced({side!r}): give a memory's number from 0 to {most}, or -1 for the model itself")
        before, self._forced = self._forced, side
        try:
            yield
        finally:
            self._forced = before
