"""Parameter counts against the figures that the paper and the original models state, and against closed forms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from meddelinea.errors import UsageError
from meddelinea.models.control import ControlDiT
from meddelinea.models.presets import (
    PRESETS,
    Preset,
    build_codec,
    build_control,
    build_dit,
    build_mask_head,
    find_preset,
    parameter_counts,
)
from meddelinea.models.segmenter import Segmenter


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
        control = build_control(preset, dit, build_codec(preset))
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


# Sizes are built or refused


def random_sizes(rng: np.random.Generator) -> dict[str, Any]:
    """Sizes within their ranges, some of which fit together."""
    sizes: dict[str, Any] = {
        "width": 4 * int(rng.integers(1, 9)),
        "heads": int(rng.choice([1, 2, 3, 4])),
        "depth": int(rng.integers(1, 4)),
        "control_depth": int(rng.integers(1, 4)),
        "patch_size": int(rng.choice([1, 2, 2, 2, 4])),
        "classes": int(rng.integers(0, 3)),
        "learn_sigma": bool(rng.integers(2)),
        "stem_channels": rng.integers(1, 9, rng.choice([0, 2, 3, 4, 4])).tolist(),
        "stem_finest": int(rng.choice([1, 2, 2, 4])),
        "resolution": 8 * int(rng.choice([3, 4, 8, 8])),
    }
    sizes["head_hidden"] = rng.integers(1, 9, max(0, len(sizes["stem_channels"]) - int(rng.integers(3)))).tolist()
    return sizes


def logits_shape(preset: Preset, side: int) -> tuple[int, ...]:
    """Shape of the mask logits of networks that hold no memory."""
    organs = 3
    with torch.device("meta"):
        codec, dit = build_codec(preset), build_dit(preset)
        control, head = build_control(preset, dit, codec), build_mask_head(preset, codec, organs)
        network = Segmenter(codec, dit, control, head, torch.zeros(organs + 1, 3))
        image = network.encode_image(torch.zeros(2, 3, side, side))
        latent = network.encode_mask(torch.zeros(2, side, side, dtype=torch.long))
        output, tokens = network(latent, torch.zeros(2, dtype=torch.long), image)
        return tuple(network.decode(output, image, tokens).shape)


@pytest.mark.parametrize("name", ["small", "paper"])
def test_sizes_that_are_accepted_are_those_of_networks_that_fit_together(name: str) -> None:
    rng = np.random.default_rng(0)
    codec = {"small": {"channels": 8, "encoder_blocks": 1, "decoder_blocks": 0}, "paper": {
        "block_out_channels": [8, 8, 16, 8], "layers_per_block": 1, "norm_num_groups": 4,
    }}[name]  # fmt: skip
    accepted = 0
    for _ in range({"small": 300, "paper": 120}[name]):
        sizes = {**random_sizes(rng), "codec": codec}
        try:
            preset = find_preset(name, sizes)
        except UsageError:
            continue
        accepted += 1
        assert logits_shape(preset, preset.resolution) == (2, 4, preset.resolution, preset.resolution), sizes
    assert accepted >= 5


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"width": 188, "heads": 3}, "width 188 cannot be divided among 3 heads"),
        ({"width": 190}, "width: Input should be a multiple of 4 (got 190)"),
        ({"width": "abc"}, "width: Input should be a valid integer (got 'abc')"),
        ({"widht": 3}, "widht: Unexpected keyword argument (got 3)"),
        ({"depth": True}, "depth: Input should be a valid integer (got True)"),
        ({"control_depth": 5}, "control_depth 5; expected at most the depth, 4"),
        ({"resolution": 24}, "resolution 24; expected a multiple of 16"),
        ({"stem_finest": 4}, "expected to end at 16"),
        ({"codec": {"image_channels": 3}}, "image_channels 3; expected 0 or at least latent_channels, 4"),
        ({"codec": {"image_channels": 64, "linear_path": True}}, "expected at least the 64 of a latent, and 48 or 0"),
        ({"head_hidden": [8]}, "head_hidden of 1 levels; expected one less than stem_channels has"),
        ({"codec": {"channels": 12}}, "codec.channels: Input should be a multiple of 8 (got 12)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_value_and_expectation(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_preset("small", sizes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
