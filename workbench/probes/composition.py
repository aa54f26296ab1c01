"""Weights of attention heads, how they compose, and the rank-one channels through which one head talks to another.

Row-vector convention: d residual width, d_h head width; W_Q, W_K, W_V (d, d_h), W_O (d_h, d); W_OV = W_V W_O (d, d) is
what a head writes for what it reads, W_QK = W_Q W_K^T (d, d) how strongly query residual x attends to key residual y
(x W_QK y^T). The gain of the norm before the layer is folded into W_Q, W_K and W_V; LayerNorm models also lose the mean
of what is written, which no later norm can see.

Composition of a writer a with a later reader b (Elhage et al. 2021): ||W_OV^a M|| / (||W_OV^a|| ||M||), Frobenius,
with M = W_QK^b ("query"), W_QK^b transposed ("key") or W_OV^b ("value"). Merullo et al. 2024 split the writer by SVD,
W_OV = sum_i s_i u_i v_i: a component's score ||v_i M|| / ||M|| does not depend on how large it or others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInput, ModelError
from workbench.probes.heads import HeadSite, _network, sites

KINDS = ("query", "key", "value")
_INPUT_NORMS = ("input_layernorm", "ln_1", "self_attn_layer_norm", "pre_attention_layernorm", "attention_norm")


@dataclass(frozen=True)
class HeadWeights:
    """One head's matrices, norm folded: q, k, v (d, d_h), o (d_h, d); ``frequencies`` (pairs,) of its rotation."""

    layer: int
    head: int
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    frequencies: Tensor | None = None

    def ov(self) -> Tensor:
        """W_OV (d, d)."""
        return self.v @ self.o

    def qk(self, offset: float = 0.0) -> Tensor:
        """W_QK (d, d); with rotary positions for a key that stands ``offset`` tokens before the query."""
        return self.rotated(offset) @ self.k.T

    def rotated(self, offset: float = 0.0) -> Tensor:
        """W_Q turned by ``offset`` positions, so that W_Q R W_K^T is the score's matrix at that distance."""
        if not offset:
            return self.q
        if self.frequencies is None:
            raise BadInput("offset needs rotary positions; this model has none, leave it at 0")
        angle = offset * self.frequencies.to(self.q)
        cos, sin, pairs = angle.cos(), angle.sin(), len(angle)
        first, second, rest = self.q[:, :pairs], self.q[:, pairs : 2 * pairs], self.q[:, 2 * pairs :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], 1)


@dataclass(frozen=True)
class Components:
    """W_OV of a head as s_i u_i v_i: u (r, d) what is read, s (r,) how much, v (r, d) the direction that is written."""

    u: Tensor
    s: Tensor
    v: Tensor


def head_weights(model: Any) -> list[HeadWeights]:
    """All heads of a decoder in order, in float64. Works on separate, joined and interleaved Q/K/V projections.

    Raises ModelError for a module whose projections it does not know, naming what it looked for.
    """
    network = _network(model)
    modules = dict(network.named_modules())
    frequencies = _frequencies(network)
    found = []
    for site in sites(model):
        attention = modules[site.name]
        gain, centred = _input_norm(modules, site.name)
        q, k, v = (part.double() * gain.double()[:, None] for part in _projections(attention, site))
        for head in range(site.n_heads):
            group = site.group(head)
            own, shared = (slice(i * site.head_dim, (i + 1) * site.head_dim) for i in (head, group))
            o = site.weight(head).detach().double()
            o = o - o.mean(-1, keepdim=True) if centred else o
            found.append(HeadWeights(site.layer, head, q[:, own], k[:, shared], v[:, shared], o, frequencies))
    return found


def _projections(attention: nn.Module, site: HeadSite) -> tuple[Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V as (d, heads x d_h), heads in order."""
    if all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
        q, k, v = (_matrix(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
        return q, k, v
    sizes = [site.n_heads * site.head_dim, *[site.n_kv_heads * site.head_dim] * 2]
    for name in ("c_attn", "qkv_proj"):
        if hasattr(attention, name):
            q, k, v = _matrix(getattr(attention, name)).split(sizes, 1)
            return q, k, v
    if hasattr(attention, "query_key_value"):  # GPT-NeoX: q, k, v of one head stand together
        joined = _matrix(attention.query_key_value)
        parts = joined.reshape(len(joined), site.n_heads, 3, site.head_dim)
        q, k, v = (parts[:, :, i].reshape(len(joined), -1) for i in range(3))
        return q, k, v
    raise ModelError(
        f"layer {site.layer} ({type(attention).__name__}) has no query, key and value weights under a known name "
        "(q_proj/k_proj/v_proj, c_attn, qkv_proj, query_key_value), so its heads cannot be taken apart"
    )


def _matrix(projection: nn.Module) -> Tensor:
    """The weight as (inputs, outputs)."""
    weight: Tensor = projection.weight.detach()  # type: ignore[assignment]
    return weight.T if isinstance(projection, nn.Linear) else weight


def _input_norm(modules: dict[str, nn.Module], name: str) -> tuple[Tensor, bool]:
    """Gain of the norm before an attention module, and whether it subtracts the mean."""
    block = modules[name.rsplit(".", 1)[0]]
    for spelling in _INPUT_NORMS:
        norm = getattr(block, spelling, None)
        if isinstance(norm, nn.Module) and getattr(norm, "weight", None) is not None:
            weight: Tensor = norm.weight.detach()  # type: ignore[assignment]
            one = 1.0 if "gemma" in type(norm).__name__.lower() else 0.0
            return weight + one, isinstance(norm, nn.LayerNorm)
    raise ModelError(f"the norm before {name} was not found under a known name ({', '.join(_INPUT_NORMS)})")


def _frequencies(network: nn.Module) -> Tensor | None:
    for module in network.modules():
        if type(module).__name__.endswith("RotaryEmbedding") and isinstance(getattr(module, "inv_freq", None), Tensor):
            return module.inv_freq.double()  # type: ignore[operator, return-value]
    return None


# ---- composition ----------------------------------------------------------------------------------------------------


def components(head: HeadWeights) -> Components:
    """SVD of W_OV through its factors, O(d d_h^2): at most d_h components, by falling s."""
    left, upper = torch.linalg.qr(head.v)
    right, lower = torch.linalg.qr(head.o.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    return Components((left @ u).T, s, v @ right.T)


def reads(head: HeadWeights, kind: str, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """The reader's matrix M as a product of two factors (d, d_h), (d, d_h): M = first @ second^T."""
    if kind not in KINDS:
        raise BadInput(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "query":
        return head.rotated(offset), head.k
    if kind == "key":
        return head.k, head.rotated(offset)
    return head.v, head.o.T


def composition(writer: HeadWeights, reader: HeadWeights, kind: str = "query", *, offset: float = 0.0) -> float:
    """The composition score of two whole heads, in [0, 1]."""
    _ordered(writer, reader)
    first, second = reads(reader, kind, offset)
    whole = _product_norm(writer.v, writer.o @ first, second)
    return float(whole / (_product_norm(writer.v, None, writer.o.T) * _product_norm(first, None, second)))


def component_scores(
    writer: HeadWeights | Components, reader: HeadWeights, kind: str = "query", *, offset: float = 0.0
) -> Tensor:
    """||v_i M|| / ||M|| of every component of the writer, (r,), each in [0, 1]."""
    if isinstance(writer, HeadWeights):
        _ordered(writer, reader)
    parts = writer if isinstance(writer, Components) else components(writer)
    first, second = reads(reader, kind, offset)
    return _row_norms(parts.v @ first, second) / _product_norm(first, None, second)


def _ordered(writer: HeadWeights, reader: HeadWeights) -> None:
    if writer.layer >= reader.layer:
        names = f"head {writer.layer}.{writer.head} cannot feed {reader.layer}.{reader.head}"
        raise BadInput(f"{names}: a writer stands in an earlier layer")


def _product_norm(left: Tensor, middle: Tensor | None, right: Tensor) -> Tensor:
    """Frobenius norm of left @ middle @ right^T from the Gram matrices of the thin factors."""
    middle = torch.eye(left.shape[1], dtype=left.dtype, device=left.device) if middle is None else middle
    return ((middle.T @ (left.T @ left) @ middle) * (right.T @ right)).sum().clamp(min=0).sqrt()


def _row_norms(rows: Tensor, right: Tensor) -> Tensor:
    """||row @ right^T|| of every row."""
    return ((rows @ (right.T @ right)) * rows).sum(-1).clamp(min=0).sqrt()


def score_table(
    heads: Sequence[HeadWeights],
    *,
    kind: str = "query",
    readers: Sequence[HeadWeights] | None = None,
    offset: float = 0.0,
) -> Any:
    """One row a (writer, component, reader) with the writer in an earlier layer, as a frame.

    Columns: writer_layer, writer, component, s, reader_layer, reader, kind, score, z (over all rows), whole (score of
    the whole writer), whole_z (over all pairs).
    """
    import pandas as pd

    parts = {(head.layer, head.head): components(head) for head in heads}
    rows = []
    for reader in heads if readers is None else readers:
        for writer in heads:
            if writer.layer >= reader.layer:
                continue
            own = parts[writer.layer, writer.head]
            scores = component_scores(own, reader, kind, offset=offset).tolist()
            whole = composition(writer, reader, kind, offset=offset)
            rows += [
                (writer.layer, writer.head, i, float(own.s[i]), reader.layer, reader.head, kind, score, whole)
                for i, score in enumerate(scores)
            ]
    names = ["writer_layer", "writer", "component", "s", "reader_layer", "reader", "kind", "score", "whole"]
    frame = pd.DataFrame(rows, columns=names)
    pairs = frame[frame["component"] == 0]["whole"]
    frame["z"] = (frame["score"] - frame["score"].mean()) / frame["score"].std(ddof=0)
    frame["whole_z"] = (frame["whole"] - pairs.mean()) / pairs.std(ddof=0)
    return frame


def without(head: HeadWeights, component: int, alpha: float = 0.0) -> HeadWeights:
    """The head with C_i scaled by alpha (0: removed): W_O <- W_O - (1 - alpha) W_O v_i^T v_i."""
    parts = components(head)
    if not 0 <= component < len(parts.s):
        raise BadInput(f"component {component} is outside this head's {len(parts.s)}")
    v = parts.v[component]
    return replace(head, o=head.o - (1.0 - alpha) * torch.outer(head.o @ v, v))
