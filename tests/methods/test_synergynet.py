"""SynergyNet: codes that are the nearest, are used and are learnt, and a bottleneck that joins them with features."""

import pytest
import torch

from meddelinea.diffusion.losses import Objective
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.methods.synergynet import SynergyNetPipeline
from meddelinea.models.synergynet import COMMITMENT, DisConX, Quantiser


@pytest.fixture
def quantiser() -> Quantiser:
    torch.manual_seed(0)
    return Quantiser(codes=16, width=8)


def test_a_token_becomes_the_nearest_code(quantiser: Quantiser) -> None:
    tokens = torch.randn(2, 50, 8)
    found = quantiser(tokens)
    expected = torch.cdist(tokens, quantiser.codebook[None]).argmin(dim=2)
    assert torch.equal(found.codes, expected)
    torch.testing.assert_close(found.tokens, quantiser.codebook[expected])


def test_the_gradient_passes_straight_through(quantiser: Quantiser) -> None:
    tokens, weights = torch.randn(2, 50, 8, requires_grad=True), torch.randn(2, 50, 8)
    (quantiser(tokens).tokens * weights).sum().backward()
    torch.testing.assert_close(tokens.grad, weights)
    assert quantiser.codebook.grad is None


def test_the_loss_draws_codes_to_tokens_and_tokens_less_to_codes(quantiser: Quantiser) -> None:
    tokens = torch.randn(1, 1, 8, requires_grad=True)
    found = quantiser(tokens)
    found.loss.backward()
    apart = (tokens - quantiser.codebook[found.codes]).detach()
    torch.testing.assert_close(tokens.grad, COMMITMENT * 2 / 8 * apart)
    assert quantiser.codebook.grad is not None
    torch.testing.assert_close(quantiser.codebook.grad[found.codes], -2 / 8 * apart)
    assert quantiser.codebook.grad.any(dim=1).sum() == 1  # no other code is moved


def test_each_position_asks_all_features() -> None:
    torch.manual_seed(0)
    bottleneck, features = DisConX(width=8, heads=2, codes=16), torch.randn(1, 8, 3, 4, requires_grad=True)
    joined, _ = bottleneck(features)
    assert joined.shape == features.shape
    joined[0, :, 0, 0].sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=1) > 0).all()


@torch.no_grad()
def test_both_codes_and_features_reach_the_mask() -> None:
    torch.manual_seed(0)
    bottleneck, features = DisConX(width=8, heads=2, codes=16), torch.randn(1, 8, 3, 4)
    before = bottleneck(features)[0]
    bottleneck.quantiser.codebook.mul_(-1.0)
    assert not torch.allclose(bottleneck(features)[0], before, atol=1e-2)
    # Tokens of the same code differ by their features.
    bottleneck.quantiser.codebook[1:] = 1e3
    codes = bottleneck.quantiser(bottleneck.norm(features.flatten(2).transpose(1, 2))).codes
    assert not codes.any()
    joined = bottleneck(features)[0] - features
    assert not torch.allclose(joined[..., 0, 0], joined[..., 2, 3], atol=1e-2)


@pytest.mark.slow
def test_several_codes_are_in_use_after_training() -> None:
    """A codebook that collapses to one code is the failure that it is known for."""
    sizes = {"widths": [8, 16, 16, 16], "heads": 2, "codes": 32}
    recipe = Recipe(
        organs=("liver", "spleen"), neighbours=0, neighbour_pairs=1, side=64, preset="small", sizes=sizes, codec=None,
        dit=None, trainable_decoder="none", base="frozen", objective=Objective(), steps=1, scheduler="ddim",
    )  # fmt: skip
    torch.manual_seed(0)
    pipeline = SynergyNetPipeline.new(recipe)
    method = pipeline.for_training(recipe).train()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    images[:, :, 16:40, 16:40] += 1.0
    masks = torch.zeros(4, 64, 64, dtype=torch.long)
    masks[:, 16:40, 16:40] = 1
    first = None
    for _ in range(40):
        losses = method.loss(Batch(images, masks, torch.zeros(4, 0, 8, 8), torch.zeros(4)))
        first = losses["quantisation"].detach() if first is None else first
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
    seen: list[torch.Tensor] = []
    quantiser = pipeline.network.bottleneck.quantiser
    quantiser.register_forward_hook(lambda _module, _given, found: seen.append(found.codes))
    pipeline.sampler().method.segment(images, [])
    assert len(torch.cat(seen).unique()) >= 4
    assert losses["quantisation"] < first
