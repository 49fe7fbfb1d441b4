"""`meddelinea predict`: a scan in, an organ mask out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from meddelinea.cli.progress import progress_bar, silence_diffusers
from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.inference.output import OutputType
    from meddelinea.inference.predict import Segmentation
    from meddelinea.inference.statistics import OrganStatistics
    from meddelinea.io import SegmentationType
    from meddelinea.volume import Modality, Volume

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Job:
    """One scan to segment: where it is, how to do it, and where the results go (None: not wanted)."""

    source: Path
    output: Path
    statistics: Path | None = None
    preview: Path | None = None
    model: str = "small"
    steps: int | None = None
    scheduler: str | None = None
    samples: int = 1
    seed: int = 0
    organs: tuple[str, ...] | None = None
    device: str = "auto"
    batch_size: int = 16
    modality: Modality | None = None
    output_type: str | None = None
    segmentation_type: str | None = None


def predict(
    source: Annotated[Path, typer.Option("-i", "--input", help="NIfTI or NRRD file, DICOM folder or zip.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The mask: .nii.gz, .nii, .nrrd or .dcm.")],
    model: Annotated[str, typer.Option(help="small, or a checkpoint folder.")] = "small",
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps (default: the model's).")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="euler_ancestral, ddim, dpmpp_2m, unipc or lms (default: the model's).")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Masks drawn of each slice and averaged; as many times the work.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise; the same seed gives the same mask.")] = 0,
    organs: Annotated[str | None, typer.Option(help="Only these, such as liver,spleen (default: all).")] = None,
    statistics: Annotated[Path | None, typer.Option(help="Write measurements of each organ to this JSON file.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a picture of the result to this PNG file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Slices at a time; changes memory, not the mask.")] = 16,
    modality: Annotated[
        str | None, typer.Option(help="CT or MR, where the file does not say it (default: the model's).")
    ] = None,
    output_type: Annotated[
        str | None, typer.Option(help="nifti, nrrd, dicom_seg or rtstruct (default: by OUT's ending).")
    ] = None,
    segmentation_type: Annotated[
        str | None, typer.Option(help="Of dicom_seg: labelmap (default), binary or fractional.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Segment the organs of a scan; the mask lies on the scan's own grid."""
    from meddelinea.labels import canonical_name

    wanted = None if organs is None else tuple(canonical_name(name) for name in organs.split(",") if name.strip())
    if modality not in (None, "CT", "MR"):
        raise UsageError(f"unknown modality {modality!r}; expected CT or MR")
    kind = cast("Modality | None", modality)
    job = Job(
        source,
        output,
        statistics,
        preview,
        model,
        steps,
        scheduler,
        samples,
        seed,
        wanted,
        device,
        batch_size,
        kind,
        output_type,
        segmentation_type,
    )
    run(job, as_json=as_json, quiet=quiet)


def run(job: Job, *, as_json: bool, quiet: bool) -> None:
    """Do the job, then print what was found: a table, one JSON object, or nothing."""
    from meddelinea.inference.model import load_model, read_model_files
    from meddelinea.inference.predict import segment, with_modality
    from meddelinea.inference.quality import check_volume
    from meddelinea.inference.statistics import organ_statistics
    from meddelinea.io import read_volume

    described = read_model_files(job.model)
    _check_options(job, tuple(described.labels))
    _check_paths(job)
    volume = read_volume(job.source)
    if job.modality is not None and volume.modality not in (None, job.modality):
        raise UsageError(f"{job.source}: the file says {volume.modality}; leave --modality {job.modality} out")
    volume = with_modality(replace(volume, modality=job.modality or volume.modality), described.modalities)
    findings = check_volume(volume, described.modalities)
    refusals = [finding.message for finding in findings if finding.level == "refuse"]
    if refusals:
        raise InputRefusedError(f"{job.source}: {'; '.join(refusals)}")
    cautions = [finding.message for finding in findings]
    for caution in cautions:
        print(f"warning: {job.source}: {caution}", file=sys.stderr)
    silence_diffusers()
    model = load_model(job.model, job.device)
    with progress_bar(hidden=as_json or quiet) as bar:
        task = bar.add_task("slices", total=None)
        segmentation = segment(
            model,
            volume,
            steps=job.steps,
            scheduler=job.scheduler,
            samples=job.samples,
            seed=job.seed,
            batch_size=job.batch_size,
            organs=job.organs,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    measured = organ_statistics(volume, segmentation.mask, segmentation.labels)
    files = _write(job, volume, segmentation, measured)
    if as_json:
        print(json.dumps(_summary(segmentation, measured, files, cautions), indent=2, ensure_ascii=False))
    elif not quiet:
        _print_table(segmentation, measured, files)


def _check_options(job: Job, known: tuple[str, ...]) -> None:
    """Refuse what cannot be meant, or names organs that are not `known` to the model, before a scan is read."""
    from meddelinea.diffusion.sampling import SCHEDULERS

    if job.device not in DEVICES:
        raise UsageError(f"unknown device {job.device!r}; expected one of {', '.join(DEVICES)}")
    if job.scheduler is not None and job.scheduler not in SCHEDULERS:
        raise UsageError(f"unknown scheduler {job.scheduler!r}; expected one of {', '.join(SCHEDULERS)}")
    if job.organs is None:
        return
    if not job.organs:
        raise UsageError("--organs names no organ; expected names such as liver,spleen")
    if len(set(job.organs)) != len(job.organs):
        raise UsageError(f"--organs names an organ twice: {', '.join(job.organs)}")
    unknown = [name for name in job.organs if name not in known]
    if unknown:
        raise InputRefusedError(f"the model knows no {', '.join(unknown)}; expected some of: {', '.join(known)}")


def _check_paths(job: Job) -> None:
    """Refuse outputs that cannot be written, before the long work and not after it."""
    from meddelinea.inference.output import MASK_SUFFIXES, require_referable, sidecar_path
    from meddelinea.io import ensure_writable

    kind, _ = _kinds(job)
    outputs = [job.output, sidecar_path(job.output), job.statistics, job.preview]
    paths = [path for path in outputs if path is not None]
    places = [path.resolve() for path in paths]
    if len(set(places)) != len(places):
        raise UsageError(f"two outputs share a file: {', '.join(map(str, paths))} (the second names the mask's labels)")
    if job.source.resolve() in places:
        raise UsageError(f"{job.source}: an output would overwrite the input; choose another name")
    if job.source.is_dir():
        inside = [
            path.name for path in job.source.iterdir() if path.name.lower().endswith((".nii", ".nii.gz", ".nrrd"))
        ]
        if inside:
            raise InputRefusedError(
                f"{job.source}: a folder of {len(inside)} volume files; pass one file, or one DICOM series"
            )
    ensure_writable(job.output, MASK_SUFFIXES)
    for path, suffix in ((job.statistics, ".json"), (job.preview, ".png")):
        if path is not None:
            ensure_writable(path, (suffix,))
    require_referable(job.source, kind)


def _kinds(job: Job) -> tuple[OutputType, SegmentationType]:
    """What kind of file the mask becomes, and how a DICOM-SEG stores voxels."""
    from meddelinea.inference.output import SEGMENTATION_TYPES, output_type

    kind, stored = output_type(job.output, job.output_type), job.segmentation_type
    if stored is not None and kind != "dicom_seg":
        raise UsageError(f"--segmentation-type {stored} is about dicom_seg, and {job.output} is {kind}; leave it out")
    if stored not in (None, *SEGMENTATION_TYPES):
        raise UsageError(f"unknown segmentation type '{stored}'; expected one of {', '.join(SEGMENTATION_TYPES)}")
    return kind, stored or "labelmap"


def _write(
    job: Job, volume: Volume, segmentation: Segmentation, measured: Mapping[str, OrganStatistics]
) -> dict[str, Path]:
    """Write what was asked for, the mask last: where it stands, all stands."""
    from meddelinea.inference.output import sidecar_path, statistics_document, write_json, write_segmentation

    files = {"mask": job.output, "labels": sidecar_path(job.output)}
    if job.statistics is not None:
        write_json({"input": job.source.name} | statistics_document(measured, volume.modality), job.statistics)
        files["statistics"] = job.statistics
    if job.preview is not None:
        from meddelinea.evaluation.figures import preview

        title = f"{job.source.name}: {segmentation.model}, not for diagnosis"
        preview(volume, segmentation.mask, segmentation.labels, job.preview, title)
        files["preview"] = job.preview
    kind, stored = _kinds(job)
    write_segmentation(segmentation, job.output, job.source, kind=kind, segmentation_type=stored)
    return files


def _summary(
    segmentation: Segmentation,
    measured: Mapping[str, OrganStatistics],
    files: Mapping[str, Path],
    cautions: list[str],
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "files": {kind: str(path) for kind, path in files.items()},
        "found_ml": {name: round(organ.volume_ml, 2) for name, organ in measured.items() if organ.found},
        "not_found": [name for name, organ in measured.items() if not organ.found],
        "touches_edge": {name: list(organ.touches_edge) for name, organ in measured.items() if organ.touches_edge},
        "warnings": cautions,
        "seconds": round(segmentation.seconds, 2),
        "model": segmentation.model,
        "version": segmentation.version,
        "steps": segmentation.steps,
        "scheduler": segmentation.scheduler,
        "samples": segmentation.samples,
        "seed": segmentation.seed,
    }


def _print_table(
    segmentation: Segmentation, measured: Mapping[str, OrganStatistics], files: Mapping[str, Path]
) -> None:
    """What a person reads at the end: organs found and not found, time, and where the files are."""
    table = Table("organ", "ml", "mean value", "note")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, organ in measured.items():
        if organ.found:
            note = f"cut by the scan's edge: {', '.join(organ.touches_edge)}" if organ.touches_edge else ""
            table.add_row(name, f"{organ.volume_ml:,.1f}", f"{organ.mean_intensity:.0f}", note)
    Console().print(table)
    missing = [name for name, organ in measured.items() if not organ.found]
    print(f"not found: {', '.join(missing) or 'none'}")
    steps = "" if segmentation.steps is None else f", sampling steps: {segmentation.steps}"
    print(f"{segmentation.seconds:.1f} s with model {segmentation.model}{steps}")
    for kind, path in files.items():
        print(f"{kind}: {path}")
