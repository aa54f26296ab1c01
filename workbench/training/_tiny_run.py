"""One training of several seeds: parameters stacked along a first axis, a step that knows its number, its CUDA graph.

The stack is the only form: the optimiser, clipping and checkpoints always see (seeds, ...). What differs is where the
gradients come from: one ``vmap`` over the seeds, or one seed after the other on views of the stack.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import BadInput
from workbench.training._long_sums import LongSums
from workbench.training._tiny_checks import known_tokens, not_finite
from workbench.training._tiny_files import architecture, read_run, write_tensors
from workbench.training.tiny import Loss, Pool, Recipe, Trained, answer_loss, as_pool, record_of

if TYPE_CHECKING:
    import pandas as pd

#: Steps that are run before one is recorded; they are steps of the training.
_BEFORE_GRAPH = 3
_HALF = 1 << 64


class TinyRun:
    """State and steps of one training."""

    #: Steps after which nothing is done for the first time: those before the recording, and the recorded one.
    before = _BEFORE_GRAPH + 1

    def __init__(self, build: Callable[[int], nn.Module], pool: Any, recipe: Recipe, seeds: Sequence[int],
                 device: torch.device, loss: Loss | None, stack: bool | None, graph: bool | None):  # fmt: skip
        """Arguments of ``train``; seeds and device as they were checked."""
        cuda = device.type == "cuda"
        if graph and not cuda:
            raise BadInput(f"graph=True needs a CUDA device, got {device}; leave graph out")
        self.stage: Callable[[int], Any] = pool if callable(pool) else lambda step: pool
        self.recipe, self.seeds, self.device = recipe, tuple(seeds), device
        self.loss = loss or answer_loss(recipe.next_token)
        self.models = [_built(build, seed).to(device).train() for seed in seeds]
        self.parameters, self.buffers = _stacked(self.models)
        self.stacked, self.wants_graph = cuda if stack is None else stack, cuda if graph is None else graph
        self.may_fall_back = (stack is None, graph is None)
        self.why: list[str] = []
        self.cuts = self.wants_graph
        self.optimiser = _optimiser(self.models[0], self.parameters, recipe, cuda)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.streams = [torch.cuda.Stream() for _ in seeds] if cuda else []
        self.pool: Pool | None = None
        self._made: Any = None
        self.data: dict[str, Tensor] = {}
        self._tables()
        self.load_pool()
        assert self.pool is not None
        sizes = [value[0].numel() for value in self.parameters.values()]
        made_of = {"model": architecture(self.models[0]), "data": self.pool.digest}
        self.identity: dict[str, Any] = {**record_of(recipe, seeds, self.pool, sum(sizes)), **made_of}

    def _tables(self) -> None:
        """All that a step looks up by its number, on the device; so that it never waits for the host."""
        steps, seeds = self.recipe.steps, len(self.seeds)
        self.step = 0
        self.at = torch.zeros(1, dtype=torch.int64, device=self.device)
        rates = [self.recipe.rate(step) for step in range(steps)]
        self.rates = torch.tensor(rates, dtype=torch.float64, device=self.device)
        self.keys = torch.tensor([_key(self.recipe.data_seed, s) for s in self.seeds], device=self.device)[:, None]
        self.places = torch.arange(self.recipe.batch, device=self.device)[None]
        self.history = torch.full((2, steps, seeds), float("nan"), dtype=torch.float64, device=self.device)

    # ------------------------------------------------------------------ data
    def load_pool(self) -> None:
        """The pool of this step on the device; on a GPU one of the shape that is there goes into the same memory."""
        made = self.stage(self.step)
        if self.pool is not None and made is self._made:
            return
        pool, self._made = as_pool(made), made
        known_tokens(self.models[0], pool.ids, pool.targets)
        tables = {"input_ids": pool.ids.int(), "targets": pool.targets.int(), **pool.extras}
        if "attention_mask" in tables:  # a model takes a bool mask as it is; at numbers it looks, which costs the graph
            tables["attention_mask"] = tables["attention_mask"].bool()
        shapes = {name: value.shape for name, value in tables.items()}
        if self.device.type == "cuda" and shapes == {name: value.shape for name, value in self.data.items()}:
            for name, value in tables.items():  # into the memory that the graph reads
                self.data[name].copy_(value)
        else:
            own = self.device.type == "cuda"  # that memory is written to later, and the pool's must not be
            self.data = {name: value.to(self.device, copy=own) for name, value in tables.items()}
            self.graph, self.warm = None, 0
        self.pool = pool

    def sample(self) -> dict[str, Tensor]:
        """The batches of all seeds, (seeds, batch, ..): rows by a hash of (data seed, seed, step, place)."""
        counter = self.keys + self.at * self.recipe.batch + self.places
        rows = _mixed(counter) % len(self.data["input_ids"])
        batch = {name: table[rows] for name, table in self.data.items()}
        return {**batch, "input_ids": batch["input_ids"].long(), "targets": batch["targets"].long()}

    # ------------------------------------------------------------------ one step
    def advance(self) -> None:
        """One step of the training."""
        self.load_pool()
        if self.graph is None and self.wants_graph and self.warm >= _BEFORE_GRAPH:
            self._record()
        if self.graph is not None:
            self.graph.replay()
        elif self.wants_graph:
            self._warm_up()
        else:
            self._eager()
        self.step += 1

    def _eager(self) -> None:
        batch = self.sample()
        with torch.no_grad():
            values, right = self._gradients(batch)
            self._clip()
            self._set_rate()
            self.optimiser.step()
            self.history.index_copy_(1, self.at, torch.stack([values, right])[:, None].double())
            self.at += 1

    def _set_rate(self) -> None:
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(self.rates.index_select(0, self.at)[0])
            else:
                group["lr"] = self.recipe.rate(self.step)

    def _clip(self) -> None:
        """Each seed's gradient to a norm of at most ``clip``, as ``clip_grad_norm_`` does for one model."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in grads]).norm(dim=0)
        scale = (self.recipe.clip / (norm + 1e-6)).clamp_max(1.0)
        for grad in grads:
            grad.mul_(scale.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)))

    def _gradients(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Losses and shares of right answers (seeds,); gradients go to ``.grad`` of the stack."""
        while True:
            try:
                # cutting passes every operation through Python: free where a step is recorded, and only there
                with LongSums() if self.cuts else contextlib.nullcontext():
                    return self._all_at_once(batch) if self.stacked else self._in_turn(batch)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                if self._capturing or "out of memory" in str(error) or not self._gives_way(error):
                    raise

    @property
    def _capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _gives_way(self, error: Exception) -> bool:
        """Try the next slower way: without cutting, then one seed after the other; False when there is none."""
        if self.cuts:
            self.cuts = False
            self.why.append(f"long sums whole: {_first_line(error)}")
            return True
        if self.stacked and self.may_fall_back[0]:
            self.stacked, self.cuts = False, self.wants_graph
            self.why = [f"not stacked: {_first_line(error)}"]
            return True
        return False

    def _all_at_once(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        from torch.func import grad_and_value, vmap

        one = grad_and_value(self._loss_of, has_aux=True)
        self._seed(0)
        grads, (values, right) = vmap(one, randomness="different")(self.parameters, self.buffers, batch)
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name]
        return values, right

    def _in_turn(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        made: list[tuple[Tensor, ...]] = []
        for place in range(len(self.seeds)):
            with self._lane(place):
                made.append(self._one(place, {name: value[place] for name, value in batch.items()}))
        for lane in self.streams if self.device.type == "cuda" else []:
            torch.cuda.current_stream().wait_stream(lane)
        names = list(self.parameters)
        for index, name in enumerate(names):
            self.parameters[name].grad = torch.stack([one[2 + index] for one in made])
        return torch.stack([one[0] for one in made]), torch.stack([one[1] for one in made])

    def _lane(self, place: int) -> Any:
        """A stream a seed, so that their kernels overlap: parallel branches of one graph."""
        if not self.streams:
            return contextlib.nullcontext()
        self.streams[place].wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self.streams[place])

    def _one(self, place: int, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        self._seed(place)
        mine = {name: value[place].detach().requires_grad_() for name, value in self.parameters.items()}
        buffers = {name: value[place] for name, value in self.buffers.items()}
        with torch.enable_grad():
            value, right = self._loss_of(mine, buffers, batch)
            grads = torch.autograd.grad(value, list(mine.values()), allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(mine.values(), grads)]
        return value.detach(), right, *filled

    def _loss_of(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        from torch.func import functional_call

        def run(**inputs: Any) -> Any:
            return functional_call(self.models[0], (parameters, buffers), (), inputs)

        made = self.loss(run, batch)
        value, right = made if isinstance(made, tuple) else (made, made.detach() * float("nan"))
        return value, right.detach()

    def _seed(self, place: int) -> None:
        """Dropout and the like depend on the step alone; not under a graph, which has a generator of its own."""
        if self.device.type != "cuda":
            torch.manual_seed((self.seeds[place] * 1_000_003 + self.step) % 2**63)

    # ------------------------------------------------------------------ the graph
    def _warm_up(self) -> None:
        """A step on a side stream, as recording wants it before: all that is made on first use is then there."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._eager()
        torch.cuda.current_stream().wait_stream(side)
        self.warm += 1

    def _record(self) -> None:
        """Record one step; recording does not run it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._eager()
        except RuntimeError as error:
            if not self.may_fall_back[1] or "out of memory" in str(error):
                raise
            self.wants_graph = self.cuts = False
            self.why.append(f"no graph: {_first_line(error)}")
            return
        self.graph = graph

    # ------------------------------------------------------------------ what comes out
    def median_seconds(self, steps: int) -> float:
        """Median seconds of ``steps`` steps, each waited for in tens (a GPU's queue is what is timed, not waiting)."""
        took: list[float] = []
        while len(took) * 10 < steps:
            begun = time.monotonic()
            for _ in range(min(10, steps)):
                self.advance()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            took.append((time.monotonic() - begun) / min(10, steps))
        return float(np.median(took))

    def seconds_since(self, begun: float) -> float:
        """Seconds of finished work: a GPU's queue is waited for now and then, so that a budget means what it says."""
        if self.device.type == "cuda" and self.step % 10 == 0:
            torch.cuda.synchronize()
        return time.monotonic() - begun

    def check_finite(self) -> None:
        """Raise ModelError if a loss so far, or a weight as it is, is not finite: the last step may have spoilt it."""
        finite = torch.isfinite(self.history[0, : self.step]).all(0)
        for value in self.parameters.values():
            finite = finite & torch.isfinite(value).reshape(len(value), -1).all(1)
        if not all(finite.tolist()):
            raise not_finite(self.step, [seed for seed, good in zip(self.seeds, finite.tolist()) if not good])

    def losses(self) -> pd.DataFrame:
        import pandas as pd

        values, right = self.history[:, : self.step].cpu().numpy()
        steps = np.arange(1, self.step + 1)
        rates = [self.recipe.rate(step) for step in range(self.step)]
        parts = [
            pd.DataFrame({"seed": seed, "step": steps, "loss": values[:, i], "right": right[:, i], "lr": rates})
            for i, seed in enumerate(self.seeds)
        ]
        return pd.concat(parts, ignore_index=True)

    def finish(self, seconds: float) -> Trained:
        """The models with their weights, and what was done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        for place, model in enumerate(self.models):
            own = dict(model.named_parameters())
            with torch.no_grad():
                for name, value in self.parameters.items():
                    own[name].copy_(value[place])
            model.eval()
        complete = self.step >= self.recipe.steps
        graph, self.graph = self.graph, None
        words = ["stacked" if self.stacked else "in turn", "graph" if graph is not None else "eager", *self.why]
        record = {**self.identity, "steps_done": self.step, "seconds": round(seconds, 3), "how": ", ".join(words)}
        return Trained(self.models, self.losses(), complete, ", ".join(words), record)

    # ------------------------------------------------------------------ checkpoints
    def save(self, path: Path) -> None:
        tensors = {"history": self.history}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{key}/{name}"] = value
        assert self.pool is not None
        write_tensors(path, tensors, {"step": self.step, "latest data": self.pool.digest, **self.identity})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint if it is there; one of another run raises ModelError."""
        found = read_run(path, self.identity, self._latest)
        if found is None:
            return
        tensors, self.step = found
        with torch.no_grad():
            self.history.copy_(tensors["history"])
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                state = {key: tensors[f"optimiser/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                         if f"optimiser/{key}/{name}" in tensors}  # fmt: skip
                if state:
                    self.optimiser.state[parameter] = {key: value.to(self.device) for key, value in state.items()}
        self.at.fill_(self.step)

    def _latest(self, step: int) -> dict[str, Any]:
        """What the run must have read last before ``step``: a curriculum may begin alike and go on otherwise."""
        return {"latest data": as_pool(self.stage(step - 1)).digest}


def _built(build: Callable[[int], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(seed)


def _stacked(models: list[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is learned, and what is not (buffers and frozen parameters), with the seeds as first axis."""
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in models]
    if any(shape != shapes[0] for shape in shapes):
        raise BadInput("build(seed) must make models of one shape: seeds differ in their weights only")
    if not shapes[0]:
        raise BadInput("build(seed) made a model without parameters: there is nothing to train")
    learned = [{name: p for name, p in model.named_parameters() if p.requires_grad} for model in models]
    if not learned[0]:
        raise BadInput("build(seed) made a model whose parameters are all frozen: there is nothing to train")
    fixed = [{name: p for name, p in model.named_parameters() if not p.requires_grad} for model in models]
    held = [{**frozen, **dict(model.named_buffers())} for frozen, model in zip(fixed, models)]
    parameters = {name: torch.stack([one[name].detach() for one in learned]) for name in learned[0]}
    return parameters, {name: torch.stack([one[name].detach() for one in held]) for name in held[0]}


def _optimiser(model: nn.Module, parameters: dict[str, Tensor], recipe: Recipe, cuda: bool) -> torch.optim.AdamW:
    """AdamW over the stack: it acts on each number alone, so stacked is the same as apart."""
    own = {name: p for name, p in model.named_parameters() if name in parameters}
    decays = {name: own[name].dim() >= 2 and not getattr(own[name], "_no_weight_decay", False) for name in own}
    groups = [
        {"params": [parameters[name] for name in own if decays[name]], "weight_decay": recipe.weight_decay},
        {"params": [parameters[name] for name in own if not decays[name]], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not cuda:
        return torch.optim.AdamW(groups, lr=recipe.rate(0), betas=recipe.betas, foreach=True)
    lr = torch.tensor(recipe.rate(0), device=next(iter(parameters.values())).device)
    return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, capturable=True, foreach=True)


def _key(data_seed: int, seed: int) -> int:
    """A 64-bit starting point of a seed's data order, as torch's signed integer."""
    made = int(np.random.SeedSequence([data_seed, seed]).generate_state(1, np.uint64)[0])
    return _signed(made)


def _signed(value: int) -> int:
    return value - _HALF if value >= _HALF // 2 else value


def _mixed(counter: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, which wraps as its unsigned arithmetic does; >= 0."""
    z = counter * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(z ^ _shifted(z, 31), 1)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
