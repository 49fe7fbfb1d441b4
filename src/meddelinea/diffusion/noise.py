"""Noise that depends only on what it is drawn for, never on the batch, the order of work or the device.

Beside it, for users of diffusers, noise from generators as its pipelines draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from meddelinea.errors import UsageError

#: The purposes that one key draws for: counter blocks of 2^64 values each, so they never overlap.
_INITIAL, _STEPS = 0, 1


@dataclass(frozen=True)
class NoiseKey:
    """The four integers that fix all noise of one sample of one slice.

    Seed and case are the key of a Philox 4x64 generator (Salmon et al. 2011), slice and sample the upper half of its
    counter, none of them hashed: every four integers have a stream of their own. The noise is drawn on the CPU,
    wherever it is used.

    Attributes
    ----------
    seed
        The run's seed, chosen by the user.
    case
        64-bit fingerprint of the scan.
    slice
        Index of the slice in the scan.
    sample
        Index of the sample, where several are drawn of one slice.

    Raises
    ------
    UsageError
        If one of them is not an integer in 0..2^64 - 1.
    """

    seed: int
    case: int
    slice: int
    sample: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
                raise UsageError(f"noise key: {field.name} is {value!r}; expected an integer in 0..2^64 - 1")

    def initial(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of `shape`, here (C, h, w), float32, on the CPU: where sampling starts."""
        return torch.from_numpy(np.random.Generator(self._stream(_INITIAL)).standard_normal(shape, dtype=np.float32))

    def generator(self) -> torch.Generator:
        """A CPU generator, at its beginning, for the noise that a stochastic sampler draws inside its steps.

        torch's generator keeps 32 bits of a seed: seeds that differ by 2^32 draw the same noise. The seed is therefore
        32 bits of this key's stream rather than the key itself. Two keys may meet in it by chance (of a scan's 500
        slices some pair does with probability 3e-5); their initial noise still differs.
        """
        return torch.Generator("cpu").manual_seed(int(self._stream(_STEPS).random_raw()) >> 32)

    def _stream(self, purpose: int) -> np.random.Philox:
        # The lowest counter word is the position in the stream.
        key = np.array([self.seed, self.case], dtype=np.uint64)
        counter = np.array([0, purpose, self.slice, self.sample], dtype=np.uint64)
        return np.random.Philox(key=key, counter=counter)


@dataclass(frozen=True)
class Noise:
    """All that is random in a batch of samples.

    Parameters
    ----------
    initial
        (B, C, h, w) standard normal, float32: where sampling starts.
    generator
        What a stochastic sampler draws from inside its steps: one generator a sample, one for all of them, or None for
        torch's global one.
    """

    initial: Tensor
    generator: list[torch.Generator] | torch.Generator | None

    @classmethod
    def keyed(cls, keys: Sequence[NoiseKey], shape: tuple[int, ...]) -> Self:
        """The noise of B keys for latents of `shape` (C, h, w): that of a sample depends on its key alone."""
        return cls(torch.stack([key.initial(shape) for key in keys]), [key.generator() for key in keys])

    @classmethod
    def drawn(
        cls, generator: list[torch.Generator] | torch.Generator | None, shape: tuple[int, ...], device: torch.device
    ) -> Self:
        """Noise of `shape` (B, C, h, w) as diffusers' pipelines draw it: the generators move on."""
        return cls(randn_tensor(shape, generator=generator, device=device, dtype=torch.float32), generator)
