"""The shipped weights on real scans, through the command as a user runs it."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from scipy import ndimage
from scipy.spatial.transform import Rotation

from meddelinea.io.volumes import read_volume
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import Segmentation, segment
from meddelinea.volume import Volume
from support.scans import as_ct


def meddelinea(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meddelinea", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_demo_finds_the_organs_where_they_are(tmp_path: Path) -> None:
    done = meddelinea("demo", "-o", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "demo"
    mask = nib.load(folder / "mask.nii.gz")
    labels = json.loads((folder / "mask.json").read_text())["labels"]
    statistics = json.loads((folder / "statistics.json").read_text())
    schema = (files("meddelinea.results") / "statistics.schema.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(schema)).validate(statistics)
    assert 0.5 < statistics["interval_level"] < 1  # the shipped model is calibrated
    organs = statistics["organs"]
    for organ in organs.values():
        low, high = organ["interval_ml"] or (0.0, 0.0)
        assert low <= organ["volume_ml"] <= high
        assert organ["found"] or organ["needs_review"]
    assert (folder / "preview.png").stat().st_size > 20_000
    assert set(np.unique(mask.dataobj)) <= {0, *labels.values()}
    # A grown-up's liver: 0.8 to 3 litres, right of the spleen (RAS: larger x), and soft tissue.
    assert 800 < organs["liver"]["volume_ml"] < 3000
    assert organs["liver"]["centroid_mm"][0] > organs["spleen"]["centroid_mm"][0]
    assert 0 < organs["liver"]["mean_intensity"] < 200


def test_a_dicom_series_gives_a_mask_on_its_grid_that_overlaps_the_reference(data: Path, tmp_path: Path) -> None:
    reference_path = data / "totalsegmentator" / "ct_dicom_seg_v2.nii.gz"
    output = tmp_path / "mask.nii.gz"
    done = meddelinea("predict", "-i", data / "totalsegmentator" / "ct_dicom", "-o", output, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines()), done.stderr
    mask, reference = nib.load(output), nib.load(reference_path)
    assert mask.shape == reference.shape
    np.testing.assert_allclose(mask.affine, reference.affine, atol=1e-3)
    report = tmp_path / "report.json"
    words = ("--reference-numbering", "totalsegmentator-v2", "--organs", "liver,spleen", "--json", report)
    scored = meddelinea("evaluate", output, reference_path, *words)
    assert scored.returncode == 0, scored.stderr
    scores = {score["organ"]: score for score in json.loads(report.read_text())["cases"][0]["scores"]}
    assert scores["liver"]["dice"] > 0.75
    assert scores["spleen"]["dice"] > 0.75


@pytest.fixture(scope="module")
def straight(data: Path) -> tuple[Volume, Segmentation]:
    """The part of a scan that holds liver, spleen and kidneys, and its segmentation."""
    scan = read_volume(data / "btcv" / "img" / "img0035.nii.gz")
    first = 44
    origin = scan.affine @ [0, 0, first, 1]
    affine = np.column_stack([scan.affine[:, :3], origin])
    part = Volume(np.ascontiguousarray(scan.array[:, :, first:]), affine)
    return part, segment(load_model("small", "cpu"), as_ct(part))


@pytest.mark.parametrize("euler_deg", [(0, 0, 15), (12, -8, 0)], ids=["in the plane", "across the slices"])
def test_an_obliquely_sampled_scan_gives_the_same_organs_in_the_patient(
    straight: tuple[Volume, Segmentation], euler_deg: tuple[float, float, float]
) -> None:
    """The scan's values on a turned grid, as a scanner with a turned table would have stored them."""
    scan, result = straight
    middle = scan.affine @ [*(np.array(scan.array.shape) - 1) / 2, 1.0]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", euler_deg, degrees=True).as_matrix() @ scan.affine[:3, :3]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ (np.array(scan.array.shape) - 1) / 2
    to_scan = np.linalg.inv(scan.affine) @ affine

    turned = ndimage.affine_transform(scan.array.astype(np.float32), to_scan, order=1, cval=-1000)
    found = segment(load_model("small", "cpu"), as_ct(Volume(turned, affine))).mask
    assert np.array_equal(found.affine, affine)
    expected = ndimage.affine_transform(result.mask.array, to_scan, order=0)
    for organ in ("liver", "spleen", "left kidney", "right kidney"):
        ours, theirs = (mask == result.labels[organ] for mask in (found.array, expected))
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.85, organ  # slices of 5 mm


@pytest.mark.slow
def test_a_whole_ct_within_two_minutes_and_three_gigabytes(data: Path, tmp_path: Path) -> None:
    program = (
        "import resource, subprocess, sys, time; began = time.monotonic();"
        "subprocess.run([sys.executable, '-m', 'meddelinea', *sys.argv[1:]], check=True);"
        "print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2)"
    )
    words = ("predict", "-i", data / "btcv" / "img" / "img0002.nii.gz", "-o", tmp_path / "mask.nii.gz", "--quiet")
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    assert seconds < 120
    assert gigabytes < 3


@pytest.mark.slow
def test_the_cases_kept_from_training_are_segmented_as_the_model_card_says(data: Path, tmp_path: Path) -> None:
    names = json.loads((data / "btcv" / "split.json").read_text())["val"]
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    for name in names:
        number = name.removeprefix("img")
        scan, reference = data / "btcv" / "img" / f"{name}.nii.gz", data / "btcv" / "label" / f"label{number}.nii.gz"
        assert meddelinea("predict", "-i", scan, "-o", predictions / f"{name}.nii.gz", "--quiet").returncode == 0
        (references / f"{name}.nii.gz").symlink_to(reference.resolve())
    report = tmp_path / "report.json"
    scored = meddelinea("evaluate", predictions, references, "--reference-numbering", "btcv", "--json", report)
    assert scored.returncode == 0, scored.stderr
    summary = json.loads(report.read_text())["summary"]
    dice = {organ["organ"]: organ["dice"] for organ in summary["organs"]}
    assert summary["mean_over_paper_organs"]["dice"] > 0.82
    assert summary["mean_over_paper_organs"]["hd95_mm"] < 10
    assert dice["liver"] > 0.94
    assert min(dice[organ] for organ in ("spleen", "left kidney", "right kidney")) > 0.9
