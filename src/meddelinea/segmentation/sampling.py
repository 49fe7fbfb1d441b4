"""How masks are sampled: the settings of a segmentation, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    import torch

#: What networks compute in.
Computed = Literal["float32", "bfloat16"]
#: `auto` is what a device is fastest in.
Precision = Literal["auto", Computed]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a user can choose about the way from a scan to its mask.

    A model that does not sample, such as a plain network, has no use for steps, scheduler and samples.

    Parameters
    ----------
    steps
        Sampling steps, 1 to 1000; the model's own number where None.
    scheduler
        A name of `SCHEDULERS`; the model's own where None.
    samples
        Masks drawn of each slice, at least 1, each from noise of its own; the organ with the highest mean probability
        is taken. Time grows with their number.
    seed
        Seed of the noise, 0 to 2^64 - 1. With the scan's grey values it decides the noise: the same seed gives the same
        mask.
    batch_size
        Slices at a time, at least 1. It changes memory and speed, and in float32 no mask.
    precision
        What the networks compute in: `float32`, `bfloat16`, or `auto`, what the device is fastest in. Masks in one and
        the other differ in few voxels of ten thousand, at the organs' borders.
    organs
        Canonical names of the organs to keep, each once; all that the model knows where None.

    Raises
    ------
    UsageError
        If a number is out of range, the scheduler is unknown, or the organs are none or named twice.
    """

    steps: int | None = None
    scheduler: str | None = None
    samples: int = 1
    seed: int = 0
    batch_size: int = 16
    precision: Precision = "auto"
    organs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_scheduler()
        if self.samples < 1:
            raise UsageError(f"samples {self.samples}; expected at least 1 mask a slice", parameter="samples")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed}; expected 0..2^64 - 1", parameter="seed")
        if self.batch_size < 1:
            raise UsageError(
                f"batch size {self.batch_size}; expected at least 1 slice at a time", parameter="batch_size"
            )
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise UsageError(f"unknown precision {self.precision!r}; expected one of {known}", parameter="precision")
        if self.organs is not None and not self.organs:
            raise UsageError("organs contains no name; expected names such as liver", parameter="organs")
        if self.organs is not None and len(set(self.organs)) != len(self.organs):
            raise UsageError(f"organs contains a name twice: {', '.join(self.organs)}", parameter="organs")

    def _check_scheduler(self) -> None:
        if self.steps is None and self.scheduler is None:
            return  # without waiting for torch
        from meddelinea.diffusion.sampling import SCHEDULERS
        from meddelinea.diffusion.schedule import TIMESTEPS

        if self.steps is not None and not 1 <= self.steps <= TIMESTEPS:
            raise UsageError(f"{self.steps} sampling steps; expected 1..{TIMESTEPS}", parameter="steps")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise UsageError(
                f"unknown scheduler {self.scheduler!r}; expected one of {', '.join(SCHEDULERS)}", parameter="scheduler"
            )

    def computed_in(self, device: str) -> Computed:
        """What the networks compute in on a device, `cpu` or `cuda`."""
        if self.precision != "auto":
            return self.precision
        from meddelinea.models.precision import bfloat16_is_fast

        return "bfloat16" if bfloat16_is_fast(device, training=False) else "float32"

    def autocast(self, device: str) -> torch.autocast:
        """A context in which networks compute in it; the sampler's own arithmetic stays in float32."""
        import torch

        return torch.autocast(device, torch.bfloat16, enabled=self.computed_in(device) == "bfloat16")

    def labels(self, known: Mapping[str, int]) -> dict[str, int]:
        """Name -> id of the organs to keep, of those that are `known` to a model.

        Raises
        ------
        InputRefusedError
            If the model does not know one.
        """
        if self.organs is None:
            return dict(known)
        unknown = [name for name in self.organs if name not in known]
        if unknown:
            raise InputRefusedError(
                f"the model knows no {', '.join(unknown)}; expected some of: {', '.join(known)}",
                "unknown_organ",
                parameter="organs",
            )
        return {name: known[name] for name in self.organs}
