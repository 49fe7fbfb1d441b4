"""Random deformations and intensity changes, the same for an image and its mask.

Each slice draws its own parameters from a generator keyed by (seed, epoch, case, slice), so that a sample does not
depend on the batch, worker or process that it is made in. The pixels of a batch are then moved in one go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from meddelinea.data.appearance import random_appearance

#: (seed, epoch, case, slice)
Key = tuple[int, int, int, int]

#: Side of the coarse grid of the elastic distortion.
ELASTIC_GRID = 6
#: Grey levels at which the tone curve is bent, and the distance between them.
TONES = (-1.0, -0.5, 0.0, 0.5, 1.0)
TONE_STEP = 0.5
#: Distance of a slice's corner from its centre, in half sides.
CORNER = 2.0**0.5


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Augmentation:
    """Ranges of the paper's augmentation (App. A) and of the intensity changes, checked when it is made.

    Zero switches one off.
    """

    rotation_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 15.0  # largest turn to either side
    scale: Annotated[float, Field(ge=0.0, le=0.75)] = 0.2  # largest relative change of size to either side
    shear: Annotated[float, Field(ge=0.0, le=2.0)] = 0.1  # largest shear factor
    translation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1  # largest shift, as a share of the slice's side
    #: Standard deviation of the coarse displacements, as a share of the slice's side.
    elastic: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    #: Largest tilt of a slice's plane to either side, about its rows and about its columns: see `data.oblique`.
    tilt_deg: Annotated[float, Field(ge=0.0, le=45.0)] = 0.0
    #: Largest relative change of contrast, and shift on the -1..1 scale.
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    brightness: Annotated[float, Field(ge=0.0, le=2.0)] = 0.15
    #: Largest standard deviation of added noise on the -1..1 scale.
    noise: Annotated[float, Field(ge=0.0, le=2.0)] = 0.05
    #: Largest share of the side that a random crop leaves out; the crop fills the slice.
    crop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    #: Standard deviation of the shifts at `TONES`, linear between them, that bend the curve from old grey levels to
    #: new ones: other windows and phases of contrast, in which tissues stand in another relation.
    tone: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    #: Largest weight of what a 3x3 mean takes away, added or subtracted: sharp and smooth reconstruction kernels.
    sharpness: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    #: Largest share of the half side that a round field of view leaves out; it reaches at most to the corners. Air and
    #: background are outside.
    field: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    #: Share of the slices whose grey values are drawn anew, organ by organ: see `data.appearance`.
    appearance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    #: Share of the slices in which left and right are exchanged; 0 where an organ is told by its side.
    mirror: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Parameters drawn for a batch of B slices."""

    affine: Tensor  # (B, 2, 3)
    displacement: Tensor  # (B, 2, ELASTIC_GRID, ELASTIC_GRID)
    gain: Tensor  # (B,)
    offset: Tensor  # (B,)
    noise: Tensor  # (B,)
    tone: Tensor  # (B, len(TONES))
    sharpness: Tensor  # (B,)
    radius: Tensor  # (B,) of the field of view, where 1 is half of the side
    seeds: tuple[int, ...]  # of the pixel noise
    #: Of the slices, and the share of them whose grey values are drawn anew.
    keys: tuple[Key, ...]
    appearance: float


def draw(augmentation: Augmentation, keys: list[Key]) -> Drawn:
    """Draw parameters for the slices that the keys name."""
    a = augmentation
    affine, displacement, intensity, tone, look, seeds = [], [], [], [], [], []
    for key in keys:
        rng = np.random.default_rng(key)

        # A linear map and a shift of the plane, and an elastic displacement.
        angle = np.deg2rad(rng.uniform(-a.rotation_deg, a.rotation_deg))
        scale = 1.0 + rng.uniform(-a.scale, a.scale) + rng.uniform(-a.scale, a.scale, 2) / 4  # a quarter as anisotropy
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rotation @ np.array([[scale[0], rng.uniform(-a.shear, a.shear)], [0.0, scale[1]]])
        shift = rng.uniform(-a.translation, a.translation, 2) * 2.0  # a slice spans -1 to 1
        displacement.append(rng.normal(0.0, 2.0 * a.elastic, (2, ELASTIC_GRID, ELASTIC_GRID)))

        # Grey values.
        gain = 1.0 + rng.uniform(-a.contrast, a.contrast)
        intensity.append((gain, rng.uniform(-a.brightness, a.brightness), rng.uniform(0.0, a.noise)))
        seeds.append(int(rng.integers(2**32)))

        # What was added later is drawn after the others, whose numbers then do not depend on it.
        left_out = a.crop * rng.random()
        centre = left_out * rng.uniform(-1.0, 1.0, 2)  # where the crop still lies in the moved slice
        tone.append(rng.normal(0.0, a.tone, len(TONES)))
        look.append((rng.uniform(-a.sharpness, a.sharpness), rng.uniform(1.0 - a.field, CORNER) if a.field else CORNER))
        columns = [-1.0 if rng.random() < a.mirror else 1.0, 1.0]
        affine.append(np.column_stack([linear * columns * (1.0 - left_out), linear @ centre + shift]))

    sharpness, radius = torch.tensor(look, dtype=torch.float32).unbind(1)
    gains, offset, noise = torch.tensor(intensity, dtype=torch.float32).unbind(1)
    return Drawn(
        affine=_tensor(affine),
        displacement=_tensor(displacement),
        gain=gains,
        offset=offset,
        noise=noise,
        tone=_tensor(tone),
        sharpness=sharpness,
        radius=radius,
        seeds=tuple(seeds),
        keys=tuple(keys),
        appearance=a.appearance,
    )


def _tensor(arrays: list[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def zoom(drawn: Drawn, centres: Tensor, share: float) -> Drawn:
    """The same deformations about a window of each slice: a crop, made by the one resampling that moves the pixels.

    Parameters
    ----------
    centres
        (B, 2) column and row of each window's centre in the source slice, -1 to 1.
    share
        Side of the window over the side of the slice.
    """
    affine = torch.cat([drawn.affine[:, :, :2] * share, centres[:, :, None]], dim=2)
    return replace(drawn, affine=affine)


def apply(drawn: Drawn, images: Tensor, masks: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Move and change a batch.

    Parameters
    ----------
    images
        (B, C, H, W) in [-1, 1].
    masks
        (B, H, W) organ ids, or (B, C, H, W) of each channel; moved by nearest neighbour.
    side
        Rows and columns of the result.

    Returns
    -------
    The images (B, C, side, side), clipped to [-1, 1], and the masks (B, side, side) or (B, C, side, side); -1 (air) and
    0 (background) where the slice does not reach.
    """
    B, C = images.shape[:2]
    grid = F.affine_grid(drawn.affine, [B, C, side, side], align_corners=False)
    if drawn.displacement.any():
        # Smooth at a few pixels, linear between them: as good to the eye, and a tenth of the time.
        smooth = F.interpolate(drawn.displacement, (side // 4, side // 4), mode="bicubic", align_corners=False)
        smooth = F.interpolate(smooth, (side, side), mode="bilinear", align_corners=False)
        grid = grid + smooth.permute(0, 2, 3, 1)
    # Shifted by one, so that the zeros beyond the border mean air.
    moved = F.grid_sample(images + 1.0, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1.0
    stacked = masks.view(B, -1, *masks.shape[-2:]).float()  # (B, 1 or C, H, W)
    ids = F.grid_sample(stacked, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    ids = ids.view(*masks.shape[:-2], side, side)
    if drawn.appearance:
        moved = random_appearance(moved, ids.long(), drawn.keys, drawn.appearance)
    column = (slice(None), None, None, None)
    if drawn.sharpness.any():
        moved = moved + drawn.sharpness[column] * (moved - F.avg_pool2d(moved, 3, 1, 1, count_include_pad=False))
    if drawn.tone.any():
        bends = zip(TONES, drawn.tone.unbind(1), strict=True)
        moved = moved + sum(b[column] * (1.0 - (moved - tone).abs() / TONE_STEP).clamp(min=0.0) for tone, b in bends)
    changed = moved * drawn.gain[column] + drawn.offset[column]
    if drawn.noise.any():
        generators = [torch.Generator().manual_seed(seed) for seed in drawn.seeds]
        grain = torch.stack([torch.randn((C, side, side), generator=g) for g in generators])
        changed = changed + drawn.noise[column] * grain
    changed, ids = changed.clamp(-1.0, 1.0), ids.long()
    if (drawn.radius < CORNER).any():
        across = (torch.arange(side) + 0.5) * 2.0 / side - 1.0
        outside = across.square()[None, :, None] + across.square()[None, None, :] > drawn.radius.square()[:, None, None]
        changed = changed.masked_fill(outside[:, None], -1.0)
        ids = ids.masked_fill(outside.view(B, *[1] * (ids.ndim - 3), side, side), 0)
    return changed, ids
