"""`meddelinea leak-check`: was a model trained on these test scans?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from meddelinea.cli.options import JsonOption
from meddelinea.cli.progress import status
from meddelinea.errors import LeakFoundError, PartialFailureError

if TYPE_CHECKING:
    from meddelinea.leaks.find import KnownScan, LeakReport


def leak_check(
    source: Annotated[Path, Argument(metavar="TEST_FOLDER", help="A folder of test scans, or one scan.")],
    against: Annotated[
        list[str], Option(metavar="MODEL|STORE", help="small, a model's folder or a slice store; may be repeated.")
    ],
    layout: Annotated[
        str | None,
        Option("--format", metavar="NAME", help="Dataset of the test scans, such as btcv, to warn of known overlaps."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find test scans that a model was trained on.

    Scans are recognised even if they were resampled, cropped, windowed, mirrored or re-encoded.

    Masks among the test scans are skipped and named. The exit code is 0 without a leak, 6 with one, and 4 if there is
    none but some scans could not be read.
    """
    with status("comparing", hidden=as_json):
        from meddelinea.data.mixing import mixing_warnings
        from meddelinea.leaks.find import find_leaks, known_scans

        known = [scan for name in dict.fromkeys(against) for scan in known_scans(name)]
        report = find_leaks(source, known)
    warnings = mixing_warnings({scan.dataset for scan in known}, {layout} if layout else set())
    warnings += _blind_spots(known, report)
    if as_json:
        print(json.dumps(_document(source, known, report, warnings), indent=2, ensure_ascii=False))
    else:
        _print_report(report, warnings)
    for case, reason in report.failed.items():
        print(f"failed: {case}: {reason}", file=sys.stderr)
    leaked = report.leaked("train", "validation", "stored")
    if leaked:
        raise LeakFoundError(f"{leaked} of {len(report.tested)} test cases leak; remove them from the test set")
    if report.failed:
        cases = len(report.tested) + len(report.failed)
        raise PartialFailureError(
            f"{len(report.failed)} of {cases} test cases could not be read; the others do not leak"
        )


def _blind_spots(known: list[KnownScan], report: LeakReport) -> list[str]:
    """Warnings about leaks that cannot be found."""
    lines = []
    for source in dict.fromkeys(scan.source for scan in known):
        cases = [scan for scan in known if scan.source == source]
        without = sum(scan.sketch is None for scan in cases)
        if without:
            lines.append(
                f"{source}: {without} of {len(cases)} cases have no sketch, so only exact copies of them are found; "
                "prepare the store or train the model again to add sketches"
            )
    lines += [
        f"{case}: too small or too uniform for a sketch, so only exact copies of it are found"
        for case in report.exact_only
    ]
    return lines


def _print_report(report: LeakReport, warnings: list[str]) -> None:
    for leak in report.leaks:
        known, score = leak.known, "" if leak.kind == "exact" else f", likeness {leak.likeness:.2f}"
        print(f"leak: {leak.case} is {known.name} ({known.dataset}; {known.role}, {known.source}): {leak.kind}{score}")
    for case, reason in report.skipped.items():
        print(f"skipped: {case}: {reason}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{report.leaked('train')} of {len(report.tested)} test cases were used for training")
    for count, what in (
        (report.leaked("validation"), "were used for validation"),
        (report.leaked("stored"), "are in a store"),
    ):
        if count:
            print(f"{count} of {len(report.tested)} test cases {what}")


def _document(source: Path, known: list[KnownScan], report: LeakReport, warnings: list[str]) -> dict[str, Any]:
    document = {"test": str(source), "known_scans": len(known), **asdict(report), "warnings": warnings}
    for leak in document["leaks"]:
        del leak["known"]["sketch"]
    return document
