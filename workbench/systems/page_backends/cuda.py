"""``cuda``: the driver's virtual memory. Reserve addresses, create physical groups (2 MiB), map them, set access.

Works beside torch: the primary context that torch made is used, and a region is wrapped as a tensor through
``__cuda_array_interface__``. Smaller groups than 2 MiB need a modified kernel module and do not exist here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import MemoryError_
from workbench.systems.page_backends.base import PageBackend, Region

if TYPE_CHECKING:
    import torch


class CudaPages(PageBackend):
    """Page groups in the memory of one GPU.

    Args:
        group_bytes: a multiple of the driver's granularity, 2 MiB on all current cards.
        device: "cuda" or "cuda:1".
    """

    name = "cuda"

    def __init__(self, group_bytes: int = 2 << 20, device: str = "cuda"):
        import torch

        if reason := self.missing():
            raise MemoryError_(f"the 'cuda' page back end cannot work here: {reason}")
        self.device = torch.device(device)
        if self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        with torch.cuda.device(self.device):
            torch.zeros(1, device=self.device)  # makes the primary context
            self.driver = _driver()
            self._context = self._call("cuCtxGetCurrent")
        self._prop, self._access = self._properties()
        super().__init__(group_bytes)
        self._allocations: dict[int, Any] = {}

    @classmethod
    def missing(cls) -> str | None:
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        try:
            _driver()
        except ImportError as error:
            return f"the package cuda-bindings is not installed ({error})"
        return None

    def _properties(self) -> tuple[Any, Any]:
        d = self.driver
        prop = d.CUmemAllocationProp()
        prop.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        prop.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        prop.location.id = self.device.index
        access = d.CUmemAccessDesc()
        access.location = prop.location
        access.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return prop, access

    def _call(self, name: str, *arguments: Any) -> Any:
        """One driver call; every one returns (error, ...)."""
        code, *found = getattr(self.driver, name)(*arguments)
        if int(code):
            text = self.driver.cuGetErrorName(code)[1]
            text = text.decode() if isinstance(text, bytes) else str(code)
            raise MemoryError_(f"{name} failed with {text}")
        return found[0] if found else None

    def granularity(self) -> int:
        minimum = self.driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call("cuMemGetAllocationGranularity", self._prop, minimum))

    def _reserve(self, nbytes: int) -> Region:
        return Region(int(self._call("cuMemAddressReserve", nbytes, 0, 0, 0)), nbytes)

    def _create(self) -> int:
        handle = self._call("cuMemCreate", self.group_bytes, self._prop, 0)
        self._allocations[int(handle)] = handle
        return int(handle)

    def _map(self, region: Region, offset: int, handle: int) -> None:
        place = region.base + offset
        with self.calls.timed("driver map"):
            self._call("cuMemMap", place, self.group_bytes, 0, self._allocations[handle], 0)
        try:
            with self.calls.timed("driver set access"):
                self._call("cuMemSetAccess", place, self.group_bytes, [self._access], 1)
        except MemoryError_:
            self._call("cuMemUnmap", place, self.group_bytes)
            raise

    def _unmap(self, region: Region, offset: int) -> None:
        self._call("cuMemUnmap", region.base + offset, self.group_bytes)

    def _release(self, handle: int) -> None:
        self._call("cuMemRelease", self._allocations.pop(handle))

    def _free(self, region: Region) -> None:
        self._call("cuMemAddressFree", region.base, region.nbytes)

    def wait(self) -> None:
        """A page must not go away under a kernel that reads it."""
        import torch

        torch.cuda.synchronize(self.device)

    def enter_thread(self) -> None:
        """A context is current in a thread, not in a process."""
        self._call("cuCtxSetCurrent", self._context)

    def bytes_of(self, region: Region) -> torch.Tensor:
        """torch asks the driver whose memory a pointer is, so the first group is mapped while the tensor is made."""
        import torch

        lent = None
        if 0 not in region.mapped:
            lent = self._create()
            self._map(region, 0, lent)
        try:
            region.owner = region.owner or _Array(region)  # every tensor keeps a reference to it
            return torch.as_tensor(region.owner, device=self.device)
        finally:
            if lent is not None:
                self._unmap(region, 0)
                self._release(lent)

    def physical_bytes(self) -> int:
        return len(self._allocations) * self.group_bytes

    def free_bytes(self) -> int:
        """Free memory of the card as the driver counts it (torch's own numbers know nothing of these pages)."""
        import torch

        with torch.cuda.device(self.device):
            return int(torch.cuda.mem_get_info(self.device)[0])


class _Array:
    """A region as other libraries take it over. bfloat16 has no type string there, so everything goes as bytes."""

    def __init__(self, region: Region):
        self.__cuda_array_interface__ = {
            "data": (region.base, False),
            "shape": (region.nbytes,),
            "strides": None,
            "typestr": "|u1",
            "version": 3,
        }


def _driver() -> Any:
    from cuda.bindings import driver

    return driver
