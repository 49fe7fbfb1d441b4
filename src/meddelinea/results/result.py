"""A scan in, its organs out, in one call: what `meddelinea.segment` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from meddelinea.checks.scan import as_modality, check_volume, raise_refusals
from meddelinea.errors import UsageError
from meddelinea.findings import Finding
from meddelinea.io.nifti import from_nibabel, to_nibabel
from meddelinea.io.volumes import read_volume
from meddelinea.labels import canonical_name
from meddelinea.results.files import write_segmentation
from meddelinea.results.mask_check import check_mask
from meddelinea.results.review import OrganReview, review_organs
from meddelinea.results.statistics import OrganStatistics, organ_statistics
from meddelinea.segmentation.confidence import uncertainty_percent
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.predict import Segmentation
from meddelinea.segmentation.predict import segment as segment_volume
from meddelinea.volume import Modality, Volume


@dataclass(frozen=True)
class Result:
    """The organs of a scan.

    Parameters
    ----------
    name
        File name of the scan, or what stands for it.
    scan
        The scan as it was segmented, its modality known.
    segmentation
        The mask and how it was made.
    statistics
        Measurements of each organ, by name.
    findings
        What is to be known of the scan and of its mask; empty when there is nothing.
    """

    name: str
    scan: Volume
    segmentation: Segmentation
    statistics: dict[str, OrganStatistics]
    findings: list[Finding]

    @classmethod
    def of(cls, name: str, scan: Volume, segmentation: Segmentation, findings: list[Finding]) -> Result:
        """The result with its organs measured, and what their sizes ask to be said added to `findings` of the scan."""
        statistics = organ_statistics(scan, segmentation.mask, segmentation.labels)
        return cls(name, scan, segmentation, statistics, [*findings, *check_mask(statistics)])

    @property
    def mask(self) -> Volume:
        """Organ ids, uint8, on the grid of the scan."""
        return self.segmentation.mask

    @property
    def labels(self) -> dict[str, int]:
        """Organ name -> id in the mask."""
        return self.segmentation.labels

    @property
    def reviews(self) -> dict[str, OrganReview]:
        """Of each organ an interval of its volume, and whether and why a person should look at its mask."""
        return review_organs(self.statistics, self.segmentation.confidence, self.segmentation.calibration)

    @property
    def uncertainty(self) -> Volume:
        """Probability in per cent that a voxel's label is wrong, uint8 on the grid of the scan."""
        if self.segmentation.uncertainty is None:
            raise UsageError("this segmentation has no uncertainty; expected one that a model made")
        return uncertainty_percent(self.segmentation.uncertainty, self.scan)

    def to_nibabel(self) -> nib.Nifti1Image:
        """The mask as an image of nibabel's."""
        return to_nibabel(self.mask)

    def save(self, path: str | Path) -> None:
        """Write the mask, `.nii.gz`, `.nii` or `.nrrd`, and beside it the `.json` that names its organs.

        Raises
        ------
        UsageError, InputRefusedError
            If the name ends otherwise, or cannot be written.
        """
        write_segmentation(self.segmentation, Path(path), Path(self.name))


def segment(
    scan: str | Path | Volume | nib.Nifti1Image,
    model: str | Path | Model = "small",
    *,
    organs: tuple[str, ...] | list[str] | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    samples: int = 1,
    seed: int = 0,
    modality: Modality | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Check a scan, segment its organs and measure them, as `meddelinea predict` does.

    Parameters
    ----------
    scan
        NIfTI or NRRD file, DICOM folder or zip, an image of nibabel's, or a `Volume`. Hounsfield units for a CT.
    model
        Name of a shipped model, a folder, or what `load_model` gave: load it once for many scans.
    organs
        Only these; all that the model knows where None.
    steps, scheduler, samples, seed
        How masks are sampled; the model's own way where None.
    modality
        `"CT"` or `"MR"`, where the file does not say it and the model knows both.
    device
        For a model that is loaded here: `cpu`, `cuda` or `auto`.
    progress
        Called with (slices done, slices in all).

    Raises
    ------
    InputRefusedError
        If a mask of the scan would be wrong; its `findings` say why.
    UsageError
        If an option cannot be meant.
    WeightsMissingError
        If there is no such model.
    """
    loaded = model if isinstance(model, Model) else load_model(model, device)
    trained = loaded.files.modalities
    if isinstance(scan, str | Path):
        name, volume = Path(scan).name, read_volume(Path(scan))
    else:
        name, volume = "the scan", scan if isinstance(scan, Volume) else from_nibabel(scan)
    volume = as_modality(name, volume, trained, modality)
    findings = check_volume(volume, trained)
    raise_refusals(name, findings)
    segmentation = segment_volume(
        loaded,
        volume,
        steps=steps,
        scheduler=scheduler,
        samples=samples,
        seed=seed,
        organs=None if organs is None else tuple(canonical_name(organ) for organ in organs),
        progress=progress,
    )
    return Result.of(name, volume, segmentation, findings)
