"""Page back ends: aliasing, contents that stay with a page, order of dying, detection, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from workbench.errors import BadInput, MemoryError_
from workbench.systems import page_backends
from workbench.systems.page_backends import BACKENDS, _libc, missing, open_backend
from workbench.systems.page_backends.cuda import CudaPages
from workbench.systems.page_backends.mapped import MappedPages

PAGE = 4096
ON_CPU = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing(name)), reason=str(missing(name))))
    for name in ("mapped", "demand")
]


@pytest.mark.parametrize("name", ON_CPU)
def test_reserving_costs_nothing_and_mapping_makes_memory(name: str) -> None:
    with open_backend(name, 16 * PAGE) as pages:
        region = pages.reserve(1 << 36)  # 64 GB
        assert region.nbytes == 1 << 36
        last = region.nbytes - 16 * PAGE
        handle = pages.create()
        pages.map(region, last, handle)
        flat = pages.bytes_of(region)
        flat[last:] = 9
        assert int(flat[last:].sum()) == 9 * 16 * PAGE
        assert pages.calls.count == {"reserve": 1, "create": 1, "map": 1}
        assert pages.unmap(region, last) == handle
        pages.release(handle)


@pytest.mark.skipif(bool(missing("mapped")), reason=str(missing("mapped")))
def test_contents_stay_with_the_page_wherever_it_is_mapped() -> None:
    with open_backend("mapped", PAGE) as pages:
        one, two = pages.reserve(4 * PAGE), pages.reserve(4 * PAGE)
        handle = pages.create()
        pages.map(one, 0, handle)
        pages.map(two, 2 * PAGE, handle)
        pages.bytes_of(one)[:PAGE] = 3
        assert (pages.bytes_of(two)[2 * PAGE : 3 * PAGE] == 3).all()
        pages.unmap(one, 0)
        with pytest.raises(MemoryError_, match="still mapped"):
            pages.release(handle)
        pages.map(one, 3 * PAGE, handle)
        assert (pages.bytes_of(one)[3 * PAGE :] == 3).all()


@pytest.mark.skipif(bool(missing("mapped")), reason=str(missing("mapped")))
def test_a_page_given_back_and_created_again_is_empty() -> None:
    with open_backend("mapped", PAGE) as pages:
        region = pages.reserve(PAGE)
        handle = pages.create()
        pages.map(region, 0, handle)
        pages.bytes_of(region).fill_(5)
        assert pages.physical_bytes() == PAGE
        pages.unmap(region, 0)
        pages.release(handle)
        assert pages.physical_bytes() == 0
        pages.map(region, 0, pages.create())
        assert not pages.bytes_of(region).any()


@pytest.mark.skipif(bool(missing("mapped")), reason=str(missing("mapped")))
def test_touching_an_unmapped_page_is_a_fault_and_not_silent_memory() -> None:
    code = (
        "from workbench.systems.page_backends import open_backend\n"
        "pages = open_backend('mapped', 4096)\n"
        "print(int(pages.bytes_of(pages.reserve(8192))[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -11  # SIGSEGV
    assert not done.stdout


def test_demand_paging_faults_in_exactly_what_is_mapped() -> None:
    if reason := missing("demand"):
        pytest.skip(reason)
    with open_backend("demand", 4 * PAGE) as pages:
        region = pages.reserve(64 * PAGE)
        assert pages.physical_bytes() == 0
        pages.map(region, 8 * PAGE, pages.create())
        assert pages.physical_bytes() == 4 * PAGE
        pages.bytes_of(region)[8 * PAGE] = 1
        handle = pages.unmap(region, 8 * PAGE)
        assert pages.physical_bytes() == 0
        pages.map(region, 0, handle)
        with pytest.raises(MemoryError_, match="two addresses"):
            pages.map(region, 8 * PAGE, handle)


@pytest.mark.parametrize("name", ON_CPU)
def test_misuse_is_refused_before_the_system_sees_it(name: str) -> None:
    with open_backend(name, PAGE) as pages:
        region = pages.reserve(4 * PAGE)
        handle = pages.create()
        pages.map(region, 0, handle)
        for offset in (1, -PAGE, 4 * PAGE):
            with pytest.raises(BadInput, match="offset"):
                pages.map(region, offset, handle)
        with pytest.raises(MemoryError_, match="mapped already"):
            pages.map(region, 0, handle)
        with pytest.raises(MemoryError_, match="never created"):
            pages.map(region, PAGE, handle + 17)
        with pytest.raises(MemoryError_, match="nothing is mapped"):
            pages.unmap(region, PAGE)
        with pytest.raises(MemoryError_, match="released"):
            pages.release(handle + 17)
        with pytest.raises(BadInput, match="positive"):
            pages.reserve(0)
    for call in (pages.create, lambda: pages.reserve(PAGE), lambda: pages.map(region, 0, handle)):
        with pytest.raises(MemoryError_, match="closed"):
            call()


@pytest.mark.parametrize("size", [0.5, True, -PAGE, PAGE + 1, "64k"])
def test_a_group_is_a_multiple_of_the_granularity(size: object) -> None:
    with pytest.raises(BadInput, match=r"group_bytes=.*multiple of"):
        MappedPages(size)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "this is darwin" in str(_libc.missing())
    for name in ("mapped", "demand"):
        with pytest.raises(MemoryError_, match=r"Linux.*memory='paged' works everywhere"):
            open_backend(name)
    with pytest.raises(MemoryError_, match="darwin"):
        open_backend()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_card_cuda_says_so() -> None:
    assert missing("cuda") == "torch sees no CUDA device"
    with pytest.raises(MemoryError_, match="no CUDA device"):
        open_backend("auto", device="cuda")
    with pytest.raises(MemoryError_, match="no CUDA device"):
        CudaPages()


@pytest.mark.skipif(bool(missing("demand")), reason=str(missing("demand")))
def test_where_memfd_is_refused_demand_paging_takes_over_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MappedPages, "missing", classmethod(lambda cls: "memfd_create is refused here"))
    with pytest.warns(UserWarning, match=r"without aliasing: memfd_create is refused"):
        pages = open_backend()
    assert pages.name == "demand"
    pages.close()


def test_names() -> None:
    assert set(page_backends.BACKENDS) == set(BACKENDS) == {"mapped", "demand", "cuda"}
    with pytest.raises(BadInput, match="'mapped', 'demand', 'cuda'"):
        open_backend("mmap")
    with pytest.raises(BadInput, match="memory of the CPU"):
        open_backend("demand", device="cuda")
