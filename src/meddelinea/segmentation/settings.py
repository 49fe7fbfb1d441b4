"""How scans are to be segmented; reading, checking and segmenting one so, alone or among many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.findings import Finding
    from meddelinea.segmentation.model import Model
    from meddelinea.segmentation.predict import Segmentation
    from meddelinea.volume import Modality, Volume

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """What is the same for all scans of a run.

    Parameters
    ----------
    model, device
        As `load_model` takes them.
    steps, scheduler, samples, seed, organs, batch_size
        As `segment` takes them.
    modality
        What the scans are where their files do not say it; None where the model tells.
    """

    model: str = "small"
    steps: int | None = None
    scheduler: str | None = None
    samples: int = 1
    seed: int = 0
    organs: tuple[str, ...] | None = None
    device: str = "auto"
    batch_size: int = 16
    modality: Modality | None = None


def check_settings(settings: Settings, known: tuple[str, ...]) -> None:
    """Refuse what cannot be meant, or names organs that are not `known` to the model, before a scan is read.

    Raises
    ------
    UsageError
        If the device or the scheduler is unknown, or the organs are none or named twice.
    InputRefusedError
        If the model does not know an organ.
    """
    from meddelinea.diffusion.sampling import SCHEDULERS

    if settings.device not in DEVICES:
        raise UsageError(f"unknown device {settings.device!r}; expected one of {', '.join(DEVICES)}")
    if settings.scheduler is not None and settings.scheduler not in SCHEDULERS:
        raise UsageError(f"unknown scheduler {settings.scheduler!r}; expected one of {', '.join(SCHEDULERS)}")
    if settings.organs is None:
        return
    if not settings.organs:
        raise UsageError("--organs names no organ; expected names such as liver,spleen")
    if len(set(settings.organs)) != len(settings.organs):
        raise UsageError(f"--organs names an organ twice: {', '.join(settings.organs)}")
    unknown = [name for name in settings.organs if name not in known]
    if unknown:
        raise InputRefusedError(
            f"the model knows no {', '.join(unknown)}; expected some of: {', '.join(known)}", "unknown_organ"
        )


def read_scan(source: Path, modality: Modality | None, trained: tuple[Modality, ...]) -> tuple[Volume, list[Finding]]:
    """Read a scan that may be segmented, with its modality, and what is to be warned of.

    Parameters
    ----------
    source
        As `read_volume` takes it.
    modality
        What the user says it is; None where that is left to the file or the model.
    trained
        Modalities that the model was trained on.

    Raises
    ------
    UsageError
        If the file says that it is of another modality.
    InputRefusedError
        If it cannot be read, or a mask of it would be wrong.
    """
    from meddelinea.checks.scan import examine, raise_refusals

    volume, findings = examine(source, trained, modality)
    raise_refusals(source, findings)
    return volume, findings


def segment_scan(
    model: Model, volume: Volume, settings: Settings, progress: Callable[[int, int], None] | None = None
) -> Segmentation:
    """`segment` as `settings` say; `model` is theirs, loaded."""
    from meddelinea.segmentation.predict import segment

    return segment(
        model,
        volume,
        steps=settings.steps,
        scheduler=settings.scheduler,
        samples=settings.samples,
        seed=settings.seed,
        batch_size=settings.batch_size,
        organs=settings.organs,
        progress=progress,
    )
