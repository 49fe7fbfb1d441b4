"""Muon: its steps are those of PyTorch's own, and it trains the matrices of hidden layers alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.training.config import OptimiserConfig
from meddelinea.training.muon import ADAMW_RMS, Muon, orthogonal
from meddelinea.training.optimisers import build_optimisers, is_hidden_matrix
from support.training_runs import control_config, train


def test_steps_are_those_of_pytorch() -> None:
    shapes = ((6, 6), (4, 9), (9, 4), (4, 9))
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.05, "weight_decay": 0.1}
    one = Muon(ours, **settings, dtype=torch.bfloat16)  # in which PyTorch multiplies always
    other = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=0.01, rtol=0.0)  # of steps of 0.05 * 0.2 * 3, in bfloat16


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 4, 12), (3, 12, 4)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.linspace(0.1, 1.0, u.shape[2])
    found = orthogonal(u * values @ vh)
    inner = u.transpose(1, 2) @ found @ vh.transpose(1, 2)  # (k, r, r)
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert float(diagonal.min()) > 0.6
    assert float(diagonal.max()) < 1.25
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_shorter_way_of_float32_gives_what_the_iterations_give(power: float) -> None:
    generator = torch.Generator().manual_seed(2)
    u, _, vh = torch.linalg.svd(torch.randn(2, 48, 200, generator=generator, dtype=torch.float64), full_matrices=False)
    wide = u * torch.arange(1.0, 49.0) ** -power @ vh  # singular values as gradients have them
    expected = orthogonal(wide)  # in float64 step by step
    torch.testing.assert_close(orthogonal(wide.float()), expected.float(), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(orthogonal(wide.float().mT), expected.float().mT, atol=1e-3, rtol=0.0)


def test_a_kernel_is_the_matrix_of_its_output_channels_and_none_decays_alone() -> None:
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
    before, kernel.grad = kernel.detach().clone(), torch.randn(4, 2, 3, 3)
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    step = (before * (1.0 - 0.1 * 0.5) - kernel.detach()) / (0.1 * ADAMW_RMS * 18**0.5)
    torch.testing.assert_close(step.flatten(1), orthogonal(kernel.grad.flatten(1)[None])[0])


def test_it_trains_what_lies_between_the_first_layers_and_the_last() -> None:
    names = {
        "control.blocks.0.attn.qkv.weight": (96, 32),
        "control.blocks.0.adaLN_modulation.1.weight": (192, 32),
        "control.after_mlp.0.weight": (32, 32),
        "control.zero_conv.weight": (64, 64, 1, 1),
        "codec.encoder.2.conv1.weight": (64, 64, 3, 3),
        "mask_head.conv_out.weight": (56, 64, 3, 3),
        "control.blocks.0.attn.qkv.bias": (96,),
        "unet.first.weight": (32, 3, 3, 3),
        "network.resnet.root.0.weight": (64, 3, 7, 7),
        "network.bottleneck.quantiser.codebook": (256, 256),
        "network.middle.0.time_emb_proj.weight": (288, 96),
        "network.transformer.layers.0.self_attn.in_proj_weight": (576, 192),
    }
    chosen = {name for name, shape in names.items() if is_hidden_matrix(name, nn.Parameter(torch.zeros(shape)))}
    assert chosen == {
        "control.blocks.0.attn.qkv.weight",
        "control.after_mlp.0.weight",
        "codec.encoder.2.conv1.weight",
        "network.transformer.layers.0.self_attn.in_proj_weight",
    }
    module = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    muon, adamw = build_optimisers(OptimiserConfig(kind="muon"), module, None, fused=True)
    assert (len(muon.param_groups[0]["params"]), len(adamw.param_groups[0]["params"])) == (1, 3)


def test_a_run_with_it_resumes_as_if_it_had_not_stopped(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    optimiser = {"kind": "muon", "learning_rate": 1e-2, "schedule": "constant"}
    straight = train(control_config(store, parts, tmp_path / "straight", steps=4, optimiser=optimiser))
    train(control_config(store, parts, tmp_path / "halved", steps=2, optimiser=optimiser))
    resumed = train(control_config(store, parts, tmp_path / "halved", steps=4, optimiser=optimiser), resume=True)
    one, other = (MedDelineaPipeline.from_pretrained(run / "pipeline") for run in (straight, resumed))
    for (name, a), b in zip(one.control.named_parameters(), other.control.parameters(), strict=True):
        assert torch.equal(a, b), name
