"""Parameter counts against the figures that the paper and the original models state, and against closed forms."""

from dataclasses import replace

import pytest
import torch

from meddelinea.errors import UsageError
from meddelinea.models.control import ControlDiT
from meddelinea.models.presets import PRESETS, build_control, build_dit, find_preset, parameter_counts


def control_count(preset: str, depth: int) -> int:
    """Trainable parameters of the control branch with `depth` blocks."""
    sizes = replace(find_preset(preset), control_depth=depth)
    with torch.device("meta"):
        control = ControlDiT(width=sizes.width, depth=sizes.control_depth, heads=sizes.heads)
    return sum(p.numel() for p in control.parameters())


def block_count(D: int) -> int:
    """qkv 3 D^2 + 3 D, projection D^2 + D, MLP 8 D^2 + 5 D, adaLN 6 D^2 + 6 D."""
    return 18 * D**2 + 15 * D


def test_paper_control_has_the_trainable_parameters_of_table_5() -> None:
    assert control_count("paper", 1) == pytest.approx(7.83e6, rel=0.01)
    assert parameter_counts("paper")["control"] == pytest.approx(117.45e6, rel=0.01)
    assert parameter_counts("paper")["control"] == control_count("paper", 15)


def test_paper_dit_and_control_are_227_million() -> None:
    assert parameter_counts("paper")["dit_and_control"] == pytest.approx(227e6, rel=0.02)


def test_xl_is_the_published_dit_and_the_published_autoencoder() -> None:
    counts = parameter_counts("xl")
    assert counts["dit"] == pytest.approx(675e6, rel=0.01)
    assert counts["codec"] == pytest.approx(83.65e6, rel=1e-3)


@pytest.mark.parametrize("name", ["paper", "xl"])
def test_counts_are_the_closed_form(name: str) -> None:
    sizes = find_preset(name)
    D, N, K, p = sizes.width, sizes.depth, sizes.control_depth, 4
    counts = parameter_counts(name)
    embedders = (4 * p * D + D) + (256 * D + D + D**2 + D) + (sizes.classes + 1) * D
    final = (2 * D**2 + 2 * D) + (D * p * 8 + p * 8)
    assert counts["dit"] == embedders + N * block_count(D) + final
    injections = 2 * D**2 + 2 * D
    assert counts["control"] == (4 * 4 + 4) + (8 * p * D + D) + K * (block_count(D) + injections)
    assert counts["mask_head"] == 128 * 14 * 9 + 14
    assert counts["dit_and_control"] == counts["dit"] + counts["control"]
    assert counts["total"] == counts["codec"] + counts["dit_and_control"] + counts["mask_head"]


def test_counts_are_those_of_the_networks_that_are_built() -> None:
    preset = find_preset("small")
    with torch.device("meta"):
        dit = build_dit(preset)
        control = build_control(preset, dit, organs=5)
    counts = parameter_counts("small", organs=5)
    assert counts["dit"] == sum(p.numel() for p in dit.parameters())
    assert counts["control"] == sum(p.numel() for p in control.parameters())


def test_every_preset_fits_together() -> None:
    for preset in PRESETS.values():
        assert preset.control_depth <= preset.depth
        assert preset.width % preset.heads == 0
        assert preset.width % 4 == 0
        if preset.stem_channels:  # the stem's coarsest level has one position a token
            assert preset.stem_finest * 2 ** (len(preset.stem_channels) - 1) == 8 * preset.patch_size


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="small, paper, xl"):
        find_preset("tiny")
