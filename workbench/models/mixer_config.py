"""The configuration of a ``MixerLM``: which memory mixes the tokens of each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from workbench.checks import is_whole, number, whole
from workbench.errors import BadInput


class MixerConfig(PreTrainedConfig):
    """One memory a block, by slug and settings.

    Args:
        vocab_size: token ids. dim: width.
        mixers: one a block: a slug, or ``{"mixer": slug, **settings}``.
        mlp_ratio: inner width of the SwiGLU MLP over ``dim``; 0 leaves the MLP out.
        conv: short convolution of every mixer that has one and does not set its own.
        tie: use the embedding as the output matrix.
        max_length: longest sequence that is accepted; None for any.

    Raises:
        BadInput: by name, for sizes that do not fit and mixers that are not written as above.

    >>> MixerConfig(64, 32, ["linear-attention", {"mixer": "gated-delta-net", "heads": 2}]).mixers
    [{'mixer': 'linear-attention'}, {'mixer': 'gated-delta-net', 'heads': 2}]
    """

    model_type = "workbench-mixer"
    #: What a Trainer's predictions leave out; else they are no table of logits.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "aux", "aux_loss"]

    def __init__(
        self,
        vocab_size: int = 512,
        dim: int = 64,
        mixers: Sequence[str | dict[str, Any]] = ("linear-attention", "linear-attention"),
        mlp_ratio: float = 2.0,
        conv: int | None = None,
        tie: bool = True,
        max_length: int | None = None,
        **rest: Any,
    ):
        self.vocab_size, self.dim = whole("vocab_size", vocab_size), whole("dim", dim)
        if isinstance(mixers, str | dict) or not isinstance(mixers, Sequence) or not mixers:
            raise BadInput(f"mixers must be a list with one memory a block, got {mixers!r}")
        self.mixers = [_mixer(entry) for entry in mixers]
        self.mlp_ratio = number("mlp_ratio", mlp_ratio, 0, more=" (0: no MLP)")
        self.conv, self.tie = None if conv is None else whole("conv", conv, 0), bool(tie)
        longest = rest.pop("max_position_embeddings", None) if max_length is None else max_length
        self.max_position_embeddings = None if longest is None else whole("max_length", longest)
        self.use_cache = bool(rest.pop("use_cache", True))
        super().__init__(**{**rest, "tie_word_embeddings": self.tie})

    # names that transformers and the workbench ask for
    @property
    def hidden_size(self) -> int:
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        return len(self.mixers)

    @property
    def num_attention_heads(self) -> int:
        return max(int(entry.get("heads", 1)) for entry in self.mixers)


def _mixer(entry: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"mixer": entry}
    if isinstance(entry, dict) and isinstance(entry.get("mixer"), str):
        return {name: int(value) if is_whole(value) else value for name, value in entry.items()}  # numpy's are no JSON
    raise BadInput(f"a mixer is a slug or {{'mixer': slug, **settings}}, got {entry!r}")
