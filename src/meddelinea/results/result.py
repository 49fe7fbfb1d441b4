"""A scan in, its organs out, in one call: what `meddelinea.segment` is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from meddelinea.checks.scan import examine, require_accepted
from meddelinea.collisions import require_apart
from meddelinea.errors import UsageError
from meddelinea.findings import Finding
from meddelinea.io.images import from_image
from meddelinea.io.input_files import files_of
from meddelinea.io.nifti import to_nibabel
from meddelinea.io.volumes import read_scan
from meddelinea.labels import canonical_name
from meddelinea.results.files import require_own_sidecar, sidecar_path, write_segmentation
from meddelinea.results.mask_check import check_mask
from meddelinea.results.review import OrganReview, review_organs
from meddelinea.results.statistics import OrganStatistics, organ_statistics
from meddelinea.scan import Modality, Scan
from meddelinea.segmentation.confidence import uncertainty_percent
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.predict import Segmentation
from meddelinea.segmentation.predict import segment as segment_scan
from meddelinea.segmentation.sampling import Precision, Sampling
from meddelinea.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Result:
    """The organs of a scan.

    Parameters
    ----------
    scan
        The scan as it was segmented, its modality known.
    segmentation
        The mask and how it was made.
    statistics
        Measurements of each organ, by name.
    findings
        What is to be known of the scan and of its mask; empty when there is nothing.
    """

    scan: Scan
    segmentation: Segmentation
    statistics: dict[str, OrganStatistics]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, scan: Scan, segmentation: Segmentation) -> Result:
        """Measures the organs, and adds warnings about implausible sizes to the scan's findings."""
        statistics = organ_statistics(scan.volume, segmentation.mask, segmentation.labels)
        findings = (*scan.findings, *check_mask(statistics, segmentation.sizes))
        return cls(scan=scan, segmentation=segmentation, statistics=statistics, findings=findings)

    @property
    def name(self) -> str:
        """File name of the scan, or what stands for it."""
        return self.scan.name

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
        return uncertainty_percent(self.segmentation.uncertainty, self.scan.volume)

    def to_nibabel(self) -> nib.Nifti1Image:
        """The mask as an image of nibabel's."""
        return to_nibabel(self.mask, self.scan.forms)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the mask, and beside it the `.json` that names its organs.

        Parameters
        ----------
        path
            No file of the scan. Ends in `.nii.gz`, `.nii` or `.nrrd`; or in `.dcm` for a DICOM-SEG, where the scan is a
            DICOM series.
        overwrite
            Whether that `.json` may take the place of a file that this package did not write.

        Raises
        ------
        UsageError, InputRefusedError
            If the name ends otherwise, or cannot be written.
        """
        path = Path(path)
        scan = () if self.scan.path is None else files_of(self.scan.path)
        require_apart((path, sidecar_path(path)), {"the scan": scan})
        if not overwrite:
            require_own_sidecar(path)
        write_segmentation(self.segmentation, path, self.scan)


def segment(
    scan: str | os.PathLike[str] | Scan | Volume | Any,
    model: str | Path | Model = "small",
    *,
    organs: tuple[str, ...] | list[str] | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    precision: Precision = "auto",
    modality: Modality | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Check a scan, segment its organs and measure them, as `meddelinea predict` does.

    Parameters
    ----------
    scan
        NIfTI, NRRD or MetaImage file, DICOM folder or zip; an image of nibabel's or of SimpleITK's; an array as
        `Volume(array, affine)`; or a `Scan` that was read before. Hounsfield units for a CT.
    model
        Name of a shipped model, a folder, or what `load_model` gave: load it once for many scans.
    organs
        Only these; all that the model knows where None.
    steps, scheduler, samples, seed, batch_size, precision
        How masks are sampled, see `Sampling`; the model's own way where None.
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
    TypeError
        If `scan` is another object, such as an array that does not say where its voxels lie.
    UsageError
        If an option is invalid.
    WeightsMissingError
        If there is no such model.
    """
    sampling = Sampling(
        steps=steps,
        scheduler=scheduler,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        organs=None if organs is None else tuple(canonical_name(organ) for organ in organs),
    )
    loaded = model if isinstance(model, Model) else load_model(model, device)
    examined = examine(_as_scan(scan), loaded.files.limits, modality)
    require_accepted(examined)
    return Result.of(examined, segment_scan(loaded, examined, sampling, progress))


def _as_scan(scan: Any) -> Scan:
    match scan:
        case str() | os.PathLike():
            return read_scan(Path(scan))
        case Scan():
            return scan
        case Volume():
            return Scan(volume=scan)
        case _:
            return from_image(scan)
