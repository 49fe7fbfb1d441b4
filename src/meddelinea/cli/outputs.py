"""The files that `predict` writes: which are requested, whether they can be written, and writing them."""

from __future__ import annotations

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

    def of(self, case: ScanCase) -> Outputs:
        """The files of one scan."""
        from meddelinea.results.files import sidecar_path

        name = sidecar_path(case.output).relative_to(self.masks)

        def there(folder: Path | None, suffix: str) -> Path | None:
            return None if folder is None else folder / name.with_name(name.name.removesuffix(".json") + suffix)

        places = ((self.previews, ".png"), (self.reports, ".html"), (self.uncertainties, ".nii.gz"))
        preview, report, uncertainty = (there(folder, suffix) for folder, suffix in places)
        return Outputs(mask=case.output, preview=preview, report=report, uncertainty=uncertainty)

    def paths(self, case: ScanCase) -> tuple[Path, ...]:
        """See `folders.batch.ExtraOutputs`."""
        of = self.of(case)
        return tuple(path for path in (of.preview, of.report, of.uncertainty) if path is not None)

    def write(self, case: ScanCase, result: Result, card: str) -> None:
        """See `folders.batch.ExtraOutputs`."""
        _write_extras(self.of(case), result, card)


def check_outputs(source: Path, outputs: Outputs) -> OutputType:
    """The kind of file that the mask becomes. Outputs that cannot be written are refused now, before the long work."""
    from meddelinea.files import MASK_SUFFIXES, READ_SUFFIXES, VOLUME_SUFFIXES, ending, ensure_writable
    from meddelinea.results.files import sidecar_path

    kind, _ = _kinds(outputs)
    endings = {
        outputs.statistics: (".json",),
        outputs.preview: (".png",),
        outputs.report: (".html",),
        outputs.uncertainty: VOLUME_SUFFIXES,
    }
    wanted = [outputs.statistics, outputs.preview, outputs.report, outputs.uncertainty]
    paths = [outputs.mask, sidecar_path(outputs.mask), *(path for path in wanted if path is not None)]
    places = [path.resolve() for path in paths]
    if len(set(places)) != len(places):
        raise UsageError(f"two outputs share a file: {', '.join(map(str, paths))} (the second names the mask's labels)")
    if source.resolve() in places:
        raise UsageError(f"{source}: an output would overwrite the input; choose another name")
    if source.is_dir():
        inside = [path.name for path in source.iterdir() if ending(path, READ_SUFFIXES)]
        if inside:
            raise InputRefusedError(
                f"{source}: a folder of {len(inside)} volume files; pass one of them, or a folder as -o"
            )
    ensure_writable(outputs.mask, MASK_SUFFIXES)
    for path, suffixes in endings.items():
        if path is not None:
            ensure_writable(path, suffixes)
    return kind


def write_outputs(outputs: Outputs, result: Result, card: str) -> dict[str, Path]:
    """Write the requested files, the mask last: if it exists, all of them do. `card` is the model's."""
    from meddelinea.files import write_json
    from meddelinea.results.files import sidecar_path, statistics_document, write_segmentation

    made = result.segmentation
    files = {"mask": outputs.mask, "labels": sidecar_path(outputs.mask)}
    if outputs.statistics is not None:
        document = statistics_document(result.statistics, result.scan.modality, made)
        write_json({"input": result.name} | document, outputs.statistics)
        files["statistics"] = outputs.statistics
    files |= _write_extras(outputs, result, card)
    kind, stored = _kinds(outputs)
    write_segmentation(made, outputs.mask, result.scan, kind=kind, segmentation_type=stored)
    return files


def _write_extras(outputs: Outputs, result: Result, card: str) -> dict[str, Path]:
    """Write the uncertainty, the picture and the report, if they are requested."""
    from meddelinea.io.volumes import write_volume

    files, made = {}, result.segmentation
    if outputs.uncertainty is not None:
        write_volume(result.uncertainty, outputs.uncertainty, result.scan.forms)
        files["uncertainty"] = outputs.uncertainty
    if outputs.preview is not None:
        from meddelinea.results.figures import preview

        preview(
            result.scan, result.mask, result.labels, outputs.preview, f"{result.name}: {made.model}, not for diagnosis"
        )
        files["preview"] = outputs.preview
    if outputs.report is not None:
        from meddelinea.results.page import write_scan_report

        write_scan_report(outputs.report, result, card)
        files["report"] = outputs.report
    return files


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
