"""Counts of the files that are opened, for tests of what is read how often."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import pytest

from meddelinea.io import archive


class Openings:
    """How often each file is parsed as DICOM, and each zip is opened, from now on; by file name.

    The decoding of pixels, which opens a file by other means, is not counted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parsed: Counter[str] = Counter()
        self.unpacked: Counter[str] = Counter()
        parse, extract = pydicom.dcmread, archive._extract

        def dcmread(file: Any, *rest: Any, **options: Any) -> pydicom.FileDataset:
            if "specific_tags" not in options:  # those are asked for by the decoding, which may be given an open file
                self.parsed[Path(getattr(file, "name", file)).name] += 1
            return parse(file, *rest, **options)

        def unpack(opened: zipfile.ZipFile, *rest: Any) -> None:
            self.unpacked[Path(str(opened.filename)).name] += 1
            extract(opened, *rest)

        monkeypatch.setattr(pydicom, "dcmread", dcmread)
        monkeypatch.setattr(archive, "_extract", unpack)
