"""Measurements of boxes whose size, place and values are known by construction."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from meddelinea.errors import InputRefusedError
from meddelinea.results.files import statistics_document
from meddelinea.results.statistics import organ_statistics
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence
from meddelinea.volume import Volume
from support.scans import a_segmentation

LABELS = {"liver": 1, "spleen": 2, "pancreas": 3}
AFFINE = np.array([[1.5, 0, 0, -30], [0, 2.0, 0, -40], [0, 0, 5.0, 100], [0, 0, 0, 1]], np.float64)


@pytest.fixture
def pair() -> tuple[Volume, Volume]:
    """A scan whose value is its I index, and a mask: liver in voxels (10..19, 5..8, 2..3), spleen on two sides."""
    image = np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None], (40, 30, 12))
    mask = np.zeros((40, 30, 12), np.uint8)
    mask[10:20, 5:9, 2:4] = 1
    mask[0:3, 20:22, 9:12] = 2
    return Volume(image, AFFINE), Volume(mask, AFFINE)


def test_a_box_is_measured_as_by_hand(pair: tuple[Volume, Volume]) -> None:
    liver = organ_statistics(*pair, LABELS)["liver"]
    assert liver.found
    assert liver.voxels == 80
    assert liver.volume_ml == pytest.approx(80 * 1.5 * 2 * 5 / 1000)
    assert liver.mean_intensity == pytest.approx(14.5)
    assert liver.sd_intensity == pytest.approx(np.sqrt((10**2 - 1) / 12))  # discrete uniform over ten values
    assert liver.extent_mm == pytest.approx((15, 8, 10))
    assert liver.centroid_mm == pytest.approx((-30 + 1.5 * 14.5, -40 + 2 * 6.5, 100 + 5 * 2.5))
    assert liver.touches_edge == ()


def test_an_organ_of_many_slices_is_measured_as_all_its_voxels_at_once() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(40, 30, (20, 25, 30)).astype(np.float32)
    mask = (rng.random(image.shape) < 0.3).astype(np.uint8)
    mask[:, :, 7] = 0
    organ = organ_statistics(Volume(image, AFFINE), Volume(mask, AFFINE), LABELS)["liver"]
    values = image[mask == 1].astype(np.float64)
    assert (organ.voxels, organ.mean_intensity) == (values.size, pytest.approx(values.mean(), rel=1e-12))
    assert organ.sd_intensity == pytest.approx(values.std(), rel=1e-12)
    centre = np.append(np.argwhere(mask == 1).mean(axis=0), 1.0)
    assert organ.centroid_mm == pytest.approx((AFFINE @ centre)[:3], rel=1e-12)


def test_an_organ_at_the_edge_names_the_sides(pair: tuple[Volume, Volume]) -> None:
    assert organ_statistics(*pair, LABELS)["spleen"].touches_edge == ("left", "head")


def test_an_organ_that_is_absent_is_listed_as_not_found(pair: tuple[Volume, Volume]) -> None:
    measured = organ_statistics(*pair, LABELS)
    assert list(measured) == list(LABELS)
    assert not measured["pancreas"].found
    assert measured["pancreas"].volume_ml == 0
    assert measured["pancreas"].mean_intensity is None


@pytest.mark.parametrize("orientation", ["LPS", "SRA", "PIL", "ASR"])
def test_the_order_of_voxels_in_the_file_changes_nothing(pair: tuple[Volume, Volume], orientation: str) -> None:
    image, mask = pair
    turned = organ_statistics(image.reorient(orientation), mask.reorient(orientation), LABELS)
    for name, organ in organ_statistics(image, mask, LABELS).items():
        assert turned[name].touches_edge == organ.touches_edge
        for field in ("volume_ml", "extent_mm", "centroid_mm", "mean_intensity"):
            ours, theirs = getattr(turned[name], field), getattr(organ, field)
            assert ours == theirs if theirs is None else ours == pytest.approx(theirs)


def test_a_rotated_patient_keeps_volume_and_distances(pair: tuple[Volume, Volume]) -> None:
    """Centroids rotate with the affine; volumes do not change."""
    image, mask = pair
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    upright = organ_statistics(image, mask, LABELS)["liver"]
    tilted = organ_statistics(replace(image, affine=turn @ AFFINE), replace(mask, affine=turn @ AFFINE), LABELS)[
        "liver"
    ]
    assert tilted.volume_ml == pytest.approx(upright.volume_ml)
    assert tilted.centroid_mm == pytest.approx((turn @ [*upright.centroid_mm, 1])[:3])


def test_a_mask_of_another_shape_is_refused(pair: tuple[Volume, Volume]) -> None:
    image, mask = pair
    with pytest.raises(InputRefusedError, match=r"\(40, 30, 11\).*\(40, 30, 12\)"):
        organ_statistics(image, replace(mask, array=mask.array[:, :, :11]), LABELS)


SCHEMA = json.loads((files("meddelinea.results") / "statistics.schema.json").read_text(encoding="utf-8"))
CALIBRATION = Calibration(
    temperature=1.5,
    level=0.9,
    spread=1.0,
    floor=0.1,
    dice=((0.0, 0.0), (1.0, 1.0)),
    review_below=0.95,
    fitted_on="made up",
)


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_the_document_is_strict_json_of_its_schema(
    pair: tuple[Volume, Volume], calibration: Calibration | None
) -> None:
    confidence = {"liver": OrganConfidence(0.9, 1.5, 1.0, 2.0)}
    measured = {**organ_statistics(*pair, LABELS)}
    measured["liver"] = replace(measured["liver"], touches_edge=("head",))
    made = a_segmentation(pair[1], LABELS, confidence=confidence, calibration=calibration)
    document = json.loads(json.dumps(statistics_document(measured, "CT", made), allow_nan=False))
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(document)
    assert document["intensity_unit"] == "HU"
    liver, pancreas = document["organs"]["liver"], document["organs"]["pancreas"]
    assert (liver["voxels"], liver["truncated"], liver["confidence"]["possibly_ml"]) == (80, True, 2.0)
    assert (pancreas["found"], pancreas["truncated"], pancreas["confidence"]) == (False, False, None)
    assert (pancreas["needs_review"], pancreas["review_reasons"]) == (True, ["not_found"])
    if calibration is None:
        assert (document["interval_level"], liver["interval_ml"], liver["needs_review"]) == (None, None, False)
    else:
        low, high = liver["interval_ml"]
        assert low < liver["volume_ml"] < high
        assert (document["interval_level"], liver["review_reasons"]) == (0.9, ["low_expected_dice"])


def test_the_schema_names_every_field_and_refuses_others(pair: tuple[Volume, Volume]) -> None:
    made = a_segmentation(pair[1], LABELS)
    document = json.loads(json.dumps(statistics_document(organ_statistics(*pair, LABELS), "MR", made)))
    validator = Draft202012Validator(SCHEMA)
    assert validator.is_valid(document)
    for organ in document["organs"].values():
        assert set(organ) == set(SCHEMA["$defs"]["organ"]["properties"])
    assert not validator.is_valid({**document, "patient": "Doe"})
    assert not validator.is_valid({**document, "intensity_unit": "kg"})
