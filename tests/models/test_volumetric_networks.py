"""nnFormer and UNETR++: what attention may see, and what it shares."""

from itertools import product

import pytest
import torch
from torch import Tensor

from meddelinea.models.nnformer import SkipBlock, VolumeBlock, WindowAttention, merge, partition, relative_positions
from meddelinea.models.token_grid import token_grids
from meddelinea.models.unetr_pp import PairedAttention

GRID, WINDOW = (4, 8, 8), (4, 4, 4)


def test_the_published_patches_are_so_many_tokens() -> None:
    assert token_grids((64, 128)) == [(32, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4)]
    assert token_grids((16, 96)) == [(8, 24, 24), (4, 12, 12), (2, 6, 6), (1, 3, 3)]


# nnFormer


def test_windows_are_blocks_of_the_volume_and_come_back() -> None:
    volume = torch.randn(2, *GRID, 3)
    windows = partition(volume, WINDOW)
    assert windows.shape == (2, 4, 64, 3)
    torch.testing.assert_close(windows[:, 1], volume[:, :, :4, 4:].reshape(2, 64, 3), rtol=0, atol=0)
    assert torch.equal(merge(windows, WINDOW, GRID), volume)


def test_each_offset_has_a_number_of_its_own() -> None:
    window = (2, 3, 4)
    places, numbers = list(product(*map(range, window))), relative_positions(window)
    offsets: dict[int, tuple[int, ...]] = {}
    for (i, one), (j, other) in product(enumerate(places), repeat=2):
        offset = tuple(a - b for a, b in zip(one, other, strict=True))
        assert offsets.setdefault(int(numbers[i, j]), offset) == offset
    assert sorted(offsets) == list(range(3 * 5 * 7))


def seen_by(attention: WindowAttention, place: tuple[int, int, int]) -> Tensor:
    """Which tokens of the volume reach one of them, (d, h, w)."""
    volume = torch.randn(1, *attention.grid, 8, requires_grad=True)
    attention.attend(volume, volume, volume)[0][place].sum().backward()
    assert volume.grad is not None
    return volume.grad[0].abs().sum(dim=-1) > 0


@pytest.mark.parametrize(
    ("window", "shifted", "rows", "columns"),
    [
        (4, False, range(4), range(4, 8)),
        (4, True, range(2), range(2, 6)),  # windows of half a side at the borders: a roll brings no strangers together
        (8, False, range(8), range(8)),  # global
        (8, True, range(8), range(8)),
    ],
)
def test_a_token_sees_its_window_and_no_more(window: int, shifted: bool, rows: range, columns: range) -> None:
    torch.manual_seed(0)
    seen = seen_by(WindowAttention(8, 2, GRID, window, shifted), (1, 1, 5))
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[:, rows.start : rows.stop, columns.start : columns.stop] = True
    assert torch.equal(seen, expected)


def test_skip_attention_mixes_what_the_encoder_holds_as_the_decoder_asks() -> None:
    torch.manual_seed(0)
    block = SkipBlock(8, 2, (2, 2, 2), 2)
    torch.nn.init.eye_(block.attention.out.weight)
    torch.nn.init.zeros_(block.attention.out.bias)
    decoded, encoded = torch.randn(1, 2, 2, 2, 8), torch.randn(1, 2, 2, 2, 8)
    values = block.kv(block.norm1(encoded))[..., 8:]
    keys = block.kv(block.norm1(encoded))[..., :8]
    found, otherwise = (block.attention.attend(block.norm1(asked), keys, values) for asked in (decoded, -decoded))
    assert (found <= values.amax(dim=(1, 2, 3)) + 1e-6).all()
    assert (found >= values.amin(dim=(1, 2, 3)) - 1e-6).all()
    assert not torch.allclose(found, otherwise, atol=1e-3)


def test_blocks_alternate_between_windows_and_shifted_ones() -> None:
    torch.manual_seed(0)
    blocks = [VolumeBlock(8, 2, GRID, 4, shifted) for shifted in (False, True)]
    volume = torch.randn(1, *GRID, 8, requires_grad=True)
    blocks[1](blocks[0](volume))[0, 0, 3, 3].sum().backward()
    assert volume.grad is not None
    assert (volume.grad.abs().sum(dim=-1) > 0).all()  # through the shifted one, the others' windows


# UNETR++


@pytest.fixture
def attention() -> PairedAttention:
    torch.manual_seed(0)
    attention = PairedAttention(tokens=12, width=8, heads=2, mixtures=5)
    with torch.no_grad():
        attention.channel_scale.uniform_(0.5, 3.0)
        attention.spatial_scale.uniform_(0.5, 3.0)
    return attention


def test_paired_attention_is_that_of_the_paper_written_out(attention: PairedAttention) -> None:
    x = torch.randn(2, 12, 8)
    heads = []
    for head in range(2):
        q, k, v_channel, v_space = (
            (x @ layer.weight.T)[..., 4 * head : 4 * head + 4]
            for layer in (attention.query, attention.key, attention.channel_value, attention.spatial_value)
        )  # (B, T, 4)
        mix = attention.mix
        k_mixed, v_mixed = (torch.einsum("btd,pt->bpd", z, mix.weight) + mix.bias[:, None] for z in (k, v_space))
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        across = (torch.einsum("btc,btd->bcd", q, k) * attention.channel_scale[head]).softmax(dim=2)
        near = (torch.einsum("btd,bpd->btp", q, k_mixed) * attention.spatial_scale[head]).softmax(dim=2)
        heads.append((near @ v_mixed, torch.einsum("bcd,btd->btc", across, v_channel)))
    spatial, channel = (torch.cat(parts, dim=2) for parts in zip(*heads, strict=True))
    expected = torch.cat([attention.spatial_out(spatial), attention.channel_out(channel)], dim=2)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


def test_both_attentions_train_one_query_one_key_and_one_mixture(attention: PairedAttention) -> None:
    """The same parameter has a gradient from each of them, and that of both is their sum."""
    x, weights = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    shared = {name: p for name, p in attention.named_parameters() if name.split(".")[0] in ("query", "key", "mix")}
    assert list(shared) == ["query.weight", "key.weight", "mix.weight", "mix.bias"]
    assert sum(p.numel() for p in attention.parameters()) == 4 * 64 + (12 * 5 + 5) + 2 * 2 + 2 * (8 * 4 + 4)

    def gradients(halves: slice) -> tuple[Tensor | None, ...]:
        loss = (attention(x) * weights)[..., halves].sum()
        return torch.autograd.grad(loss, list(shared.values()), allow_unused=True)

    for name, spatial, channel, both in zip(
        shared, gradients(slice(4)), gradients(slice(4, 8)), gradients(slice(8)), strict=True
    ):
        assert spatial is not None
        assert both is not None
        assert spatial.abs().sum() > 0, name
        if not name.startswith("mix"):  # which channels have no use for
            assert channel is not None
            assert channel.abs().sum() > 0, name
            spatial = spatial + channel
        torch.testing.assert_close(both, spatial, rtol=1e-4, atol=1e-6)
