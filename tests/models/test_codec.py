"""Codecs and the palette: colours as far apart as stated, and latents that are diffusers' own."""

import copy
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from diffusers import AutoencoderKL
from torch import nn

from meddelinea.diffusion.losses import segmentation_loss
from meddelinea.models.codec import (
    SHARPNESS,
    KLCodec,
    SpaceToDepthCodec,
    cosine_transform,
    paint,
    palette,
    palette_logits,
)
from meddelinea.models.mask_head import PlainMaskHead

KL_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}


@pytest.mark.parametrize(("colours", "distance"), [(2, 1.0), (9, 1.0), (14, 1.0), (31, 0.6), (126, 0.25)])
def test_palette_colours_are_far_apart(colours: int, distance: float) -> None:
    points = palette(colours)
    assert points.shape == (colours, 3)
    assert points.abs().max() <= 1
    assert torch.equal(points[0], torch.zeros(3))
    assert float(nn.functional.pdist(points).min()) >= distance


def test_no_palette_colour_lies_between_two_others() -> None:
    """A blurred border passes through the colours between two organs': there must not be a third organ's."""
    points = palette(14).double()
    for i, j in combinations(range(14), 2):
        along = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
        line = points[i] + along * (points[j] - points[i])  # (101, 3)
        third = (
            torch.cat([points[1:i], points[i + 1 : j], points[j + 1 :]])
            if i
            else torch.cat([points[1:j], points[j + 1 :]])
        )
        assert float(torch.cdist(line, third).min()) > (0.3 if i else 0.8)


@pytest.mark.parametrize("organs", [1, 8, 13, 30])
def test_a_painted_mask_is_read_back_even_after_noise_below_half_of_the_distance(organs: int) -> None:
    colours = palette(organs + 1)
    mask = torch.randint(0, organs + 1, (2, 24, 40), generator=torch.Generator().manual_seed(0))
    pixels = paint(mask, colours)
    assert pixels.shape == (2, 3, 24, 40)
    assert torch.equal(palette_logits(pixels, colours).argmax(1), mask)
    push = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    push = push / push.norm(dim=1, keepdim=True) * 0.49 * nn.functional.pdist(colours).min()
    assert torch.equal(palette_logits(pixels + push, colours).argmax(1), mask)


def test_palette_logits_are_minus_the_squared_distances_times_a_constant() -> None:
    colours = palette(14)
    pixels = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    distances = torch.cdist(pixels.permute(0, 2, 3, 1).reshape(-1, 3), colours).square().view(2, 5, 7, 14)
    expected = -SHARPNESS * distances.permute(0, 3, 1, 2)
    torch.testing.assert_close(palette_logits(pixels, colours), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("organs", [1, 8, 13])
def test_a_perfectly_painted_mask_has_next_to_no_loss(organs: int) -> None:
    """A loss that is large there would teach other colours than the palette's."""
    colours = palette(organs + 1)
    mask = torch.randint(0, organs + 1, (2, 24, 40), generator=torch.Generator().manual_seed(0))
    logits = palette_logits(paint(mask, colours), colours)
    assert float(nn.functional.cross_entropy(logits, mask)) < 0.01
    assert float(segmentation_loss(logits, mask, torch.ones(2), pixel_loss="cross_entropy")) < 0.02


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 80)])
def test_space_to_depth_has_factor_8_and_no_convolution_at_full_resolution(height: int, width: int) -> None:
    codec = randomised(SpaceToDepthCodec(channels=16, encoder_blocks=1, decoder_blocks=2))
    seen = []
    for module in codec.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape[2:])))
    latent = codec.to_latent(torch.rand(2, 3, height, width))
    assert latent.shape == (2, 4, height // 8, width // 8)
    features = codec.to_features(latent)
    assert features.shape == (2, codec.feature_channels, height // codec.feature_factor, width // codec.feature_factor)
    assert codec.to_pixels(features).shape == (2, 3, height, width)
    assert set(seen) == {(height // 8, width // 8)}


def test_a_latent_pixel_sees_the_neighbourhood_that_its_convolutions_add_up_to() -> None:
    """One 3x3 convolution and two a block: a radius of 1 + 2 * blocks cells of 8 pixels (group norms left out)."""
    codec = copy.deepcopy(randomised(SpaceToDepthCodec(channels=8, encoder_blocks=1, decoder_blocks=0)))
    for module in codec.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    pixels = torch.rand(1, 3, 128, 128, requires_grad=True)
    codec.to_latent(pixels)[0, :, 8, 7].sum().backward()
    assert pixels.grad is not None
    rows, columns = pixels.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (8 * (8 - 3), 8 * (8 + 3) + 7)
    assert (int(columns.min()), int(columns.max())) == (8 * (7 - 3), 8 * (7 + 3) + 7)


def test_the_scaling_factor_multiplies_latents_and_is_taken_out_again() -> None:
    codec = randomised(SpaceToDepthCodec(channels=16, encoder_blocks=1, decoder_blocks=1))
    pixels = torch.rand(1, 3, 32, 32)
    plain = codec.to_latent(pixels)
    painted = codec.to_pixels(codec.to_features(plain))
    codec.register_to_config(scaling_factor=3.0)
    torch.testing.assert_close(codec.to_latent(pixels), 3.0 * plain)
    torch.testing.assert_close(codec.to_pixels(codec.to_features(codec.to_latent(pixels))), painted)


def test_a_mask_takes_the_first_channels_of_a_latent_and_an_image_all() -> None:
    codec = randomised(SpaceToDepthCodec(channels=16, encoder_blocks=1, latent_channels=4, image_channels=12))
    pixels = torch.rand(2, 3, 32, 48)
    whole, of_mask = codec.to_image_latent(pixels), codec.to_latent(pixels)
    assert (whole.shape, of_mask.shape) == ((2, 12, 4, 6), (2, 4, 4, 6))
    assert torch.equal(whole[:, :4], of_mask)
    padded = torch.cat([of_mask, torch.zeros(2, 8, 4, 6)], dim=1)
    torch.testing.assert_close(codec.to_features(of_mask), codec.to_features(padded))
    assert torch.equal(codec(pixels).sample, codec.to_pixels(codec.to_features(whole)))


def test_the_transform_that_a_codec_starts_from_is_that_of_scipy() -> None:
    pixels = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    found = cosine_transform().double() @ nn.functional.pixel_unshuffle(pixels, 8).flatten()
    theirs = scipy.fft.dctn(pixels[0].numpy(), norm="ortho").flatten()
    np.testing.assert_allclose(np.sort(found.numpy()), np.sort(theirs), atol=1e-5)
    assert float(found[0]) == pytest.approx(float(pixels.mean()) * 192**0.5, abs=1e-5)
    assert float(found[1:3].square().sum()) == pytest.approx(theirs.reshape(3, 8, 8)[0, 0, 1] ** 2 + theirs[8] ** 2)


@pytest.mark.parametrize("fine", [0, 48, 64])
def test_a_codec_with_a_linear_path_starts_as_a_cosine_transform_and_its_inverse(fine: int) -> None:
    sizes = {"channels": 192, "latent_channels": 16, "image_channels": 192, "fine_channels": fine}
    codec = SpaceToDepthCodec(**sizes, linear_path=True)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()  # and with it the random tenth
    codec.start_as_cosines()
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    torch.testing.assert_close(codec(pixels).sample, pixels, atol=1e-5, rtol=0.0)
    low = codec.to_pixels(codec.to_features(codec.to_latent(pixels)))  # 16 of 192: what those frequencies hold
    energy = codec.to_latent(pixels).mul(2.0).square().sum()
    torch.testing.assert_close(low.square().sum(), energy, rtol=1e-4, atol=0.0)


def test_kl_codec_is_diffusers_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKL(**KL_CONFIG).eval()
    theirs.save_pretrained(tmp_path)
    ours = KLCodec.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        scaled = theirs.encode(pixels).latent_dist.mean * 0.18215
        torch.testing.assert_close(ours.to_latent(pixels), scaled, rtol=1e-6, atol=1e-6)
        features = ours.to_features(scaled)
        assert features.shape == (2, ours.feature_channels, 32 // ours.feature_factor, 48 // ours.feature_factor)
        painted = theirs.decode(scaled / 0.18215).sample
        torch.testing.assert_close(ours.to_pixels(features), painted, rtol=1e-6, atol=1e-6)


def test_kl_codec_is_still_an_autoencoder_of_diffusers(tmp_path: Path) -> None:
    """For whoever loads the component as one: `encode`, `decode`, `forward` and sampling are diffusers' own."""
    torch.manual_seed(0)
    theirs = AutoencoderKL(**KL_CONFIG).eval()
    theirs.save_pretrained(tmp_path)
    ours = KLCodec.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        posterior, expected = ours.encode(pixels).latent_dist, theirs.encode(pixels).latent_dist
        assert torch.equal(posterior.mean, expected.mean)
        assert torch.equal(posterior.std, expected.std)
        assert torch.equal(ours.decode(posterior.mean).sample, theirs.decode(expected.mean).sample)
        assert torch.equal(ours(pixels).sample, theirs(pixels).sample)
        draws = [
            vae(pixels, sample_posterior=True, generator=torch.Generator().manual_seed(3)).sample
            for vae in (ours, theirs)
        ]
        assert torch.equal(*draws)
    ours.save_pretrained(tmp_path / "again")
    again = AutoencoderKL.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(pixels).sample, theirs(pixels).sample)


@pytest.mark.parametrize(
    "codec",
    [
        KLCodec(**KL_CONFIG),
        SpaceToDepthCodec(channels=8, latent_channels=6),
        SpaceToDepthCodec(channels=8, fine_channels=16),
    ],
)
def test_a_final_layer_written_from_the_codec_reads_the_nearest_colour(codec: KLCodec | SpaceToDepthCodec) -> None:
    randomised(codec)
    colours = palette(14)
    latent = torch.randn(2, codec.latent_channels, 4, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = codec.to_features(latent)
        written = PlainMaskHead.of_codec(codec, colours)(features, (), torch.zeros(())).sample
        read = palette_logits(codec.to_pixels(features), colours)
    assert written.shape == read.shape == (2, 14, 32, 48)
    torch.testing.assert_close(written.softmax(dim=1), read.softmax(dim=1), rtol=1e-4, atol=1e-5)
