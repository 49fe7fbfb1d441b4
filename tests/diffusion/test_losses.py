"""The losses against MONAI and torch with equivalent settings, and what their weights and timesteps promise."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from meddelinea.diffusion.losses import Objective, PixelLoss, segmentation_loss, segmentation_weights, timesteps
from meddelinea.diffusion.schedule import NoiseSchedule


def example(slices: int = 4, organs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and a mask in which the last organ never occurs."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(slices, organs + 1, 12, 9, generator=generator)
    return logits, torch.randint(0, organs, (slices, 12, 9), generator=generator)


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_pixel_loss_and_dice_are_torchs_and_monais(kind: PixelLoss) -> None:
    """Dice as MONAI has it for the four organs that the batch holds, and nothing for the fifth."""
    logits, mask = example()
    truth = F.one_hot(mask, 6).permute(0, 3, 1, 2).float()
    if kind == "bce":
        pixel, share = F.binary_cross_entropy_with_logits(logits, truth), logits.sigmoid()
    else:
        pixel, share = F.cross_entropy(logits, mask), logits.softmax(dim=1)
    monai = DiceLoss(include_background=False, batch=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
    by_organ = monai(share, truth)
    assert by_organ[4] > 0.9
    expected = pixel + by_organ[:4].sum() / 5
    torch.testing.assert_close(segmentation_loss(logits, mask, torch.ones(4), kind), expected)


def test_an_organ_that_the_batch_lacks_is_the_pixel_losss_alone() -> None:
    logits, mask = example()
    leaf = logits.clone().requires_grad_()
    segmentation_loss(leaf, mask, torch.ones(4), "bce").backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, 5], logits[:, 5].sigmoid() / logits.numel())


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_a_slice_of_weight_zero_changes_neither_value_nor_gradient(kind: str) -> None:
    logits, mask = example()
    weights = torch.tensor([1.0, 0.3, 0.0, 1.0])
    other = logits.clone()
    other[2] = torch.randn(logits.shape[1:])
    gradients = []
    values = []
    for version in (logits, other):
        leaf = version.clone().requires_grad_()
        value = segmentation_loss(leaf, mask, weights, kind)
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
    assert not gradients[0][2].any()
    assert all(gradients[0][i].any() for i in (0, 1, 3))


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_weight_two_is_a_slice_twice(kind: str) -> None:
    """In the Dice part exactly; the pixel part is a mean over the slices, so it is multiplied by their number first."""
    logits, mask = example(3)

    def parts(logits: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
        truth = F.one_hot(mask, 6).permute(0, 3, 1, 2).float()
        if kind == "bce":
            each = torch.stack([F.binary_cross_entropy_with_logits(x, y) for x, y in zip(logits, truth, strict=True)])
        else:
            each = torch.stack([F.cross_entropy(x[None], y[None]) for x, y in zip(logits, mask, strict=True)])
        pixel = float((weights * each).mean())
        return len(logits) * pixel, float(segmentation_loss(logits, mask, weights, kind)) - pixel

    twice = parts(torch.cat([logits, logits[:1]]), torch.cat([mask, mask[:1]]), torch.ones(4))
    weighted = parts(logits, mask, torch.tensor([2.0, 1.0, 1.0]))
    assert weighted == pytest.approx(twice, rel=1e-5)


def test_a_perfect_mask_has_no_loss_and_an_absent_organ_costs_nothing() -> None:
    _, mask = example()
    perfect = 60.0 * F.one_hot(mask, 6).permute(0, 3, 1, 2).float() - 30.0
    for kind in ("bce", "cross_entropy"):
        assert float(segmentation_loss(perfect, mask, torch.ones(4), kind)) == pytest.approx(0.0, abs=1e-5)


def test_segmentation_weights_fall_from_one_to_the_snr_and_stay_in_bounds() -> None:
    schedule = NoiseSchedule.linear()
    t = torch.arange(1000)
    weights = segmentation_weights(schedule, t, "alpha_bar")
    snr = schedule.alpha_bar / (1.0 - schedule.alpha_bar)
    torch.testing.assert_close(weights.double(), snr / (snr + 1), rtol=1e-6, atol=0)
    assert float(weights.min()) > 0
    assert float(weights.max()) <= 1
    assert (weights.diff() < 0).all()
    # The error of the clean latent, sqrt(1 / alpha_bar - 1), no longer grows without bound once weighted.
    assert float((weights.double() / snr).max()) <= 1 + 1e-6
    assert torch.equal(segmentation_weights(schedule, t, "none"), torch.ones(1000))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_timesteps_have_the_stated_share_at_the_last_and_are_uniform_elsewhere(share: float) -> None:
    n = 200_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.bincount(timesteps(uniform, 1000, Objective(last_timestep_share=share)), minlength=1000)
    assert len(counts) == 1000
    rest = n * (1 - share) / 1000
    assert (counts[:-1] - rest).abs().max() <= 1
    assert abs(float(counts[-1]) - (n * share + rest)) <= 1


def test_timesteps_at_the_edges() -> None:
    edges = torch.tensor([0.0, 0.5, 1.0 - 2**-24, 1.0])  # a float32 uniform may round to 1
    half = Objective(last_timestep_share=0.5)
    assert timesteps(edges, 1000, Objective()).tolist() == [0, 500, 999, 999]
    assert timesteps(edges, 1000, Objective(last_timestep_share=1.0)).tolist() == [999] * 4
    assert timesteps(edges, 1000, half).tolist() == [999, 0, 999, 999]
    assert timesteps(edges, 1, half).tolist() == [0] * 4
