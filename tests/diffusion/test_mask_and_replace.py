"""Mask and replace: its closed forms are those of the products of its one-step matrices."""

import numpy as np
import pytest
import torch
from diffusers import VQDiffusionScheduler
from torch import Tensor

from meddelinea.diffusion.mask_and_replace import STEPS, MaskAndReplace, draw

K = 5
PROCESS = MaskAndReplace.linear(K)


def matrix(process: MaskAndReplace, t: int) -> np.ndarray:
    """Q_t of the paper's Eq. (7): column j holds the probabilities of what becomes of code j; the last is [MASK]."""
    alpha = float(process.stay[t] / process.stay[t - 1])
    gamma = float(1 - (1 - process.masked[t]) / (1 - process.masked[t - 1]))
    beta = (1 - alpha - gamma) / process.codes
    Q = np.full((process.codes + 1, process.codes + 1), beta) + alpha * np.eye(process.codes + 1)
    Q[-1], Q[:, -1] = gamma, 0.0
    Q[-1, -1] = 1.0
    return Q


def product(process: MaskAndReplace, early: int, late: int) -> np.ndarray:
    Q = np.eye(process.codes + 1)
    for t in range(early + 1, late + 1):
        Q = matrix(process, t) @ Q
    return Q


def at(*times: int) -> Tensor:
    return torch.tensor(times)


def test_each_step_is_a_transition_of_probabilities() -> None:
    for t in range(1, STEPS + 1):
        Q = matrix(PROCESS, t)
        assert (Q >= -1e-12).all()
        np.testing.assert_allclose(Q.sum(axis=0), 1.0, atol=1e-12)


def test_it_ends_with_nine_tenths_masked_and_nothing_of_the_clean_codes() -> None:
    ends = PROCESS.marginal(torch.arange(K)[None], at(STEPS))  # (1, K + 1, K)
    torch.testing.assert_close(ends[0, -1], torch.full((K,), 0.9))
    torch.testing.assert_close(ends[0, :-1], torch.full((K, K), 0.1 / K))
    assert torch.equal(PROCESS.marginal(torch.arange(K)[None], at(0))[0, :-1], torch.eye(K))


@pytest.mark.parametrize("t", [1, 2, 37, 99, 100])
def test_the_marginal_is_the_product_of_the_steps(t: int) -> None:
    ours = PROCESS.marginal(torch.arange(K)[None], at(t))[0]
    np.testing.assert_allclose(ours, product(PROCESS, 0, t)[:, :K], atol=1e-6)


@pytest.mark.parametrize(("early", "late"), [(0, 1), (1, 2), (40, 41), (0, 100), (20, 60), (99, 100), (50, 100)])
def test_the_posterior_is_bayes_rule_over_the_products(early: int, late: int) -> None:
    before, between = product(PROCESS, 0, early), product(PROCESS, early, late)
    shares = torch.rand(1, K, K + 1, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    noisy = torch.arange(K + 1)[None]  # each code, and [MASK]
    ours = PROCESS.posterior(shares, noisy, at(early), late=at(late))
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(1, K + 1))
    for position in range(K + 1):
        expected = np.zeros(K + 1)
        for clean in range(K):
            joint = between[position] * before[:, clean]  # q(x_late | x_early) q(x_early | x_0)
            expected += float(shares[0, clean, position]) * joint / joint.sum()
        np.testing.assert_allclose(ours[0, :, position], expected, atol=2e-6)


def test_each_image_has_its_own_times() -> None:
    clean, early, late = torch.randint(K, (3, 7)), at(0, 3, 50), at(4, 9, 100)
    together = PROCESS.marginal(clean, late)
    noisy = draw(together, torch.randn(3, 7))
    shares = torch.rand(3, K, 7).softmax(dim=1)
    posterior = PROCESS.posterior(shares, noisy, early, late=late)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(PROCESS.marginal(clean[one], late[one]), together[one])
        alone = PROCESS.posterior(shares[one], noisy[one], early[one], late=late[one])
        torch.testing.assert_close(alone, posterior[one])


@pytest.mark.parametrize("t", [1, 30, 99])
def test_the_posterior_is_that_of_diffusers_over_its_schedule(t: int) -> None:
    theirs = VQDiffusionScheduler(num_vec_classes=K + 1, num_train_timesteps=100)
    # Its shares change evenly too, but between other ends, and it counts from the first noisy timestep.
    ends = theirs.config
    stay = np.linspace(ends.alpha_cum_start, ends.alpha_cum_end, 100)
    masked = np.linspace(ends.gamma_cum_start, ends.gamma_cum_end, 100)
    process = MaskAndReplace(
        K, torch.tensor([1.0, *stay], dtype=torch.float64), torch.tensor([0.0, *masked], dtype=torch.float64)
    )
    shares = torch.rand(1, K, K + 1, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    noisy = torch.arange(K + 1)[None]
    expected = theirs.q_posterior(shares.log(), noisy, torch.tensor([t])).exp()
    ours = process.posterior(shares, noisy, at(t), late=at(t + 1))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_codes_are_drawn_as_often_as_is_probable() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    normal = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    codes = draw(probabilities[None, :, None].expand(1, 4, 100_000), normal)
    shares = torch.bincount(codes[0], minlength=4) / 100_000
    torch.testing.assert_close(shares, probabilities, atol=0.01, rtol=0)
    assert shares[1] == 0
    extreme = draw(probabilities[None, :, None].expand(1, 4, 2), torch.tensor([[-40.0, 40.0]]))
    assert extreme.tolist() == [[0, 3]]
