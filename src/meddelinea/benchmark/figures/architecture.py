"""The network as it is: its modules with true shapes and parameter counts, the paper's Figure 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

from meddelinea.benchmark.figures.page import TYPE_POINTS, new_page
from meddelinea.models.codec import palette
from meddelinea.models.presets import build_codec, build_control, build_dit, build_mask_head, find_preset
from meddelinea.models.segmenter import Segmenter

FROZEN, TRAINED, PLAIN = "#CFE3F2", "#F9DCC4", "#FFFFFF"


@dataclass(frozen=True)
class Sizes:
    """What a figure says of a preset: shapes for one slice without the batch, and numbers of parameters."""

    preset: str
    blocks: tuple[int, int]  # N of the base, K of the control branch
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, int]


@torch.no_grad()
def sizes_of(name: str, organs: int) -> Sizes:
    """Sizes of a preset for so many organs, read off networks that hold no memory.

    Raises
    ------
    UsageError
        If there is no such preset.
    """
    preset = find_preset(name)
    with torch.device("meta"):
        codec, dit = build_codec(preset), build_dit(preset)
        control, head = build_control(preset, dit, codec), build_mask_head(preset, codec, organs)
        segmenter = Segmenter(codec, dit, control, head, palette(organs + 1))
        segmenter.freeze("final_layer")
        side = preset.resolution
        image = segmenter.encode_image(torch.zeros(1, 3, side, side))
        noisy = torch.zeros(segmenter.latent_shape(image))
        noise, tokens = segmenter(noisy, torch.zeros(1), image)
        logits = segmenter.decode(noise, image, tokens)
    shapes: dict[str, Tensor] = {
        "image": torch.empty(1, 3, side, side, device="meta"),
        "image latent": image.latent,
        "mask latent": noisy,
        "tokens": tokens,
        "noise": noise,
        "mask": logits,
    }
    parts: dict[str, nn.Module] = {"codec": codec, "base": dit, "control": control, "mask head": head}
    if control.stem is not None:
        parts["image stem"] = control.stem
    parts |= {"zero convolution": control.zero_conv, "block": control.blocks[0], "zero layer": control.after_mlp[0]}
    return Sizes(
        preset=name,
        blocks=(len(dit.blocks), len(control.blocks)),
        shapes={place: tuple(tensor.shape[1:]) for place, tensor in shapes.items()},
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
    )


def architecture_figure(sizes: Sizes) -> Figure:
    """Boxes for the modules, arrows for what passes between them; blue is frozen, orange is trained."""
    figure = new_page(3.1)
    axes = figure.subplots()
    axes.set(xlim=(0.0, 13.5), ylim=(0.0, 6.2))
    axes.set_axis_off()
    shape = {name: " x ".join(map(str, size)) for name, size in sizes.shapes.items()}
    count = {name: _in_words(number) for name, number in sizes.parameters.items()}
    N, K = sizes.blocks

    # The image's way, above: encoder, zero convolution, control branch.
    _box(axes, (0.1, 4.0), (1.7, 1.3), f"slice $I_O$\n{shape['image']}", PLAIN)
    _box(axes, (2.5, 4.0), (2.0, 1.3), f"encoder\n$Z_o$: {shape['image latent']}", FROZEN)
    _box(axes, (5.2, 4.0), (1.9, 1.3), f"zero convolution\n{count['zero convolution']}", TRAINED)
    text = f"Control DiT $P_\\phi$\n{K} blocks, {count['control']}\ntokens {shape['tokens']}"
    _box(axes, (7.9, 3.8), (3.0, 1.7), text, TRAINED)
    # The mask's way, below: noisy latent, frozen base, Tweedie, decoder.
    _box(axes, (0.1, 0.3), (1.7, 1.3), f"mask $I_M$\n{shape['image']}", PLAIN)
    _box(axes, (2.5, 0.3), (2.0, 1.3), f"encoder, noise\n$Z_{{m_t}}$: {shape['mask latent']}", FROZEN)
    _box(
        axes,
        (7.9, 0.1),
        (3.0, 1.7),
        f"DiT $\\epsilon_\\theta$\n{N} blocks, {count['base']}\ntokens {shape['tokens']}",
        FROZEN,
    )
    _box(axes, (11.6, 2.2), (1.8, 1.3), f"decoder,\nits final layer\n{count['mask head']}", TRAINED)
    _box(axes, (11.6, 4.1), (1.8, 1.2), f"organs\n{shape['mask']}", PLAIN)

    for start, end in (((1.8, 4.65), (2.5, 4.65)), ((4.5, 4.65), (5.2, 4.65)), ((7.1, 4.65), (7.9, 4.65))):
        _arrow(axes, start, end)
    for start, end in (((1.8, 0.95), (2.5, 0.95)), ((4.5, 0.95), (7.9, 0.95)), ((7.4, 4.2), (7.9, 4.2))):
        _arrow(axes, start, end)
    for start, end in (
        ((9.1, 3.8), (9.1, 1.8)),
        ((10.9, 0.95), (11.6, 0.95)),
        ((12.5, 1.6), (12.5, 2.2)),
        ((12.5, 3.5), (12.5, 4.1)),
    ):
        _arrow(axes, start, end)
    axes.plot([7.4, 7.4], [0.95, 4.2], linewidth=0.8, color="0.25")  # the noisy latent goes to both
    text = f"2 features a block,\neach by a zero layer\nof {count['zero layer']}, added after\nattention and MLP"
    axes.text(9.2, 2.8, text, fontsize=TYPE_POINTS - 1, va="center")
    _box(axes, (11.6, 0.3), (1.8, 1.3), f"Eq. (1)\n$\\hat Z_{{m_0}}$: {shape['noise']}", PLAIN)
    stem = f"; image stem in the control branch {count['image stem']}" if "image stem" in count else ""
    title = f"preset {sizes.preset}: codec {count['codec']}; a block {count['block']}{stem}"
    axes.text(0.1, 5.95, title, fontsize=TYPE_POINTS, va="center")
    for place, (colour, name) in enumerate(((FROZEN, "frozen"), (TRAINED, "trained"))):
        _box(axes, (10.0 + 1.9 * place, 5.82), (0.3, 0.25), "", colour)
        axes.text(10.45 + 1.9 * place, 5.95, name, fontsize=TYPE_POINTS, va="center")
    return figure


def _in_words(number: int) -> str:
    """`117.0 M`, `12.3 k` or `20` parameters, without the word."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:,.1f} {letter}"
    return str(number)


def _box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, facecolor=colour, edgecolor="0.25", linewidth=0.7))
    middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    axes.text(*middle, text, ha="center", va="center", fontsize=TYPE_POINTS)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.8, color="0.25"))
