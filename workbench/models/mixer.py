"""``MixerLM``: a small language model whose blocks mix tokens through any of the sequence memories."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from workbench.checks import whole
from workbench.errors import BadInput, ModelError
from workbench.memory.base import MEMORIES
from workbench.memory.layers.base import AUX, MemoryLayer, State, build_layer, carried
from workbench.models.mixer_cache import MixerCache
from workbench.models.mixer_config import MixerConfig

__all__ = ["MixerCache", "MixerConfig", "MixerLM", "MixerOutput"]

#: The field of transformers' own output that carries a cache: ``cache`` since 5.24.
_WORD = next(word for word in ("cache", "past_key_values") if word in {f.name for f in fields(CausalLMOutputWithPast)})


@dataclass
class MixerOutput(CausalLMOutputWithPast):
    """transformers' output; ``aux_loss`` () is the sum of the layers' own losses (a router's balance), None without,
    and is in ``loss`` already; ``aux`` holds each layer's ``aux/`` entries."""

    aux_loss: Tensor | None = None
    aux: tuple[dict[str, Tensor], ...] | None = None


class SwiGLU(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * silu(gate))


class MixerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, mixer: MemoryLayer, inner: int):
        super().__init__()
        self.mixer_norm, self.mixer = nn.RMSNorm(dim, eps=1e-6), mixer
        self.mlp_norm = nn.RMSNorm(dim, eps=1e-6) if inner else None
        self.mlp = SwiGLU(dim, inner) if inner else None

    def forward(self, x: Tensor, state: State | None, keep: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x), state, keep=keep)
        x = x + mixed
        return (x if self.mlp is None or self.mlp_norm is None else x + self.mlp(self.mlp_norm(x))), state


class MixerLM(PreTrainedModel, GenerationMixin):
    """Embedding, blocks, norm, output matrix; saves, loads and generates like any other transformers model.

    The states of the layers are carried in a ``MixerCache``. Position is the mixers' own business.

    >>> model = MixerLM(MixerConfig(vocab_size=16, dim=8, mixers=["linear-attention"])).eval()
    >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape
    torch.Size([1, 5])
    """

    config_class = MixerConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    #: Assisted decoding takes tokens back, which no state allows: transformers refuses it.
    _is_stateful = True
    #: The loss is a mean over the batch at hand; without this a Trainer that accumulates gradients would add them up.
    accepts_loss_kwargs = False
    _built = False
    _no_split_modules = ["MixerBlock"]
    _tied_weights_keys = {"lm_head.weight": "embed.weight"}

    def __init__(self, config: MixerConfig):
        super().__init__(config)
        inner = round(config.mlp_ratio * config.dim)
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(MixerBlock(config.dim, mixer, inner) for mixer in _mixers(config))
        self.config = _spelt_out(config, [block.mixer for block in self.blocks])
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.post_init()
        self._built = True

    def _init_weights(self, module: nn.Module) -> None:
        """Every module began with its own initial weights; transformers must not draw them anew.

        ``from_pretrained`` begins without storage, so what its file lacks would be whatever was in memory: ModelError.
        """
        names = {id(part): name for name, part in self.named_modules()} if self._built else {}
        own = dict(module.named_parameters(recurse=False)) if id(module) in names else {}
        lost = [name for name, value in own.items() if not getattr(value, "_is_hf_initialized", False)]
        if lost:
            raise ModelError(
                f"the checkpoint holds no weights for {', '.join(f'{names[id(module)]}.{name}' for name in lost)}: it "
                "does not fit its config.json, or a setting given beside it (tie_word_embeddings=False of a tied one)"
            )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,  # transformers looks for the name before it takes them
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers does it; refuses to go on from a cache when nothing would be left to read.

        ``generate`` with a cache takes all tokens, those in the cache first, or new ones alone with an
        ``attention_mask`` of all.
        """
        if next_sequence_length is not None and next_sequence_length < 1:
            given = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            raise BadInput(
                f"the cache holds {given - next_sequence_length} tokens and {given} are given, so none of them is new: "
                "give all tokens, those in the cache first, or the new ones alone with an attention_mask of all"
            )
        kwargs |= {"next_sequence_length": next_sequence_length, "inputs_embeds": inputs_embeds}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def new_cache(self, *, log: bool = False) -> MixerCache:
        """Empty states for a new stream."""
        return MixerCache(self, log=log)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        cache: Any = None,
        **rest: Any,
    ) -> MixerOutput:
        """Logits (B, T, V) of ids (B, T) after what ``past_key_values`` (or ``cache``) holds.

        ``attention_mask`` (B, T or all tokens so far) is 0 at padding. ``labels`` (B, T) are shifted inside, -100 is
        left out. ``use_cache`` makes a ``MixerCache`` where none is given; while training none is made.
        ``logits_to_keep``: of the last so many tokens only; 0: of all.

        Raises:
            BadInput: no ids or unknown ones, a mask or labels of another shape, more tokens than ``max_length``, a
                cache of another kind.
        """
        x = self._embedded(input_ids, inputs_embeds)
        held = past_key_values if cache is None else cache
        if held is None and (use_cache or (use_cache is None and self.config.use_cache and not self.training)):
            held = self.new_cache()
        self._check(x, held)
        x, hidden, aux = self._blocks(x, held, _keep(attention_mask, x))
        logits = self.lm_head(self.norm(_last(x, logits_to_keep)))
        losses = [entries[f"{AUX}loss"] for entries in aux if f"{AUX}loss" in entries]
        aux_loss = sum(losses[1:], losses[0]) if losses else None
        return MixerOutput(
            loss=None if labels is None else _loss(logits, labels, aux_loss),
            logits=logits,
            hidden_states=tuple(hidden) if output_hidden_states or self.config.output_hidden_states else None,
            aux_loss=aux_loss,
            aux=tuple(aux),
            **{_WORD: held},
        )

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (ids is None) == (embeds is None):
            raise BadInput("give input_ids (B, T) or inputs_embeds (B, T, dim), one of them")
        if embeds is not None:
            return _of_shape("inputs_embeds", embeds, (self.config.dim,))
        given = _of_shape("input_ids", ids, ())
        if given.dtype not in (torch.int64, torch.int32):
            raise BadInput(f"input_ids must be int64 or int32, got {given.dtype}")
        try:
            return self.embed(given)
        except IndexError as error:  # only now: to look first would make a GPU wait at every pass
            low, high, most = int(given.min()), int(given.max()), self.config.vocab_size - 1
            raise BadInput(f"input_ids run from {low} to {high}; this model knows 0 to {most}") from error

    def _check(self, x: Tensor, held: Any) -> None:
        if held is not None and not isinstance(held, MixerCache):
            raise BadInput(f"past_key_values must be a MixerCache (model.new_cache()), got {type(held).__name__}")
        if held is not None and len(held.states) != len(self.blocks):
            raise BadInput(f"this cache is of a model of {len(held.states)} layers; this one has {len(self.blocks)}")
        most, before = self.config.max_position_embeddings, 0 if held is None else held.fed
        if most is not None and before + x.shape[1] > most:
            raise BadInput(f"{before} tokens read and {x.shape[1]} more are beyond max_length={most} of this model")

    def _blocks(
        self, x: Tensor, held: MixerCache | None, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[dict[str, Tensor]]]:
        hidden, aux, states, seen = [x], [], [], []
        for index, block in enumerate(self.blocks):
            before = None if held is None else held.layer(index)
            if held is not None and held.log:
                seen.append(_scalars(block, x, before, keep))
            x, state = block(x, before, keep)
            hidden.append(x)
            states.append(carried(state))
            aux.append({name: value for name, value in state.items() if name.startswith(AUX)})
        if held is not None:  # only now: a pass that fails midway leaves every state as it was
            if held.log:
                held.note(seen, range(x.shape[1]) if keep is None else keep[0].nonzero()[:, 0].tolist())
            held.states, held.fed = list(states), held.fed + x.shape[1]
        return x, hidden, aux


def _mixers(config: MixerConfig) -> list[MemoryLayer]:
    made = []
    for entry in config.mixers:
        settings = {name: value for name, value in entry.items() if name != "mixer"}
        if config.conv is not None and _takes_conv(entry["mixer"]):
            settings.setdefault("conv", config.conv)
        made.append(build_layer(entry["mixer"], config.dim, **settings))
    return made


def _spelt_out(config: MixerConfig, mixers: list[Any]) -> MixerConfig:
    """A copy with every setting of every mixer, so that what is saved does not change with a default."""
    whole = copy.deepcopy(config)
    whole.mixers = [
        {"mixer": entry["mixer"], **{name: value for name, value in mixer.settings().items() if name != "dim"}}
        for entry, mixer in zip(config.mixers, mixers)
    ]
    return whole


def _takes_conv(slug: str) -> bool:
    import inspect

    kinds = [vars(kind)["__init__"] for kind in MEMORIES.get(slug).__mro__ if "__init__" in vars(kind)]
    return any("conv" in inspect.signature(kind).parameters for kind in kinds)


def _of_shape(name: str, given: Any, rest: tuple[int, ...]) -> Tensor:
    """``given`` if it is a tensor (batch, tokens, *rest) that is not empty."""
    if not isinstance(given, Tensor) or 0 in given.shape or given.dim() != 2 + len(rest) or given.shape[2:] != rest:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        wanted = ", ".join(["batch", "tokens", *map(str, rest)])
        raise BadInput(f"{name} must be a tensor ({wanted}) with one token or more, got {got}")
    return given


def _keep(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, T) bool where something is padding, else None; a bool mask is not looked at, for ``vmap`` and CUDA graphs."""
    if mask is None:
        return None
    fits = isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(x) and mask.shape[1] >= x.shape[1]
    if not fits:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise BadInput(f"attention_mask must be a tensor ({x.shape[0]}, {x.shape[1]} or more), got {got}")
    keep = mask[:, mask.shape[1] - x.shape[1] :].bool()
    return None if mask.dtype != torch.bool and bool(keep.all()) else keep


def _last(x: Tensor, tokens: int) -> Tensor:
    whole("logits_to_keep", tokens, 0, more=" (0: all tokens)")
    return x[:, -tokens:] if tokens else x


def _scalars(block: nn.Module, x: Tensor, state: State | None, keep: Tensor | None) -> dict[str, Tensor]:
    """Of the batch's row 0, its padding left out."""
    mixer: Any = block.mixer
    row = x[:1] if keep is None else x[:1, keep[0]]
    if not row.shape[1]:
        return {}
    one = mixer.start(1) if state is None else {k: v[:1] if isinstance(v, Tensor) else v for k, v in state.items()}
    return mixer.scalars(block.mixer_norm(row), one)  # type: ignore[operator]


def _loss(logits: Tensor, labels: Tensor, aux_loss: Tensor | None) -> Tensor:
    """Next-token cross-entropy, and the layers' own losses."""
    if labels.shape != logits.shape[:2]:
        raise BadInput(
            f"labels must be {tuple(logits.shape[:2])}, one for each token with logits, got {tuple(labels.shape)}"
        )
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
    return loss if aux_loss is None else loss + aux_loss


AutoConfig.register(MixerConfig.model_type, MixerConfig, exist_ok=True)
AutoModelForCausalLM.register(MixerConfig, MixerLM, exist_ok=True)
