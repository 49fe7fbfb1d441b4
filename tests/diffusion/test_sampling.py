"""Samplers against targets whose exact denoiser is known: a point mass and Gaussians.

Written over x = z_t / sqrt(alpha_bar_t) and sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), the forward process is
x = x_0 + sigma eps. For x_0 ~ N(mu, s^2) the denoiser is E[x_0 | x] = mu + s^2 / (s^2 + sigma^2) (x - mu), so each
sampler is an affine map of its noise that a few lines of float64 follow exactly.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
)
from numpy.polynomial import Polynomial

from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import SCHEDULERS, make_scheduler, sample, scheduler_name
from meddelinea.diffusion.schedule import NoiseSchedule, Prediction
from meddelinea.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SIGMA = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)
SHAPE = (4, 16, 16)
KEYS = [NoiseKey(seed=3, case=2**63 + 5, slice=i, sample=0) for i in range(16)]
MU = torch.linspace(-3, 3, 4 * 16 * 16, dtype=torch.float64).view(SHAPE)
S = torch.tensor([0.05, 0.5, 1.0, 2.0], dtype=torch.float64).view(4, 1, 1)


def gaussian(z, t):
    """eps of the exact denoiser of N(MU, S^2), each pixel by itself."""
    alpha_bar = torch.from_numpy(ALPHA_BAR)[t].view(-1, 1, 1, 1)
    gain = S**2 * alpha_bar.sqrt() / (S**2 * alpha_bar + 1 - alpha_bar)
    clean = MU + gain * (z.double() - alpha_bar.sqrt() * MU)
    return ((z - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()).float()


def point(z, t):
    """A network that predicts the clean latent, always MU, through the adapter that the project uses."""
    return Prediction(NoiseSchedule.linear(), "sample").epsilon(MU.float().expand_as(z), z, t)


def drawn(network, keys, shape, scheduler, steps):
    """What `sample` draws with a network that says nothing but the noise."""
    return sample(lambda z, t: (network(z, t), None), Noise.keyed(keys, shape), scheduler, steps)[0]


def sigmas(steps: int) -> np.ndarray:
    """Noise levels of evenly spaced timesteps that include the last, and 0."""
    t = np.round(1000 - 1000 / steps * np.arange(steps)).astype(int) - 1
    return np.append(SIGMA[t], 0.0)


def spaced(name: str) -> list[int]:
    """The timesteps of four steps."""
    return [999, 966, 933, 900] if name == "early_ddim" else [999, 749, 499, 249]


def early_sigmas(steps: int) -> np.ndarray:
    """Noise levels of evenly spaced timesteps from the last to 900, both included, and 0."""
    return np.append(SIGMA[np.round(np.linspace(999, 900, steps)).astype(int)], 0.0)


def start(name: str) -> np.ndarray:
    """x at the first timestep; samplers over sigma leave out the clean latent's unit variance there."""
    noise = torch.stack([key.initial(SHAPE) for key in KEYS]).double().numpy()
    return noise * (SIGMA[-1] if name in ("euler_ancestral", "lms") else np.hypot(1, SIGMA[-1]))


def clean_of(x, sigma):
    mu, s = MU.numpy(), S.numpy()
    return mu + s**2 / (s**2 + sigma**2) * (x - mu)


def euler_ancestral(x, sigmas):
    generators = [key.generator() for key in KEYS]
    for sigma, following in pairwise(sigmas):
        up = following * np.sqrt(1 - following**2 / sigma**2)
        down = following**2 / sigma
        noise = torch.cat([torch.randn((1, *SHAPE), generator=generator) for generator in generators]).numpy()
        x = x + (down - sigma) * (x - clean_of(x, sigma)) / sigma + up * noise
    return x


def ddim(x, sigmas):
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * (x - clean_of(x, sigma)) / sigma
    return x


def dpmpp_2m(x, sigmas):
    before, h_before = None, None
    for sigma, following in pairwise(sigmas):
        clean = clean_of(x, sigma)
        ahead = clean
        if following > 0:
            h = np.log(sigma / following)
            if before is not None:
                ahead = clean + (clean - before) * h / (2 * h_before)
            before, h_before = clean, h
        x = following / sigma * x + (1 - following / sigma) * ahead
    return x


def lms(x, sigmas):
    """Adams-Bashforth of order 4 over unevenly spaced sigmas: integrate the Lagrange polynomial of the last slopes."""
    slopes = []
    for i in range(len(sigmas) - 1):
        slopes = [(x - clean_of(x, sigmas[i])) / sigmas[i], *slopes[:3]]
        nodes = sigmas[i::-1][: len(slopes)]
        for j, slope in enumerate(slopes):
            others = np.delete(nodes, j)
            basis = Polynomial.fromroots(others) if len(others) else Polynomial([1.0])
            integral = basis.integ()
            x = x + slope * (integral(sigmas[i + 1]) - integral(sigmas[i])) / np.prod(nodes[j] - others)
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 50])
@pytest.mark.parametrize("recursion", [euler_ancestral, ddim, dpmpp_2m, lms])
def test_a_gaussian_target_follows_the_exact_recursion(recursion, steps):
    name = recursion.__name__
    ours = drawn(gaussian, KEYS, SHAPE, make_scheduler(name), steps)
    # float32 rounds x, up to 157.4 * 4.5, by 3e-5 in the first steps; the table of diffusers is float32 too.
    np.testing.assert_allclose(ours.numpy(), recursion(start(name), sigmas(steps)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 100])
def test_early_ddim_is_ddim_that_ends_at_timestep_900(steps):
    ours = drawn(gaussian, KEYS, SHAPE, make_scheduler("early_ddim"), steps)
    np.testing.assert_allclose(ours.numpy(), ddim(start("early_ddim"), early_sigmas(steps)), rtol=0, atol=2e-4)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(UsageError, match="101 steps between timesteps 999 and 900; take fewer"):
        drawn(gaussian, KEYS, SHAPE, make_scheduler("early_ddim"), 101)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "lms"])
def test_higher_order_samplers_reach_the_solution_of_the_ode(name):
    """dx / dsigma = sigma (x - mu) / (s^2 + sigma^2) is solved by x - mu proportional to sqrt(s^2 + sigma^2)."""
    mu, s = MU.numpy(), S.numpy()
    exact = (start(name) - mu) * s / np.hypot(s, SIGMA[-1])
    errors = {
        steps: np.abs(drawn(gaussian, KEYS, SHAPE, make_scheduler(name), steps).numpy() - mu - exact)[:, 1:] / s[1:]
        for steps in (25, 100)
    }
    # The narrowest Gaussian (0.05) is left out: its width is that of the last steps, which no sampler here resolves.
    assert errors[25].max() > errors[100].max()
    assert errors[100].max() < 0.01  # 1 % of a standard deviation


def standard_deviates(name: str, steps: int) -> np.ndarray:
    """(x - mu) / s of many samples, one row for each s; the narrowest is left out, see above."""
    keys = [NoiseKey(seed=11, case=1, slice=i, sample=0) for i in range(128)]
    deviates = (drawn(gaussian, keys, SHAPE, make_scheduler(name), steps) - MU) / S
    return deviates.transpose(0, 1).flatten(1).numpy()[1:]


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim"])
def test_first_order_samplers_have_the_variance_of_their_recursion(name):
    """A step multiplies x - mu by (s^2 + sigma * down) / (s^2 + sigma^2); ancestral noise makes up for down^2."""
    s = S.numpy().ravel()[1:]
    variance = np.full(3, SIGMA[-1] ** 2 + (name == "ddim"))
    for sigma, following in pairwise(sigmas(20)):
        down = following if name == "ddim" else following**2 / sigma
        variance = ((s**2 + sigma * down) / (s**2 + sigma**2)) ** 2 * variance + following**2 - down**2
    deviates = standard_deviates(name, 20)
    # Five standard errors; that of a variance is sqrt(2 / n) of it.
    np.testing.assert_allclose(deviates.var(axis=1), variance / s**2, rtol=5 * (2 / deviates.shape[1]) ** 0.5)


# Steps enough for the discretisation to be below 2 % of the variance: the recursions above and the ODE say how many.
@pytest.mark.parametrize(
    ("name", "steps"), [("euler_ancestral", 1000), ("ddim", 1000), ("dpmpp_2m", 100), ("unipc", 100), ("lms", 100)]
)
def test_samples_of_a_gaussian_have_its_mean_and_variance(name, steps):
    deviates = standard_deviates(name, steps)
    n = deviates.shape[1]
    # Five standard errors, 1 / sqrt(n) for a mean; the start is noise alone, without 1 / 157 of the clean latent.
    assert (np.abs(deviates.mean(axis=1)) < 5 / n**0.5 + MU.abs().max().item() / SIGMA[-1]).all()
    np.testing.assert_allclose(deviates.var(axis=1), 1, rtol=5 * (2 / n) ** 0.5 + 0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_point_mass_is_returned_after_any_number_of_steps(name, steps):
    ours = drawn(point, KEYS, SHAPE, make_scheduler(name), steps)
    # One step from sigma = 157 cancels numbers up to 157.4 * 4.5 in float32, whose spacing there is 6e-5.
    torch.testing.assert_close(ours, MU.float().expand_as(ours), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_key_decides_its_sample_whatever_the_batch(name):
    scheduler = make_scheduler(name)
    together = drawn(gaussian, KEYS, SHAPE, scheduler, 5)
    order = [5, 0, 15, 3]
    assert torch.equal(drawn(gaussian, [KEYS[i] for i in order], SHAPE, scheduler, 5), together[order])
    assert torch.equal(drawn(gaussian, [KEYS[9]], SHAPE, scheduler, 5), together[9:10])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_sees_unit_variance_and_integer_timesteps(name):
    scheduler, calls = make_scheduler(name), []

    def network(z, t):
        calls.append((z, t))
        return gaussian(z, t).bfloat16()

    timesteps = scheduler.timesteps.clone()
    latents = drawn(network, KEYS, SHAPE, scheduler, 4)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert [t.tolist() for _, t in calls] == [[t] * len(KEYS) for t in spaced(name)]
    assert all(t.dtype == torch.int64 and z.dtype == torch.float32 for z, t in calls)
    assert calls[0][0].std().item() == pytest.approx(1, rel=5 / (2 * latents.numel()) ** 0.5)
    assert torch.equal(scheduler.timesteps, timesteps), "the caller's scheduler was changed"


def test_ddim_is_that_of_diffusers_where_the_steps_divide_the_timesteps():
    theirs = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    ours = drawn(gaussian, KEYS, SHAPE, make_scheduler("ddim"), 20)
    torch.testing.assert_close(ours, drawn(gaussian, KEYS, SHAPE, theirs, 20), rtol=0, atol=5e-5)
    with pytest.raises(UsageError, match="7 steps do not divide 1000"):
        drawn(gaussian, KEYS, SHAPE, theirs, 7)


def test_an_unknown_scheduler_is_refused_with_the_names_that_exist():
    with pytest.raises(UsageError, match=r"'heun'; expected one of euler_ancestral, ddim, early_ddim, dpmpp_2m"):
        make_scheduler("heun")


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(UsageError, match=rf"{steps} sampling steps; expected 1\.\.1000"):
        drawn(gaussian, KEYS, SHAPE, make_scheduler("ddim"), steps)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "early_ddim"])
def test_a_number_of_steps_that_diffusers_rounds_below_zero_is_refused(name):
    with pytest.raises(UsageError, match="61 steps give timesteps 999 to -1"):
        drawn(gaussian, KEYS, SHAPE, make_scheduler(name), 61)


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (lambda: EulerAncestralDiscreteScheduler(prediction_type="v_prediction"), "prediction_type is 'v_prediction'"),
        (lambda: DDPMScheduler(), "clip_sample is on"),
        (lambda: DDPMScheduler(clip_sample=False, thresholding=True), "thresholding is on"),
        (lambda: LMSDiscreteScheduler(beta_schedule="scaled_linear"), "noise levels are not those of training"),
        (lambda: LMSDiscreteScheduler(num_train_timesteps=500), "noise levels are not those of training"),
        (
            lambda: EulerAncestralDiscreteScheduler(rescale_betas_zero_snr=True),
            "noise levels are not those of training",
        ),
        (lambda: LMSDiscreteScheduler(use_karras_sigmas=True), "not all integers"),
        (lambda: FlowMatchEulerDiscreteScheduler(), "prediction_type is None"),
    ],
)
def test_a_scheduler_that_would_misread_the_network_is_refused(scheduler, reason):
    with pytest.raises(UsageError, match=reason):
        drawn(gaussian, KEYS, SHAPE, scheduler(), 4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_was_saved_and_loaded_keeps_its_name(name: str, tmp_path) -> None:
    scheduler = make_scheduler(name)
    scheduler.save_pretrained(tmp_path)
    assert scheduler_name(type(scheduler).from_pretrained(tmp_path)) == name


def test_a_scheduler_of_another_kind_goes_by_its_class() -> None:
    assert scheduler_name(DDPMScheduler()) == "DDPMScheduler"


def test_what_else_the_network_says_is_that_of_the_last_step():
    noise = Noise.keyed(KEYS, SHAPE)
    latents, last = sample(lambda z, t: (gaussian(z, t), t), noise, make_scheduler("ddim"), 4)
    assert torch.equal(latents, drawn(gaussian, KEYS, SHAPE, make_scheduler("ddim"), 4))
    assert torch.equal(last, torch.full((len(KEYS),), 249))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_after_each_step_its_latents_are_told_and_may_be_changed(name: str) -> None:
    """A change of the latents after the last step but one is a step that starts from there."""
    noise, told = Noise.keyed(KEYS, SHAPE), []

    def watch(step, timestep, latents):
        told.append((step, int(timestep), latents))
        return latents

    denoise = lambda z, t: (gaussian(z, t), None)  # noqa: E731
    whole, _ = sample(denoise, noise, make_scheduler(name), 4, on_step=watch)
    assert [step for step, _, _ in told] == [0, 1, 2, 3]
    assert [timestep for _, timestep, _ in told] == spaced(name)
    assert torch.equal(told[-1][2], whole)

    noise = Noise.keyed(KEYS, SHAPE)  # its generators begin anew
    shifted, _ = sample(denoise, noise, make_scheduler(name), 4, on_step=lambda step, t, z: z + (step == 3))
    torch.testing.assert_close(shifted, whole + 1, rtol=0, atol=0)
    noise = Noise.keyed(KEYS, SHAPE)
    early, _ = sample(denoise, noise, make_scheduler(name), 4, on_step=lambda step, t, z: z + (step == 0))
    assert not torch.allclose(early, whole, atol=1e-3)


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim"])
def test_noise_from_generators_is_that_of_diffusers(name: str) -> None:
    """One generator draws the first latents, then in each step what a stochastic sampler adds; a list, one each."""
    shape = (3, *SHAPE)

    def latents(generator) -> torch.Tensor:
        noise = Noise.drawn(generator, shape, torch.device("cpu"))
        return sample(lambda z, t: (gaussian(z, t), None), noise, make_scheduler(name), 3)[0]

    one = latents(torch.Generator().manual_seed(5))
    assert torch.equal(one, latents(torch.Generator().manual_seed(5)))
    torch.manual_seed(5)
    assert torch.equal(latents(None), one)
    each = latents([torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    for index, seed in enumerate((5, 6, 7)):
        noise = Noise.drawn(torch.Generator().manual_seed(seed), (1, *SHAPE), torch.device("cpu"))
        alone, _ = sample(lambda z, t: (gaussian(z, t), None), noise, make_scheduler(name), 3)
        torch.testing.assert_close(each[index : index + 1], alone, rtol=1e-6, atol=1e-6)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    assert torch.equal(Noise.drawn(torch.Generator().manual_seed(5), shape, torch.device("cpu")).initial, start)
