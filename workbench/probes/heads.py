"""A head's output before the output projection: cache it, replace it, gate it, freeze it, silence it.

An attention layer concatenates its heads' outputs z (B, S, H, D) and multiplies by W_O. Everything here acts on that
input of the output projection, found by its place in the module tree, so it works alike on Llama, Mistral, Qwen3,
Gemma, Phi-3, OLMo-2, GPT-2, GPT-NeoX, OPT and BERT shapes, with grouped key/value heads (outputs are per query head)
and in every step of a cached generation. Each edit is a context manager: on leaving, also by an exception, its hooks
are gone and the model computes bit for bit what it did before. Edits nest; an inner one sees what the outer one made.

    >>> with capture(model) as clean:                      # doctest: +SKIP
    ...     model(ids)
    >>> with freeze(model, clean), replace(model, {(3, 5): corrupted[3][:, :, 5]}, positions=[-1]):   # doctest: +SKIP
    ...     patched = model(ids).logits                    # the direct effect of head (3, 5) at the last position
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from workbench.errors import BadInput, ModelError

Head = tuple[int, int]
Edit = Callable[[Tensor], Tensor]

_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin", "output.dense")


@dataclass(frozen=True)
class HeadSite:
    """Where one layer's heads leave: ``projection`` reads (B, S, n_heads * head_dim)."""

    layer: int
    name: str
    projection: nn.Module
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def split(self, joined: Tensor) -> Tensor:
        return rearrange(joined, "... (h d) -> ... h d", h=self.n_heads)  # B S H D

    def weight(self, head: int) -> Tensor:
        """This head's part of W_O as (head_dim, d_model), so that z_h @ weight is what it adds."""
        self.check(head)
        matrix = self.projection.weight
        rows = matrix.T if isinstance(self.projection, nn.Linear) else matrix  # GPT-2's Conv1D is stored transposed
        return rows[head * self.head_dim : (head + 1) * self.head_dim]  # type: ignore[index]

    def group(self, head: int) -> int:
        """The key/value head that query head ``head`` reads."""
        self.check(head)
        return head * self.n_kv_heads // self.n_heads

    def check(self, head: int) -> None:
        if not 0 <= head < self.n_heads:
            raise BadInput(f"head {head} is outside layer {self.layer}, which has heads 0 to {self.n_heads - 1}")


def sites(model: Any) -> list[HeadSite]:
    """The head sites of every self-attention layer, in order. ``model`` is a Hugging Face model or a LoadedModel."""
    network = _network(model)
    found = [
        (name, module, projection) for name, module in network.named_modules() for projection in _projection(module)
    ]
    found = [item for item in found if "cross" not in item[0].lower()]
    if not found:
        raise ModelError(f"{type(network).__name__} has no attention layer with a known output projection "
                         f"({', '.join(_PROJECTIONS)})")  # fmt: skip
    return [_site(layer, *item, network.config) for layer, item in enumerate(found)]


def _network(model: Any) -> nn.Module:
    inner = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        raise BadInput(f"model must be a Hugging Face model or a LoadedModel, got {type(model).__name__}")
    return inner


def _projection(module: nn.Module) -> Iterator[nn.Module]:
    """The output projection of an attention module; nothing for other modules."""
    if not type(module).__name__.endswith("Attention"):
        return
    for path in _PROJECTIONS:
        part: Any = module
        for step in path.split("."):
            part = getattr(part, step, None)
        if isinstance(part, nn.Module) and getattr(part, "weight", None) is not None:
            yield part
            return


def _site(layer: int, name: str, attention: nn.Module, projection: nn.Module, config: Any) -> HeadSite:
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    width = projection.in_features if isinstance(projection, nn.Linear) else projection.weight.shape[0]  # type: ignore
    size = next((v for v in (getattr(attention, n, None) for n in ("head_dim", "head_size")) if isinstance(v, int)), 0)
    size = size or int(width) // heads
    if int(width) % size:
        raise ModelError(f"layer {layer}: the output projection reads {width} numbers, not a multiple of {size} a head")
    kv = getattr(text, "num_key_value_heads", None) or heads
    return HeadSite(layer, name, projection, int(width) // size, int(kv), size)


def all_heads(model: Any) -> list[Head]:
    return [(site.layer, head) for site in sites(model) for head in range(site.n_heads)]


# ---- context managers ----


@contextmanager
def edit(model: Any, edits: Mapping[int, Edit]) -> Iterator[None]:
    """The foundation of the others: ``edits[layer]`` maps z (B, S, H, D) of every forward pass to its new value.

    The function gets a tensor of its own (changing it in place is safe) and must return the same shape.
    """
    known = {site.layer: site for site in sites(model)}
    unknown = sorted(set(edits) - set(known))
    if unknown:
        raise BadInput(f"layer {unknown[0]} is outside this model, which has layers 0 to {len(known) - 1}")
    handles = []
    try:
        for layer, change in edits.items():
            hook = _hook(known[layer], change)
            handles.append(known[layer].projection.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: HeadSite, change: Edit) -> Callable[[nn.Module, tuple], tuple]:
    def before(_module: nn.Module, inputs: tuple) -> tuple:
        joined = inputs[0]
        changed = change(site.split(joined).clone())
        if changed.shape != (*joined.shape[:-1], site.n_heads, site.head_dim):
            raise BadInput(
                f"layer {site.layer}: an edit returned {tuple(changed.shape)} for heads of {tuple(joined.shape)}"
            )
        return (rearrange(changed, "... h d -> ... (h d)").to(joined.dtype), *inputs[1:])

    return before


@contextmanager
def capture(model: Any, layers: Iterable[int] | None = None, *, detach: bool = True) -> Iterator[dict[int, Tensor]]:
    """A dict that each forward pass fills: layer -> z (B, S, H, D), the latest pass only.

    ``detach=False`` keeps the graph, so that gradients with respect to head outputs can be taken.
    """
    known = {site.layer: site for site in sites(model)}
    wanted = list(known if layers is None else layers)
    held: dict[int, Tensor] = {}

    def keep(layer: int) -> Edit:
        def see(z: Tensor) -> Tensor:
            held[layer] = z.detach() if detach else z
            return z

        return see

    with edit(model, {layer: keep(layer) for layer in wanted}):
        yield held


@contextmanager
def replace(model: Any, values: Mapping[Head, Tensor], *, positions: Sequence[int] | None = None) -> Iterator[None]:
    """Set heads to given outputs: ``values[layer, head]`` is (B, S, D) or anything that broadcasts to it.

    With ``positions`` (negative counts from the end of the pass) only those are set, and a value of full length S gives
    its own entries there. A value of another length raises BadInput, e.g. in a cached generation's later steps.
    """
    _check_heads(model, values)

    def put(z: Tensor, head: int, value: Tensor) -> None:
        length = z.shape[1]
        where = list(range(length)) if positions is None else [_position(p, length) for p in positions]
        given = torch.as_tensor(value, dtype=z.dtype, device=z.device)
        if given.ndim >= 2 and given.shape[-2] == length:
            given = given[..., where, :]
        try:
            z[:, where, head] = given
        except RuntimeError as error:
            room = (z.shape[0], len(where), z.shape[-1])
            raise BadInput(f"head {head}: a value of shape {tuple(given.shape)} does not fit {room}") from error

    with edit(model, _by_layer(values, put)):
        yield


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise BadInput(f"position {position} is outside this pass of {length} tokens")
    return position % length


@contextmanager
def zero(model: Any, heads: Iterable[Head]) -> Iterator[None]:
    """Prune: the heads add nothing, at every position of every pass (the same as zeroing their columns of W_O)."""
    chosen = list(heads)
    _check_heads(model, chosen)
    with edit(model, _by_layer(dict.fromkeys(chosen), lambda z, head, _: z[:, :, head].zero_())):
        yield


@contextmanager
def mean(model: Any, heads: Iterable[Head], means: Mapping[int, Tensor]) -> Iterator[None]:
    """Mean-ablate: each head always gives its average output; ``means`` from ``mean_outputs``: layer -> (H, D)."""
    chosen = list(heads)
    _check_heads(model, chosen)
    absent = sorted({layer for layer, _ in chosen} - set(means))
    if absent:
        raise BadInput(f"means has no layer {absent[0]}; it holds {', '.join(map(str, sorted(means))) or 'none'}")
    with replace(model, {(layer, head): means[layer][head] for layer, head in chosen}):
        yield


@contextmanager
def gate(model: Any, gates: Tensor) -> Iterator[None]:
    """Multiply every head's output by its gate (layers, heads); differentiable, so d loss / d gate ranks heads."""
    known = sites(model)
    shape = (len(known), known[0].n_heads)
    if tuple(gates.shape) != shape:
        raise BadInput(f"gates must be (layers, heads) = {shape}, got {tuple(gates.shape)}")

    def scale(layer: int) -> Edit:
        return lambda z: z * gates[layer].to(z.device)[:, None]

    with edit(model, {site.layer: scale(site.layer) for site in known}):
        yield


@contextmanager
def freeze(model: Any, cache: Mapping[int, Tensor], *, but: Iterable[Head] = ()) -> Iterator[None]:
    """Hold every head in ``cache`` (from ``capture``) at its cached output, except those in ``but``."""
    free = set(but)
    _check_heads(model, free)
    layers = {site.layer: site for site in sites(model)}
    held = {(layer, head): z[:, :, head] for layer, z in cache.items() if layer in layers
            for head in range(layers[layer].n_heads) if (layer, head) not in free}  # fmt: skip
    with replace(model, held):
        yield


def mean_outputs(model: Any, batches: Iterable[Any]) -> dict[int, Tensor]:
    """Layer -> (H, D): the mean output of every head over all tokens of ``batches`` (of ids, or of keyword dicts)."""
    network, count = _network(model), 0
    totals: dict[int, Tensor] = {}
    with torch.no_grad(), capture(model) as held:
        for batch in batches:
            network(**batch) if isinstance(batch, Mapping) else network(batch)
            for layer, z in held.items():
                summed = z.sum(dim=(0, 1))
                totals[layer] = totals[layer] + summed if layer in totals else summed
            count += next(iter(held.values())).shape[:2].numel()
    if not count:
        raise BadInput("batches must hold at least one batch of token ids")
    return {layer: total / count for layer, total in totals.items()}


def _by_layer(values: Mapping[Head, Any], put: Callable[[Tensor, int, Any], Any]) -> dict[int, Edit]:
    """One edit a layer that puts all its heads' values in place."""

    def change(layer: int) -> Edit:
        def apply(z: Tensor) -> Tensor:
            for (at, head), value in values.items():
                if at == layer:
                    put(z, head, value)
            return z

        return apply

    return {layer: change(layer) for layer, _ in values}


def _check_heads(model: Any, heads: Iterable[Head]) -> None:
    known = {site.layer: site for site in sites(model)}
    for item in heads:
        if not (isinstance(item, tuple) and len(item) == 2):
            raise BadInput(f"heads must be (layer, head) pairs, got {item!r}")
        layer, head = item
        if layer not in known:
            raise BadInput(f"layer {layer} is outside this model, which has layers 0 to {len(known) - 1}")
        known[layer].check(head)
