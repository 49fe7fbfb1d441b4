"""TransUNet: weight standardisation, a transformer that sees the whole slice, and the published size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddelinea.methods.transunet import TransUNetPipeline
from meddelinea.models.transunet import StandardisedConv, Transformer, TransUNet


def transformer(grid: int = 4, depth: int = 1) -> Transformer:
    torch.manual_seed(0)
    return Transformer(8, 16, heads=2, depth=depth, grid=grid).eval()


def test_kernels_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    kernels = StandardisedConv(6, 5, 3).kernels().flatten(1)
    torch.testing.assert_close(kernels.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(kernels.square().mean(dim=1), torch.ones(5))


@torch.no_grad()
def test_what_a_kernel_is_scaled_by_and_shifted_by_changes_nothing() -> None:
    torch.manual_seed(0)
    conv, x = StandardisedConv(6, 5, 3, stride=2), torch.randn(2, 6, 16, 16)
    before = conv(x)
    conv.weight.mul_(torch.tensor([0.1, 3.0, 1.0, 7.0, 20.0]).view(5, 1, 1, 1)).add_(torch.randn(5, 1, 1, 1))
    torch.testing.assert_close(conv(x), before, rtol=1e-4, atol=1e-4)
    conv.weight[0].neg_()
    assert not torch.allclose(conv(x), before, atol=0.1)


@torch.no_grad()
def test_a_standardised_convolution_is_its_closed_form() -> None:
    """Of white noise a map has the variance of the sum of fan-in weights, each of variance 1."""
    torch.manual_seed(0)
    conv, x = StandardisedConv(6, 5, 3), torch.randn(4, 6, 64, 64)
    y = conv(x)
    assert float(y.var()) == pytest.approx(6 * 3 * 3, rel=0.05)
    weight = conv.weight.double()
    rows = torch.stack([(w - w.mean()) / w.std(correction=0) for w in weight])
    torch.testing.assert_close(y, F.conv2d(x.double(), rows, padding=1).float(), rtol=1e-4, atol=1e-4)


def test_each_token_sees_the_whole_slice() -> None:
    network, features = transformer(), torch.randn(1, 8, 4, 4, requires_grad=True)
    (network(features)[0, :, 0, 0] * torch.randn(16)).sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=1) > 0).all()


@torch.no_grad()
def test_tokens_know_where_they_are() -> None:
    network, features = transformer(), torch.randn(1, 8, 4, 4)
    moved = features.roll(1, dims=3)
    assert not torch.allclose(network(moved), network(features).roll(1, dims=3), atol=1e-3)
    network.position.zero_()
    torch.testing.assert_close(network(moved), network(features).roll(1, dims=3), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_of_another_grid_span_the_same_field_of_view() -> None:
    network = transformer(grid=8)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    network.position.copy_((rows + 10 * columns).expand(1, 16, 8, 8))  # a slope, which linear interpolation keeps
    network.norm, network.layers = nn.Identity(), nn.ModuleList()
    finer = network(torch.zeros(1, 8, 16, 16)) - network.embedding(torch.zeros(1, 8, 16, 16))
    inner = (torch.arange(4, 12) + 0.5) / 2 - 0.5
    expected = (inner[:, None] + 10 * inner).expand(1, 16, 8, 8)
    torch.testing.assert_close(finer[:, :, 4:12, 4:12], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_layer_is_that_of_the_vision_transformer() -> None:
    """Pre-norm attention and MLP with the exact GELU (Dosovitskiy et al. 2021), written out with its weights."""
    network = transformer()
    (layer,) = network.layers
    features = torch.randn(2, 8, 4, 4)
    x = (network.embedding(features) + network.position).flatten(2).transpose(1, 2)

    def norm(x: Tensor, weights: nn.Module) -> Tensor:
        centred = x - x.mean(dim=2, keepdim=True)
        return centred / (centred.square().mean(dim=2, keepdim=True) + 1e-6).sqrt() * weights.weight + weights.bias

    attention = layer.self_attn
    q, k, v = (norm(x, layer.norm1) @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(8)
        heads.append(scores.softmax(dim=2) @ v[..., head])
    x = x + attention.out_proj(torch.cat(heads, dim=2))
    hidden = layer.linear1(norm(x, layer.norm2))
    x = x + layer.linear2(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    expected = norm(x, network.norm).transpose(1, 2).reshape(2, 16, 4, 4)
    torch.testing.assert_close(network(features), expected, rtol=1e-4, atol=1e-5)


def test_features_are_as_coarse_as_they_say() -> None:
    network = TransUNet(3, 3, 4, 8, [1, 2, 1], 16, 2, 2, [16, 8, 8, 8])
    features = network.resnet(torch.zeros(1, 3, 64, 96))
    assert [tuple(h.shape[1:]) for h in features] == [(8, 32, 48), (32, 16, 24), (64, 8, 12), (128, 4, 6)]
    assert network(torch.zeros(1, 3, 64, 96))[0].shape == (1, 4, 64, 96)


def test_the_papers_size_is_the_published_one() -> None:
    """R50-ViT-B/16 as its authors count it, 105.28 M, for eight organs at 224 pixels."""
    with torch.device("meta"):
        sizes = vars(TransUNetPipeline.presets["paper"])
        names = ("root", "units", "width", "heads", "depth", "decoder")
        network = TransUNet(8, 3, 14, **{name: sizes[name] for name in names})
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(105.28e6, rel=1e-4)
