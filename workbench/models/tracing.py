"""Taking a trace: one forward pass under the current kernel, with a recorder around every attention call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import BadInput, ModelError
from workbench.models import encoding
from workbench.models.heads import predict
from workbench.models.recorder import Call, Recorder, recording
from workbench.models.swap import recorded_kernel
from workbench.models.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel
    from workbench_kernels import Cost

#: A pass that is predicted to take longer than this shows a bar unless ``progress`` says otherwise.
SHOW_AFTER_SECONDS = 2.0


@torch.no_grad()
def trace(
    loaded: LoadedModel,
    text: Any,
    *,
    hidden: bool = True,
    values: bool = False,
    layers: Iterable[int] | None = None,
    beyond_positions: bool = False,
    progress: Any = None,
) -> Trace:
    """One forward pass of ``text`` (text, texts, ids, or a dict with a mask) and all it left behind.

    It runs under the current kernel; where that gives no log-sum-exp (eager, sdpa on a GPU or with padding) a layer's
    is computed from Q and K, in linear memory, when that layer is first looked at. If a memory is in use and holds
    tokens, the text is read as the continuation of its stream, so the keys are the memory's slots and then the text's
    own; the memory is put back to what it was.

    Args:
        hidden: keep the hidden states. values: keep V. layers: record only these (default all).
        beyond_positions: allow more tokens than the model was made for (rotary models only; noted in the trace).
        progress: None (a bar when the pass is predicted to take over 2 s), True, False, or a function of the fraction.

    Raises:
        BadInput: empty text, unknown layers. ModelError: longer than the model's positions, or a model whose attention
            cannot be recorded.
    """
    batch = loaded.encode(text)
    wanted = _layers(loaded, layers)
    memory = loaded.cache if loaded.cache is not None and loaded.cache.get_seq_length() else None
    if getattr(memory, "own", False) and loaded.session is None:
        memory = None  # what a generation left in a model's own states is no stream to go on from
    told = []
    if memory is not None and not getattr(memory, "traceable", True):
        told = [f"{memory.slug} attends to keys outside its cache; the text is traced by itself, without the memory"]
        memory = None
    notes = told if memory else told + check_positions(loaded, batch["input_ids"].shape[1], beyond_positions)
    taken: list[LayerTrace] = []

    def take(index: int, call: Call) -> None:
        taken.append(_layer(index, call, values, memory))

    start = time.perf_counter()
    attends = not hasattr(loaded.model, "new_cache")
    kernel = recorded_kernel(loaded) if attends else contextlib.nullcontext()
    with _shown(loaded, batch["input_ids"], progress) as tick, kernel, _put_back(memory):
        recorder = Recorder(take, wanted, tick)
        with recording(recorder):
            seen = predict(loaded, batch, hidden=hidden, cache=memory)
    if not attends:
        notes = [*notes, f"{type(loaded.model).__name__} mixes tokens by memories: there is no attention to look at"]
    elif recorder.calls == 0:
        raise ModelError(f"{type(loaded.model).__name__} computes attention in its own code; it cannot be recorded")
    return Trace(
        model_name=loaded.name,
        attention=loaded.attention,
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        tokens=_tokens(loaded, batch),
        logits=seen.logits,
        surprise=seen.surprise,
        entropy=seen.entropy,
        hidden=seen.hidden,
        layers=taken,
        seconds=time.perf_counter() - start,
        memory="none" if memory is None else getattr(memory, "slug", type(memory).__name__),
        notes=notes + seen.notes,
    )


def _layers(loaded: LoadedModel, layers: Iterable[int] | None) -> frozenset[int] | None:
    if layers is None:
        return None
    wanted = frozenset(layers)
    wrong = sorted(index for index in wanted if not 0 <= index < loaded.n_layers)
    if wrong:
        raise BadInput(f"layers must lie in 0 .. {loaded.n_layers - 1}, got {wrong}")
    return wanted


def check_positions(loaded: LoadedModel, length: int, allowed: bool) -> list[str]:
    """Notes about positions; ModelError when the sequence is longer than the model was made for."""
    most = loaded.max_positions
    if most is None or length <= most:
        return []
    if getattr(loaded.memory, "own", False):  # its layers know no positions
        raise ModelError(
            f"{length} tokens are more than max_length={most} of {loaded.name}; give at most {most} tokens"
        )
    if not loaded.is_rotary:
        raise ModelError(
            f"{length} tokens are more than the {most} positions of {loaded.name}, whose position embeddings are a "
            f"table, so the rest has none; give at most {most} tokens"
        )
    if not allowed:
        raise ModelError(
            f"{length} tokens are more than the {most} positions {loaded.name} was made for; shorten the text, or pass "
            "beyond_positions=True to run it all the same (rotary positions go on, quality does not)"
        )
    return [f"{length} tokens, but the model was made for {most} positions: what lies beyond is extrapolation"]


@contextlib.contextmanager
def _put_back(memory: Any) -> Iterator[None]:
    """The memory afterwards holds what it held before."""
    if memory is None:
        yield
        return
    if not hasattr(memory, "snapshot"):
        raise ModelError(
            f"{type(memory).__name__} has no snapshot(), so a trace would change it; use(memory='none') first"
        )
    moment = memory.snapshot()
    try:
        yield
    finally:
        memory.restore(moment)


def _key_positions(call: Call, memory: Any) -> Tensor:
    """(B, Nk): where in the stream each key stands; -1 for columns of a memory that hold nothing."""
    count, new = call.k.shape[1], call.q.shape[1]
    positions = torch.arange(count).repeat(call.k.shape[0], 1)
    for at, row in zip(positions, getattr(memory, "rows", ())):
        at[: count - new] = -1
        at[torch.as_tensor(row.items["column"])] = torch.as_tensor(row.items["position"])
        at[count - new :] = row.seen + torch.arange(new)
    return positions.to(call.k.device)


def _layer(index: int, call: Call, values: bool, memory: Any) -> LayerTrace:
    plan = call.plan
    return LayerTrace(
        index=index,
        q=call.q,
        k=call.k,
        v=call.v if values else None,
        kernel_lse=call.lse,
        scale=call.scale,
        causal=plan.causal,
        window=plan.window,
        softcap=call.softcap,
        sinks=call.sinks,
        key_padding=plan.padding,
        key_positions=_key_positions(call, memory),
        mask=plan.dense,
    )


def _tokens(loaded: LoadedModel, batch: dict[str, Tensor]) -> list[list[str]]:
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist())
    texts: dict[int, str] = {}
    return [[_text(loaded, value, texts) if real else "" for value, real in zip(*row)] for row in rows]


def _text(loaded: LoadedModel, value: int, known: dict[int, str]) -> str:
    if value not in known:
        known[value] = encoding.tokens(loaded, [value])[0]
    return known[value]


# -- cost and progress ------------------------------------------------------------------------------------------------


def trace_cost(loaded: LoadedModel, tokens: int, *, batch: int = 1, hidden: bool = True, values: bool = False) -> Cost:
    """Predicted flops, bytes held and seconds of a trace of ``batch`` x ``tokens``, before it runs."""
    from workbench_kernels import Cost, predicted_cost

    one = predicted_cost(
        "attention",
        batch=batch,
        queries=tokens,
        keys=tokens,
        heads=loaded.n_heads,
        head_dim=loaded.head_dim,
        kv_heads=loaded.n_kv_heads,
        dtype=loaded.dtype,
        causal=loaded.is_decoder,
        device=loaded.device,
    )
    passes = 2.0 if loaded.attention == "eager" else 1.0  # eager's products, masks and softmax are passes of their own
    products = 2.0 * batch * tokens * loaded.n_parameters
    held = batch * tokens * _bytes_per_token(loaded, hidden, values)
    if loaded.attention == "eager":  # scores, softmax in float32 and weights of a layer, N x N
        held += batch * loaded.n_heads * tokens**2 * (4 + 2 * torch.finfo(loaded.dtype).bits // 8)
    speed = one.flops / max(one.seconds, 1e-9)
    seconds = one.seconds * loaded.n_layers * passes + products / speed
    return Cost(one.flops * loaded.n_layers * passes + products, int(held + one.bytes), seconds)


def _bytes_per_token(loaded: LoadedModel, hidden: bool, values: bool) -> int:
    size = torch.finfo(loaded.dtype).bits // 8
    kv = loaded.n_kv_heads * loaded.head_dim * (2 if values else 1)
    layer = size * (loaded.n_heads * loaded.head_dim + kv) + 4 * loaded.n_heads
    width = loaded.n_heads * loaded.head_dim
    return layer * loaded.n_layers + (size * width * (loaded.n_layers + 1) if hidden else 0)


@contextlib.contextmanager
def _shown(loaded: LoadedModel, ids: Tensor, progress: Any) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of layers done; it draws a bar, calls ``progress``, or does nothing."""
    total = loaded.n_layers
    if callable(progress):
        yield lambda done: progress(min(done / total, 1.0))
        return
    cost = trace_cost(loaded, ids.shape[1], batch=ids.shape[0])
    if progress is None:
        progress = cost.seconds > SHOW_AFTER_SECONDS
    if not progress:
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    told = f"trace {ids.shape[1]:,} tokens (predicted {cost.seconds:.0f} s, {cost.bytes / 1e9:.1f} GB)"
    with tqdm(total=total, desc=told, unit="layer", leave=False) as bar:
        yield lambda done: bar.update(done - bar.n) and None
