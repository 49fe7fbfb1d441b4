"""Comparing label volumes and folders of them: names, grids, pairs, counts and files."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from meddelinea.benchmark import calibration_fit
from meddelinea.data.case import LabelledScan
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.evaluation.compare import evaluate_case, evaluate_paths
from meddelinea.evaluation.summary import summarise
from meddelinea.io.volumes import read_volume
from meddelinea.labels import BTCV
from meddelinea.results.statistics import organ_statistics
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence
from meddelinea.serving.comparison import compare_masks
from meddelinea.volume import Volume
from support.label_volumes import AFFINE, by_organ, mask, save
from support.scans import as_ct

BTCV_IDS = {name: index for index, name in BTCV.items()}


def test_a_renumbered_real_case_is_perfect(data):
    reference = read_volume(data / "btcv" / "label" / "label0023.nii.gz")  # has no gallbladder
    rng = np.random.default_rng(0)
    new = rng.permutation(np.arange(20, 33))
    table = np.zeros(14, np.uint8)
    table[1:] = new
    prediction = Volume(table[reference.array], reference.affine)
    spellings = {name.replace(" ", "_").upper(): int(new[index - 1]) for index, name in BTCV.items()}

    scores = by_organ(evaluate_case(prediction, spellings, reference, BTCV_IDS))
    assert set(scores) == set(BTCV_IDS)
    assert scores.pop("gallbladder").status == "both_empty"
    for name, score in scores.items():
        assert (score.dice, score.nsd, score.hd95_mm) == (1, 1, 0), name
        voxels = np.count_nonzero(reference.array == BTCV_IDS[name])
        assert score.reference_ml == pytest.approx(voxels * abs(np.linalg.det(reference.affine[:3, :3])) / 1000)


def test_swapped_kidneys_are_found_by_name(data):
    reference = read_volume(data / "btcv" / "label" / "label0002.nii.gz")
    swapped = {**BTCV_IDS, "left kidney": BTCV_IDS["right kidney"], "right kidney": BTCV_IDS["left kidney"]}
    scores = evaluate_case(reference, swapped, reference, BTCV_IDS, ("kidney_left", "liver"))
    assert [(score.organ, score.dice) for score in scores] == [("left kidney", 0), ("liver", 1)]


@dataclasses.dataclass
class Held:
    """FAKE: a model, and its files, as far as a calibration is put into them."""

    files: object
    calibration: object = None


def test_a_mask_of_a_tilted_scan_has_one_volume_whatever_measures_it(monkeypatch):
    # A gantry tilted by 20 degrees: slices lie aslant and the table moves by 3 mm, so that a voxel is 2 x 1 mm and
    # 3 cos 20 mm thick.
    tilt = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-2.0, 0, 0], [0, -np.cos(tilt), 0], [0, -np.sin(tilt), 3.0]])
    labels = {"liver": 1}
    liver = mask((2, 12), shape=(14, 14, 14), affine=affine)
    expected = 1000 * 2 * 1 * 3 * np.cos(tilt) / 1000
    scan = Volume(liver.array.astype(np.int16), affine)
    statistics = organ_statistics(scan, liver, labels)
    assert statistics["liver"].volume_ml == pytest.approx(expected)
    (score,) = evaluate_case(liver, labels, liver, labels)
    assert score.prediction_ml == score.reference_ml == pytest.approx(expected)
    change = compare_masks(liver, labels, liver, labels)["liver"]
    assert change.volume_ml == change.earlier_ml == pytest.approx(expected)

    made = SimpleNamespace(mask=liver, labels=labels, confidence={"liver": OrganConfidence(0.9, 1.0, 1.0, 1.0)})
    case = SimpleNamespace(name="tilted")
    read = LabelledScan(scan=as_ct(scan), mask=liver, organs=("liver",))
    monkeypatch.setattr(calibration_fit, "read_case", lambda case, organs: read)
    monkeypatch.setattr(calibration_fit, "segment", lambda model, volume: made)
    model = Held(Held(None))
    as_stated = Calibration(
        temperature=1.0,
        level=0.9,
        spread=0.0,
        floor=0.0,
        dice=calibration_fit.AS_STATED,
        review_below=0.0,
        fitted_on="nothing",
    )
    (row,) = calibration_fit.gather_rows([(model, (case,))], ("liver",), as_stated)
    assert row.volume_ml == row.true_ml == pytest.approx(expected)


def test_another_axis_order_is_the_same_grid():
    rng = np.random.default_rng(1)
    affine = np.array([[0, -1.5, 0, 40], [0.9, 0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    reference = Volume(rng.integers(0, 3, (9, 8, 7)).astype(np.uint8), affine)
    ids = {"liver": 1, "spleen": 2}
    for orientation in ("RAS", "LPS", "SAR", "IPL"):
        for score in evaluate_case(reference.reorient(orientation), ids, reference, ids):
            assert (score.dice, score.hd95_mm) == (1, 0)


def test_flipped_voxels_with_the_same_affine_are_not_reoriented():
    reference = mask((1, 5))
    flipped = Volume(reference.array[::-1], reference.affine)
    assert evaluate_case(flipped, {"liver": 1}, reference, {"liver": 1})[0].dice < 1


def rotated(affine, degrees):
    angle = math.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(
    ("affine", "shape", "words"),
    [
        (AFFINE, (12, 12, 11), ["(12, 12, 11)", "(12, 12, 12)"]),
        (np.diag([2.0, 1.0, 3.1, 1.0]), (12, 12, 12), ["3.1 mm", "2 x 1 x 3 mm"]),
        (AFFINE + np.array([[0, 0, 0, 0.2]] + [[0] * 4] * 3), (12, 12, 12), ["(0.20, 0.00, 0.00)", "(0.00,"]),
        (np.diag([-2.0, 1.0, 3.0, 1.0]), (12, 12, 12), ["LAS", "RAS"]),
        (rotated(AFFINE, 3), (12, 12, 12), ["resample"]),
    ],
)
def test_another_grid_is_refused_with_both_values(affine, shape, words):
    prediction = mask((1, 5), shape=shape, affine=affine)
    with pytest.raises(InputRefusedError) as refused:
        evaluate_case(prediction, {"liver": 1}, mask((1, 5)), {"liver": 1})
    assert all(word in str(refused.value) for word in [*words, "resample"])


def test_rounding_of_a_header_is_no_other_grid():
    affine = rotated(AFFINE, 45)  # where the names of the axes hang on the last digit
    nudged = rotated(AFFINE, 45.001)
    assert (
        evaluate_case(mask((1, 5), affine=nudged), {"liver": 1}, mask((1, 5), affine=affine), {"liver": 1})[0].dice == 1
    )


@pytest.mark.parametrize("value", [0.5, math.nan, -1.0])
def test_voxels_that_are_no_ids_are_refused(value):
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(InputRefusedError, match="is it a mask"):
        evaluate_case(Volume(array, AFFINE), {"liver": 1}, mask(shape=(3, 3, 3)), {"liver": 1})


def test_whole_numbers_stored_as_float_are_ids():
    reference = mask((1, 5))
    as_float = Volume(reference.array.astype(np.float32), AFFINE)
    assert evaluate_case(as_float, {"liver": 1}, reference, {"liver": 1})[0].dice == 1


@pytest.mark.parametrize(
    ("organs", "message"),
    [
        (("pancreas",), "prediction does not name pancreas"),
        (("spleen",), "reference does not name spleen"),
        (("liver", "Liver"), "each once"),
        ((), "one or more"),
    ],
)
def test_organs_that_cannot_be_scored_are_a_usage_error(organs, message):
    with pytest.raises(UsageError, match=message):
        evaluate_case(mask(), {"liver": 1, "spleen": 2}, mask(), {"liver": 1, "pancreas": 2}, organs)


def test_no_organ_in_common_is_a_usage_error():
    with pytest.raises(UsageError, match="none in common"):
        evaluate_case(mask(), {"liver": 1}, mask(), {"spleen": 1})


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"liver": 1, "Liver": 2}, "ids 1 and 2"), ({"liver": 1, "spleen": 1}, "one name"), ({"liver": 1.5}, "1.5")],
)
def test_ambiguous_labels_are_refused(labels, message):
    with pytest.raises(InputRefusedError, match=message):
        evaluate_case(mask(), labels, mask(), {"liver": 1})


def test_folders_count_every_case(folders):
    report = evaluate_paths(*folders, organs=("liver", "spleen"))
    assert [case.case for case in report.cases] == ["img0001", "img0002"]
    assert report.cases[0].prediction_names == "img0001.json"
    assert report.cases[0].reference_names == "labels.json"
    reasons = {failure.case: failure.reason for failure in report.failures}
    assert set(reasons) == {"label0003", "img0004", "img0005"}
    assert "no prediction" in reasons["label0003"]
    assert "no reference" in reasons["img0004"]
    assert "img0005.nii.gz" in reasons["img0005"]
    assert "label0005.nii.gz" in reasons["img0005"]


def test_an_unknown_organ_is_told_with_its_files_before_anything_is_measured(folders):
    predictions, references = folders
    (references / "label0001.nii.gz").write_bytes(b"never read")
    with pytest.raises(
        UsageError, match=r"img0001\.nii\.gz and .*label0001\.nii\.gz: the prediction does not name pancreas"
    ):
        evaluate_paths(predictions, references, organs=("pancreas",))


def test_two_files_need_no_common_name_and_raise_what_is_wrong(folders):
    predictions, references = folders
    report = evaluate_paths(predictions / "img0001.nii.gz", references / "label0002.nii.gz")
    assert by_organ(report.cases[0].scores)["liver"].dice == 1
    with pytest.raises(InputRefusedError, match="grid"):
        evaluate_paths(predictions / "img0005.nii.gz", references / "label0005.nii.gz")


def test_a_damaged_file_is_a_failure_of_its_case_alone(folders):
    predictions, references = folders
    path = predictions / "img0002.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    (predictions / "img0001.json").write_text("{")
    report = evaluate_paths(predictions, references)
    assert report.cases == ()
    assert {"img0001", "img0002"} < {failure.case for failure in report.failures}
    assert math.isnan(summarise(report).mean_over_organs.dice)


def test_ids_without_a_name_are_reported(tmp_path):
    save(mask((1, 3), (4, 6), (7, 9)), tmp_path / "p.nii.gz", {"liver": 1, "spleen": 2})
    save(mask((1, 3), (4, 6), (7, 9)), tmp_path / "r.nii.gz", {"background": 0, "liver": 1})
    case = evaluate_paths(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz").cases[0]
    assert (case.unnamed_in_prediction, case.unnamed_in_reference) == ((3,), (2, 3))
    assert (case.only_in_prediction, case.only_in_reference) == (("spleen",), ())
