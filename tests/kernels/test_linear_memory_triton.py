"""The linear memories' Triton kernels without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import compile_kit
import machine_code
import pytest
import torch
from linear_memory_cases import Case

from workbench_kernels import linear_recurrence

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["test_case and delta", "test_case and not delta", "not test_case"])
def test_kernels_in_the_interpreter(part: str) -> None:
    compile_kit.run_in_the_interpreter("interpreted_linear_memory.py", part)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``compiled(case, dtype)``: what a forward and a backward pass launch, compiled for Hopper."""
    import triton

    from workbench_kernels.linear_memory.portable import launch, recurrence

    made: list[Any] = []

    def start(kernel: Any, programs: int, shape: tuple[int, int], flags: Any, *arguments: Any, **more: Any) -> None:
        words = {"num_warps": shape[0], "num_stages": shape[1], "enable_fp_fusion": True}
        made.append(kernel.warmup(*arguments, flags, grid=(1,), **words, **more))

    def compile_launches(case: Case, dtype: torch.dtype, drawn: Any = None, **options: Any) -> list[Any]:
        made.clear()
        drawn = {n: x.cpu().requires_grad_() for n, x in (drawn or case.draw(dtype)).items()}
        inputs = recurrence.Inputs(*(drawn.get(name) for name in recurrence.Inputs._fields))
        words = {{"normalize": "ones"}.get(name, name): value for name, value in case.words.items()}
        y, final = recurrence.recurrence(inputs, **words, options=options)
        (y.float().sum() + final.sum()).backward()
        return list(made)

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(triton.runtime.driver, "_active", compile_kit.NoCard())
    return compile_launches


WIDE = {"dims": (128, 128), "length": 64}
#: Bytes a thread: what it costs that two programs of four warps share a multiprocessor (an H200 ran them faster).
SPILLED = {"forward_kernel": 200, "gradients_kernel": 16, "prepare_gradients_kernel": 32}


@pytest.mark.parametrize("rule", ["linear", "scalar", "vector", "gated-delta"])
def test_half_precision_compiles_for_hopper(compiled: Any, rule: str) -> None:
    for kernel in compiled(Case(rule, **WIDE), torch.bfloat16):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name
        most = SPILLED.get(kernel.name, 0)
        assert compile_kit.usage(kernel.asm["cubin"])[1] <= most, f"{kernel.name} spills registers"
        assert kernel.name == "running_kernel" or "wgmma" in kernel.asm["ptx"], kernel.name
        assert not machine_code.wrong_descriptors(kernel), kernel.name


@pytest.mark.parametrize(
    "case",
    [
        Case("linear", feature_map="taylor", normalize=True, dims=(16, 64), length=64),
        Case("gated-delta", dims=(256, 256), length=64),
        Case("vector", dims=(256, 256), length=64),
    ],
    ids=["taylor", "gated delta 256", "vector 256"],
)
def test_other_half_precision_fits_the_card(compiled: Any, case: Case) -> None:
    for kernel in compiled(case, torch.bfloat16):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name


@pytest.mark.parametrize(("dims", "heads"), [((64, 128), 2), ((256, 256), 2), ((128, 128), 64)])
def test_gated_delta_rules_have_their_tiles_where_they_said(compiled: Any, dims: tuple[int, int], heads: int) -> None:
    """ptxas 12.8 gave wrong addresses to a kernel that the interpreter ran right: nothing else shows it."""
    kernels = compiled(Case("gated-delta", dims=dims, length=64, heads=(heads, heads)), torch.bfloat16)
    assert len(kernels) == 7  # prepare, states, reads and four gradients: the states are kept
    for kernel in kernels:
        assert not machine_code.wrong_descriptors(kernel), kernel.name


@pytest.mark.parametrize("rule", ["scalar", "gated-delta"])
def test_float32_fits_the_card(compiled: Any, rule: str) -> None:
    for kernel in compiled(Case(rule, **WIDE), torch.float32):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name
        assert compile_kit.usage(kernel.asm["cubin"])[1] < 512, f"{kernel.name} spills most of its registers"


def test_a_call_that_triton_cannot_take_is_told_why() -> None:
    x = torch.randn(1, 8, 2, 16)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^q is on cpu, Triton kernels need a CUDA device"):
            linear_recurrence(x, x, x, impl="triton")
    assert linear_recurrence(x, x, x)[0].shape == x.shape


#: Launches of the delta rules as a card has confirmed them, (D, Dv) by dtype: (kernel, chunk, key features, value
#: components, warps, stages). Other tiles are other code: run tests/gpu/test_linear_memory_gpu.py, then change this.
#: What of this has run since the kernels last changed: kernels/notes/linear-memory.md.
CONFIRMED: dict[torch.dtype, dict[tuple[int, int], str]] = {
    torch.bfloat16: {
        (64, 64): "prepare 64 64 64 4 1, states 64 64 16 4 3, reads 64 64 64 8 2, value_gradients 64 64 64 4 2, "
        "state_gradients 64 64 16 4 3, gradients 64 64 64 4 2, prepare_gradients 64 64 32 4 2",
        (64, 128): "prepare 64 64 64 4 1, states 64 64 16 4 3, reads 64 64 128 8 2, value_gradients 64 64 128 4 2, "
        "state_gradients 64 64 16 4 3, gradients 64 64 64 4 2, prepare_gradients 64 64 32 4 2",
        (128, 128): "prepare 64 64 64 4 1, states 64 128 16 4 3, reads 64 64 128 8 2, value_gradients 64 64 128 4 2, "
        "state_gradients 64 128 16 4 3, gradients 64 64 64 4 2, prepare_gradients 64 64 64 4 3",
        (256, 256): "prepare 64 64 64 4 1, states 64 256 16 8 2, reads 64 64 128 8 2, value_gradients 64 64 128 4 2, "
        "state_gradients 64 256 16 8 2, gradients 64 64 64 4 2, prepare_gradients 64 64 64 4 3",
    },
    torch.float16: {
        (64, 64): "prepare 32 32 32 4 1, states 32 64 16 8 1, reads 32 32 64 8 1, value_gradients 32 32 64 8 1, "
        "state_gradients 32 64 16 8 1, gradients 32 32 32 8 1, prepare_gradients 32 32 32 8 1",
        (128, 128): "prepare 32 32 32 4 1, states 32 128 16 8 1, reads 32 32 64 8 1, value_gradients 32 32 64 8 1, "
        "state_gradients 32 128 16 8 1, gradients 32 32 32 8 1, prepare_gradients 32 32 32 8 1",
    },
    torch.float32: {
        (32, 32): "prepare 32 32 32 4 1, states 32 32 16 8 1, reads 32 32 32 8 1, value_gradients 32 32 32 8 1, "
        "state_gradients 32 32 16 8 1, gradients 32 32 32 8 1, prepare_gradients 32 32 32 8 1",
        (64, 64): "prepare 32 32 32 4 1, states 32 64 16 8 1, reads 32 32 64 8 1, value_gradients 32 32 64 8 1, "
        "state_gradients 32 64 16 8 1, gradients 32 32 32 8 1, prepare_gradients 32 32 32 8 1",
        (128, 128): "prepare 32 32 32 4 1, states 32 128 16 8 1, reads 32 32 64 8 1, value_gradients 32 32 64 8 1, "
        "state_gradients 32 128 16 8 1, gradients 32 32 32 8 1, prepare_gradients 32 32 32 8 1",
    },
}


@pytest.mark.parametrize("dtype", list(CONFIRMED), ids=str)
def test_tiles_of_the_delta_rules_are_those_that_a_card_has_confirmed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench_kernels.linear_memory.portable import launch

    started: dict[str, None] = {}

    def start(kernel: Any, programs: int, shape: tuple[int, int], flags: Any, *arguments: Any, **more: Any) -> None:
        name = kernel.__name__.removesuffix("_kernel")
        started[" ".join(map(str, (name, flags.C.value, flags.BK.value, flags.BV.value, *shape)))] = None

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "refusal", lambda *_, **__: None)
    for dims, expected in CONFIRMED[dtype].items():
        started.clear()
        drawn = {n: x.cpu().requires_grad_() for n, x in Case("gated-delta", dims=dims).draw(dtype).items()}
        y, final = linear_recurrence(**drawn, impl="triton")
        (y.float().sum() + final.sum()).backward()
        assert ", ".join(started) == expected


@pytest.mark.parametrize(
    ("dtype", "rule", "documents", "confirmed", "others"),
    [
        (torch.bfloat16, "gated-delta", (0, 0, 30, 64), (64, 64), [(16, 16), (32, 48), (64, 16), (20, 24), (1, 1)]),
        (torch.bfloat16, "delta", None, (128, 128), [(128, 64), (80, 16), (100, 100)]),
        (torch.float32, "delta", (0, 0, 30, 64), (32, 32), [(16, 16), (20, 24)]),
    ],
)
def test_delta_rules_at_other_widths_run_the_confirmed_code(
    compiled: Any, dtype: torch.dtype, rule: str, documents: Any, confirmed: tuple[int, int], others: Any
) -> None:
    def launches(dims: tuple[int, int]) -> list[tuple[str, str]]:
        made = compiled(Case(rule, length=64, dims=dims, documents=documents), dtype)
        return [(kernel.name, kernel.asm["ptx"]) for kernel in made]

    expected = launches(confirmed)
    assert len(expected) == 7
    for dims in others:
        assert launches(dims) == expected, dims


def test_views_of_the_delta_rules_run_the_confirmed_code(compiled: Any) -> None:
    case = Case("gated-delta", dims=(64, 64), length=64)
    expected = [kernel.asm["ptx"] for kernel in compiled(case, torch.bfloat16)]
    drawn = case.draw(torch.bfloat16)
    for pad, first in ((8, 0), (0, 1)):  # other strides, another address
        views = {}
        for name in ("q", "k", "v"):
            room = torch.zeros(64 * 2 * (64 + pad) + first, dtype=torch.bfloat16)
            views[name] = room[first:].view(1, 64, 2, 64 + pad)[..., :64]
        made = compiled(case, torch.bfloat16, drawn=drawn | views)
        assert [kernel.asm["ptx"] for kernel in made] == expected


def test_pieces_that_follow_each_other_run_the_code_of_whole_rows(compiled: Any) -> None:
    case = Case("gated-delta", dims=(64, 64), length=192)
    whole, pieces = (compiled(case, torch.bfloat16, pieces=count) for count in (1, 3))
    assert len(pieces) == 3 * len(whole)
    assert {kernel.asm["ptx"] for kernel in pieces} == {kernel.asm["ptx"] for kernel in whole}


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_what_is_kept_has_the_size_that_is_asked_about(
    dtype: torch.dtype, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench_kernels.linear_memory.portable import configurations, launch, passes, recurrence

    monkeypatch.setattr(launch, "start", lambda *_, **__: None)
    drawn = Case("gated-delta", length=128, dims=(64, 128)).draw(dtype)
    inputs = recurrence.Inputs(*(x.cpu() for x in map(drawn.__getitem__, recurrence.Inputs._fields)))
    plan = recurrence._plan(inputs, "identity", False, 1.0, None, None, {})
    _y, _final, (states,) = passes.forward(recurrence.Call(plan, inputs))
    held = sum(x.nbytes for x in states if x is not None)
    assert configurations.kept_bytes(plan) == held
    assert states.h.element_size() == wide

    card = types.SimpleNamespace(total_memory=16 * held)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    plan = dataclasses.replace(plan, device=torch.device("cuda"))
    assert configurations.keeps(plan)
    assert not configurations.keeps(dataclasses.replace(plan, given={"keep": False}))
    assert not configurations.keeps(dataclasses.replace(plan, delta=False))
    card.total_memory -= 16
    assert not configurations.keeps(plan)
    assert configurations.keeps(dataclasses.replace(plan, given={"keep": True}))


@pytest.mark.parametrize(
    ("rows", "processors", "values"), [(1, 132, 16), (8, 132, 32), (2, 132, 32), (2, 171, 32), (2, 172, 16)]
)
def test_walks_are_wider_where_their_programs_fill_the_card(
    rows: int, processors: int, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench_kernels.linear_memory.portable import configurations, recurrence

    case = Case("gated-delta", length=4, heads=(16, 16), dims=(128, 128), batch=rows, start=False)
    drawn = case.draw(torch.bfloat16)
    inputs = recurrence.Inputs(*(drawn.get(name) for name in recurrence.Inputs._fields))
    plan = recurrence._plan(inputs, "identity", False, 1.0, None, None, {})
    card = types.SimpleNamespace(multi_processor_count=processors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    plan = dataclasses.replace(plan, device=torch.device("cuda"))
    assert {configurations.pick(plan, which).values for which in ("states", "state_gradients")} == {values}


@pytest.mark.parametrize(
    ("case", "dtype", "options", "pieces"),
    [
        ({}, torch.bfloat16, {}, 4),
        ({"length": 1024}, torch.bfloat16, {}, 2),
        ({"length": 15 * 64}, torch.bfloat16, {}, 1),
        ({"length": 70}, torch.bfloat16, {"pieces": 4}, 2),
        ({}, torch.bfloat16, {"pieces": 1}, 1),
        ({"batch": 2}, torch.bfloat16, {}, 1),
        ({"batch": 2}, torch.bfloat16, {"pieces": 3}, 3),
        ({"documents": (0, 2048)}, torch.bfloat16, {"pieces": 4}, 1),
        ({"rule": "scalar"}, torch.bfloat16, {"pieces": 4}, 1),
        ({}, torch.float32, {}, 1),
    ],
)
def test_long_rows_alone_are_cut_into_pieces_that_follow_each_other(
    case: dict[str, Any], dtype: torch.dtype, options: dict[str, int], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench_kernels.linear_memory.portable import configurations, recurrence

    monkeypatch.setattr(configurations, "IN_TURN", 4)
    monkeypatch.setattr(configurations, "CHUNKS_ISSUED", 8)
    given: dict[str, Any] = {"rule": "gated-delta", "length": 2048, "heads": (16, 16), "dims": (128, 128), **case}
    described = Case(**given, start=False)
    drawn = described.draw(dtype)
    inputs = recurrence.Inputs(*(drawn.get(name) for name in recurrence.Inputs._fields))
    plan = recurrence._plan(inputs, "identity", False, 1.0, described.words["offsets"], None, options)
    assert configurations.pieces_of(plan) == pieces
    if dtype == torch.bfloat16 and pieces == 4:
        calls = recurrence.Call(plan, inputs).pieces()
        assert [(call.at.start, call.plan.rows.length, call.plan.chunks) for call in calls] == [
            (first, 512, 8) for first in (0, 512, 1024, 1536)
        ]
        monkeypatch.setattr(configurations, "CHUNKS_ISSUED", 999)
        assert configurations.pieces_of(plan) == 1
        monkeypatch.setattr(configurations, "_captured", lambda _: True)
        monkeypatch.setattr(configurations, "CHUNKS_CAPTURED", 16)
        assert configurations.pieces_of(plan) == 2


def test_a_descriptor_made_of_an_address_is_found() -> None:
    """Lines of what ptxas 12.8 made of prepare_kernel at D = 16; a newer one takes UR8 and UR4 instead of UR36."""
    lines = """
        UMOV UR36, 0x400; S2UR UR4, SR_CgaCtaId; ULEA UR36, UR4, UR36, 0x18; USHF.R.U32.HI UR8, URZ, 0x4, UR36;
        USGXT.U32 UR8, UR8, 0xe; UMOV UR4, URZ; UMOV UR14, UR8; UMOV UR15, 0xc0000010;
        UIADD3 UR6, UP0, UR36, 0x20, URZ; UIADD3.X UR7, UR36, -0x3ffffff0, URZ, UP0, !UPT;
        HGMMA.64x16x16.F32.BF16 R24, R48, gdesc[UR12].tnspB, RZ, !UPT;
        HGMMA.64x16x16.F32.BF16 R24, R32, gdesc[UR4].tnspB, R24
    """
    bad = "\n".join(f"/*{i:04x}*/ {line.strip()} ;" for i, line in enumerate(lines.split(";")))
    good = bad.replace("UP0, UR36,", "UP0, UR8,").replace("UR7, UR36,", "UR7, UR4,")
    assert machine_code.descriptors(good)[1][1:] == (0xC0000010, 0x60)
    assert not machine_code.wrong(good, {0xC0000010}, 49152)
    (found,) = machine_code.wrong(bad, {0xC0000010}, 49152)
    assert found.endswith("gdesc[UR4].tnspB, R24: 0xc0000410 0x420")


def test_what_no_card_has_confirmed_is_refused() -> None:
    from workbench_kernels.linear_memory.portable import launch

    def told(dims: tuple[int, int], dtype: torch.dtype, **words: Any) -> str | None:
        q, v = (torch.zeros(1, 4, 2, d, dtype=dtype) for d in dims)
        given: dict[str, Any] = {"delta": True, "feature_map": "identity", "normalize": False, "chunk": None}
        return launch._unchecked(q, v, **(given | words))

    for dims in ((16, 257), (257, 257)):
        assert str(told(dims, torch.bfloat16)).startswith(f"beta is given with head dims {dims}; legal for")
        assert told(dims, torch.bfloat16, delta=False) is None
    assert "are those within (64, 64) or (128, 128)" in str(told((128, 144), torch.float16))
    assert told((20, 24), torch.float16) is None
    for dims in ((16, 16), (64, 128), (128, 64), (48, 256), (1, 1), (20, 24), (16, 40), (100, 100), (64, 65)):
        assert told(dims, torch.bfloat16) is None
    assert told((256, 256), torch.float32) is not None
    assert told((32, 16), torch.float32) is None
    assert "feature_map 'elu+1'" in str(told((64, 64), torch.bfloat16, feature_map="elu+1"))
    assert str(told((64, 64), torch.bfloat16, normalize=True)).startswith("normalize is True and beta is given")
    assert told((64, 64), torch.bfloat16, normalize=True, delta=False) is None
    assert "chunk is 32" in str(told((64, 64), torch.bfloat16, chunk=32))
    assert told((64, 64), torch.bfloat16, chunk=64) is None
