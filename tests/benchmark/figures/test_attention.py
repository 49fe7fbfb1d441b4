"""Attention that is drawn is the attention that the model pays, and looking at it leaves the model as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meddelinea.benchmark.figures.attention import (
    BranchAttention,
    Query,
    attention_figure,
    attention_layers,
    attention_of,
)
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError
from meddelinea.models.transformer import Attention
from support.pipelines import images, tiny_pipeline

KEY = NoiseKey(seed=0, case=1, slice=0, sample=0)


def query(point: tuple[int, int] | None = None) -> Query:
    inside = np.zeros((16, 24), bool)
    inside[2:11, 3:9] = True
    return Query.of(np.zeros((16, 24), np.float32), "liver", inside, point)


def test_recomputed_weights_give_the_attentions_own_output() -> None:
    torch.manual_seed(0)
    attention, x = Attention(16, heads=4), torch.randn(2, 9, 16)
    weights = attention.weights(x)  # (B, heads, T, T)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 9))
    values = attention.qkv(x)[..., 32:].view(2, 9, 4, 4).transpose(1, 2)  # (B, heads, T, d)
    mixed = (weights @ values).transpose(1, 2).reshape(2, 9, 16)
    torch.testing.assert_close(F.linear(mixed, attention.proj.weight, attention.proj.bias), attention(x))


def test_each_branch_is_looked_at_in_the_block_that_is_asked_for_and_nothing_stays_behind() -> None:
    pipeline = tiny_pipeline("space_to_depth")
    layers = attention_layers(pipeline)
    assert list(layers) == ["control branch", "base"]
    first, last = (attention_of(pipeline, images(1), KEY, block) for block in (0, -1))
    tokens = images(1).shape[-1] * images(1).shape[-2] // pipeline.multiple**2
    for branch, kept in zip(last, layers.values(), strict=True):
        assert branch.weights.shape == (kept[0].heads, tokens, tokens)
        np.testing.assert_allclose(branch.weights.sum(axis=-1), 1.0, rtol=1e-5)
        assert branch.name.endswith(f"block {len(kept)} of {len(kept)}")
        assert not any(attention._forward_pre_hooks for attention in kept)
    assert first[0].name.startswith("control branch\nblock 1 of ")
    with pytest.raises(InputRefusedError, match="has 1 to"):
        attention_of(pipeline, images(1), KEY, 99)


def test_a_point_is_one_token_and_an_organ_those_that_hold_it() -> None:
    at, over = query((23, 15)).at_point((2, 3)), query().over_organ((2, 3))
    np.testing.assert_array_equal(at.reshape(2, 3), [[0, 0, 0], [0, 0, 1]])
    # 9 x 6 pixels; tokens of 8 x 8 hold 6 x 5, 6 x 1, 3 x 5 and 3 x 1 of them.
    np.testing.assert_allclose(over.reshape(2, 3) * 54, [[30, 6, 0], [15, 3, 0]])
    assert query().inside[query().point[1], query().point[0]]
    with pytest.raises(InputRefusedError, match=r"expected a column of 0\.\.23 and a row of 0\.\.15"):
        query((24, 0))
    with pytest.raises(InputRefusedError, match="not in this slice"):
        Query.of(np.zeros((8, 8), np.float32), "liver", np.zeros((8, 8), bool))


def test_maps_are_what_the_queries_attend_to_against_an_even_share() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=(2, 6)).astype(np.float32)  # (heads, T, T)
    figure = attention_figure(query((0, 0)), [BranchAttention("base", weights, (2, 3))])
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["slice", "mean of heads", "head 1", "head 2"]
    mean, first, second = (axes.images[-1].get_array() for axes in figure.axes[1:4])
    np.testing.assert_allclose(first, 6 * weights[0, 0].reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-6)
    assert [axes.get_ylabel() for axes in figure.axes[0:8:4]] == ["base\nfrom the point", "base\nfrom liver"]
