"""The page of one scan: it needs no network, shows what was measured, and escapes what it quotes."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meddelinea.findings import Finding
from meddelinea.results.page import VIEWS, write_scan_report
from meddelinea.results.result import Result
from meddelinea.scan import Modality, Scan
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence
from meddelinea.volume import Volume
from support.scans import a_segmentation, as_ct

LABELS = {"liver": 1, "spleen": 2, "gallbladder": 3}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The text of each element that holds text, the attributes of all, and whether the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.addresses += [given[key] for key in ("src", "href", "action", "data", "srcset") if key in given]
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.words.append(" ".join(data.split()))


def written(
    tmp_path: Path, modality: Modality = "CT", name: str = "scan.nii.gz", calibration: Calibration | None = None
) -> Page:
    """A liver of 60 HU inside, a spleen at the left border, and no gallbladder."""
    ids = np.zeros((40, 30, 20), np.uint8)
    ids[25:35, 10:20, 5:15] = 1
    ids[0:6, 10:16, 5:15] = 2
    grey = np.where(ids == 1, 60, np.where(ids == 2, 45, -1000)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    findings = (Finding("windowed", "warn", "clipped & <b>bold</b>"),)
    scan = Scan(volume=Volume(grey, affine), modality=modality, name=name, findings=findings)
    mask = Volume(ids, affine)
    sure = {"liver": OrganConfidence(0.914, 16.0, 15.0, 17.0), "spleen": OrganConfidence(0.5, 6.0, 1.0, 9.0)}
    made = a_segmentation(mask, LABELS, seconds=3.21, confidence=sure, calibration=calibration)
    path = tmp_path / "report.html"
    write_scan_report(path, Result.of(scan, made), "# Card\n<script>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_holds_its_pictures_and_asks_for_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert len(page.images) == 3 + len(VIEWS)  # no organ is to be reviewed
    assert all(image["alt"] for image in page.images)
    assert page.addresses == [image["src"] for image in page.images]
    for address in page.addresses:
        head, _, data = address.partition(",")
        assert head == "data:image/png;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 1  # an organ and the ground


def test_what_was_measured_stands_in_the_row_of_its_organ(tmp_path: Path) -> None:
    words = written(tmp_path).words
    row = words[words.index("liver") :][:6]
    # 10 x 10 x 10 voxels of 16 cubic millimetres; the middle of voxels 25 to 34 is 59 mm.
    assert row == ["liver", "16.0", "60 ± 0", "20 × 20 × 40", "59, 29, 38", "0.91"]
    assert words[words.index("spleen") :][:3] == ["spleen", "L", "5.8"]
    assert "cut by the scan's edge (left): at least this volume." in words
    assert words[words.index("gallbladder") + 1] == "not found"
    assert "2 of 3 organs found; not found: gallbladder; 1 cut by the scan's edge." in words
    assert "4 steps of ddim, 1 sample a slice, seed 7" in words
    assert "CT, 40 x 30 x 20 voxels of 2 x 2 x 4 mm, axes RAS" in " ".join(words)


def test_a_calibrated_models_report_has_intervals_and_reviews(tmp_path: Path) -> None:
    assert not any("interval" in word for word in written(tmp_path).words)
    (tmp_path / "report.html").unlink()
    page = written(
        tmp_path,
        calibration=Calibration(
            temperature=1.0,
            level=0.8,
            spread=1.0,
            floor=0.0,
            dice=((0.0, 0.0), (1.0, 1.0)),
            review_below=0.6,
            fitted_on="ten cases",
        ),
    )
    words = page.words
    # Liver: (17 - 15) / 16 ml is a softness of 0.125, and exp(0.125) = 1.133.
    assert words[words.index("liver") :][:3] == ["liver", "16.0", "14.1 – 18.1"]
    assert words[words.index("spleen") :][:3] == ["spleen", "!", "L"]
    assert "to be reviewed: the model is unsure of this mask;" in words
    assert "2 of 3 organs found; not found: gallbladder; 1 to be reviewed; 1 cut by the scan's edge." in words
    assert [image["alt"] for image in page.images][3] == "spleen, expected Dice 0.50, axial, where it is largest"
    assert len(page.images) == 3 + 1 + len(VIEWS)
    assert any("in 80 of 100 cases" in word and "ten cases" in word for word in words)


def test_what_is_quoted_is_text_and_not_markup(tmp_path: Path) -> None:
    page = written(tmp_path, name="<img src=x onerror=alert(1)>.nii")
    assert "<img src=x onerror=alert(1)>.nii" in page.words
    assert any("clipped & <b>bold</b>" in word for word in page.words)
    assert "# Card <script>" in page.words


def test_grey_values_of_an_mr_have_no_unit(tmp_path: Path) -> None:
    assert "mean ± SD, HU" in written(tmp_path).words
    (tmp_path / "report.html").unlink()
    assert "mean ± SD" in written(tmp_path, "MR").words


def test_a_report_that_cannot_be_made_leaves_the_one_before(tmp_path: Path) -> None:
    scan = as_ct(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)))
    made = a_segmentation(Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4)), {"liver": 1})
    path = tmp_path / "report.html"
    path.write_text("before")
    broken = replace(made, seconds="long")
    with pytest.raises(TypeError):
        write_scan_report(path, Result.of(scan, broken), "")
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1
