"""A memory of edits in a model: bound while it is the memory in force, off the model otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import MemoryError_
from workbench.memory.parametric.base import ParametricMemory

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


def is_edits(memory: Any) -> bool:
    """Whether this memory is written into the model's weights (``workbench.memory.parametric``)."""
    return isinstance(memory, ParametricMemory)


def put_in(loaded: LoadedModel, memory: ParametricMemory) -> ParametricMemory:
    """Bind ``memory`` to the model, off which the edits in force (if any) are taken first; all stays when it fails.

    Raises:
        MemoryError_: the model has no tokenizer, is no decoder, or carries states of its own. UnknownName, BadInput:
        the memory's ``module`` or ``layer`` is not in the model.
    """
    if not loaded.is_decoder or hasattr(loaded.model, "new_cache"):
        kind = "an encoder" if not loaded.is_decoder else "a model whose layers are memories themselves"
        raise MemoryError_(f"{memory.slug} edits what a language model says next, and {loaded.name} is {kind}")
    before = loaded.memory if is_edits(loaded.memory) and loaded.memory is not memory else None
    if before is not None:
        before.unbind()
    try:
        return memory.bind(loaded)
    except BaseException:
        if before is not None:
            before.bind(loaded)
        raise


def attach(loaded: LoadedModel, before: Any, after: Any) -> None:
    """The memory in force changes from one to another: edits go off the model, and on again."""
    if is_edits(before):
        before.unbind()
    if is_edits(after):
        after.bind(loaded)
