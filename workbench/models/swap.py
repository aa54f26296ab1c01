"""Swapping a kernel or a memory in place and putting everything back exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from workbench.errors import BadInput, KernelUnsupported, MemoryError_, ModelError, UnknownName
from workbench.memory.base import MEMORIES
from workbench.models import anatomy
from workbench.models.attention import KERNELS, AttentionKernel
from workbench.models.edited import is_edits, put_in
from workbench.models.through_store import check_reader, is_store

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


class _Keep:
    def __repr__(self) -> str:
        return "KEEP"


#: ``use(memory=KEEP)``, the default: leave the memory as it is (``None`` would take it out).
KEEP: Any = _Keep()


class Swap:
    """What ``LoadedModel.use`` gives back: in force at once; ``restore()`` or leaving the ``with`` block undoes it.

    Kernel, memory, the stream's session and their hooks go back to what they were when the swap was made, whatever
    happened in between (other swaps, exceptions). Restoring twice does nothing.
    """

    def __init__(self, loaded: LoadedModel, attention: str | None, memory: Any):
        self._loaded = loaded
        self._before: tuple | None = _snapshot(loaded)
        try:
            _apply(loaded, attention, memory)
        except BaseException:
            self.restore()
            raise
        self.attention, self.memory = loaded.attention, loaded.memory

    def restore(self) -> None:
        if self._before is None:
            return
        before, self._before = self._before, None
        _put_back(self._loaded, before)

    def __enter__(self) -> LoadedModel:
        return self._loaded

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "in force" if self._before is not None else "restored"
        return f"Swap(attention={self.attention!r}, memory={_memory_name(self.memory)!r}, {state})"


def _memory_name(memory: Any) -> str:
    return "none" if memory is None else getattr(memory, "slug", type(memory).__name__)


def _snapshot(loaded: LoadedModel) -> tuple:
    return loaded.attention, implementations(loaded.model), loaded.memory, loaded.session


def _put_back(loaded: LoadedModel, before: tuple) -> None:
    attention, configs, memory, session = before
    set_implementations(configs)
    loaded.attention = attention
    loaded._attach(memory)
    loaded.session = session


def _apply(loaded: LoadedModel, attention: str | None, memory: Any) -> None:
    if attention is not None:
        set_attention(loaded.model, kernel_for(attention))
        loaded.attention = attention
    if memory is not KEEP:
        loaded._attach(make_memory(loaded, memory))


def kernel_for(name: str) -> AttentionKernel:
    if not isinstance(name, str):
        raise BadInput(f"attention must be the name of a kernel ({', '.join(KERNELS.names())}), got {name!r}")
    return KERNELS.get(name)


def make_memory(loaded: LoadedModel, memory: Any) -> Any:
    """A memory that serves this model, from a slug, an instance, or None / "none"; a token cache comes back bound."""
    if memory is None or memory == "none":
        return own_states(loaded.model)
    if isinstance(memory, str):
        made = _memory_class(memory)()
    elif isinstance(memory, type):
        raise BadInput(
            f"memory must be a slug or an instance, got the class {memory.__name__}; write {memory.__name__}()"
        )
    else:
        made = memory
    if is_store(made):
        check_reader(loaded, made)
        return made
    if is_edits(made):
        return put_in(loaded, made)
    if not hasattr(made, "get_mask_sizes") or not hasattr(made, "bind"):
        raise MemoryError_(
            f"{_memory_name(made)!r} is not a token cache that a language model can run through (it has no bind() and "
            "get_mask_sizes()), nor a memory of items that it can read (a StoreMemory), nor one of edits (a "
            "ParametricMemory); the kinds are in workbench.memory.cache, .stores and .parametric"
        )
    if _bound_to(made) is not loaded.model:  # binding empties a memory; one that is bound here keeps what it holds
        made.bind(loaded.model)
    return made


def own_states(model: Any) -> Any:
    """Empty states of a model whose layers are memories, with a log; None for a model that attends."""
    return model.new_cache(log=True) if hasattr(model, "new_cache") else None


def _bound_to(memory: Any) -> Any:
    try:
        return memory.model
    except (AttributeError, MemoryError_):
        return None


def _memory_class(name: str) -> Any:
    try:
        return MEMORIES.get(name)
    except UnknownName:
        raise UnknownName("memory", name, [*MEMORIES.names(), "none"]) from None


# -- the attention implementation of a model and of its sub-models ----------------------------------------------------


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every distinct config in the model, sub-configs included."""
    found: dict[int, Any] = {}
    queue = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while queue:
        config = queue.pop()
        if id(config) in found:
            continue
        found[id(config)] = config
        below = (getattr(config, key, None) for key in config.sub_configs)
        queue.extend(sub for sub in below if sub is not None)
    return list(found.values())


def implementations(model: PreTrainedModel) -> list[tuple[Any, str | None]]:
    """(config, attention implementation) of every config of the model: what has to be put back."""
    return [(config, config._attn_implementation_internal) for config in _configs(model)]


def set_implementations(saved: list[tuple[Any, str | None]]) -> None:
    for config, name in saved:
        config._attn_implementation_internal = name


def set_attention(model: PreTrainedModel, kernel: AttentionKernel, *, recorded: bool = False) -> None:
    """Put ``kernel`` in and verify that the model took it; ``recorded`` forces the socket over a native name.

    Raises:
        KernelUnsupported: the model needs what the kernel lacks, or refused the switch; kernels that can are named.
    """
    anatomy.require(kernel, model)
    if not anatomy.switchable(model):
        return  # the kernel asked for is the model's own
    plugged = kernel.plug()
    name = kernel.native if kernel.native and not recorded else plugged
    before = implementations(model)
    try:
        model.set_attn_implementation(name)
        took = {config._attn_implementation for config in (model.config, anatomy.text_config(model))}
    except (ValueError, ImportError) as error:
        set_implementations(before)
        raise KernelUnsupported(_refused(kernel, model, str(error))) from error
    if took != {name}:
        set_implementations(before)
        raise KernelUnsupported(_refused(kernel, model, f"it stayed on {', '.join(sorted(map(str, took)))}"))


def _refused(kernel: AttentionKernel, model: PreTrainedModel, why: str) -> str:
    able = ", ".join(repr(name) for name in anatomy.serving(model) if name != kernel.name) or "none"
    return f"{type(model).__name__} refused the kernel {kernel.name!r}: {why}; kernels that can: {able}"


@contextlib.contextmanager
def recorded_kernel(loaded: LoadedModel) -> Iterator[None]:
    """The current kernel, but through our socket even where transformers has it under its own name."""
    if not anatomy.switchable(loaded.model):
        raise ModelError(
            f"{type(loaded.model).__name__} computes attention in its own code and not through transformers' attention "
            "interface, so its queries and keys cannot be recorded; generate() and feed() work"
        )
    before = implementations(loaded.model)
    try:
        set_attention(loaded.model, kernel_for(loaded.attention), recorded=True)
        yield
    finally:
        set_implementations(before)
