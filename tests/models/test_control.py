"""The Control DiT: neutral at the start, wholly trained afterwards, and nothing frozen ever moves."""

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import nn

from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.methods.direct import Direct
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.protocol import Batch
from meddelinea.models.codec import SpaceToDepthCodec, palette
from meddelinea.models.control import ControlDiT
from meddelinea.models.convolutions import ConvUnit, ImageStem, InstanceNorm
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import GuidedMaskHead, PlainMaskHead
from meddelinea.models.segmenter import Segmenter, TrainableDecoder

ORGANS = 3
STEM = (8, 16, 16)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew: gates, biases and outputs too, so that nothing is neutral by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def tiny_segmenter(*, stem: bool = False, guided: bool = False, fine: bool = False) -> Segmenter:
    torch.manual_seed(0)
    codec = randomised(SpaceToDepthCodec(channels=16, encoder_blocks=1, decoder_blocks=1))
    dit = randomised(DiT(latent_size=4, width=32, depth=3, heads=2, classes=4, learn_sigma=True))
    channels, hidden = STEM if stem else (), (8, 16) if guided else ()
    finest = 4
    if fine:
        channels, hidden, finest = (8, *STEM), (8, *hidden), 2
    control = ControlDiT.copy_of(dit, 2, stem_channels=channels, stem_finest=finest)
    head = PlainMaskHead(feature_channels=16, feature_factor=8, organs=ORGANS)
    if guided:
        head = GuidedMaskHead(
            feature_channels=16,
            feature_factor=8,
            organs=ORGANS,
            image_channels=channels[: len(hidden)],
            hidden=hidden,
            token_width=32,
        )
    return Segmenter(codec, dit, control, head, palette(ORGANS + 1))


def batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(7)
    masks = torch.randint(0, ORGANS + 1, (size, 4, 4), generator=generator)
    return Batch(
        torch.rand(size, 3, 32, 32, generator=generator) * 2 - 1,
        masks.repeat_interleave(8, 1).repeat_interleave(8, 2),
        torch.randn(size, 4, 4, 4, generator=generator),
        torch.linspace(0, 0.9, size),
    )


EXTENSIONS = [
    {},
    {"stem": True},
    {"stem": True, "guided": True},
    {"stem": True, "guided": True, "fine": True},
]


@pytest.mark.parametrize("extensions", EXTENSIONS)
def test_the_controlled_network_starts_as_the_plain_dit_exactly(extensions: dict[str, bool]) -> None:
    segmenter = tiny_segmenter(**extensions)
    noisy, t = torch.randn(3, 4, 4, 4), torch.tensor([0, 500, 999])
    image = segmenter.encode_image(batch(3).images)
    plain = segmenter.dit(noisy, segmenter.dit.condition(t)).sample
    assert plain.std() > 0.1
    controlled, _ = segmenter(noisy, t, image)
    assert torch.equal(controlled, plain)

    nn.init.normal_(segmenter.control.after_mlp[1].weight)
    assert not torch.allclose(segmenter(noisy, t, image)[0], plain, atol=1e-2)


def test_an_image_may_have_more_channels_than_a_mask() -> None:
    dit = tiny_segmenter().dit
    control = ControlDiT.copy_of(dit, 2, image_channels=10)
    assert control.zero_conv.weight.shape[:2] == (10, 10)
    first = dit.x_embedder.proj.weight
    assert torch.equal(control.x_embedder.proj.weight[:, :8], first.repeat(1, 2, 1, 1))
    assert control.x_embedder.proj.weight[:, 8:].std() > 0.01
    noisy, image, condition = torch.randn(2, 4, 4, 4), torch.randn(2, 10, 4, 4), dit.condition(torch.tensor([999]))
    before = control(noisy, image, condition).tokens
    with torch.no_grad():
        control.zero_conv.weight[9, 9] = 1.0  # one channel that masks do not have
    assert not torch.allclose(control(noisy, image, condition).tokens, before, atol=1e-3)


def test_the_copy_has_the_weights_of_the_first_blocks() -> None:
    segmenter = tiny_segmenter()
    control, dit = segmenter.control, segmenter.dit
    assert (len(control.blocks), len(dit.blocks)) == (2, 3)
    for ours, theirs in zip(control.blocks, dit.blocks, strict=False):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
            assert value.data_ptr() != theirs.state_dict()[name].data_ptr(), name


def test_a_feature_enters_where_it_is_said_to_enter() -> None:
    """Written out: what is added after attention passes the MLP, what is added after the MLP does not."""
    dit = tiny_segmenter().dit
    block = dit.blocks[0]
    x, first, second = torch.randn(3, 2, 4, 32).unbind()
    condition = torch.randn(2, 32)
    middle, _ = block(x, condition)
    _, shift2, scale2, gate2 = block.adaLN_modulation(condition)[:, 64:].split((32, 32, 32, 32), dim=1)
    h = middle + first
    normed = nn.functional.layer_norm(h, (32,), eps=1e-6)
    expected = h + gate2[:, None] * block.mlp(normed * (1 + scale2[:, None]) + shift2[:, None]) + second
    got_middle, got = block(x, condition, (first, second))
    torch.testing.assert_close(got_middle, h)
    torch.testing.assert_close(got, expected)


def test_the_image_reaches_the_output_once_its_zero_convolution_has_opened() -> None:
    segmenter = tiny_segmenter()
    randomised(segmenter.control)
    noisy, t = torch.randn(2, 4, 4, 4), torch.tensor([10, 900])
    one, other = (segmenter.encode_image(images) for images in (batch(2).images, -batch(2).images))
    assert not torch.allclose(segmenter(noisy, t, one)[0], segmenter(noisy, t, other)[0])
    nn.init.zeros_(segmenter.control.zero_conv.weight)
    assert torch.equal(segmenter(noisy, t, one)[0], segmenter(noisy, t, other)[0])


@pytest.mark.parametrize("extensions", EXTENSIONS)
@pytest.mark.parametrize("decoder", ["none", "final_layer", "all"])
def test_after_two_steps_every_trained_parameter_has_had_a_gradient_and_nothing_frozen_has_moved(
    extensions: dict[str, bool], decoder: TrainableDecoder
) -> None:
    segmenter = tiny_segmenter(**extensions)
    segmenter.freeze(decoder)
    method = MedDelinea(segmenter, Objective(), make_scheduler("ddim"), steps=1)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    trained = {name: p for name, p in segmenter.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    reached: set[str] = set()
    for _ in range(3):  # the third backward pass follows two optimiser steps
        optimiser.zero_grad()
        method.loss(batch())["total"].backward()
        reached |= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimiser.step()

    expected = {f"control.{name}" for name, _ in segmenter.control.named_parameters()}
    if decoder != "none":
        expected |= {f"mask_head.{name}" for name, _ in segmenter.mask_head.named_parameters()}
    if decoder == "all":
        expected |= {f"codec.decoder.{name}" for name, _ in segmenter.codec.decoder.named_parameters()}
    assert set(trained) == expected
    assert reached == expected

    after = segmenter.state_dict()
    for name in before.keys() - expected:
        assert torch.equal(after[name], before[name]), name
    for name in expected:
        assert not torch.equal(after[name], before[name]), name


def test_the_mask_head_is_at_full_resolution_with_and_without_image_features() -> None:
    images, tokens = batch(2).images, torch.randn(2, 4, 32)
    for extensions in ({}, {"guided": True}, {"guided": True, "fine": True}):
        segmenter = tiny_segmenter(stem=True, **extensions)
        image, clean = segmenter.encode_image(images), torch.randn(2, 4, 4, 4)
        logits = segmenter.decode(clean, image, tokens)
        assert logits.shape == (2, ORGANS + 1, 32, 32)
        others = segmenter.decode(clean, image, torch.randn(2, 4, 32))
        assert torch.equal(logits, others) != ("guided" in extensions)


def test_a_token_reaches_the_mask_where_it_stands() -> None:
    head = tiny_segmenter(stem=True, guided=True, fine=True).mask_head
    features, levels = torch.zeros(1, 16, 16, 16), [torch.zeros(1, c, s, s) for c, s in ((8, 64), (8, 32), (16, 16))]
    tokens = torch.zeros(1, 64, 32, requires_grad=True)
    with torch.no_grad():
        for unit in head.units:  # normalisation over the slice would carry a little of every token everywhere
            unit.norm1, unit.norm2 = nn.Identity(), nn.Identity()
    head(features, levels, tokens + torch.randn(1, 64, 32)).sample[0, :, 16 * 2 + 8, 16 * 5 + 8].sum().backward()
    reached = tokens.grad.abs().sum(dim=2).view(8, 8) > 0  # row 2, column 5
    assert reached[2, 5]
    assert not reached[:, :3].any()
    assert not reached[5:].any()


def test_without_diffusion_the_mask_is_a_function_of_the_image_alone() -> None:
    segmenter = tiny_segmenter(stem=True, guided=True)
    randomised(segmenter.control)
    randomised(segmenter.mask_head)
    method, one = Direct(segmenter, "bce"), batch()
    other = one._replace(noise=one.noise + 1.0, uniform=one.uniform.flip(0))
    losses = method.loss(one)
    assert losses.keys() == {"segmentation", "total"}
    assert torch.equal(losses["total"], method.loss(other)["total"])
    keys = [NoiseKey(seed, 0, 0, 0) for seed in range(8)]
    logits = method.segment(one.images, keys[:4])
    assert torch.equal(logits, method.segment(one.images, keys[4:]))
    assert logits.std() > 0
    # Training and segmenting are the same pass.
    nothing, last = torch.zeros(4, 4, 4, 4), torch.full((4,), 999)
    image = segmenter.encode_image(one.images)
    clean, tokens = segmenter(nothing, last, image)
    torch.testing.assert_close(logits, segmenter.decode(clean, image, tokens), rtol=0, atol=1e-5)


def test_a_unit_is_the_residual_block_of_monais_dynunet() -> None:
    ours = randomised(ConvUnit(6, 6))
    theirs = UnetResBlock(2, 6, 6, 3, 1, ("INSTANCE", {"affine": True}))
    theirs.load_state_dict(
        {
            f"{name}.conv.weight" if "conv" in name else f"{name}.{kind}": value
            for key, value in ours.state_dict().items()
            for name, kind in [key.split(".")]
        }
    )
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_instance_norm_and_its_gradient_are_pytorchs_in_the_layout_of_the_slices() -> None:
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5).double(), nn.InstanceNorm2d(5, affine=True).double()
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    slices = 3 + 10 * torch.randn(4, 5, 6, 7, dtype=torch.float64)
    leaves = [slices.clone().to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    outputs = [norm(leaf) for norm, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*outputs)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    for output in outputs:
        (output * torch.arange(6)[:, None]).pow(3).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)
    torch.testing.assert_close(ours(slices), nn.GroupNorm.forward(ours, slices))  # what other devices have
    torch.testing.assert_close(ours(slices[:, :, :1, :1])[0, :, 0, 0], ours.bias)  # a single pixel
    mixed = ours.float()(slices.bfloat16())  # as autocast has it
    torch.testing.assert_close(mixed, theirs(slices).bfloat16(), atol=0.05, rtol=0.02)


def test_a_strided_unit_halves_the_slice_and_its_skip_is_a_mean() -> None:
    unit = randomised(ConvUnit(3, 5, stride=2))
    with torch.no_grad():
        unit.norm2.weight.zero_()
        unit.norm2.bias.zero_()
    x = torch.randn(2, 3, 8, 6)
    means = x.unflatten(2, (4, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5))
    expected = torch.einsum("oi,bihw->bohw", unit.skip.weight[:, :, 0, 0], means)
    torch.testing.assert_close(unit(x), nn.functional.leaky_relu(expected, 0.01))


def test_the_initial_stem_keeps_the_size_of_its_signal() -> None:
    """At each level; PyTorch's own weights would leave a third of the variance a layer."""
    torch.manual_seed(0)
    stem = ImageStem((32, 64, 128, 256), finest=2, slices=3, width=64)
    _, levels = stem(torch.randn(4, 3, 64, 64))
    for level in levels:
        assert 0.5 < float(level.detach().square().mean().sqrt()) < 3
