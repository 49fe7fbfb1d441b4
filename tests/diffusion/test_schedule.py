"""The forward process against closed forms."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from meddelinea.diffusion.schedule import NoiseSchedule, Prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SCHEDULE = NoiseSchedule.linear()
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
T = torch.tensor([0, 1, 250, 500, 998, 999])


def latents(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(T), 4, 8, 8, generator=generator, dtype=dtype)
    return clean, noise


def test_alpha_bar_is_the_product_of_the_linear_betas():
    expected = np.cumprod(1 - (1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999))
    assert len(SCHEDULE) == 1000
    assert SCHEDULE.alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(SCHEDULE.alpha_bar, expected, rtol=1e-12)
    sigma = np.sqrt((1 - expected) / expected)
    assert sigma[-1] == pytest.approx(157.4, abs=0.05)


def test_alpha_bar_agrees_with_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod
    # theirs is a float32 product of 1000 factors, each rounded by up to 6e-8
    torch.testing.assert_close(SCHEDULE.alpha_bar, theirs.double(), rtol=1000 * 6e-8, atol=0)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_noisy_latents_have_the_mean_and_variance_of_the_forward_process(t):
    n, clean_value = 200_000, 1.7
    noise = torch.randn(1, 1, 1, n, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    noisy = SCHEDULE.add_noise(torch.full_like(noise, clean_value), noise, torch.tensor([t]))
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: t + 1])
    # Five standard errors: of a mean sd / sqrt(n), of a variance var * sqrt(2 / n).
    assert noisy.mean().item() == pytest.approx(clean_value * alpha_bar**0.5, abs=5 * ((1 - alpha_bar) / n) ** 0.5)
    assert noisy.var().item() == pytest.approx(1 - alpha_bar, rel=5 * (2 / n) ** 0.5)


def test_tweedie_returns_the_clean_latent_when_the_noise_is_known():
    clean, noise = latents()
    noisy = SCHEDULE.add_noise(clean, noise, T)
    torch.testing.assert_close(Prediction(SCHEDULE, "epsilon").clean(noise, noisy, T), clean, rtol=0, atol=1e-12)
    clean, noise = latents(torch.float32)
    noisy = SCHEDULE.add_noise(clean, noise, T)
    # float32 rounds noisy by 6e-8 of its size (up to 5 here), and 1 / sqrt(alpha_bar) reaches 157.4
    torch.testing.assert_close(
        Prediction(SCHEDULE, "epsilon").clean(noise, noisy, T), clean, rtol=0, atol=157.4 * 5 * 2 * 6e-8
    )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_clean_and_epsilon_are_consistent(prediction_type):
    clean, noise = latents()
    noisy = SCHEDULE.add_noise(clean, noise, T)
    prediction = Prediction(SCHEDULE, prediction_type)
    target = prediction.target(clean, noise, T)
    torch.testing.assert_close(prediction.clean(target, noisy, T), clean, rtol=0, atol=1e-11)
    # At t = 0 the noise is 1 % of the latent, so rounding grows a hundredfold.
    torch.testing.assert_close(prediction.epsilon(target, noisy, T), noise, rtol=0, atol=1e-11)


def test_v_is_the_derivative_by_the_angle():
    """With z = cos(phi) x + sin(phi) eps, v = dz / dphi = cos(phi) eps - sin(phi) x."""
    clean, noise = latents()
    phi = torch.arccos(SCHEDULE.alpha_bar[T].sqrt()).view(-1, 1, 1, 1)
    h = 1e-6
    ahead, behind = (torch.cos(phi + d) * clean + torch.sin(phi + d) * noise for d in (h, -h))
    target = Prediction(SCHEDULE, "v_prediction").target(clean, noise, T)
    torch.testing.assert_close(target, (ahead - behind) / (2 * h), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_tables_are_as_precise_as_the_latents_they_meet_and_float32_at_least(dtype, kept):
    clean, noise = latents(dtype)
    assert SCHEDULE.add_noise(clean, noise, T).dtype == kept
    signal, sigma = SCHEDULE.signal_and_noise(T, clean)
    assert signal.shape == sigma.shape == (len(T), 1, 1, 1)
    assert signal.dtype == sigma.dtype == kept


def test_the_schedule_and_its_inputs_do_not_change():
    schedule = NoiseSchedule.linear()
    clean, noise = latents()
    inputs = clean.clone(), noise.clone()
    for prediction_type in PREDICTION_TYPES:
        noisy = schedule.add_noise(clean, noise, T)
        prediction = Prediction(schedule, prediction_type)
        prediction.target(clean, noise, T)
        prediction.clean(noise, noisy, T)
        prediction.epsilon(clean, noisy, T)
    assert torch.equal(schedule.alpha_bar, NoiseSchedule.linear().alpha_bar)
    assert torch.equal(clean, inputs[0])
    assert torch.equal(noise, inputs[1])
    with pytest.raises(FrozenInstanceError):
        schedule.alpha_bar = torch.ones(1000)
