"""Sound files of each format with their headers spoiled at random, and what reading them comes to.

As a program, `python -m support.fuzzing SEED COUNT SECONDS`, it prints the count of each outcome as JSON: a process of
its own, whose memory is bounded.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from meddelinea.checks.limits import ScanLimits
from meddelinea.checks.scan import examine, require_accepted
from meddelinea.errors import MedDelineaError
from meddelinea.io.dicom import read_dicom
from meddelinea.io.dicom_seg import read_dicom_seg, write_dicom_seg
from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.volume import Volume
from support.spoiled_scans import AFFINE, body, enhanced, series

#: Memory that reading a file may take beyond what the program itself takes.
MEMORY_BYTES = 2 << 30
#: A file of a few kilobytes that takes more time of the processor hangs: a busy machine is not taken for it.
PATIENCE_S = 20
Random = np.random.Generator


class Hang(BaseException):
    """A file that was not read in time; no reader catches it."""


def sound_files(folder: Path) -> dict[str, tuple[Path, Path, int]]:
    """By format: what is read, the file of it that is to be spoiled, and the bytes of its header."""
    volume = Volume(body(), AFFINE)
    files = {}
    for suffix, header in ((".nii", 352), (".nii.gz", 352), (".nrrd", 300), (".mha", 300)):
        write_volume(volume, folder / f"scan{suffix}")
        files[suffix] = (folder / f"scan{suffix}", folder / f"scan{suffix}", header)
    dicom = series(name="series")(folder)
    files["dicom"] = (dicom, dicom / "03.dcm", 1400)
    (folder / "multi").mkdir()
    multi = enhanced("CT", range(8))(folder / "multi")
    files["multi-frame dicom"] = (multi, multi, 6000)
    made = read_dicom(identified(folder))
    mask = Volume((made.volume.array > 20).astype(np.uint8), made.volume.affine)
    assert made.series is not None
    write_dicom_seg(mask, {"liver": 1}, folder / "mask.dcm", made.series, kind="binary")
    files["dicom-seg"] = (folder / "mask.dcm", folder / "mask.dcm", 6000)
    return files


def identified(folder: Path) -> Path:
    """A series that a DICOM-SEG can refer to."""
    from pydicom.uid import generate_uid

    study, frame = generate_uid(), generate_uid()

    def change(made: list[Any]) -> None:
        for number, dataset in enumerate(made, start=1):
            dataset.StudyInstanceUID, dataset.FrameOfReferenceUID, dataset.InstanceNumber = study, frame, number

    return series(change, name="referred")(folder)


def spoiled(raw: bytes, header: int, rng: Random) -> bytes:
    """The bytes of a file after one to three changes in its header, or of its length."""
    changed = bytearray(raw)
    header = min(header, len(raw))
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(header))
        match rng.integers(8):
            case 0:
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                changed[place] = int(rng.integers(256))
            case 2:
                changed[place : place + 2] = rng.choice(np.array([0, 1, -1, 32767, -32768], "<i2")).tobytes()
            case 3:
                special = np.array([0, -1, np.nan, np.inf, -np.inf, 1e12, 1e30, 1e-30, 1e38], "<f4")
                changed[place : place + 4] = rng.choice(special).tobytes()
            case 4:
                changed = changed[: int(rng.integers(len(changed)))] if rng.random() < 0.3 else changed
            case 5:
                changed[place:place] = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8))
            case 6:
                del changed[place : place + int(rng.integers(1, 9))]
            case 7:
                changed = _word_changed(changed, header, rng)
        header = min(header, max(1, len(changed)))
    return bytes(changed)


def _word_changed(raw: bytearray, header: int, rng: Random) -> bytearray:
    """A number or a word of the header replaced, doubled or left out, as somebody with an editor would."""
    words = list(re.finditer(rb"[A-Za-z0-9.+-]{1,40}", bytes(raw[:header])))
    if not words:
        return raw
    word = words[int(rng.integers(len(words)))]
    others = (b"", b"0", b"-1", b"nan", b"1e12", b"99999999999", b"LIST", b"../x", b"x" * 300, word[0] * 2)
    return raw[: word.start()] + others[int(rng.integers(len(others)))] + raw[word.end() :]


def outcome(kind: str, source: Path, folder: Path) -> str:
    """What comes of a file: a mask, a mask with a warning, or the code of a refusal.

    Raises
    ------
    AssertionError
        If a mask lies on another grid than its scan, or a refusal is no clear line.
    """
    try:
        if kind == "dicom-seg":
            read_dicom_seg(source)
            return "mask"
        scan = examine(read_scan(source), ScanLimits(modalities=("CT",)))
        require_accepted(scan)
        mask = Volume((scan.volume.array > 20).astype(np.uint8), scan.volume.affine)
        write_volume(mask, folder / "mask.nii", scan.forms)
        read = read_volume(folder / "mask.nii")
        assert np.array_equal(read.array, mask.array)
        assert read.corner_distance_mm(scan.volume.affine) < 0.1, "the mask lies elsewhere"
        return "warning" if scan.findings else "mask"
    except MedDelineaError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 2000, message
        assert str(folder) in message, message
        assert not re.search("allocate|MemoryError", message), message
        return f"refused: {getattr(error, 'code', 'usage')}"


def run(seed: int, count: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Spoil and read so many files, or as many as there is time for."""
    files = sound_files(folder)
    for kind, (source, _, _) in files.items():
        assert outcome(kind, source, folder) in ("mask", "warning"), kind
    counts: Counter[str] = Counter()
    unexpected: list[str] = []
    ends = time.monotonic() + seconds
    kinds = list(files)
    for number in range(count):
        if time.monotonic() > ends:
            break
        kind = kinds[number % len(kinds)]
        source, file, header = files[kind]
        whole = file.read_bytes()
        rng = np.random.default_rng([seed, number])
        plain = gzip.decompress(whole) if kind == ".nii.gz" else whole
        raw = spoiled(plain, header, rng)
        file.write_bytes(gzip.compress(raw, 1) if kind == ".nii.gz" else raw)
        try:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
            counts[f"{kind}: {outcome(kind, source, folder)}"] += 1
        except BaseException as error:
            unexpected.append(f"{kind} {number}: {type(error).__name__}: {error}"[:500])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            file.write_bytes(whole)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"counts": dict(sorted(counts.items())), "unexpected": unexpected, "peak_mib": peak >> 20}


def _hang(*_: object) -> None:
    raise Hang("not read in time")


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")  # as the command line does
    signal.signal(signal.SIGPROF, _hang)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    folder = Path(tempfile.mkdtemp())
    try:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), folder), indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
