"""`meddelinea predict`: a scan in, an organ mask out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from meddelinea.cli.modality import MODALITY_HELP, read_modality
from meddelinea.cli.progress import progress_bar, silence_diffusers
from meddelinea.cli.refusal import refusal_as_json
from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.findings import Finding
    from meddelinea.inference.predict import Segmentation
    from meddelinea.inference.statistics import OrganStatistics
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


def predict(
    source: Annotated[Path, typer.Option("-i", "--input", help="NIfTI or NRRD file, DICOM folder or zip.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The mask: .nii.gz, .nii or .nrrd.")],
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
    modality: Annotated[str | None, typer.Option(help=MODALITY_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Segment the organs of a scan; the mask lies on the scan's own grid."""
    from meddelinea.labels import canonical_name

    wanted = None if organs is None else tuple(canonical_name(name) for name in organs.split(",") if name.strip())
    kind = read_modality(modality)
    job = Job(
        source, output, statistics, preview, model, steps, scheduler, samples, seed, wanted, device, batch_size, kind
    )
    with refusal_as_json(source, wanted=as_json):
        run(job, as_json=as_json, quiet=quiet)


def run(job: Job, *, as_json: bool, quiet: bool) -> None:
    """Do the job, then print what was found: a table, one JSON object, or nothing."""
    from meddelinea.inference.mask_check import check_mask
    from meddelinea.inference.model import load_model, read_model_files
    from meddelinea.inference.predict import segment
    from meddelinea.inference.quality import examine, raise_refusals
    from meddelinea.inference.statistics import organ_statistics

    described = read_model_files(job.model)
    _check_options(job, tuple(described.labels))
    _check_paths(job)
    volume, findings = examine(job.source, described.modalities, job.modality)
    raise_refusals(job.source, findings)
    _warn(job.source, findings)
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
    of_mask = check_mask(measured)
    _warn(job.source, of_mask)
    if as_json:
        summary = _summary(job.source, segmentation, measured, files, [*findings, *of_mask])
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    elif not quiet:
        _print_table(segmentation, measured, files)


def _warn(source: Path, findings: list[Finding]) -> None:
    """Say on stderr what care a scan or its mask asks for, a line each."""
    for finding in findings:
        print(f"warning: {source}: {finding.message}", file=sys.stderr)


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
        raise InputRefusedError(
            f"the model knows no {', '.join(unknown)}; expected some of: {', '.join(known)}", "unknown_organ"
        )


def _check_paths(job: Job) -> None:
    """Refuse outputs that cannot be written, before the long work and not after it."""
    from meddelinea.inference.output import sidecar_path
    from meddelinea.io import ensure_writable

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
    ensure_writable(job.output)
    for path, suffix in ((job.statistics, ".json"), (job.preview, ".png")):
        if path is not None:
            ensure_writable(path, (suffix,))


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
    write_segmentation(segmentation, job.output, job.source)
    return files


def _summary(
    source: Path,
    segmentation: Segmentation,
    measured: Mapping[str, OrganStatistics],
    files: Mapping[str, Path],
    findings: list[Finding],
) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "input": str(source),
        "accepted": True,
        "findings": [asdict(finding) for finding in findings],
        "files": {kind: str(path) for kind, path in files.items()},
        "found_ml": {name: round(organ.volume_ml, 2) for name, organ in measured.items() if organ.found},
        "not_found": [name for name, organ in measured.items() if not organ.found],
        "touches_edge": {name: list(organ.touches_edge) for name, organ in measured.items() if organ.touches_edge},
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
