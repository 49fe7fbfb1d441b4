"""Slices of random appearance, so that a network that is trained on CT alone cannot rely on CT's grey values.

Shapes stay; what is drawn is how tissue looks: a gain and an offset for each organ and for all else (Su et al., AAAI
2023), then a shallow network of random weights over everything, blended with its input (Ouyang et al., TMI 2022), and
what MR scanners do beside: inverted contrast, another gamma, a coil's smooth field, noise. Air stays air. Every number
is a function of a slice's key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Grey level above which a pixel is body and not air.
AIR = -0.97
#: How often an organ, or all that is none, gets a gain and an offset of its own, and how far they spread.
RETOUCHED, GAIN, OFFSET = 0.7, 0.4, 0.35
#: Layers and hidden channels of the random network, and the sides of its kernels.
LAYERS, WIDTH, KERNELS = 4, 2, (1, 3)
#: How often grey values are turned over, and how often a coil's field lies over them.
INVERTED, FIELD = 0.3, 0.5
#: Standard deviations of the logarithms of gamma and of the field, and the points of the field along a side.
GAMMA, FIELD_SPREAD, FIELD_GRID = 0.5, 0.25, 4
#: Percentiles of the body that become the darkest and the brightest grey, as an MR's window has them.
WINDOW = (0.005, 0.995)
#: Largest share of the range that the darkest tissue stands above air, and largest deviation of the noise.
FLOOR, NOISE = 0.04, 0.06


def random_appearance(images: Tensor, masks: Tensor, keys: Sequence[tuple[int, ...]], share: float) -> Tensor:
    """Draw anew what a share of the slices looks like.

    Parameters
    ----------
    images
        (B, C, H, W) in [-1, 1], -1 being air; the channels, a slice and its neighbours, are changed alike.
    masks
        (B, H, W) organ ids of the middle channel, or (B, C, H, W) of all.
    keys
        B keys; a slice's appearance, and whether it is drawn, depends on its key alone.
    share
        0 to 1.

    Returns
    -------
    (B, C, H, W) in [-1, 1].
    """
    slices = []
    for image, mask, key in zip(images, masks, keys, strict=True):
        rng = np.random.default_rng((*key, 2))
        slices.append(_drawn(image, mask, rng) if rng.random() < share else image)
    return torch.stack(slices)


def _drawn(image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor:
    body = image > AIR  # (C, H, W)
    grey = _blended(_retouched(image, mask, rng), rng)
    if rng.random() < INVERTED:
        grey = -grey
    return torch.where(body, _windowed(grey, body, rng), -torch.ones_like(image))


def _retouched(image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Each organ, and all that is none, with a gain and an offset of its own."""
    gains, offsets = torch.ones(int(mask.max()) + 1), torch.zeros(int(mask.max()) + 1)
    for organ in torch.unique(mask).tolist():
        if rng.random() < RETOUCHED:
            gains[organ], offsets[organ] = rng.normal(1.0, GAIN), rng.normal(0.0, OFFSET)
    return gains[mask] * image + offsets[mask]  # (C, H, W)


def _blended(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A network of random weights over the image, as strong as that, and blended with it."""
    h = image[:, None]  # (C, 1, H, W): the same network for all channels
    for layer in range(LAYERS):
        last = layer == LAYERS - 1
        side, width = int(rng.choice(KERNELS)), 1 if last else WIDTH
        weight, bias = rng.normal(size=(width, h.shape[1], side, side)), rng.normal(0.0, 0.3, width)
        h = F.conv2d(h, _float(weight), _float(bias), padding=side // 2)  # (C, width, H, W)
        h = h if last else F.leaky_relu(h)
    seen = h[:, 0] * (image.norm() / (h.norm() + 1e-6))  # (C, H, W)
    return torch.lerp(image, seen, rng.random())


def _windowed(grey: Tensor, body: Tensor, rng: np.random.Generator) -> Tensor:
    """Grey values of the body brought to [-1, 1] as an MR's are, and what a scanner does to them."""
    inside = grey[body]
    if not len(inside):
        return grey
    few = inside[:: max(1, len(inside) // 5000)]
    low, high = torch.quantile(few, torch.tensor(WINDOW))
    share = ((grey - low) / (high - low + 1e-6)).clamp(0.0, 1.0) ** float(np.exp(rng.normal(0.0, GAMMA)))
    if rng.random() < FIELD:
        coarse = _float(rng.normal(0.0, FIELD_SPREAD, (1, 1, FIELD_GRID, FIELD_GRID)))
        field = F.interpolate(coarse, tuple(grey.shape[1:]), mode="bicubic", align_corners=False)[0, 0]  # (H, W)
        share = (share * field.exp()).clamp(max=1.0)
    floor, noise = rng.uniform(0.0, FLOOR), rng.uniform(0.0, NOISE)
    grain = torch.randn(grey.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**32))))
    drawn: Tensor = (floor + (1.0 - floor) * share) * 2.0 - 1.0 + noise * grain
    return drawn.clamp(-1.0, 1.0)


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
