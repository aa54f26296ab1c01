"""A mixture of memories taken apart: where tokens go, how alike the memories become, what a memory answers.

Functions take a ``MixerLM`` with ``mom`` layers and one stream of token ids (T,); the frames are drawn by
``workbench.views.mom``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.layers.mom import MoM

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["layer_input", "mixture_of", "nearest_values", "ribbon", "similarities", "spectra", "states_over_time"]


def mixture_of(model: Any, layer: int) -> MoM:
    """The ``mom`` layer of a block; raises BadInput where there is none."""
    if not 0 <= layer < len(model.blocks):
        raise BadInput(f"layer={layer} is outside this model of {len(model.blocks)} layers")
    mixer = model.blocks[layer].mixer
    if not isinstance(mixer, MoM):
        raise BadInput(f"layer {layer} is {mixer.slug!r}, not a mixture of memories ('mom')")
    return mixer


def _stream(model: Any, ids: Any) -> Tensor:
    tokens, known = torch.as_tensor(ids, dtype=torch.int64).reshape(-1), model.config.vocab_size
    if not len(tokens):
        raise BadInput("ids hold no token; give a stream (T,) of one or more")
    if strange := [i for i in tokens.tolist() if not 0 <= i < known]:
        raise BadInput(f"ids hold {strange[0]}, which is no token of this model; give numbers from 0 to {known - 1}")
    return tokens[None]


@torch.no_grad()
def layer_input(model: Any, ids: Any, layer: int) -> Tensor:
    """What the mixer of a block reads, (1, T, dim)."""
    mixture_of(model, layer)
    stream = _stream(model, ids).to(model.device)
    hidden = model(input_ids=stream, use_cache=False, output_hidden_states=True).hidden_states
    return model.blocks[layer].mixer_norm(hidden[layer])


@torch.no_grad()
def ribbon(model: Any, ids: Any, layer: int = 0, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """One row a token: position, token, memory (the one with the largest weight), weight, second (the next one, "" for
    none), entropy of the router (nats). ``names``: a label for every token, default its id."""
    import pandas as pd

    mixer, stream = mixture_of(model, layer), _stream(model, ids)
    labels = [str(int(i)) for i in stream[0]] if names is None else [str(name) for name in names]
    if len(labels) != stream.shape[1]:
        raise BadInput(f"names must hold {stream.shape[1]} labels, one a token, got {len(labels)}")
    routing = mixer.route(layer_input(model, ids, layer))
    order = routing.w[0].argsort(dim=-1, descending=True, stable=True)
    second = [str(m) for m in order[:, 1].tolist()] if mixer.top_k > 1 else [""] * len(labels)
    return pd.DataFrame(
        {
            "position": range(len(labels)),
            "token": labels,
            "memory": [str(m) for m in order[:, 0].tolist()],
            "weight": routing.w[0].amax(-1).cpu().numpy(),
            "second": second,
            "entropy": torch.special.entr(routing.p[0]).sum(-1).cpu().numpy(),
        }
    )


def states_over_time(model: Any, ids: Any, layer: int = 0, *, moments: int = 8) -> dict[int, Tensor]:
    """The memories (G, H, d_k, d_v) of a layer after so many tokens, at ``moments`` evenly spaced places."""
    mixture_of(model, layer)
    stream, cache = _stream(model, ids).to(model.device), model.new_cache()
    if not 1 <= moments <= stream.shape[1]:
        raise BadInput(f"moments={moments} must be from 1 to the {stream.shape[1]} tokens of the stream")
    ends = [round(stream.shape[1] * (i + 1) / moments) for i in range(moments)]
    held = {}
    for start, end in zip([0, *ends], ends):
        cache.write(stream[:, start:end])
        held[end] = cache.read(layer)["memory"][0]
    return held


def similarities(states: dict[int, Tensor], shared: bool = True) -> pd.DataFrame:
    """Cosine between memories, all heads as one vector: time, a, b, cosine. ``shared``: the last one is shared."""
    import pandas as pd

    rows: list[tuple[int, str, str, float]] = []
    for time, memory in states.items():
        names = _names(len(memory), shared)
        flat = torch.nn.functional.normalize(memory.double().flatten(1), dim=-1)
        for i, line in enumerate((flat @ flat.T).tolist()):
            rows += [(time, names[i], names[j], value) for j, value in enumerate(line)]
    return pd.DataFrame(rows, columns=["time", "a", "b", "cosine"])


def spectra(memory: Tensor, shared: bool = True) -> pd.DataFrame:
    """Singular values of every matrix of (G, H, d_k, d_v): memory, head, rank (from 1), value; ``shared`` as above."""
    import pandas as pd

    names, values = _names(len(memory), shared), torch.linalg.svdvals(memory.double())
    rows = [
        (names[g], head, rank + 1, value)
        for g, heads in enumerate(values.tolist())
        for head, line in enumerate(heads)
        for rank, value in enumerate(line)
    ]
    return pd.DataFrame(rows, columns=["memory", "head", "rank", "value"])


@torch.no_grad()
def nearest_values(
    model: Any, ids: Any, query: int, layer: int = 0, *, memory: int | None = None, head: int | None = None
) -> pd.DataFrame:
    """Ask every memory as token ``query`` of the stream asks its own, and rank what they stored by what comes back.

    Rows by falling similarity: memory, position (of the stored token), token (its id), similarity (cosine of the read
    with the value that was stored, all heads as one vector or that of ``head`` alone: a look-up is often one head's).
    ``memory`` keeps one of them (the shared one is the last).
    """
    import pandas as pd

    mixer, stream = mixture_of(model, layer), _stream(model, ids)
    length = stream.shape[1]
    if whole("query", query, 0) >= length:
        raise BadInput(f"query={query} is outside the stream of {length} tokens")
    if memory is not None and not 0 <= memory < mixer.groups:
        raise BadInput(f"memory={memory} is outside the {mixer.groups} memories of layer {layer}")
    if head is not None and not 0 <= head < mixer.heads:
        raise BadInput(f"head={head} is outside the {mixer.heads} heads of layer {layer}")
    x = layer_input(model, ids, layer)[:, : query + 1]
    q, _, v = mixer.project(x, last_to_all=True)
    held = mixer(x)[1]["memory"][0].to(q.dtype)
    of = slice(None) if head is None else slice(head, head + 1)
    read = torch.einsum("ghk,ghkv->ghv", q[0, -1], held)[:, of].flatten(1)
    alike = torch.nn.functional.cosine_similarity(v[0, :, :, of].flatten(2), read[None], dim=-1)  # t g
    given = mixer.route(x).chosen[0]
    given = torch.cat([given, torch.ones_like(given[:, :1])], 1) if mixer.shared else given
    names, rows = _names(mixer.groups, mixer.shared), []
    for t, g in given.nonzero().tolist():
        if memory is None or g == memory:
            rows.append((names[g], t, int(stream[0, t]), float(alike[t, g])))
    found = pd.DataFrame(rows, columns=["memory", "position", "token", "similarity"])
    return found.sort_values("similarity", ascending=False, kind="stable").reset_index(drop=True)


def _names(groups: int, shared: bool) -> list[str]:
    return [str(g) for g in range(groups - shared)] + ["shared"] * shared
