"""Where in a model a parametric memory is written: one MLP matrix by its module path, and everything above it.

What lies below the matrix never changes while the memory is written, so it is computed once for a batch of prompts
(``Prefix``); a step of learning then costs the layers above alone. Models whose layers do not simply add the MLP's
output to the residual stream, or whose head does more than a norm and a matrix, are found out by trying and run whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.errors import BadInput, MemoryError_, UnknownName

#: Names of an MLP's second matrix (W_v) in its decoder layer, by family.
DOWN = ("mlp.down_proj", "mlp.c_proj", "mlp.fc_out", "mlp.dense_4h_to_h", "fc2", "feed_forward.w2", "mlp.fc2")
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
#: Largest difference of logits, as a share of their spread, by which the short way may differ from the whole model.
_CLOSE = 1e-3


@dataclass(frozen=True)
class Place:
    """One matrix W_v (d_out, d_in) of decoder layer ``layer``; ``above`` are the layers after it."""

    path: str
    module: nn.Module
    layer: int
    above: tuple[nn.Module, ...]
    holder: nn.Module
    norm: nn.Module | None
    head: nn.Module | None

    @property
    def weight(self) -> Tensor:
        """W_v as (d_out, d_in), whichever way the module stores it (nn.Linear, GPT-2's Conv1D)."""
        held = self.module.weight.detach()
        return held if isinstance(self.module, nn.Linear) else held.T

    @property
    def bias(self) -> Tensor | None:
        held = getattr(self.module, "bias", None)
        return None if held is None else held.detach()

    def output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """What the module gives for ``inputs`` (..., d_in) with ``weight`` in W_v's place, summed in that precision."""
        bias = self.bias
        made = functional.linear(inputs.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
        return made.to(inputs.dtype)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's stack of decoder layers and its path."""
    config = model.config.get_text_config(decoder=True)
    depth = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layer", 0)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return path, module
    raise MemoryError_(f"{type(model).__name__} has no list of {depth} decoder layers that an edit could stand in")


def find(model: nn.Module, path: str = "", layer: int = -2) -> Place:
    """The matrix at ``path``; without one, the MLP's second matrix of decoder layer ``layer`` (counted from the end
    when negative).

    Raises:
        UnknownName: no module of that path (the nearest are named). BadInput: it is no matrix of a decoder layer, or
        the layer is out of range. MemoryError_: no layers, or no MLP known by its name.
    """
    if path and not isinstance(path, str):
        raise BadInput(f"module is the path of one matrix as text, got {path!r}")
    root, layers = decoder_layers(model)
    path = path or _down_path(model, root, layers, layer)
    modules = dict(model.named_modules())
    matrices = [name for name, module in modules.items() if name.startswith(f"{root}.") and is_matrix(module)]
    if path not in modules:
        raise UnknownName(f"module of {type(model).__name__}", path, matrices)
    module = modules[path]
    if path not in matrices:
        raise BadInput(
            f"{path} is a {type(module).__name__}, and an edit needs one matrix (nn.Linear or Conv1D) in a decoder "
            f"layer, such as {_down_path(model, root, layers, -1)}"
        )
    number = int(path[len(root) + 1 :].split(".")[0])
    holder = _holder(model, root)
    norm = next((found for name in _NORMS if isinstance(found := getattr(holder, name, None), nn.Module)), None)
    return Place(path, module, number, tuple(layers[number + 1 :]), layers[number], norm, model.get_output_embeddings())


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _holder(model: nn.Module, root: str) -> nn.Module:
    return model.get_submodule(root.rpartition(".")[0])


def _down_path(model: nn.Module, root: str, layers: nn.ModuleList, layer: int) -> str:
    if not -len(layers) <= layer < len(layers):
        raise BadInput(f"layer={layer} but {type(model).__name__} has layers 0 to {len(layers) - 1}")
    number = layer % len(layers)
    names = dict(layers[number].named_modules())
    for name in DOWN:
        if name in names and is_matrix(names[name]):
            return f"{root}.{number}.{name}"
    known = ", ".join(f"{root}.{number}.{name}" for name, module in names.items() if is_matrix(module)) or "none"
    raise MemoryError_(f"no MLP matrix of {type(model).__name__} is known by name; give module= one of: {known}")


class Prefix:
    """Rows of tokens run once up to the matrix.

    Attributes:
        inputs: (B, S, d_in) activations a that enter the matrix. main: (B, S, d_out) what W_v makes of them.
        at: (row, position) index tensors of the logits that ``logits`` gives.
    """

    def __init__(self, model: nn.Module, place: Place, ids: Tensor, at: tuple[Tensor, Tensor], *, short: bool = True):
        self.model, self.place, self.ids, self.at, self.short = model, place, ids, at, short
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with torch.no_grad(), self._watching():
            self.model(input_ids=ids, use_cache=False)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        def matrix(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.inputs, self.main = args[0], output

        def layer(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._hidden = output if isinstance(output, Tensor) else output[0]

        def later(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

        handles = [self.place.module.register_forward_hook(matrix), self.place.holder.register_forward_hook(layer)]
        handles += [block.register_forward_pre_hook(later, with_kwargs=True) for block in self.place.above]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def logits(self, output: Tensor) -> Tensor:
        """Logits (n, V) at ``at`` when the matrix gives ``output`` (B, S, d_out); differentiable in it."""
        return self._short(output) if self.short else self._whole(output)

    def _short(self, output: Tensor) -> Tensor:
        hidden = self._hidden + (output - self.main)
        for block, (args, kwargs) in zip(self.place.above, self._calls):
            made = block(hidden, *args, **kwargs)
            hidden = made if isinstance(made, Tensor) else made[0]
        assert self.place.norm is not None
        assert self.place.head is not None
        return self.place.head(self.place.norm(hidden[self.at]))

    def _whole(self, output: Tensor) -> Tensor:
        handle = self.place.module.register_forward_hook(lambda *_: output)
        try:
            return self.model(input_ids=self.ids, use_cache=False).logits[self.at]
        finally:
            handle.remove()


def can_be_short(model: nn.Module, place: Place) -> bool:
    """Whether the short way gives this model's logits, tried with another output of the matrix on a few tokens."""
    if place.norm is None or place.head is None:
        return False
    ids = torch.arange(1, 7, device=place.weight.device)[None]
    every = (torch.zeros(6, dtype=torch.long, device=ids.device), torch.arange(6, device=ids.device))
    prefix = Prefix(model, place, ids, every)
    noise = torch.linspace(-1, 1, prefix.main.numel(), device=ids.device).to(prefix.main.dtype).view_as(prefix.main)
    other = prefix.main + noise * prefix.main.float().std().to(noise.dtype)
    with torch.no_grad():
        try:
            near = prefix._short(other).float()
        except (TypeError, RuntimeError):  # a layer that wants more than hidden states, or a head of another width
            return False
        true = prefix._whole(other).float()
    close = _CLOSE if other.dtype in (torch.float32, torch.float64) else 50 * _CLOSE
    return bool((near - true).abs().max() <= close * true.std())
