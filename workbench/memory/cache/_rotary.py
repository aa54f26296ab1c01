"""Undoing a model's rotary embedding with the model's own tables and its own apply function.

Every rotary family multiplies each pair of key channels by a 2 x 2 matrix ``s [[cos, -sin], [sin, cos]]`` (s: attention
scaling of YaRN and LongRoPE). The map is linear in ``(cos, sin)``, so calling the same function with
``cos / (cos² + sin²)`` and ``-sin / (cos² + sin²)`` is its exact inverse, whatever the pairing of the channels (halves,
neighbours, chunks) and however many of them are rotated. That is why keys are recovered by inversion and not by
hooking projections: projections are fused, normalised and named differently in every family; the apply function is not.

Nothing is believed: :meth:`Rotary.of` runs three tokens at two places and checks that the recovered keys agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from workbench.errors import MemoryError_
from workbench.memory.cache._hooks import cache_word

Tables = dict[str | None, tuple[Tensor, Tensor]]
_APPLY = ("apply_rotary_pos_emb", "apply_rotary_emb")
_SHIFT, _PROBE = 5, 3


@dataclass(frozen=True)
class LayerRotation:
    """How one attention layer rotates: its apply function and which of the model's tables it uses."""

    apply: Callable[..., Any]
    single: bool
    table: str | None
    rotates: bool = True


def _rotary_module(model: PreTrainedModel) -> nn.Module:
    found = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    if len(found) != 1:
        why = (
            "it has no rotary embedding (its positions are learned, sinusoidal or ALiBi)"
            if not found
            else f"it has {len(found)} rotary embeddings and the workbench cannot tell which one serves the keys"
        )
        raise MemoryError_(
            f"{type(model).__name__} gives no access to keys before rotation: {why}. Token memories close the gaps "
            "that evicted tokens leave, which needs rotary positions; use a model such as Llama, Mistral, Qwen3, "
            "Gemma-3, GPT-NeoX, Phi-3 or OLMo-2"
        )
    return found[0]


def _attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    found = {
        module.layer_idx: module
        for module in model.modules()
        if "Attention" in type(module).__name__ and isinstance(getattr(module, "layer_idx", None), int)
    }
    if not found or sorted(found) != list(range(len(found))):
        raise MemoryError_(
            f"{type(model).__name__} has attention in layers {sorted(found)}; a token memory needs it in every layer"
        )
    return [found[index] for index in sorted(found)]


def _rotation(attention: nn.Module, layer_types: list[str] | None, per_type: bool) -> LayerRotation:
    # some releases of transformers decorate forward: what it names is in the function underneath
    names = inspect.unwrap(type(attention).forward).__globals__
    apply = next((names[name] for name in _APPLY if name in names), None)
    if apply is None:
        raise MemoryError_(f"{type(attention).__name__} rotates its keys in a way that the workbench does not know")
    parameters = list(inspect.signature(apply).parameters)
    table = layer_types[attention.layer_idx] if per_type and layer_types else None  # type: ignore[index]
    return LayerRotation(apply, parameters[1] == "cos", table)


class Rotary:
    """Rotates and un-rotates the keys of one model; tables come from the model, so dynamic scalings are right."""

    def __init__(self, module: nn.Module, layers: list[LayerRotation]):
        self.module, self.layers = module, layers

    @classmethod
    def of(cls, model: PreTrainedModel) -> Rotary:
        """Find and prove the rotation of ``model``; MemoryError_ names what stands in the way."""
        module = _rotary_module(model)
        per_type = "layer_type" in inspect.signature(type(module).forward).parameters
        types = getattr(model.config.get_text_config(), "layer_types", None)
        layers = [_rotation(attention, types, per_type) for attention in _attention_layers(model)]
        rotary = cls(module, layers)
        rotary.layers = rotary._proved(model)
        return rotary

    def tables(self, positions: Tensor, like: Tensor) -> Tables:
        """Cosines and sines at ``positions`` (B|1, n) as the model computes them in the dtype of ``like``."""
        kinds = {layer.table for layer in self.layers}
        return {kind: self.module(like, positions, *([] if kind is None else [kind])) for kind in kinds}

    def rotate(self, layer: int, keys: Tensor, tables: Tables) -> Tensor:
        """Keys (B, H_kv, n, D) before rotation -> as the model would have rotated them at the tables' positions."""
        rotation = self.layers[layer]
        return self._turn(rotation, keys, *tables[rotation.table]) if rotation.rotates else keys

    def unrotate(self, layer: int, keys: Tensor, tables: Tables) -> Tensor:
        """The inverse of :meth:`rotate`, computed in float32 (float64 for float64 keys)."""
        return self.turned_back(layer, keys, inverse(tables, _work(keys)))

    def turned_back(self, layer: int, keys: Tensor, back: Tables) -> Tensor:
        """:meth:`unrotate` with tables that are inverted already: all layers of a pass share them."""
        rotation = self.layers[layer]
        return self._turn(rotation, keys, *back[rotation.table]) if rotation.rotates else keys

    @staticmethod
    def _turn(rotation: LayerRotation, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        work = _work(keys)
        wide, cos, sin = keys.to(work), cos.to(work), sin.to(work)
        one_head = wide[:, :1]  # stands in for the queries, whose rotation is not wanted
        turned = rotation.apply(wide, cos, sin) if rotation.single else rotation.apply(one_head, wide, cos, sin)[1]
        return turned.to(keys.dtype)

    def _proved(self, model: PreTrainedModel) -> list[LayerRotation]:
        """Keys of the same tokens at two places must agree once un-rotated (without rotation: as they are)."""
        positions = torch.arange(_PROBE, device=model.device)[None] + torch.tensor([[0], [_SHIFT]], device=model.device)
        layers = _probe(model, positions)
        if len(layers) != len(self.layers):
            raise MemoryError_(f"{type(model).__name__} caches {len(layers)} of its {len(self.layers)} layers")
        tables = self.tables(positions, torch.empty((), dtype=model.dtype, device=model.device))
        return [self._judged(model, index, keys, values, tables) for index, (keys, values) in enumerate(layers)]

    def _judged(
        self, model: PreTrainedModel, index: int, keys: Tensor, values: Tensor, tables: Tables
    ) -> LayerRotation:
        if not (keys.isfinite().all() and values.isfinite().all()):
            raise MemoryError_(f"layer {index} of {type(model).__name__} gives keys that are not finite (NaN weights?)")
        tolerance = 1e-3 if keys.dtype in (torch.float32, torch.float64) else 0.1
        try:
            recovered = self.unrotate(index, keys, tables)
        except RuntimeError:  # shapes of another kind of rotation (2-D positions)
            recovered = torch.full_like(keys, float("nan"))
        for rotates, candidate in ((True, recovered), (False, keys)):
            # Values carry no position, except where a latent attention caches its rotated part as "values".
            if max(_disagreement(candidate), _disagreement(values)) <= tolerance:
                return replace(self.layers[index], rotates=rotates)
        raise MemoryError_(
            f"layer {index} of {type(model).__name__}: undoing the rotary embedding does not give the same key at two "
            "positions, so its keys before rotation are out of reach"
        )


def inverse(tables: Tables, dtype: torch.dtype) -> Tables:
    """Tables that undo ``tables``."""
    found: Tables = {}
    for kind, (cos, sin) in tables.items():
        cos, sin = cos.to(dtype), sin.to(dtype)
        power = cos.square() + sin.square()
        found[kind] = (cos / power, -sin / power)
    return found


def _work(keys: Tensor) -> torch.dtype:
    return torch.float64 if keys.dtype == torch.float64 else torch.float32


def _disagreement(keys: Tensor) -> float:
    """Largest difference between the two places, relative to the largest entry; NaN counts as infinite."""
    near, far = keys.double()
    gap = float((near - far).abs().max() / near.abs().max().clamp_min(1e-12))
    return gap if gap == gap else float("inf")


@torch.no_grad()
def _probe(model: PreTrainedModel, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    tokens = torch.arange(1, _PROBE + 1, device=model.device) % model.config.get_text_config().vocab_size
    cache, word, training = DynamicCache(), cache_word(model.base_model), model.training
    model.eval()
    try:
        model.base_model(tokens.expand(2, -1), position_ids=positions, use_cache=True, **{word: cache})
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise MemoryError_(f"{type(model).__name__} does not work with a key-value cache: {error}") from error
    finally:
        model.train(training)
    return [(layer.keys, layer.values) for layer in cache.layers]
