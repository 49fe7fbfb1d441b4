"""Which scans are refused, on real ones and on real ones spoiled the way people spoil them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meddelinea.inference.quality import check_volume
from meddelinea.io.nifti import read_nifti
from meddelinea.volume import Volume

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def codes(volume: Volume, level: str = "refuse") -> list[str]:
    return [finding.code for finding in check_volume(volume) if finding.level == level]


@pytest.fixture(scope="module")
def body() -> Volume:
    """A cylinder of soft tissue with a rim of fat in air: the least that is a CT."""
    generator = np.random.default_rng(0)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 64, 8)), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 0.6, radius < 0.8], [45.0, -100.0], -1000.0)
    return Volume(np.rint(hounsfield + generator.normal(0, 12, hounsfield.shape)).astype(np.int16), AFFINE)


def spoil(volume: Volume, array: np.ndarray) -> Volume:
    return replace(volume, array=array)


def test_a_plain_ct_raises_nothing(body: Volume) -> None:
    assert check_volume(body) == []
    assert check_volume(replace(body, modality="CT")) == []


def test_every_real_ct_is_accepted_and_every_real_mr_refused(data: Path) -> None:
    cts = [*sorted((data / "btcv" / "img").glob("*.nii.gz")), data / "totalsegmentator" / "ct.nii.gz"]
    mrs = [*sorted((data / "chaos_mr" / "img").glob("*.nii.gz")), data / "totalsegmentator" / "mr.nii.gz"]
    assert {path.name: codes(read_nifti(path)) for path in cts} == {path.name: [] for path in cts}
    assert {path.name: codes(read_nifti(path)) for path in mrs} == {path.name: ["not_hounsfield"] for path in mrs}


def test_a_clipped_ct_is_accepted_with_a_warning(data: Path) -> None:
    assert codes(read_nifti(data / "btcv" / "img" / "img0002.nii.gz"), "warn") == ["windowed"]


def test_padding_outside_the_circle_of_reconstruction_is_accepted(body: Volume) -> None:
    padded = body.array.copy()
    padded[:8] = -3024
    assert codes(spoil(body, padded)) == []


def test_real_label_masks_are_not_taken_for_scans(data: Path) -> None:
    assert codes(read_nifti(data / "btcv" / "label" / "label0002.nii.gz")) == ["label_mask"]


def test_rescaled_values_are_named(data: Path) -> None:
    ct = read_nifti(data / "totalsegmentator" / "ct.nii.gz")
    values = ct.array.astype(np.float32)
    unit = (values - values.min()) / np.ptp(values)
    assert codes(spoil(ct, unit)) == ["rescaled"]
    assert codes(spoil(ct, unit * 2 - 1)) == ["rescaled"]
    assert codes(spoil(ct, unit * 255)) == ["rescaled"]
    assert codes(spoil(ct, np.rint(unit * 255).astype(np.uint8))) == ["rescaled"]
    assert codes(spoil(ct, (values - values.mean()) / values.std())) == ["not_hounsfield"]


def test_a_ct_without_its_rescale_intercept_is_named_with_the_remedy(data: Path) -> None:
    ct = read_nifti(data / "totalsegmentator" / "ct.nii.gz")
    stored = spoil(ct, np.clip(ct.array + 1024, 0, None).astype(np.uint16))
    (finding,) = (finding for finding in check_volume(stored) if finding.level == "refuse")
    assert finding.code == "stored_offset"
    assert "subtract 1024" in finding.message
    assert codes(spoil(ct, stored.array.astype(np.int16) - 1024)) == []


def test_an_intercept_applied_twice_is_refused(body: Volume) -> None:
    assert codes(spoil(body, body.array - 1024)) == ["not_hounsfield"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_found_and_counted(body: Volume, value: float) -> None:
    array = body.array.astype(np.float32)
    array[17, 23, 5] = value
    (finding,) = check_volume(spoil(body, array))
    assert (finding.code, finding.level) == ("not_finite", "refuse")
    assert finding.message.startswith(f"1 of {array.size} voxels")


def test_an_empty_scan_is_refused(body: Volume) -> None:
    assert codes(spoil(body, np.zeros_like(body.array))) == ["constant"]
    assert codes(spoil(body, np.full_like(body.array, -1024))) == ["constant"]


def test_one_slice_is_refused_and_three_are_not(body: Volume) -> None:
    assert codes(spoil(body, body.array[:, :, 3:4])) == ["too_few_slices"]
    assert codes(spoil(body, body.array[:, :, 3:6])) == []


@pytest.mark.parametrize(
    ("spacing_mm", "refused", "warned"),
    [
        ((2, 2, 10), [], []),
        ((2, 2, 12), [], ["thick_slices"]),
        ((2, 2, 25), ["spacing"], []),
        ((0.002, 0.002, 0.003), ["spacing", "small_extent"], []),
        ((0.5, 0.5, 3), ["small_extent"], []),
    ],
)
def test_spacing_must_be_that_of_a_body(
    body: Volume, spacing_mm: tuple[float, ...], refused: list[str], warned: list[str]
) -> None:
    volume = replace(body, affine=np.diag([*spacing_mm, 1.0]))
    assert codes(volume) == refused
    assert codes(volume, "warn") == warned


def test_an_identity_affine_is_a_warning(body: Volume) -> None:
    assert codes(replace(body, affine=np.eye(4)), "warn") == ["no_geometry"]


def test_the_modality_must_be_one_the_model_was_trained_on(body: Volume) -> None:
    echoes = np.random.default_rng(1).gamma(2.0, 100.0, body.array.shape).astype(np.int16)
    mr = replace(body, array=echoes, modality="MR")
    assert codes(mr) == ["modality"]
    assert check_volume(mr, ("CT", "MR")) == []
    assert check_volume(replace(mr, modality=None), ("MR",)) == []
    assert [finding.code for finding in check_volume(replace(mr, modality="CT"), ("CT", "MR"))] == ["not_hounsfield"]


def test_voxels_that_are_not_real_numbers_are_refused(body: Volume) -> None:
    assert codes(spoil(body, body.array.astype(np.complex64))) == ["not_numbers"]


def test_messages_are_one_line(body: Volume) -> None:
    spoiled = [body.array * 0, body.array.astype(np.float32) / 5000, np.abs(body.array), body.array[:, :, :1]]
    findings = [finding for array in spoiled for finding in check_volume(spoil(body, array))]
    assert len(findings) >= len(spoiled)
    assert all("\n" not in finding.message for finding in findings)
