"""Timing `predict` beside peers: real processes, and the plan of nnU-Net's networks."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddelinea.benchmark.prediction_speed import PredictionSpeeds, Row, prediction_speed_lines
from meddelinea.benchmark.timed_nnunet import plan
from meddelinea.json_files import read_json
from support.cli import Run
from support.spoiled_scans import AFFINE, body


@pytest.mark.parametrize(
    ("side", "patch", "levels"),
    [(512, 512, 7), (257, 320, 7), (122, 128, 5)],
)
def test_a_slice_is_halved_while_four_pixels_are_left(side: int, patch: int, levels: int) -> None:
    configuration = plan("2d", (100, side, side), (3.0, 1.0, 1.0))["configurations"]["2d"]
    network = configuration["architecture"]["arch_kwargs"]
    assert configuration["patch_size"] == [patch, patch]
    assert network["features_per_stage"] == [32, 64, 128, 256, 512, 512, 512][:levels]
    halvings = np.prod([stride[0] for stride in network["strides"]])
    assert patch % halvings == 0
    assert patch // halvings >= 4


def test_ratios_are_to_meddelinea_with_as_many_threads() -> None:
    stages = {"cold": {"segmenting": 3.0}, "warm": {"segmenting": 2.0}}
    rows = [
        Row(method="MedDelinea", threads=1, cold=4.0, warm=2.0, precision="float32", stages=stages),
        Row(method="other", threads=1, cold=10.0, warm=9.0),
        Row(method="other", threads=2, cold=5.0, warm=5.0),
    ]
    lines = prediction_speed_lines(PredictionSpeeds("a machine", "a scan", {}, rows, {"nnU-Net v2": "not installed"}))
    assert "| other | 1 |  | 10.0 | 9.0 | 2.5 | 4.5 |" in lines
    assert "| other | 2 |  | 5.0 | 5.0 |  |  |" in lines
    assert "not timed: nnU-Net v2: not installed" in lines


@pytest.mark.slow
def test_the_command_times_a_scan_from_file_to_mask(run: Run, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(body(), AFFINE), tmp_path / "scan.nii.gz")
    code, out, err = run("benchmark", "speed", tmp_path / "scan.nii.gz", tmp_path / "out", "--threads", "1", "-q")
    assert code == 0, err
    assert (tmp_path / "out" / "speed.md").read_text() in out
    rows = {row["method"]: row for row in read_json(tmp_path / "out" / "speed.json")["rows"]}
    assert rows["MedDelinea, float32"]["precision"] == "float32"
    assert 0 < rows["MedDelinea"]["warm"] < rows["MedDelinea"]["cold"]


def test_no_number_of_threads_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("benchmark", "speed", tmp_path / "scan.nii.gz", tmp_path / "out", "--threads", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "0: expected whole numbers from 1" in err
