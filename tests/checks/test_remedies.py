"""What a refusal advises is followed on a real CT: it must give back the scan's own mask, or not be accepted."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import zoom

from meddelinea.checks.limits import ScanLimits
from meddelinea.checks.scan import examine
from meddelinea.findings import Finding
from meddelinea.io.volumes import read_volume
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.volume import Volume
from support.scans import as_ct

Change = Callable[[np.ndarray], np.ndarray]
#: What was done to Hounsfield units, and the reason to be given.
CHANGES: dict[str, tuple[Change, str]] = {
    "1000 added": (lambda hu: hu + 1000, "stored_offset"),
    "1024 added": (lambda hu: hu + 1024, "stored_offset"),
    "1000 added and clipped": (lambda hu: np.maximum(hu + 1000, 0), "stored_offset"),
    "1024 added and clipped": (lambda hu: np.maximum(hu + 1024, 0), "stored_offset"),
    "8192 added": (lambda hu: hu + 8192, "stored_offset"),
    "32768 added": (lambda hu: hu + 32768, "stored_offset"),
    "500 added": (lambda hu: hu + 500, "stored_offset"),
    "1024 subtracted": (lambda hu: hu - 1024, "offset_twice"),
    "turned over": (lambda hu: -hu, "inverted"),
    "turned over after 1000 were added": (lambda hu: -(hu + 1000), "inverted"),
    "taken from 3071": (lambda hu: 3071 - hu, "inverted"),
    "taken from 4095": (lambda hu: 4095 - np.clip(hu + 1024, 0, 4095), "inverted"),
    "without their sign, 16 bits": (lambda hu: np.where(hu < 0, hu + 65536, hu), "unsigned_wrap"),
    "without their sign, 12 bits": (lambda hu: np.where(hu < 0, np.maximum(hu, -1024) + 4096, hu), "unsigned_wrap"),
    "without their sign, 32 bits": (lambda hu: np.where(hu < 0, hu + 2.0**32, hu), "unsigned_wrap"),
    "thousandths": (lambda hu: hu / 1000, "rescaled"),
    "densities": (lambda hu: hu / 1000 + 1, "rescaled"),
    "attenuation": (lambda hu: 0.19 * (hu / 1000 + 1), "rescaled"),
    "a tenth too many noughts": (lambda hu: hu * 10, "rescaled"),
    "8 bits": (lambda hu: np.rint((np.clip(hu, -160, 240) + 160) * 255 / 400), "rescaled"),
    "8 bits, turned over": (lambda hu: np.rint((240 - np.clip(hu, -160, 240)) * 255 / 400), "rescaled"),
    "16 bits": (lambda hu: (hu - hu.min()) / np.ptp(hu) * 65535, "rescaled"),
    "without what is below 0": (lambda hu: np.clip(hu, 0, 400), "not_hounsfield"),
}


@pytest.fixture(scope="module")
def resampled(data: Path) -> Volume:
    """The upper half of a real CT at a finer grid, whose splines overshoot at the skin by some 200 units."""
    whole = read_volume(data / "totalsegmentator" / "ct.nii.gz")
    array = zoom(np.maximum(whole.array[:, :, 50:100].astype(np.float32), -1000), (1.4, 1.4, 1), order=3)
    return Volume(np.rint(array), whole.affine @ np.diag([1 / 1.4, 1 / 1.4, 1.0, 1.0]))


def refusals(array: np.ndarray, affine: np.ndarray) -> list[Finding]:
    found = examine(as_ct(Volume(array, affine)), ScanLimits(modalities=("CT",))).findings
    return [finding for finding in found if finding.level == "refuse"]


def followed(array: np.ndarray, message: str) -> np.ndarray | None:
    """The values after the arithmetic that a message advises; None where it advises none."""
    if "multiply by -1" in message:
        return -array
    if bits := re.search(r"signed numbers of (\d+) bits", message):
        size = 2.0 ** int(bits[1])
        return np.where(array >= size / 2, array - size, array)
    step = re.search(r"(subtract|add) (\d+) \(estimated", message)
    return None if step is None else array + (float(step[2]) if step[1] == "add" else -float(step[2]))


@pytest.mark.parametrize("name", CHANGES)
def test_advice_restores_hounsfield_units_or_is_not_given(resampled: Volume, name: str) -> None:
    change, code = CHANGES[name]
    changed = change(resampled.array.astype(np.float64))
    (finding,) = refusals(changed, resampled.affine)
    assert finding.code == code
    restored = followed(changed, finding.message)
    if restored is None:
        assert "pass the original CT" in finding.message
        for wrong in (-changed, changed - 1000, changed - 1024, changed + 1024):
            same = np.abs(wrong - resampled.array).mean() < 30
            assert same or code != "inverted" or refusals(wrong, resampled.affine)
        return
    assert refusals(restored, resampled.affine) == []
    inside = np.abs(resampled.array) < 200
    assert np.abs(restored - resampled.array)[inside].mean() < 12


def test_the_mask_after_the_advice_is_that_of_the_scan(resampled: Volume) -> None:
    model = load_model("small", "cpu")
    truth = segment(model, as_ct(resampled)).mask.array
    for name in ("1000 added", "1024 added and clipped", "500 added"):
        changed = CHANGES[name][0](resampled.array)
        restored = followed(changed, refusals(changed, resampled.affine)[0].message)
        assert restored is not None
        found = segment(model, as_ct(Volume(restored, resampled.affine))).mask.array
        for organ in (1, 6):  # spleen, liver
            overlap = np.sum((found == organ) & (truth == organ))
            assert 2.0 * overlap / (np.sum(found == organ) + np.sum(truth == organ)) > 0.97
