"""Path patching and activation patching of attention heads on any decoder, batched over heads, by hooks alone.

*Path patching* asks for the direct effect of one head on the prediction at the last position: every head is held at its
output on the clean prompt except one, which gives its output on a corrupted prompt; MLPs and norms are computed anew.
With all heads held, what the last position computes depends on its own column only, so the patched pass is a pass over
*one* token per row whose attention outputs are put in place by a hook: all heads of all prompts are rows of one batch.
``tests/probes`` holds it to whole forward passes with the hooks of ``workbench.probes.heads``.

*Activation patching* gives the total effect: the same replacement, but everything after the head is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput, ModelError
from workbench.models.batches import by_length, padded
from workbench.probes.heads import Head, _network, all_heads, capture, edit, sites

Ids = Sequence[int]
#: A corruption (by number) and the head that takes its output.
Cell = tuple[int, Head]
#: How an effect on the answers is measured.
EFFECTS = ("logit_diff", "logit", "prob_rel")


@dataclass(frozen=True)
class LastOutputs:
    """What each head gave at the last token of each prompt: z (layers, prompts, H, D), logits (prompts, V)."""

    z: Tensor
    logits: Tensor
    last_ids: Tensor
    last_positions: Tensor


@dataclass(frozen=True)
class Effects:
    """Effect of each head on two answers, per prompt: arrays (layers, heads, prompts), means over corruptions.

    ``first``, ``second``: change of the logit of each answer (memory and context, correct and wrong, ...);
    ``first_rel``, ``second_rel``: change of its probability relative to before. NaN where a head was not patched.
    """

    first: np.ndarray
    second: np.ndarray
    first_rel: np.ndarray
    second_rel: np.ndarray

    def scores(self, effect: str = "logit_diff") -> tuple[np.ndarray, np.ndarray]:
        """(S_first, S_second), each (layers, heads), means over prompts; "logit_diff" gives d and -d."""
        if effect not in EFFECTS:
            raise BadInput(f"effect must be one of {', '.join(EFFECTS)}, got {effect!r}")
        if effect == "logit_diff":
            difference = (self.first - self.second).mean(-1)
            return difference, -difference
        pair = (self.first, self.second) if effect == "logit" else (self.first_rel, self.second_rel)
        return pair[0].mean(-1), pair[1].mean(-1)


@torch.no_grad()
def last_outputs(model: Any, prompts: Sequence[Ids], *, batch_tokens: int = 4096) -> LastOutputs:
    """One ordinary pass over prompts of any lengths; what every head gave at each prompt's last token.

    Rows are padded on the right, which a causal model does not see. Raises BadInput for an empty prompt.
    """
    network, device = _causal(model), _device(model)
    check_prompts(prompts, _vocabulary(network))
    layers = sites(model)
    z: list[Tensor | None] = [None] * len(prompts)
    logits: list[Tensor | None] = [None] * len(prompts)
    with capture(model) as held:
        for rows in by_length([len(p) for p in prompts], batch_tokens):
            ids, ends = padded([prompts[i] for i in rows], device)
            out = network(input_ids=ids, use_cache=False).logits
            at = torch.arange(len(rows), device=device)
            columns = torch.stack([held[site.layer][at, ends] for site in layers])
            for place, row in enumerate(rows):
                z[row], logits[row] = columns[:, place], out[place, ends[place]].float()
    last = torch.tensor([prompt[-1] for prompt in prompts], device=device)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return LastOutputs(
        torch.stack([t for t in z if t is not None], 1), torch.stack([t for t in logits if t is not None]), last, ends
    )


@torch.no_grad()
def path_patching(
    model: Any,
    prompts: Sequence[Ids],
    corrupted: Sequence[Sequence[Ids]],
    answers: Sequence[tuple[int, int]],
    *,
    heads: Sequence[Head] | None = None,
    rows: int = 2048,
    progress: Callable[[float], Any] = lambda fraction: None,
) -> Effects:
    """Direct effect of every head at the last position, averaged over corruptions.

    Args:
        prompts: n token lists x. corrupted: for each prompt one or more token lists of the same length.
        answers: for each prompt the token ids of the two answers whose logits are watched.
        heads: which to patch (all). rows: patched columns computed at once.
    """

    def direct(part: Sequence[Cell], prompt: Tensor, clean: LastOutputs, dirty: LastOutputs) -> Tensor:
        which = torch.tensor([j for j, _ in part], device=prompt.device)
        z = clean.z[:, prompt].clone()
        for layer, head, at in _grouped(part):
            z[layer, at, head] = dirty.z[layer, which[at], head]
        return column(model, z, clean.last_ids[prompt], clean.last_positions[prompt])

    return _patched(model, prompts, corrupted, answers, heads, rows, progress, direct)


def _grouped(cells: Sequence[tuple[int, Head]]) -> Iterator[tuple[int, int, Tensor]]:
    """Rows of a batch by the head that is patched in them."""
    rows: dict[Head, list[int]] = {}
    for row, (_, where) in enumerate(cells):
        rows.setdefault(where, []).append(row)
    for (layer, head), at in rows.items():
        yield layer, head, torch.tensor(at)


@torch.no_grad()
def column(model: Any, z: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits (rows, V) at the last position when every head gives ``z`` (layers, rows, H, D) there.

    ``ids`` (rows,) are the last tokens and ``positions`` their places in the prompts (for models that add a position to
    the embedding). A pass over one token a row: what attention computes in it is replaced before it is read.
    """
    network = _causal(model)

    def put(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda _: z[layer][:, None]

    with edit(model, {site.layer: put(site.layer) for site in sites(model)}):
        out = network(input_ids=ids[:, None], position_ids=positions[:, None], use_cache=False)
    return out.logits[:, -1].float()


@torch.no_grad()
def activation_patching(
    model: Any,
    prompts: Sequence[Ids],
    corrupted: Sequence[Sequence[Ids]],
    answers: Sequence[tuple[int, int]],
    *,
    heads: Sequence[Head] | None = None,
    rows: int = 128,
    progress: Callable[[float], Any] = lambda fraction: None,
) -> Effects:
    """Total effect of giving a head, at the last position, its output on the corrupted prompt. Arguments as above.

    Every (prompt, corruption, head) is a row of a batch of whole passes: rows x prompt length tokens at once.
    """
    network, device = _causal(model), _device(model)

    def total(part: Sequence[Cell], prompt: Tensor, clean: LastOutputs, dirty: LastOutputs) -> Tensor:
        ids, ends = padded([prompts[i] for i in prompt.tolist()], device)
        with _rowwise(model, part, dirty.z, ends):
            out = network(input_ids=ids, use_cache=False).logits
        return out[torch.arange(len(part)), ends].float()

    return _patched(model, prompts, corrupted, answers, heads, rows, progress, total)


def _patched(
    model: Any, prompts: Sequence[Ids], corrupted: Sequence[Sequence[Ids]], answers: Sequence[tuple[int, int]],
    heads: Sequence[Head] | None, rows: int, progress: Callable[[float], Any], logits_of: Callable[..., Tensor],
) -> Effects:  # fmt: skip
    """Every head of every corruption is a cell; ``logits_of(cells, their prompts, clean, dirty)`` patches a batch."""
    rows = whole("rows", rows, more=" (how many patched rows are computed at once)")
    chosen = _checked(model, prompts, corrupted, answers, heads)
    clean = last_outputs(model, prompts)
    flat = [(i, ids) for i, options in enumerate(corrupted) for ids in options]
    dirty = last_outputs(model, [ids for _, ids in flat])
    of_prompt = torch.tensor([i for i, _ in flat], device=clean.z.device)
    cells = [(j, head) for j in range(len(flat)) for head in chosen]
    found, found_p = torch.empty(len(cells), 2), torch.empty(len(cells), 2)
    pair = torch.tensor(list(answers), device=clean.z.device)
    for start in range(0, len(cells), rows):
        part = cells[start : start + rows]
        prompt = of_prompt[[j for j, _ in part]]
        logits = logits_of(part, prompt, clean, dirty)
        found[start : start + len(part)] = logits.gather(1, pair[prompt]).cpu()
        found_p[start : start + len(part)] = logits.softmax(-1).gather(1, pair[prompt]).cpu()
        progress(min(1.0, (start + len(part)) / len(cells)))
    return _effects(model, cells, of_prompt.tolist(), clean, pair, found, found_p)


@contextmanager
def _rowwise(model: Any, cells: Sequence[tuple[int, Head]], values: Tensor, ends: Tensor) -> Iterator[None]:
    """Row r of the batch gets head ``cells[r]`` replaced at its own last position."""
    by_layer: dict[int, list[tuple[int, int, int]]] = {}
    for row, (j, (layer, head)) in enumerate(cells):
        by_layer.setdefault(layer, []).append((row, head, j))

    def put(layer: int) -> Callable[[Tensor], Tensor]:
        row, head, j = (list(values) for values in zip(*by_layer[layer]))

        def apply(z: Tensor) -> Tensor:
            z[row, ends[row], head] = values[layer, j, head].to(z)
            return z

        return apply

    with edit(model, {layer: put(layer) for layer in by_layer}):
        yield


def _effects(
    model: Any, cells: Sequence[tuple[int, Head]], of_prompt: Sequence[int], clean: LastOutputs, pair: Tensor,
    found: Tensor, found_p: Tensor,
) -> Effects:  # fmt: skip
    known, n = sites(model), len(clean.logits)
    before = clean.logits.gather(1, pair).cpu()
    before_p = clean.logits.softmax(-1).gather(1, pair).cpu()
    prompt = torch.tensor([of_prompt[j] for j, _ in cells])
    change, relative = found - before[prompt], found_p / before_p[prompt] - 1.0
    total = np.zeros((4, len(known), known[0].n_heads, n))
    count = np.zeros((len(known), known[0].n_heads, n))
    where = tuple(np.array(index) for index in zip(*((*head, int(i)) for (_, head), i in zip(cells, prompt))))
    for index, values in enumerate((change[:, 0], change[:, 1], relative[:, 0], relative[:, 1])):
        np.add.at(total[index], where, values.double().numpy())
    np.add.at(count, where, 1.0)
    with np.errstate(invalid="ignore"):
        mean = total / np.where(count > 0, count, np.nan)
    return Effects(*mean)


# ---- prompts --------------------------------------------------------------------------------------------------------


def check_prompts(prompts: Sequence[Ids], vocabulary: int | None = None) -> None:
    """Raises BadInput for no prompt, an empty one, and ids outside a vocabulary (which would end a GPU's process)."""
    if not len(prompts):
        raise BadInput("there are no prompts")
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise BadInput(f"prompt {empty[0]} is empty; every prompt needs at least one token")
    for i, prompt in enumerate(prompts if vocabulary is not None else []):
        check_tokens(f"prompt {i}", prompt, vocabulary)


def check_tokens(name: str, ids: Ids, vocabulary: int | None) -> None:
    """Raises BadInput for a token id outside ``vocabulary``."""
    outside = [token for token in ids if vocabulary is not None and not 0 <= int(token) < vocabulary]
    if outside:
        raise BadInput(f"{name} holds {outside[0]}, which is no token of this model of {vocabulary} tokens")


def check_answers(answers: Sequence[tuple[int, int]], vocabulary: int) -> None:
    """Raises BadInput for answers that are not two different tokens of the model."""
    for i, pair in enumerate(answers):
        if np.shape(pair) != (2,):
            raise BadInput(f"answers[{i}] must be the token ids of two answers, got {pair!r}")
        check_tokens(f"answers[{i}]", pair, vocabulary)
        if pair[0] == pair[1]:
            raise BadInput(f"prompt {i}: both answers begin with token {pair[0]}; they cannot be told apart")


def _vocabulary(network: Any, *, said: bool = False) -> int:
    """How many tokens a model reads, or how many it can say."""
    table = network.get_output_embeddings() if said else network.get_input_embeddings()
    return int(table.weight.shape[0])


def _checked(
    model: Any, prompts: Sequence[Ids], corrupted: Sequence[Sequence[Ids]], answers: Sequence[tuple[int, int]],
    heads: Sequence[Head] | None,
) -> list[Head]:  # fmt: skip
    check_prompts(prompts)
    if len(corrupted) != len(prompts) or len(answers) != len(prompts):
        raise BadInput(
            f"{len(prompts)} prompts need as many corruptions and answers, got {len(corrupted)} and {len(answers)}"
        )
    for i, (prompt, options) in enumerate(zip(prompts, corrupted)):
        wrong = [len(ids) for ids in options if len(ids) != len(prompt)]
        if not len(options) or wrong:
            said = f"one of {wrong[0]} tokens" if wrong else "none"
            raise BadInput(f"prompt {i} has {len(prompt)} tokens; its corruptions must have as many, got {said}")
    check_answers(answers, _vocabulary(_causal(model), said=True))
    known = all_heads(model)
    chosen = known if heads is None else [tuple(head) if isinstance(head, list) else head for head in heads]
    if not chosen:
        raise BadInput("heads names no head; leave it out to patch all of them")
    outside = [head for head in chosen if head not in set(known)]
    if outside:
        raise BadInput(
            f"head {outside[0]} is outside this model of {len(sites(model))} layers of {sites(model)[0].n_heads} heads"
        )
    return chosen


def _causal(model: Any) -> Any:
    network = _network(model)
    if network.get_output_embeddings() is None or getattr(network.config, "is_encoder_decoder", False):
        raise ModelError(f"{type(network).__name__} predicts no next token; patching needs a causal language model")
    return network


def _device(model: Any) -> torch.device:
    return next(_network(model).parameters()).device
