"""Keyed noise: standard normal, and a function of its key alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError

KEY = NoiseKey(seed=7, case=0xFEDC_BA98_7654_3210, slice=40, sample=1)
SHAPE = (4, 64, 64)
NEIGHBOURS = [
    replace(KEY, **{name: getattr(KEY, name) + step})
    for name in ("seed", "case", "slice", "sample")
    for step in (1, 2**32)
]


def step_noise(key: NoiseKey) -> torch.Tensor:
    return torch.randn(SHAPE, generator=key.generator())


@pytest.mark.parametrize("draw", [lambda key: key.initial(SHAPE), step_noise], ids=["initial", "steps"])
def test_noise_is_standard_normal_and_repeats(draw):
    noise = draw(KEY)
    assert noise.shape == SHAPE
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    assert stats.kstest(noise.numpy().ravel(), "norm").pvalue > 1e-3
    torch.rand(3)  # the global generator has no part in it
    assert torch.equal(draw(KEY), noise)


@pytest.mark.parametrize("other", NEIGHBOURS, ids=str)
def test_every_part_of_the_key_matters_beyond_its_low_32_bits(other):
    n = np.prod(SHAPE)
    for draw in (lambda key: key.initial(SHAPE), step_noise):
        # The correlation of independent noise has standard deviation 1 / sqrt(n).
        assert abs(np.corrcoef(draw(KEY).ravel(), draw(other).ravel())[0, 1]) < 5 / np.sqrt(n)


def test_initial_and_step_noise_are_independent():
    assert abs(np.corrcoef(KEY.initial(SHAPE).ravel(), step_noise(KEY).ravel())[0, 1]) < 5 / np.sqrt(np.prod(SHAPE))


def test_parts_of_the_key_are_not_interchangeable():
    assert not torch.equal(NoiseKey(1, 0, 0, 0).initial(SHAPE), NoiseKey(0, 1, 0, 0).initial(SHAPE))
    assert not torch.equal(NoiseKey(0, 0, 1, 0).initial(SHAPE), NoiseKey(0, 0, 0, 1).initial(SHAPE))


def test_the_ends_of_the_range_are_keys():
    assert not torch.equal(NoiseKey(0, 0, 0, 0).initial(SHAPE), NoiseKey(*[2**64 - 1] * 4).initial(SHAPE))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None])
def test_a_seed_that_is_not_a_64_bit_integer_is_refused(seed):
    with pytest.raises(UsageError, match=r"seed is .*; expected an integer in 0"):
        NoiseKey(seed, 0, 0, 0)
