"""`meddelinea predict`: a scan in, a mask of its organs out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meddelinea.cli.options import (
    AddressOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    QuietOption,
    organ_names,
    read_model,
    refusal_as_json,
)
from meddelinea.cli.outputs import ExtraFolders, Outputs, check_outputs, write_outputs
from meddelinea.cli.progress import OutputMode, print_event, progress_bar, status
from meddelinea.cli.table import print_result
from meddelinea.errors import UsageError
from meddelinea.segmentation.sampling import Precision, Sampling

if TYPE_CHECKING:
    from meddelinea.findings import Finding
    from meddelinea.results.result import Result
    from meddelinea.scan import Modality, Scan
    from meddelinea.segmentation.model import Model, ModelFiles


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan to segment: its source, its outputs, and how to segment it."""

    source: Path
    outputs: Outputs
    model: str = "small"
    device: str = "auto"
    modality: Modality | None = None
    sampling: Sampling = field(default_factory=Sampling)
    overwrite: bool = False


def predict(
    source: Annotated[
        Path,
        typer.Option(
            "-i",
            "--input",
            metavar="IN",
            help="NIfTI, NRRD or MetaImage file, DICOM folder or zip; or many scans: a folder, or a CSV list "
            "(input,output).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="Mask: .nii.gz, .nii, .nrrd, .mha or .dcm; for many scans, a folder."
        ),
    ],
    model: ModelOption = "small",
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1000, show_default="the model's", help="Sampling steps.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the model's",
            help="euler_ancestral, ddim, early_ddim, dpmpp_2m, unipc or lms.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Average N masks per slice, in N times the time.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the noise; the same seed gives the same mask.")
    ] = 0,
    organs: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Segment these organs only, such as liver,spleen.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write measurements of each organ to this JSON file.")
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the result to this PNG file; for many scans, to this folder."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an HTML page about the result; for many scans, to this folder."),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write how likely each voxel's label is wrong, in per cent, to this volume; for many scans, to this "
            "folder.",
        ),
    ] = None,
    surfaces: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the organs' surfaces to this .glb, or to this .stl; for many scans, as .glb to this folder.",
        ),
    ] = None,
    output_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", show_default="from OUT's ending", help="nifti, nrrd, mha, dicom_seg or rtstruct."),
    ] = None,
    segmentation_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", show_default="labelmap", help="For dicom_seg: labelmap, binary or fractional."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Slices per batch; affects memory, and in float32 no mask.")
    ] = 16,
    precision: Annotated[
        Precision,
        typer.Option(help="What networks compute in; auto is what the device is fastest in."),
    ] = "auto",
    modality: ModalityOption = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace files of others that stand in the way; for many scans, redo those that already have a mask.",
        ),
    ] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, show_default="1, or one per core of a cluster", help="For many scans: worker processes."
        ),
    ] = None,
    as_json: JsonOption = False,
    progress_json: Annotated[
        bool, typer.Option("--progress-json", help="Print one JSON object per event, for programs.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Segment the organs of a scan, or of many scans. Each mask lies on the grid of its scan."""
    from meddelinea.cli.predict_folder import Batch, is_batch, run_batch

    sampling = Sampling(
        steps=steps,
        scheduler=scheduler,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        organs=organ_names(organs),
    )
    mode = OutputMode.choose(as_json=as_json, progress_json=progress_json, quiet=quiet)
    outputs = Outputs(
        mask=output,
        output_type=output_type,
        segmentation_type=segmentation_type,
        statistics=statistics,
        preview=preview,
        report=report,
        uncertainty=uncertainty,
        surfaces=surfaces,
    )
    if is_batch(source, output):
        if statistics is not None or output_type is not None or segmentation_type is not None:
            raise UsageError(
                "--statistics, --output-type and --segmentation-type apply to one scan; many get NIfTI masks and one "
                "statistics.csv"
            )
        for folder in (preview, report, uncertainty, surfaces):
            if folder is not None and folder.suffix:
                raise UsageError(
                    f"{folder}: expected a folder as --preview, --report, --uncertainty and --surfaces of many scans"
                )
        batch = Batch(
            source=source,
            output=output,
            model=model,
            device=device,
            modality=modality,
            sampling=sampling,
            extras=ExtraFolders(output, preview, report, uncertainty, surfaces),
            overwrite=overwrite,
            engine=engine,
            address=address,
            workers=workers,
        )
        with refusal_as_json(source, wanted=as_json):
            run_batch(batch, mode)
    elif engine != "local" or address is not None or workers is not None:
        raise UsageError("--engine, --address and --workers apply to many scans; give a folder as -i and as -o")
    else:
        with refusal_as_json(source, wanted=as_json):
            job = Job(
                source=source,
                outputs=outputs,
                model=model,
                device=device,
                modality=modality,
                sampling=sampling,
                overwrite=overwrite,
            )
            run(job, mode)


def run(job: Job, mode: OutputMode) -> None:
    """Segment one scan, write its results, and report them on stdout."""
    hidden = mode is not OutputMode.text
    with status("starting", hidden) as state:
        from meddelinea.checks.scan import examine, require_accepted
        from meddelinea.io.volumes import read_scan
        from meddelinea.results.files import require_referable
        from meddelinea.segmentation.model import require_device

        # Whatever can be refused is refused early: before the scan is read if possible, else before the network runs.
        state.update("looking for the model")
        described = read_model(job.model, quiet=mode is OutputMode.nothing)
        job.sampling.labels(described.labels)
        require_device(job.device)
        kind = check_outputs(job.source, job.outputs, described.folder, overwrite=job.overwrite)

        # The networks' libraries take seconds to import, and so does a long scan to read: both at a time.
        background = ThreadPoolExecutor(1)
        loading = background.submit(_load, described, job.device)
        background.shutdown(wait=False)  # a refusal is printed at once

        state.update("reading the scan")
        scan = require_referable(read_scan(job.source), kind)
        scan = examine(scan, described.limits, job.modality)
        require_accepted(scan)
        _warn(scan, scan.findings)

        state.update("loading the model")
        model = loading.result()
        from meddelinea.results.result import Result
        from meddelinea.segmentation.predict import segment

    with progress_bar(hidden) as bar:
        task = bar.add_task("slices", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if mode is OutputMode.events:
                print_event({"event": "slices", "case": scan.name, "done": done, "total": total})

        segmentation = segment(model, scan, job.sampling, show)

    with status("writing the results", hidden):
        result = Result.of(scan, segmentation)
        files = write_outputs(job.outputs, result, described.card)
    _warn(scan, result.findings[len(scan.findings) :])
    summary = _summary(result, files)
    if mode is OutputMode.object:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    elif mode is OutputMode.events:
        print_event({"event": "case", "case": scan.name, "state": "done", **summary})
    elif mode is OutputMode.text:
        print_result(result, files)


def _load(files: ModelFiles, device: str) -> Model:
    """Import what the model needs, and load it."""
    import meddelinea.segmentation.predict  # noqa: F401
    from meddelinea.segmentation.model import load_model

    return load_model(files, device)


def _warn(scan: Scan, findings: Sequence[Finding]) -> None:
    """Print findings as warnings on stderr, one line each."""
    for finding in findings:
        print(f"warning: {scan.place}: {finding.message}", file=sys.stderr)


def _summary(result: Result, files: Mapping[str, Path]) -> dict[str, Any]:
    """The object that `--json` prints."""
    segmentation, measured = result.segmentation, result.statistics
    return {
        "input": result.scan.place,
        "accepted": True,
        "findings": [asdict(finding) for finding in result.findings],
        "files": {kind: str(path) for kind, path in files.items()},
        "found_ml": {name: round(organ.volume_ml, 2) for name, organ in measured.items() if organ.found},
        "not_found": [name for name, organ in measured.items() if not organ.found],
        "touches_edge": {name: list(organ.touches_edge) for name, organ in measured.items() if organ.touches_edge},
        "needs_review": {name: list(review.reasons) for name, review in result.reviews.items() if review.reasons},
        "seconds": round(segmentation.seconds, 2),
        "model": segmentation.model,
        "version": segmentation.version,
        "steps": segmentation.steps,
        "scheduler": segmentation.scheduler,
        "samples": segmentation.samples,
        "seed": segmentation.seed,
        "precision": segmentation.precision,
    }
