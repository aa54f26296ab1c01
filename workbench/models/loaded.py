"""A model and its tokenizer as Hugging Face made them, with swaps, traces and generation around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import BadInput, KernelUnsupported, ModelError
from workbench.models import anatomy, encoding
from workbench.models.edited import attach, is_edits
from workbench.models.swap import KEEP, Swap, own_states
from workbench.models.through_store import is_store

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.generation import Fed, Generation
    from workbench.models.trace import Trace
    from workbench_kernels import Cost


class LoadedModel:
    """A loaded model; ``model``, ``tokenizer`` and ``config`` are transformers' own objects.

    Attributes:
        attention: name of the kernel in force. memory: the memory in force, or None (an ordinary full cache); of a
            model whose layers are memories (``MixerLM``) their states, when no other is put in. They show what the
            latest stream left; like a full cache they go on only after ``feed``.
        n_layers, n_heads, n_kv_heads, head_dim: of the language part. max_positions: longest sequence the model was
            made for (None if its config names none). is_decoder: predicts the next token.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any = None, *, folder: Path | None = None):
        self.name, self.model, self.tokenizer, self.folder = name, model, tokenizer, folder
        self.config = model.config
        text = anatomy.text_config(model)
        heads = anatomy.number(text, "num_attention_heads", "n_head") or 1
        self.n_layers = anatomy.number(text, "num_hidden_layers", "n_layer") or 0
        self.n_heads = heads
        self.n_kv_heads = anatomy.number(text, "num_key_value_heads") or heads
        width = anatomy.number(text, "hidden_size", "n_embd") or 0
        self.head_dim = anatomy.number(text, "head_dim") or width // heads
        self.max_positions = anatomy.max_positions(model, text)
        self.vocab_size = anatomy.number(text, "vocab_size") or 0
        self.is_decoder = bool(model.can_generate())
        self.is_rotary = anatomy.is_rotary(model)
        self.attention = str(model.config._attn_implementation)
        self.memory: Any = None
        self.session: Any = None
        self._hooks: list[Any] = []
        self._attach(own_states(model))

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def n_parameters(self) -> int:
        return sum(value.numel() for value in self.model.parameters())

    @property
    def cache(self) -> Any:
        """The memory in force if the model runs through it; None for a full cache, also beside items or edits."""
        return None if is_store(self.memory) or is_edits(self.memory) else self.memory

    def kernels(self) -> list[str]:
        """Names of the attention kernels that can serve this model."""
        return anatomy.serving(self.model)

    def __repr__(self) -> str:
        kind = "decoder" if self.is_decoder else "encoder"
        return (
            f"LoadedModel({self.name!r}: {type(self.model).__name__}, {kind}, {self.n_parameters / 1e6:.1f} M weights, "
            f"{self.n_layers} layers x {self.n_heads} heads ({self.n_kv_heads} kv) x {self.head_dim}, {self.dtype}, "
            f"{self.device}; attention={self.attention!r}, memory={_slug(self.memory)!r})"
        )

    # -- swapping -----------------------------------------------------------------------------------------------------

    def use(self, attention: str | None = None, memory: Any = KEEP) -> Swap:
        """Put a kernel and/or a memory in, at once; the result is also a context manager that puts everything back.

        Args:
            attention: name of a kernel (see ``kernels()``); None keeps the current one.
            memory: slug, instance, or None / "none" for an ordinary full cache; left out, the memory stays as it is.
                A token cache holds the model's past. A memory of items (``workbench.memory.stores``) is written to by
                ``feed`` and asked by ``generate``, which puts what it finds before the prompt. A memory of edits
                (``workbench.memory.parametric``) changes what the model says; ``model.memory.write`` makes an edit.

        Raises:
            UnknownName: misspelt kernel or memory. KernelUnsupported: the kernel lacks what the model needs; kernels
                that can are named. MemoryError_: the memory cannot serve this model, or any. Nothing is changed then.
        """
        return Swap(self, attention, memory)

    def start_with(self, attention: str | None) -> None:
        """The first kernel: the one asked for, else sdpa where it serves, else any of ours, else the model's own."""
        if attention is not None:
            self.use(attention=attention)
            return
        for name in ("sdpa", "flash-attention", "eager"):
            try:
                self.use(attention=name)
                return
            except KernelUnsupported:
                continue

    def _attach(self, memory: Any) -> None:
        """Make ``memory`` the current one (or None); a cache's hooks run around every forward that carries it."""
        if memory is self.memory:
            return
        for hook in self._hooks:
            hook.remove()
        attach(self, self.memory, memory)
        self._hooks, self.memory, self.session = [], memory, None
        if self.cache is not None and hasattr(memory, "before_forward"):
            self._hooks = [
                self.model.register_forward_pre_hook(_Before(memory), with_kwargs=True),
                self.model.register_forward_hook(_After(memory), with_kwargs=True),
            ]

    def reset(self) -> None:
        """Forget the stream: empties the memory and the session that ``feed`` and ``generate`` continue.

        A memory of items takes it back by ``memory.store.undo()``.
        """
        self.session = None
        if self.memory is not None:
            self.memory.reset()

    # -- text ---------------------------------------------------------------------------------------------------------

    def encode(
        self, text: str | Sequence[str] | Sequence[int] | Tensor | dict, *, side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, S) int64 on the model's device, padded at ``side``.

        Raises:
            BadInput: empty text or ids, ids outside the vocabulary. ModelError: text for a model without tokenizer.
        """
        return encoding.encode(self, text, side=side)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each id alone, as it reads in place (a leading space is kept)."""
        return encoding.tokens(self, ids)

    def decode(self, ids: Iterable[int]) -> str:
        if self.tokenizer is None:
            raise ModelError(f"{self.name} has no tokenizer, so its ids cannot be shown as text")
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    # -- looking and running ------------------------------------------------------------------------------------------

    def trace(
        self,
        text: Any,
        *,
        hidden: bool = True,
        values: bool = False,
        layers: Iterable[int] | None = None,
        beyond_positions: bool = False,
        progress: Any = None,
    ) -> Trace:
        """One forward pass under the current kernel and all it left behind; see ``workbench.models.trace.Trace``."""
        from workbench.models.tracing import trace

        return trace(
            self,
            text,
            hidden=hidden,
            values=values,
            layers=layers,
            beyond_positions=beyond_positions,
            progress=progress,
        )

    def trace_cost(self, tokens: int, *, batch: int = 1, hidden: bool = True, values: bool = False) -> Cost:
        """Predicted flops, bytes and seconds of a trace of ``batch`` x ``tokens``, before it runs."""
        from workbench.models.tracing import trace_cost

        return trace_cost(self, tokens, batch=batch, hidden=hidden, values=values)

    def generate(
        self,
        prompt: Any,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        on_token: Callable[..., Any] | None = None,
    ) -> Generation:
        """Continue ``prompt`` (and whatever ``feed`` streamed before) through the current memory.

        A memory of items is asked about the prompt first; ``Generation.pasted`` says what it put before it and why.
        """
        from workbench.models.generation import generate

        return generate(
            self,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            on_token=on_token,
        )

    def feed(self, text: Any, *, on_round: Callable[..., Any] | None = None) -> Fed:
        """One round: stream the text through the current memory and keep it; ``generate`` continues from there.

        A memory of items writes each line instead; ``Fed.items`` are their ids.
        """
        from workbench.models.generation import feed

        return feed(self, text, on_round=on_round)

    def proof(self, text: Any, *, kernels: Sequence[str] | None = None, new_tokens: int = 8) -> pd.DataFrame:
        """Every kernel against eager float32 on this text; see ``workbench.models.proof.proof``."""
        from workbench.models.proof import proof

        return proof(self, text, kernels=kernels, new_tokens=new_tokens)


def _slug(memory: Any) -> str:
    return "none" if memory is None else getattr(memory, "slug", type(memory).__name__)


class _Before:
    """Tells a memory how many tokens come, on forwards that carry it as past_key_values."""

    def __init__(self, memory: Any):
        self.memory: Any = memory

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> None:
        if _carries(kwargs, self.memory):
            self.memory.before_forward(_ids(args, kwargs).shape[1])


class _After:
    """Hands a memory the ids and the logits of a forward that carried it."""

    def __init__(self, memory: Any):
        self.memory: Any = memory

    def __call__(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        if _carries(kwargs, self.memory):
            self.memory.after_forward(_ids(args, kwargs), output.logits)


def _carries(kwargs: dict, memory: Any) -> bool:
    from workbench.memory.cache._hooks import carried

    return carried(kwargs) is memory


def _ids(args: tuple, kwargs: dict) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:
        raise BadInput("a memory needs input_ids in every forward (inputs_embeds alone do not say which token is kept)")
    return ids
