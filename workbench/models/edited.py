"""A memory of edits in a model: bound while it is the memory in force, off the model otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import BundleError, MemoryError_
from workbench.memory.base import MEMORIES
from workbench.memory.parametric.base import ParametricMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from workbench.models.loaded import LoadedModel
    from workbench.models.swap import Swap


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


@dataclass(frozen=True)
class PackedEdits:
    """Edits out of a larger file: the memory's name, what its ``pack`` gave, and the file's name for messages."""

    slug: str
    tensors: Mapping[str, Tensor]
    text: str
    source: str

    def put_into(self, loaded: LoadedModel) -> Swap:
        """Make the memory with these edits the one in force; the result takes it out again.

        Raises:
            BundleError: damaged. MemoryError_: edits of another mechanism or of another model. All stays as it was.
        """
        kind: Any = MEMORIES.get(self.slug)
        if not issubclass(kind, ParametricMemory):
            raise BundleError(f"{self.source} has edits, but {self.slug!r} is no memory of edits; save it again")
        swap = loaded.use(memory=None)  # edits in force come off first: the new ones are tried on the bare model
        try:
            loaded.use(memory=kind.unpack(self.tensors, self.text, loaded, source=self.source))
        except BaseException:
            swap.restore()
            raise
        return swap
