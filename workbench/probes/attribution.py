"""What a head says by itself, and what a small change of it would do: direct logit attribution and gate gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import BadInput, ModelError
from workbench.models.batches import by_length, padded
from workbench.probes.heads import gate, sites
from workbench.probes.patching import (
    Ids,
    _causal,
    _device,
    _vocabulary,
    check_answers,
    check_prompts,
    check_tokens,
    last_outputs,
)

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "ln_out")


@torch.no_grad()
def logit_attribution(model: Any, prompts: Sequence[Ids], tokens: Sequence[int] | None = None) -> Tensor:
    """What each head's output at the last position adds to the logits: (layers, heads, prompts, V or 1).

    z_h W_O through the final norm with the scale that the whole residual has there, then the unembedding. The norm's
    mean (LayerNorm) is taken from each part; its bias belongs to no head. ``tokens``: one token id a prompt, else all.
    """
    network = _causal(model)
    norm, head = final_norm(model), network.get_output_embeddings()
    if tokens is not None:
        if len(tokens) != len(prompts):
            raise BadInput(f"{len(prompts)} prompts need as many tokens, got {len(tokens)}")
        check_tokens("tokens", tokens, _vocabulary(network, said=True))
    clean = last_outputs(model, prompts)
    scale = _final_scale(model, norm, prompts)
    weight = head.weight if tokens is None else None
    out = []
    for site, z in zip(sites(model), clean.z):
        written = torch.stack([z[:, h].float() @ site.weight(h).float() for h in range(site.n_heads)])  # H n d
        normed = _direction(norm, written) * scale[:, None]
        if tokens is None:
            out.append(normed @ weight.float().T)  # type: ignore[union-attr]
        else:
            chosen = head.weight[torch.tensor(list(tokens), device=normed.device)].float()
            out.append((normed * chosen).sum(-1, keepdim=True))
    return torch.stack(out)


def final_norm(model: Any) -> nn.Module:
    """The norm before the unembedding; raises ModelError for a model whose norm is not among the known names."""
    network = _causal(model)
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network.base_model
    for part in (decoder, getattr(decoder, "decoder", None), network.base_model):
        for name in _NORMS:
            norm = getattr(part, name, None)
            if isinstance(norm, nn.Module):
                return norm
    raise ModelError(
        f"{type(network).__name__} has no final norm under a known name ({', '.join(_NORMS)}), so what a head adds to "
        "the logits cannot be told apart"
    )


def _direction(norm: nn.Module, x: Tensor) -> Tensor:
    """The linear part of the norm: centred for LayerNorm, times the gain (one more for Gemma's)."""
    gain = getattr(norm, "weight", None)
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    if gain is None:
        return x
    plus_one = "gemma" in type(norm).__name__.lower()
    return x * (gain.float() + (1.0 if plus_one else 0.0))


def _final_scale(model: Any, norm: nn.Module, prompts: Sequence[Ids]) -> Tensor:
    """1 / (root mean square, or standard deviation) of the residual that the final norm gets at each prompt's end."""
    network, device = _causal(model), _device(model)
    found = torch.empty(len(prompts), device=device)
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    eps = float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-6)))
    try:
        for rows in by_length([len(p) for p in prompts], 4096):
            ids, ends = padded([prompts[i] for i in rows], device)
            seen.clear()
            network(input_ids=ids, use_cache=False)
            x = seen[-1][torch.arange(len(rows), device=device), ends].float()
            spread = x.var(-1, unbiased=False) if isinstance(norm, nn.LayerNorm) else x.pow(2).mean(-1)
            found[torch.tensor(rows, device=device)] = (spread + eps).rsqrt()
    finally:
        hook.remove()
    return found


def gate_gradients(model: Any, prompts: Sequence[Ids], answers: Sequence[tuple[int, int]]) -> np.ndarray:
    """d(logit of the first answer - logit of the second) / d gate of each head at gate 1, mean over prompts.

    One backward pass: the cheap version of silencing each head (a gate of 0). Shape (layers, heads).
    """
    network, device, known = _causal(model), _device(model), sites(model)
    check_prompts(prompts, _vocabulary(network))
    if len(answers) != len(prompts):
        raise BadInput(f"{len(prompts)} prompts need as many answers, got {len(answers)}")
    check_answers(answers, _vocabulary(network, said=True))
    gates = torch.ones(len(known), known[0].n_heads, device=device, requires_grad=True)
    total = torch.zeros_like(gates)
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for rows in by_length([len(p) for p in prompts], 2048):
            ids, ends = padded([prompts[i] for i in rows], device)
            with torch.enable_grad(), gate(model, gates):
                logits = network(input_ids=ids, use_cache=False).logits[torch.arange(len(rows), device=device), ends]
                pair = torch.tensor([answers[i] for i in rows], device=device)
                chosen = logits.float().gather(1, pair)
                total += torch.autograd.grad((chosen[:, 0] - chosen[:, 1]).sum(), gates)[0]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return (total / len(prompts)).double().cpu().numpy()
