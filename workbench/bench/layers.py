"""Sequence memories: our chunkwise kernels against flash-linear-attention, titans-pytorch and softmax attention.

Three kinds of cases. "rule": one update rule, forward and forward + backward, 32k tokens in all. "crossover": the same
memories against exact causal attention by length; where ``to_best_peer`` passes 1 the memory is the faster one. "neural
memory": a Titans layer (two-layer memory, exact chunk form) with its projections against titans-pytorch's, on the same
shapes.

Rules and crossover are rated in bytes that must move whatever a kernel really does (every input and output once), the
neural memory in operations of its chunk form. Errors of a rule are against its recurrence in float64, first batch and
head (beyond 2k tokens: against the float64 chunk form, which the tests hold to the recurrence within 1e-9). Every
contender's memory (``extra_gb``) is that of its call without a graph.

On a card a rule's contenders, ours and peers, are timed as CUDA graphs, so that a busy host costs none of them
anything; ``version`` says so, or that one could not be recorded. The neural memory is raced both ways, and ``item``
says which; its error is that of the reads of the first row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.bench import _graphs, _layer_peers, _peers
from workbench.bench._layer_peers import FLA, Rule
from workbench.bench.base import BENCHES, Bench, Case, Contender, relative_error
from workbench_kernels import linear_recurrence

TOKENS = 32768
PASSES = ("forward", "forward + backward")
#: Tokens of a chunk of the neural memory.
CHUNKS = (64, 32)
#: Longest rows that torch's chunk form joins on a GPU, and that the specification itself judges.
LONGEST_TORCH, LONGEST_NAIVE = 2048, 2048


@dataclass(frozen=True)
class Point:
    """``rule`` is a key of ``FLA``; q, k, v (batch, length, heads, dim)."""

    rule: str
    length: int
    which: str = "forward"
    batch: int = 1
    heads: int = 16
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    kind: str = "rule"

    @property
    def trained(self) -> bool:
        return self.which != "forward"

    @property
    def bytes_moved(self) -> float:
        """q, k, v in and y out; with the backward pass also q, k, v, dy in and three gradients out. Gates as well."""
        tokens = self.batch * self.length * self.heads
        gates = {"linear": 0, "scalar gate": 1, "delta": 1, "gated delta": 2, "gate per channel": self.dim}[self.rule]
        size = torch.finfo(self.dtype).bits // 8
        return float(tokens * ((11 if self.trained else 4) * self.dim * size + (3 if self.trained else 1) * gates * 4))

    @property
    def place(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "what": self.rule,
            "pass": self.which,
            "dtype": str(self.dtype).removeprefix("torch."),
            "length": self.length,
            "tokens": self.batch * self.length,
            "heads": self.heads,
            "head_dim": self.dim,
        }


class LayersBench(Bench):
    name = "layers"
    title = "Sequence memories"
    limit_s = 50.0

    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        """The goals first: a card that compiles for the first time does not get through all of them."""
        goal, others = points(device, quick)
        near, far = neural_points(device, quick)
        race, more = crossover(device, quick)
        rules: list[Point | NeuralPoint] = [*goal, *race[:2]]
        for point in (*rules, *near, *race[2:], *far, *others, *more):
            yield rule_case(point, device) if isinstance(point, Point) else neural_case(point, device)


BENCHES.register("layers")(LayersBench())


def points(device: str, quick: bool) -> tuple[list[Point], list[Point]]:
    """(linear attention and the gated delta rule, 32k tokens in one row; many short rows and the other rules)."""
    if device == "cpu":
        small: dict[str, Any] = {"heads": 4, "dim": 64, "dtype": torch.float32}
        rules = ("linear", "gated delta") if quick else tuple(FLA)
        return [Point(rule, 512 if quick else 1024, which, **small) for rule in rules for which in PASSES], []
    linear, delta = ([Point(rule, TOKENS, which) for which in PASSES] for rule in ("linear", "gated delta"))
    rules = ("scalar gate", "gate per channel", "delta")
    goal = [*linear, *delta]
    others = [Point(rule, TOKENS, which) for rule in rules for which in PASSES]
    short = [replace(p, length=2048, batch=TOKENS // 2048) for p in goal]
    return goal, [] if quick else [*short, *others]


def crossover(device: str, quick: bool) -> tuple[list[Point], list[Point]]:
    """The gated delta rule at 32k and linear attention by length, where exact attention is the peer; then the rest."""
    if device == "cpu":
        small: dict[str, Any] = {"heads": 4, "dim": 64, "dtype": torch.float32, "kind": "crossover"}
        return [Point("linear", n, **small) for n in ((512,) if quick else (256, 512, 1024, 2048, 4096))], []

    def race(rule: str, lengths: tuple[int, ...]) -> list[Point]:
        return [Point(rule, n, w, batch=TOKENS // n, kind="crossover") for n in lengths for w in PASSES]

    goal = race("gated delta", (TOKENS,))
    if quick:
        return [*goal, *race("linear", (8192,))], []
    lengths = (32768, 1024, 4096, 16384, 2048, 8192, 512)
    return [*goal, *race("linear", lengths)], race("gated delta", lengths[1:])


# -- one rule ---------------------------------------------------------------------------------------------------------


def rule_case(point: Point, device: str) -> Case:
    inputs, grad = draw(point, device)
    kernels = contenders(point, device)
    raced = {name: _contender(name, _call(kernel, inputs, grad, point), device) for name, kernel in kernels.items()}
    check = _Exact(inputs, grad, point).error
    return Case(point.place, raced, point.bytes_moved, "TB/s", check, **_effort(device))


def _contender(name: str, call: Callable[[], Any], device: str) -> Contender:
    timed, how = _graphs.fairly(call, device)
    return Contender(timed, name.startswith("ours"), ", ".join(filter(None, (_version(name), how))), plain=call)


def _effort(device: str) -> dict[str, Any]:
    return {"launches": 3, "budget_s": 2.0} if device == "cpu" else {"launches": 12, "budget_s": 0.25}


def draw(point: Point, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Unit keys; gates that forget a few percent a token, as trained ones do."""
    gen = torch.Generator(device).manual_seed(0)
    shape = (point.batch, point.length, point.heads, point.dim)
    q, k, v, grad = (torch.randn(shape, generator=gen, device=device) for _ in range(4))
    k = torch.nn.functional.normalize(k, dim=-1)
    made = {"q": q.to(point.dtype), "k": k.to(point.dtype), "v": v.to(point.dtype)}
    if "gate" in point.rule:
        width = shape if point.rule == "gate per channel" else shape[:3]
        made["log_decay"] = -0.05 * torch.rand(width, generator=gen, device=device)
    if "delta" in point.rule:
        made["beta"] = torch.rand(shape[:3], generator=gen, device=device)
    return made, grad.to(point.dtype)


def contenders(point: Point, device: str) -> dict[str, Rule]:
    made: dict[str, Rule] = {}
    if device != "cpu":
        made["ours, triton"] = _ours("triton")
    if device == "cpu" or (point.kind == "rule" and point.length <= LONGEST_TORCH):
        made["ours, torch"] = _ours("chunked")
    if point.kind == "crossover":
        peers = _peers.sdpa_peers(device)
        return made | {name: _softmax(peer) for name, peer in peers.items() if name != "SDPA efficient"}
    if device == "cpu":
        return made | {"recurrence": _ours("reference")}
    return made | {"fla": _layer_peers.fla(point.rule)}


def _ours(impl: str) -> Rule:
    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None) -> Tensor:
        words: dict[str, Any] = {"scale": q.shape[-1] ** -0.5, "check_values": False, "impl": impl}
        return linear_recurrence(q, k, v, log_decay=log_decay, beta=beta, **words)[0]

    return run


def _softmax(peer: _peers.Attention) -> Rule:
    return lambda q, k, v, log_decay, beta: peer(q, k, v, True)


def _version(name: str) -> str:
    if name.startswith(("ours", "recurrence")):
        return ""
    tried = f", {_layer_peers.TRIED} tiles a kernel tried"
    return _layer_peers.version("fla-core") + tried if name == "fla" else _peers.version(name)


def _call(kernel: Rule, inputs: dict[str, Tensor], grad: Tensor, point: Point) -> Callable[[], Any]:
    """y, or (y, gradients of all inputs that the kernel looks at)."""
    leaves = {name: x.detach().requires_grad_(point.trained) for name, x in inputs.items()}

    def run() -> Any:
        with torch.set_grad_enabled(point.trained):
            y = kernel(leaves["q"], leaves["k"], leaves["v"], leaves.get("log_decay"), leaves.get("beta"))
        if not point.trained:
            return y
        return y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad, allow_unused=True)

    return run


class _Exact:
    """Reads and gradients of the first batch and head in float64, computed once when asked for."""

    def __init__(self, inputs: dict[str, Tensor], grad: Tensor, point: Point):
        self.inputs, self.grad, self.point = inputs, grad, point
        self._found: tuple[Tensor, ...] | None = None

    def error(self, found: Any) -> float:
        """The largest of reads and gradients. NaN for softmax attention, which computes something else."""
        parts = found if isinstance(found, tuple) else (found,)
        if any(x is None for x in parts):
            return float("nan")
        errors = [relative_error(x.detach()[:1, :, :1], y) for x, y in zip(parts, self._exact(), strict=True)]
        return float("nan") if self.point.kind == "crossover" and errors[0] > 0.5 else max(errors)

    def _exact(self) -> tuple[Tensor, ...]:
        if self._found is None:
            impl = "reference" if self.point.length <= LONGEST_NAIVE else "chunked"
            inputs = {name: x[:1, :, :1].double() for name, x in self.inputs.items()}
            call = _call(_ours(impl), inputs, self.grad[:1, :, :1].double(), self.point)
            found = call()
            self._found = tuple(x.detach() for x in (found if isinstance(found, tuple) else (found,)))
        return self._found


# -- the neural memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuralPoint:
    """A layer of ``heads`` memories of two layers each, hidden width four times the head's."""

    length: int
    which: str
    batch: int = 4
    dim: int = 512
    heads: int = 8
    chunk: int = 64

    @property
    def flops(self) -> float:
        """Of the chunk form: 11 products with a (d x 4d) matrix a token, twice that again with the backward pass."""
        width = self.dim // self.heads
        forward = self.batch * self.length * self.heads * 11 * 2.0 * 4 * width * width
        return forward * (3 if self.which != "forward" else 1)

    @property
    def place(self) -> dict[str, Any]:
        return {
            **{"kind": "neural memory", "what": f"chunk {self.chunk}", "pass": self.which, "dtype": "float32"},
            **{"length": self.length, "tokens": self.batch * self.length, "heads": self.heads},
            "head_dim": self.dim // self.heads,
        }


def neural_points(device: str, quick: bool) -> tuple[list[NeuralPoint], list[NeuralPoint]]:
    if device == "cpu":
        return [NeuralPoint(128, which, batch=1, dim=64, heads=2, chunk=32) for which in PASSES], []
    near, far = ([NeuralPoint(n, which, chunk=chunk) for chunk in CHUNKS for which in PASSES] for n in (2048, 8192))
    return near[: len(PASSES)] if quick else near, [] if quick else far


def neural_case(point: NeuralPoint, device: str) -> Case:
    """Ours and titans-pytorch, each launched one by one and, on a card, as a CUDA graph."""
    x = torch.randn(point.batch, point.length, point.dim, device=device)
    version = _layer_peers.version("titans-pytorch")
    raced: dict[str, Contender] = {}
    for name, make in neural_makers(point, device).items():
        mine = name.startswith("ours")
        call = _layer_call(make, x, point)
        raced[name] = Contender(call, mine, "" if mine else version, plain=call)
        if device != "cpu":
            raced[f"{name}, CUDA graph"] = replace(raced[name], run=_graphs.later(call))
    check = partial(_reads_error, x, point, [])
    effort = _effort(device) | ({} if device == "cpu" else {"budget_s": 1.0})  # eight of them, some take half a second
    return Case(point.place, raced, point.flops, "TFLOP/s", check, **effort)


@torch.no_grad()
def _reads_error(x: Tensor, point: NeuralPoint, held: list[Tensor], found: Any) -> float:
    """Against our layer in float64, read once into ``held``. NaN for another library's, which has other weights."""
    if not held:
        held.append(_ours_layer(point, str(x.device), "chunked").double()(x[:1].double())[0])
    error = relative_error((found if point.which == "forward" else found[0])[:1], held[0])
    return error if error < 0.5 else float("nan")


def neural_makers(point: NeuralPoint, device: str) -> dict[str, Callable[[], torch.nn.Module]]:
    """What makes each contender's layer. "one gradient point", titans-pytorch's default, computes something else: all
    gradients of a row at the weights of its start."""
    ours = ("chunked",) if device == "cpu" else ("triton", "chunked")
    made: dict[str, Callable[[], torch.nn.Module]] = {}
    for impl in ours:
        made["ours, triton" if impl == "triton" else "ours, torch"] = partial(_ours_layer, point, device, impl)
    for name, moving in (("titans-pytorch", True), ("titans-pytorch, one gradient point", False)):
        made[name] = _layer_peers.titans_pytorch(point.dim, point.heads, point.chunk, moving=moving, device=device)
    return made


def _ours_layer(point: NeuralPoint, device: str, impl: str) -> torch.nn.Module:
    from workbench.memory.layers.titans import Titans

    torch.manual_seed(0)
    layer: torch.nn.Module = Titans(point.dim, point.heads, chunk=point.chunk, persistent=0, conv=0, impl=impl)
    return layer.to(device)


def _layer_call(make: Callable[[], torch.nn.Module], x: Tensor, point: NeuralPoint) -> Callable[[], Any]:
    """The layer's reads, or these and the gradient of their sum for every parameter; made at the first call."""
    made: list[torch.nn.Module] = []
    trained = point.which != "forward"

    def run() -> Any:
        if not made:
            made.append(make())
        with torch.set_grad_enabled(trained):
            y = made[0](x)[0]
        if not trained:
            return y
        return y.detach(), *torch.autograd.grad(y.sum(), list(made[0].parameters()), allow_unused=True)

    return run
