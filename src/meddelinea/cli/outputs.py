"""The files that `predict` writes: which are requested, whether they can be written, and writing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.folders.found import ScanCase
    from meddelinea.io.volumes import SegmentationType
    from meddelinea.results.files import OutputType
    from meddelinea.results.result import Result


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Paths of the results of one scan, None for those not requested, and the requested kind of mask file, if any."""

    mask: Path
    output_type: str | None = None
    segmentation_type: str | None = None
    statistics: Path | None = None
    preview: Path | None = None
    report: Path | None = None
    uncertainty: Path | None = None
    surfaces: Path | None = None


@dataclass(frozen=True)
class ExtraFolders:
    """Folders for the files of each scan besides its mask, named after the mask; None for those not requested.

    Parameters
    ----------
    masks
        Folder of the masks.
    """

    masks: Path
    previews: Path | None = None
    reports: Path | None = None
    uncertainties: Path | None = None
    surfaces: Path | None = None

    def of(self, case: ScanCase) -> Outputs:
        """The files of one scan."""
        from meddelinea.results.files import sidecar_path

        sidecar = sidecar_path(case.output)
        inside = sidecar.is_relative_to(self.masks)  # in a list they can stand anywhere
        name = sidecar.relative_to(self.masks) if inside else Path(sidecar.name)

        def there(folder: Path | None, suffix: str) -> Path | None:
            return None if folder is None else folder / name.with_name(name.name.removesuffix(".json") + suffix)

        return Outputs(
            mask=case.output,
            preview=there(self.previews, ".png"),
            report=there(self.reports, ".html"),
            uncertainty=there(self.uncertainties, ".nii.gz"),
            surfaces=there(self.surfaces, ".glb"),
        )

    def paths(self, case: ScanCase) -> tuple[Path, ...]:
        """See `folders.batch.ExtraOutputs`."""
        of = self.of(case)
        return tuple(path for path in (of.preview, of.report, of.uncertainty, of.surfaces) if path is not None)

    def writers(self, case: ScanCase, result: Result, card: str) -> dict[Path, Callable[[Path], object]]:
        """See `folders.batch.ExtraOutputs`."""
        return _writers(self.of(case), result, card)


def check_outputs(source: Path, outputs: Outputs, model: Path, *, overwrite: bool = False) -> OutputType:
    """The kind of file that the mask becomes. Outputs that cannot be written are refused now, before the long work.

    Parameters
    ----------
    model
        The model's folder.
    overwrite
        Whether files beside the mask may be replaced that this package did not write.
    """
    from meddelinea.collisions import require_apart
    from meddelinea.endings import MASK_SUFFIXES, READ_SUFFIXES, VOLUME_SUFFIXES, ending
    from meddelinea.files import ensure_writable
    from meddelinea.io.input_files import files_of
    from meddelinea.results.files import require_own_sidecar, sidecar_path
    from meddelinea.results.surfaces import SURFACE_SUFFIXES

    kind, _ = _kinds(outputs)
    endings = {
        outputs.mask: MASK_SUFFIXES,
        sidecar_path(outputs.mask): (".json",),
        outputs.statistics: (".json",),
        outputs.preview: (".png",),
        outputs.report: (".html",),
        outputs.uncertainty: VOLUME_SUFFIXES,
        outputs.surfaces: SURFACE_SUFFIXES,
    }
    wanted = [outputs.statistics, outputs.preview, outputs.report, outputs.uncertainty, outputs.surfaces]
    paths = [outputs.mask, sidecar_path(outputs.mask), *(path for path in wanted if path is not None)]
    require_apart(paths, {"the scan": files_of(source)}, model)
    if source.is_dir():
        inside = [path.name for path in source.iterdir() if ending(path, READ_SUFFIXES)]
        if inside:
            raise InputRefusedError(
                f"{source}: a folder of {len(inside)} volume files; pass one of them, or a folder as -o"
            )
    for path, suffixes in endings.items():
        if path is not None:
            ensure_writable(path, suffixes)
    if not overwrite:
        require_own_sidecar(outputs.mask)
    return kind


def write_outputs(outputs: Outputs, result: Result, card: str) -> dict[str, Path]:
    """Write the requested files, all of them or none. `card` is the model's."""
    from meddelinea.results.files import sidecar_path, write_segmentation

    kind, stored = _kinds(outputs)
    write_segmentation(
        result.segmentation,
        outputs.mask,
        result.scan,
        kind=kind,
        segmentation_type=stored,
        others=_writers(outputs, result, card),
    )
    files = {
        "mask": outputs.mask,
        "labels": sidecar_path(outputs.mask),
        "statistics": outputs.statistics,
        "uncertainty": outputs.uncertainty,
        "preview": outputs.preview,
        "report": outputs.report,
        "surfaces": outputs.surfaces,
    }
    return {name: path for name, path in files.items() if path is not None}


def _writers(outputs: Outputs, result: Result, card: str) -> dict[Path, Callable[[Path], object]]:
    """The requested files beside the mask and its sidecar, each with what writes it."""
    from meddelinea.files import write_json
    from meddelinea.io.volumes import write_volume
    from meddelinea.results.figures import preview
    from meddelinea.results.files import statistics_document
    from meddelinea.results.page import write_scan_report
    from meddelinea.results.surfaces import write_surfaces

    made = result.segmentation

    def write_statistics(path: Path) -> None:
        document = statistics_document(result.statistics, result.scan.modality, made)
        write_json({"input": result.name} | document, path)

    def draw(path: Path) -> None:
        preview(result.scan, result.mask, result.labels, path, f"{result.name}: {made.model}, not for diagnosis")

    writers: dict[Path | None, Callable[[Path], object]] = {
        outputs.statistics: write_statistics,
        outputs.uncertainty: lambda path: write_volume(result.uncertainty, path, result.scan.forms),
        outputs.preview: draw,
        outputs.report: lambda path: write_scan_report(path, result, card),
        outputs.surfaces: lambda path: write_surfaces(path, result.mask, result.labels),
    }
    return {path: write for path, write in writers.items() if path is not None}


def _kinds(outputs: Outputs) -> tuple[OutputType, SegmentationType]:
    """The kind of file that the mask becomes, and how a DICOM-SEG stores its voxels."""
    from meddelinea.results.files import SEGMENTATION_TYPES, output_type

    kind, stored = output_type(outputs.mask, outputs.output_type), outputs.segmentation_type
    if stored is not None and kind != "dicom_seg":
        raise UsageError(f"--segmentation-type {stored} is for dicom_seg, but {outputs.mask} is {kind}; leave it out")
    for known in SEGMENTATION_TYPES:
        if stored in (None, known):
            return kind, known
    raise UsageError(f"unknown segmentation type '{stored}'; expected one of {', '.join(SEGMENTATION_TYPES)}")
