"""Every distribution has its mean and variance, and keys, sites and elements are independent."""

from __future__ import annotations

import math

import pytest
import torch

from partitioner.ops.distributions import DISTRIBUTIONS, sample
from partitioner.ops.own_ops import draw, dropout_mask, mix64

COUNT = 40_000
MOMENTS: dict[str, tuple[tuple[float, ...], float, float]] = {
    "bernoulli": ((0.3,), 0.3, 0.21),
    "exponential": ((2.0,), 0.5, 0.25),
    "geometric": ((0.25,), 4.0, 12.0),
    "integers": ((-2.0, 5.0), 1.0, 4.0),
    "log_normal": ((0.0, 0.5), math.exp(0.125), (math.exp(0.25) - 1) * math.exp(0.25)),
    "normal": ((1.0, 2.0), 1.0, 4.0),
    "uniform": ((-1.0, 3.0), 1.0, 4 / 3),
}
CPU = torch.device("cpu")


def test_no_distribution_is_left_out() -> None:
    assert DISTRIBUTIONS.keys() == {*MOMENTS, "cauchy", "permutation"}  # one has no mean, one no parameters


@pytest.mark.parametrize("name", MOMENTS)
def test_mean_and_variance(name: str) -> None:
    parameters, mean, variance = MOMENTS[name]
    x = sample(name, parameters, (COUNT,), 1, torch.float64, CPU)
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / COUNT))
    assert float(x.var()) == pytest.approx(variance, rel=0.1)


def test_a_permutation_and_the_quartiles_of_cauchy() -> None:
    order = sample("permutation", (), (50,), 1, torch.int64, CPU)
    assert order.sort().values.tolist() == list(range(50))
    assert order.tolist() != list(range(50))
    x = sample("cauchy", (1.0, 2.0), (COUNT,), 1, torch.float64, CPU)
    assert x.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist() == pytest.approx([-1, 1, 3], abs=0.1)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_dtype_rounds_and_draws_no_other_numbers(name: str) -> None:
    parameters = MOMENTS[name][0] if name in MOMENTS else (0.0, 1.0) if name == "cauchy" else ()
    a, b = (sample(name, parameters, (99,), 5, dtype, CPU) for dtype in (torch.float64, torch.bfloat16))
    assert torch.allclose(a, b.double(), rtol=2**-7, atol=2**-7)


def test_a_short_uniform_draw_excludes_its_end() -> None:
    x = sample("uniform", (0.0, 1.0), (COUNT,), 1, torch.float32, CPU)
    assert bool((x.bfloat16() == 1).any())
    for dtype in (torch.bfloat16, torch.float16):
        assert float(sample("uniform", (0.0, 1.0), (COUNT,), 1, dtype, CPU).max()) < 1


def test_samples_sites_and_steps_are_independent() -> None:
    keys = torch.tensor([mix64(0, step, g) for step in range(3) for g in range(4)])
    rows = torch.cat([draw(keys, "normal", (0.0, 1.0), site, (4000,), torch.float64) for site in range(3)])
    correlation = torch.corrcoef(torch.cat([rows, draw(torch.tensor(mix64(0, 0)), "normal", (0.0, 1.0), 0, (1, 4000),
                                                       torch.float64)]))  # fmt: skip
    assert float((correlation - torch.eye(len(correlation))).abs().max()) < 0.08


def test_a_samples_draw_does_not_know_of_the_others() -> None:
    keys = torch.arange(5)
    whole = draw(keys, "uniform", (0.0, 1.0), 2, (3, 4), torch.float32)
    assert torch.equal(whole[3:], draw(keys[3:], "uniform", (0.0, 1.0), 2, (3, 4), torch.float32))
    assert draw(keys[0], "uniform", (0.0, 1.0), 2, (3, 4), torch.float32).equal(whole[0])
    assert 0.7 < float(dropout_mask((999,), 0.25, 1, 0, CPU).float().mean()) < 0.8
