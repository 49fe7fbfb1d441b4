"""Training batches, each a pure function of (seed, step): the same after a resume and on any number of processes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from meddelinea.data.augment import Key, apply, draw, zoom
from meddelinea.data.oblique import cut, cut_ids, heights
from meddelinea.data.preprocess import neighbour_offsets
from meddelinea.data.store import SliceStore
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.methods.protocol import Batch, Patch
from meddelinea.models.codec import FACTOR
from meddelinea.training.config import DataConfig


@dataclass(eq=False)
class TrainingBatches(Dataset[Batch]):
    """Item s is the batch of micro-step s for one process.

    Every random number of a sample is keyed by (seed, micro-step, position in the global batch), so P processes with
    batches of B/P see together what one process with a batch of B sees.

    Raises
    ------
    InputRefusedError
        If slices with organs are asked for and no case holds an organ.
    UsageError
        If a resolution is not the store's size over a whole number, or smaller than a patch.
    """

    store: SliceStore
    config: DataConfig  # how slices are drawn of the store
    _: KW_ONLY
    batch_size: int  # slices a process, B/P
    noise_channels: int  # channels of the noise that goes with a slice
    seed: int
    #: Which of P processes this is.
    rank: int
    processes: int
    #: What a sample is: a patch about the drawn slice, or the slice itself where None.
    patch: Patch | None = None

    def __post_init__(self) -> None:
        store, config = self.store, self.config
        self.factors = shrink_factors(config, store.manifest.preprocessing.size)
        smallest = self._size // max(self.factors)
        if self.patch is not None and self.patch.side > smallest:
            raise UsageError(f"model.sizes: patches of {self.patch.side} pixels in slices of {smallest}")
        held = np.concatenate([store.organ_pixels(case) > 0 for case in range(len(store.cases))])  # (slices, L)
        # 32 bits: a store of millions of slices is held by each process.
        self.by_organ = [np.flatnonzero(column).astype(np.uint32) for column in held.T if column.any()]
        if not self.by_organ and (config.rare_organ_share > 0 or config.empty_share == 0):
            raise InputRefusedError(
                f"{store.root}: no organ in the training cases; set rare_organ_share to 0 and empty_share above 0"
            )
        weights = np.where(held.any(axis=1), 1.0, config.empty_share)
        self.cumulative = np.cumsum(weights / weights.sum())

    @property
    def _size(self) -> int:
        return self.store.manifest.preprocessing.size

    def _pick(self, rng: np.random.Generator) -> tuple[int, int]:
        by_organ, which, where = rng.random(3)
        if by_organ < self.config.rare_organ_share:
            candidates = self.by_organ[int(which * len(self.by_organ))]
            return self.store.place(int(candidates[int(where * len(candidates))]))
        number = int(np.searchsorted(self.cumulative, where, side="right"))
        return self.store.place(min(number, len(self.store) - 1))

    def slices(self, step: int) -> list[tuple[int, int]]:
        """Case and slice of each sample of a micro-step, of all processes."""
        return [self._pick(self._rng(step, position)) for position in range(self.batch_size * self.processes)]

    def _rng(self, step: int, position: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, step, position))

    def _thickness(self, step: int, position: int) -> int:
        """Slices that are averaged into one, drawn apart: other numbers then do not depend on `thickest`."""
        return int(np.random.default_rng((self.seed, step, position, 1)).integers(1, self.config.thickest + 1))

    def _image(self, case: int, index: int, thickness: int) -> NDArray[np.float32]:
        """Grey levels (channels, size, size) of a slab about a slice and of neighbours of its thickness."""
        first = index - (thickness - 1) // 2
        reach = self.config.neighbours * thickness
        slab = [self.store.image(case, first + i, reach, self.config.neighbour_pairs) for i in range(thickness)]
        mean: NDArray[np.float32] = np.mean(slab, axis=0, dtype=np.float32)
        return mean

    def _tilted(
        self, case: int, index: int, thickness: int, *, slopes: NDArray[np.float64], factor: int
    ) -> tuple[Tensor, NDArray[np.uint8]]:
        """What `_image` gives, shrunk, and the mask (size, size), both along a tilted plane through the slice.

        `slopes` are those of the plane in millimetres per millimetre, along the rows and the columns.
        """
        preprocessing, last = self.store.manifest.preprocessing, self.store.cases[case].slices - 1
        rise = slopes * preprocessing.spacing_mm / self.store.slice_mm(case)
        plane = index + heights(preprocessing.size, (float(rise[0]), float(rise[1])))  # (size, size)
        around = neighbour_offsets(self.config.neighbours * thickness, self.config.neighbour_pairs)
        within = np.arange(thickness) - (thickness - 1) // 2
        offsets = torch.from_numpy(np.add.outer(around, within)).flatten()  # (channels * thickness,)

        lowest, highest = plane.min() + offsets.min(), plane.max() + offsets.max()
        start, stop = min(max(int(lowest.floor()), 0), last), max(min(int(highest.ceil()), last), 0) + 1
        levels, ids = map(torch.from_numpy, self.store.slab(case, start, stop))
        at = F.avg_pool2d(plane[None], factor) - start + offsets[:, None, None]  # (channels * thickness, side, side)
        cuts = cut(shrink(levels[None], factor)[0], at)
        image = cuts.view(len(around), thickness, *cuts.shape[1:]).mean(dim=1)
        return image, cut_ids(ids, plane[None] - start)[0].numpy()

    def _slab(
        self, case: int, index: int, thickness: int, *, depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Grey levels and organ ids (depth, size, size) of slices about one; a scan's last ones stand for those beyond.

        It reaches beyond the scan only where that is shorter, and then as far on either side.
        """
        span, slices = thickness * depth, self.store.cases[case].slices
        room = slices - span
        first = min(max(index - span // 2, 0), room) if room > 0 else -(-room // 2)
        places = [first + thickness * level for level in range(depth)]
        image = [
            np.mean([self.store.image(case, place + i, 0, 0)[0] for i in range(thickness)], axis=0, dtype=np.float32)
            for place in places
        ]
        middles = [min(max(place + (thickness - 1) // 2, 0), slices - 1) for place in places]
        return np.stack(image), np.stack([self.store.mask(case, middle) for middle in middles])

    def __getitem__(self, step: int) -> Batch:
        images, masks, keys, centres, noise, uniform = [], [], [], [], [], []
        total = self.batch_size * self.processes
        factor = self.factors[step % len(self.factors)]
        crop, tilt = self.config.crop if self.patch is None else self.patch.side, self.config.augmentation.tilt_deg
        side = crop or self._size // factor
        for position in range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size):
            rng = self._rng(step, position)
            case, index = self._pick(rng)
            key = (self.seed, step * total + position, case, index)
            thickness = self._thickness(step, position)
            if self.patch is not None:
                levels, mask = self._slab(case, index, thickness, depth=self.patch.depth)
                image = shrink(torch.from_numpy(levels)[None], factor)[0]
            elif tilt:
                angles = np.random.default_rng((self.seed, step, position, 2)).uniform(-tilt, tilt, 2)
                slopes = np.tan(np.deg2rad(angles))
                image, mask = self._tilted(case, index, thickness, slopes=slopes, factor=factor)
            else:
                levels, mask = self._image(case, index, thickness), self.store.mask(case, index)
                image = shrink(torch.from_numpy(levels)[None], factor)[0]
            images.append(image)
            masks.append(mask)
            keys.append(key)
            centres.append(_centre(mask, key) if crop else torch.zeros(2))
            noise.append(rng.standard_normal((self.noise_channels, side // FACTOR, side // FACTOR), dtype=np.float32))
            # Stratified over the global batch: a batch covers the timesteps evenly.
            uniform.append((position + rng.random()) / total)
        pixels = torch.stack(images)
        drawn = draw(self.config.augmentation, keys)
        if crop:
            share = crop / pixels.shape[2]
            within = 1.0 if self.patch is None else 1.0 - share  # as windows lie when a scan is segmented
            drawn = zoom(drawn, torch.stack(centres).clamp(-within, within), share)
        moved, ids = apply(drawn, pixels, torch.from_numpy(np.stack(masks)), side)
        return Batch(moved, ids, torch.from_numpy(np.stack(noise)), torch.tensor(uniform, dtype=torch.float32))


def shrink_factors(config: DataConfig, size: int) -> tuple[int, ...]:
    """By how much the store's slices of `size` pixels are shrunk for each of the resolutions, in their order.

    Raises
    ------
    UsageError
        If a resolution is not the size over a whole number.
    """
    odd = [side for side in config.resolutions if size % side]
    if odd:
        raise UsageError(f"data.resolutions: {odd[0]}; expected {config.store}'s size {size} over a whole number")
    return tuple(size // side for side in config.resolutions) or (1,)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Grey levels (B, 3, H, W), 0 to 255, as [-1, 1] and averaged over blocks of `factor` x `factor` pixels."""
    pixels = images.float() / 127.5 - 1.0
    return F.avg_pool2d(pixels, factor) if factor > 1 else pixels


def _centre(mask: NDArray[np.uint8], key: Key) -> Tensor:
    """Where a crop is taken: a random organ pixel, or any pixel where there are no organs; (column, row), -1 to 1."""
    rng = np.random.default_rng((*key, 1))
    candidates = np.flatnonzero(mask)
    place = candidates[rng.integers(len(candidates))] if len(candidates) else rng.integers(mask.size)
    *_, row, column = (int(along) for along in np.unravel_index(place, mask.shape))
    return torch.tensor([2.0 * column / mask.shape[-1] - 1.0, 2.0 * row / mask.shape[-2] - 1.0])
