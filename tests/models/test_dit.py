"""The DiT against diffusers' `DiTTransformer2DModel` with the same weights, and properties where that is no peer."""

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed

from meddelinea.errors import UsageError
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.transformer import Attention, DiTBlock, TimestepEmbedder, position_embedding

WIDTH, HEADS, DEPTH, CLASSES = 64, 4, 3, 10


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, so that no gate, bias or output is left at its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module


def our_dit(latent_size: int = 16) -> DiT:
    dit = DiT(latent_size=latent_size, width=WIDTH, depth=DEPTH, heads=HEADS, classes=CLASSES, learn_sigma=True)
    return randomised(dit)


def their_name(ours: str) -> tuple[str, ...]:
    """Where diffusers keeps a parameter of the original layout; several where it holds copies or splits it."""
    for old, new in (("blocks.", "transformer_blocks."), ("attn.proj", "attn1.to_out.0"), ("mlp.fc1", "ff.net.0.proj")):
        ours = ours.replace(old, new)
    ours = ours.replace("mlp.fc2", "ff.net.2").replace("adaLN_modulation.1", "norm1.linear")
    ours = ours.replace("x_embedder.", "pos_embed.").replace("final_layer.linear", "proj_out_2")
    ours = ours.replace("final_layer.norm1.linear", "proj_out_1")
    if "attn.qkv" in ours:
        return tuple(ours.replace("attn.qkv", f"attn1.to_{part}") for part in "qkv")
    embedder = {
        "t_embedder.mlp.0": "timestep_embedder.linear_1",
        "t_embedder.mlp.2": "timestep_embedder.linear_2",
        "y_embedder": "class_embedder",
    }
    for old, new in embedder.items():
        if ours.startswith(old):
            return tuple(f"transformer_blocks.{i}.norm1.emb.{ours.replace(old, new)}" for i in range(DEPTH))
    return (ours,)


def their_dit(ours: DiT, latent_size: int = 16) -> DiTTransformer2DModel:
    theirs = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=DEPTH,
        sample_size=latent_size,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # the original's; diffusers defaults to 1e-5
    ).eval()
    state = {}
    for name, value in ours.state_dict().items():
        copies = their_name(name)
        parts = value.chunk(3) if "qkv" in name else [value] * len(copies)
        state.update(zip(copies, parts, strict=True))
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("pos_embed" in name for name in missing)
    for block in theirs.transformer_blocks:
        # The original spaces its frequencies by 1/128 of the range; diffusers, when it converts weights, by 1/127.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return theirs


def null_class(batch: int) -> torch.Tensor:
    return torch.full((batch,), CLASSES)


@pytest.mark.parametrize("side", [16, 32])
def test_output_and_gradients_are_diffusers(side: int) -> None:
    """At the trained size, and at twice that with interpolated positions."""
    ours = our_dit()
    theirs = their_dit(ours)
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0, 417, 999])
    z = torch.randn(3, 4, side, side, generator=generator)
    pull = torch.randn(3, 4, side, side, generator=generator)
    z_ours, z_theirs = z.clone().requires_grad_(), z.clone().requires_grad_()

    out_ours = ours(z_ours, ours.condition(t)).sample
    out_theirs = theirs(z_theirs, timestep=t, class_labels=null_class(3)).sample[:, :4]
    assert out_ours.std() > 0.1
    torch.testing.assert_close(out_ours, out_theirs, rtol=1e-5, atol=1e-5)

    (out_ours * pull).mean().backward()
    (out_theirs * pull).mean().backward()
    torch.testing.assert_close(z_ours.grad, z_theirs.grad, rtol=1e-4, atol=1e-7)
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        parts = [their_gradients[copy] for copy in their_name(name)]
        expected = torch.cat(parts) if "qkv" in name else torch.stack(parts).sum(0)
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        error = (parameter.grad - expected).abs().max() / expected.abs().max()
        assert float(error) < 1e-4, name


def test_the_class_is_always_the_null_class() -> None:
    ours = our_dit()
    theirs = their_dit(ours)
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 500])
    before = ours(z, ours.condition(t)).sample
    with torch.no_grad():
        ours.y_embedder.embedding_table.weight[:CLASSES] += 1.0
    assert torch.equal(ours(z, ours.condition(t)).sample, before)
    other = theirs(z, timestep=t, class_labels=torch.zeros(2, dtype=torch.long)).sample[:, :4]
    assert not torch.allclose(before, other, atol=1e-2)


def test_timestep_features_are_the_original_formula() -> None:
    embedder, seen = TimestepEmbedder(WIDTH), []
    embedder.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embedder(torch.tensor([0.0, 7.0, 999.0]))
    (features,) = seen
    for row, t in zip(features, (0.0, 7.0, 999.0), strict=True):
        for k in (0, 1, 64, 127):
            angle = t * 10_000.0 ** (-k / 128)
            assert float(row[k]) == pytest.approx(math.cos(angle), abs=2e-4)
            assert float(row[128 + k]) == pytest.approx(math.sin(angle), abs=2e-4)


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (6, 10), (16, 4), (5, 7)])
def test_positions_are_diffusers_also_interpolated_and_not_square(grid: tuple[int, int]) -> None:
    peer = PatchEmbed(height=16, width=16, patch_size=2, in_channels=4, embed_dim=WIDTH)
    latent = torch.zeros(1, 4, 2 * grid[0], 2 * grid[1])
    with torch.no_grad():
        theirs = peer(latent) - peer.proj.bias
    torch.testing.assert_close(position_embedding(WIDTH, grid, base=8), theirs, rtol=1e-5, atol=1e-5)


def test_a_grid_twice_as_fine_holds_every_base_position() -> None:
    base = position_embedding(WIDTH, (8, 8), 8).view(8, 8, WIDTH)
    fine = position_embedding(WIDTH, (16, 16), 8).view(16, 16, WIDTH)
    torch.testing.assert_close(fine[::2, ::2], base, rtol=0, atol=1e-6)
    assert len(torch.unique(fine.view(-1, WIDTH), dim=0)) == 256


def test_rows_and_columns_swap_with_the_image() -> None:
    """The first half of the width holds the column, the second the row."""
    wide = position_embedding(WIDTH, (4, 6), 8).view(4, 6, WIDTH)
    tall = position_embedding(WIDTH, (6, 4), 8).view(6, 4, WIDTH)
    swapped = torch.cat([tall[..., WIDTH // 2 :], tall[..., : WIDTH // 2]], dim=-1)
    torch.testing.assert_close(wide.transpose(0, 1), swapped, rtol=0, atol=1e-6)
    assert torch.equal(wide[0, :, WIDTH // 2 :], wide[0, :1, WIDTH // 2 :].expand(6, -1))
    assert torch.equal(wide[:, 0, : WIDTH // 2], wide[:1, 0, : WIDTH // 2].expand(4, -1))


def test_a_latent_that_is_not_square_is_put_together_patch_by_patch() -> None:
    """With blocks shut and position left out, each output patch is a function of its own input patch."""
    dit = our_dit()
    for block in dit.blocks:
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    z = torch.randn(1, 4, 8, 20)
    condition = dit.condition(torch.tensor([5]))
    reference = dit(z, condition).sample
    assert reference.shape == (1, 4, 8, 20)
    changed = z.clone()
    changed[0, :, 2:4, 14:16] += 1.0
    moved = (dit(changed, condition).sample != reference).any(dim=1)[0]
    expected = torch.zeros(8, 20, dtype=torch.bool)
    expected[2:4, 14:16] = True
    assert torch.equal(moved, expected)


def test_attention_in_bfloat16_is_that_in_float32_rounded() -> None:
    """Under autocast, as in training, and with weights of bfloat16; the attention itself is computed in float32."""
    attention = randomised(Attention(WIDTH, HEADS))
    tokens = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    leaves = [tokens.clone().requires_grad_() for _ in range(2)]
    exact = attention(leaves[0])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(leaves[1])
    assert mixed.dtype == torch.bfloat16
    exact.square().sum().backward()
    mixed.float().square().sum().backward()
    near = {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(mixed.float(), exact, **near)
    assert (leaves[1].grad - leaves[0].grad).norm() < 0.03 * leaves[0].grad.norm()
    half = attention.bfloat16()(tokens.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, **near)


def test_an_untrained_dit_predicts_zero_and_its_blocks_are_the_identity() -> None:
    dit = DiT(latent_size=8, width=32, depth=2, heads=2, classes=0, learn_sigma=False)
    z = torch.randn(2, 4, 8, 8)
    condition = dit.condition(torch.tensor([1, 900]))
    assert torch.equal(dit(z, condition).sample, torch.zeros_like(z))
    x = torch.randn(2, 16, 32)
    assert torch.equal(dit.blocks[0](x, condition)[1], x)


def test_open_gates_set_both_gates_to_one_and_nothing_else() -> None:
    block = DiTBlock(32, 2)
    block.open_gates()
    condition = torch.randn(1, 32)
    modulation = block.adaLN_modulation(condition).chunk(6, dim=1)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
    for gate in (gate_msa, gate_mlp):
        assert torch.equal(gate, torch.ones_like(gate))
    for other in (shift_msa, scale_msa, shift_mlp, scale_mlp):
        assert not other.any()


@pytest.mark.parametrize("network", [DiT, ControlDiT])
@pytest.mark.parametrize(
    ("width", "heads", "words"),
    [
        (190, 4, "width 190 cannot be divided among 4 heads"),
        (30, 3, "width 30; expected a multiple of 4"),
    ],
)
def test_a_width_that_does_not_divide_is_refused_when_it_is_built(
    network: type[DiT | ControlDiT], width: int, heads: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        network(width=width, heads=heads, depth=1)
