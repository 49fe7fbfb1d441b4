"""What is said of a mask: nothing of a person's, something of an empty one and of a mirrored patient's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meddelinea.checks.limits import OrganSizes
from meddelinea.io.volumes import read_volume
from meddelinea.results.mask_check import check_mask
from meddelinea.results.statistics import NOT_FOUND, OrganStatistics, organ_statistics
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.volume import Volume
from support.changed_copies import mirrored
from support.scans import as_ct

#: Ids of the organs that sizes are compared of, in BTCV.
BTCV = {"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 6, "aorta": 8, "inferior vena cava": 9}
#: Millilitres of an ordinary adult.
ORDINARY = {
    **{"liver": 1500.0, "spleen": 200.0, "left kidney": 150.0, "right kidney": 150.0},
    **{"aorta": 90.0, "inferior vena cava": 90.0},
}


def measured(**volumes_ml: float | None) -> dict[str, OrganStatistics]:
    """An ordinary adult but for these volumes (blanks as underscores); None for an organ that was not asked for."""
    changes = {name.replace("_", " "): value for name, value in volumes_ml.items()}
    volumes = {name: value for name, value in (ORDINARY | changes).items() if value is not None}
    return {name: replace(NOT_FOUND, found=ml > 0, volume_ml=ml) for name, ml in volumes.items()}


def said(statistics: dict[str, OrganStatistics]) -> list[str]:
    findings = check_mask(statistics, OrganSizes())
    assert all(finding.level == "warn" and "\n" not in finding.message for finding in findings)
    return [finding.code for finding in findings]


def test_only_a_mask_without_any_organ_is_empty() -> None:
    assert said({"liver": NOT_FOUND, "gallbladder": replace(NOT_FOUND, found=True, volume_ml=30.0)}) == []
    assert said({"liver": NOT_FOUND, "spleen": NOT_FOUND}) == ["empty_mask"]
    (finding,) = check_mask({"liver": NOT_FOUND, "spleen": NOT_FOUND}, OrganSizes())
    assert "liver, spleen" in finding.message


@pytest.mark.parametrize(
    ("volumes_ml", "expected"),
    [
        ({}, []),
        ({"spleen": 899.0}, []),
        ({"spleen": 901.0}, ["unlikely_sizes"]),
        ({"left_kidney": 0.0}, []),
        ({"left_kidney": 0.0, "right_kidney": 74.0}, ["unlikely_sizes"]),
        ({"spleen": 1200.0, "left_kidney": 0.0, "right_kidney": 0.0}, ["unlikely_sizes"] * 2),
        ({"aorta": 0.0, "inferior_vena_cava": 46.0}, []),
        ({"aorta": 10.0, "inferior_vena_cava": 34.0}, ["unlikely_sizes"]),
        ({"aorta": None, "inferior_vena_cava": 1.0}, []),
        ({"liver": 0.0}, []),
        ({"liver": 250.0, "spleen": 240.0, "left_kidney": 0.0, "right_kidney": 0.0}, []),
        ({"liver": None, "spleen": 900.0}, []),
        ({"spleen": None, "left_kidney": None, "right_kidney": 1.0}, []),
    ],
)
def test_sizes_that_people_rarely_have_are_told(volumes_ml: dict[str, float | None], expected: list[str]) -> None:
    assert said(measured(**volumes_ml)) == expected


@pytest.mark.parametrize(
    ("side", "told"), [("head", ["kidneys"]), ("feet", ["spleen"]), ("left", ["spleen", "kidneys"])]
)
def test_a_liver_that_the_scan_cuts_is_compared_with_what_lies_at_its_other_end(side: str, told: list[str]) -> None:
    statistics = measured(spleen=1200.0, left_kidney=0.0, right_kidney=20.0)
    statistics["liver"] = replace(statistics["liver"], touches_edge=(side,))
    assert [finding.message.split()[1] for finding in check_mask(statistics, OrganSizes())] == told


def test_reference_masks_raise_an_alarm_for_the_spleen_of_three_litres_only(data: Path) -> None:
    for number, expected in ((2, []), (7, []), (28, []), (30, []), (9, ["unlikely_sizes"])):
        whole = read_volume(data / "btcv" / "label" / f"label{number:04d}.nii.gz")
        mask = Volume(whole.array[::4, ::4], whole.affine @ np.diag([4.0, 4.0, 1.0, 1.0]))
        assert (number, said(organ_statistics(mask, mask, BTCV))) == (number, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "noticed"), [((), False), ((0,), True), ((1,), True), ((0, 1), True)])
@pytest.mark.parametrize("name", ["img0002", "img0022", "img0029", "img0035"])
def test_a_patient_who_is_mirrored_is_noticed(data: Path, name: str, axes: tuple[int, ...], noticed: bool) -> None:
    """Test cases, thinned to slices of 9 or 10 mm; mirrored voxels under an unchanged header."""
    scan = read_volume(data / "btcv" / "img" / f"{name}.nii.gz").reorient("RAS")
    step = round(8.0 / scan.spacing_mm[2])
    thinned = Volume(scan.array[:, :, ::step], scan.affine @ np.diag([1.0, 1.0, step, 1.0]))
    given = mirrored(thinned, *axes)
    done = segment(load_model("small", "cpu"), as_ct(given))
    assert ("unlikely_sizes" in said(organ_statistics(given, done.mask, done.labels))) == noticed
