"""Long sums in parts: the same products, used where they occur and nowhere else, below vmap and in backward passes."""

import contextlib

import pytest
import tiny_kit as kit
import torch

from workbench.training import _long_sums
from workbench.training._long_sums import LongSums, long_bmm, parts_of
from workbench.training._tiny_run import TinyRun
from workbench.training.tiny import Recipe, answer_loss, as_pool

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("n", "m", "k", "p", "parts"),
    [(3, 192, 16384, 64, 32), (3, 64, 16384, 64, 64), (400, 32, 4096, 32, 1), (1, 64, 300, 64, 1), (1, 8, 2600, 8, 8)],
)
def test_products_are_those_of_bmm_whatever_the_strides(n, m, k, p, parts):
    assert parts_of(n, m, k, p) == parts
    torch.manual_seed(0)
    n = min(n, 3)
    for a in (torch.randn(n, m, k, dtype=torch.float64), torch.randn(n, k, m, dtype=torch.float64).mT):
        for b in (torch.randn(n, k, p, dtype=torch.float64), torch.randn(n, p, k, dtype=torch.float64).mT):
            torch.testing.assert_close(long_bmm(a, b), a @ b)


@pytest.mark.parametrize("stack", [True, False])
def test_gradients_of_a_stack_are_cut_and_the_same(stack, monkeypatch):
    pool, asked = as_pool(kit.pool()), []
    recipe = Recipe(steps=4, batch=32, warmup=1)  # 32 x 16 tokens: sums of 512
    monkeypatch.setattr(_long_sums, "parts_of", lambda n, m, k, p: asked.append(k) or parts_of(n, m, k, p))

    def gradients(context):
        run = TinyRun(kit.build_double, lambda step: pool, recipe, (0, 1), CPU, answer_loss(), stack, None)
        with context:
            run._gradients(run.sample())
        return {name: p.grad.clone() for name, p in run.parameters.items()}

    plain = gradients(contextlib.nullcontext())
    assert not asked
    cut = gradients(LongSums())
    assert (512 in asked) == stack  # one seed's own gradients are plain products, which the library cuts itself
    for name, grad in plain.items():
        torch.testing.assert_close(cut[name], grad, rtol=1e-10, atol=1e-12)
