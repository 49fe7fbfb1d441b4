"""Which scans are refused, on real ones and on real ones spoiled the way people spoil them."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slicerio
from scipy.spatial.transform import Rotation

from meddelinea.checks.limits import ScanLimits
from meddelinea.checks.scan import examine, require_accepted
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.findings import Finding, warn
from meddelinea.io.nifti import read_nifti
from meddelinea.io.volumes import read_scan
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume
from support.scans import as_ct, as_mr
from support.spoiled_scans import echoes

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def check(scan: Volume | Scan, trained: tuple[Modality, ...] = ("CT",)) -> list[Finding]:
    """What is found in a scan, or in a volume of no stated modality."""
    return list(examine(scan if isinstance(scan, Scan) else Scan(volume=scan), ScanLimits(modalities=trained)).findings)


def codes(scan: Volume | Scan, level: str = "refuse") -> list[str]:
    return [finding.code for finding in check(scan) if finding.level == level]


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
    assert check(body) == []
    assert check(as_ct(body)) == []


def test_every_real_ct_is_accepted_and_every_real_mr_refused(data: Path) -> None:
    cts = [*sorted((data / "btcv" / "img").glob("*.nii.gz")), data / "totalsegmentator" / "ct.nii.gz"]
    mrs = [*sorted((data / "chaos_mr" / "img").glob("*.nii.gz")), data / "totalsegmentator" / "mr.nii.gz"]
    assert {path.name: codes(read_nifti(path)) for path in cts} == {path.name: [] for path in cts}
    assert {path.name: codes(read_nifti(path)) for path in mrs} == {path.name: ["not_hounsfield"] for path in mrs}
    both = ScanLimits(modalities=("CT", "MR"))
    assert {examine(read_nifti(path), both).modality for path in cts} == {"CT"}
    assert {examine(read_nifti(path), both).modality for path in mrs} == {None}


def test_real_scans_raise_no_false_alarm(data: Path) -> None:
    """BTCV was clipped before it was published, one patient has a hip of metal, and one series has three slices."""
    cts = {path: ["windowed"] for path in sorted((data / "btcv" / "img").glob("*.nii.gz"))}
    cts[data / "totalsegmentator" / "ct.nii.gz"] = ["metal"]
    cts[data / "totalsegmentator" / "ct_dicom"] = []
    cts[data / "dcmqi" / "ct-3slice"] = ["short_scan"]
    cts[Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"] = []
    mrs = [*sorted((data / "chaos_mr" / "img").glob("*.nii.gz")), data / "totalsegmentator" / "mr.nii.gz"]
    for path, expected in cts.items():
        assert (path.name, codes(read_scan(path), "warn")) == (path.name, expected)
    for path in mrs:
        assert (path.name, check(read_scan(path), ("MR",))) == (path.name, [])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-125, 275, "windowed"), (-1350, 30, "windowed"), (-1024, 30, "windowed"), (-1024, 3071, None)],
)
def test_a_clipped_ct_is_accepted_with_a_warning(body: Volume, low: int, high: int, expected: str | None) -> None:
    found = check(spoil(body, np.clip(body.array, low, high)))
    assert [(finding.code, finding.level) for finding in found] == ([(expected, "warn")] if expected else [])


def test_enhanced_tissue_cut_off_at_the_top_is_no_air(body: Volume) -> None:
    enhanced = np.where(body.array > 0, body.array + 80, body.array)
    assert [finding.code for finding in check(spoil(body, np.clip(enhanced, -125, 80)))] == ["windowed"]


def test_a_window_without_fat_is_refused_by_its_name(body: Volume) -> None:
    assert codes(spoil(body, np.clip(body.array, -50, 60))) == ["narrow_window"]


@pytest.mark.parametrize(("low", "high"), [(-2000, 3000), (-125, 275)])
def test_a_ct_turned_over_is_refused(body: Volume, low: int, high: int) -> None:
    assert codes(spoil(body, -np.clip(body.array, low, high))) == ["inverted"]


def test_a_sign_that_was_lost_is_named(body: Volume) -> None:
    (finding,) = check(spoil(body, body.array.astype(np.uint16)))
    assert (finding.code, finding.level) == ("unsigned_wrap", "refuse")


@pytest.mark.parametrize("offset", [1024, 32768])
def test_an_offset_is_named_with_its_size(body: Volume, offset: int) -> None:
    array = np.clip(body.array, -1024, None).astype(np.int32) + offset
    (finding,) = check(spoil(body, array))
    assert finding.code == "stored_offset"
    assert f"subtract {offset}" in finding.message


@pytest.mark.parametrize(
    ("slope", "found"),
    [
        (0.5, "rescaled"),
        (0.7, "air_outside_range"),
        (0.9, None),
        (1.1, None),
        (1.25, "air_outside_range"),
        (2, "rescaled"),
    ],
)
def test_a_wrong_slope_shows_in_the_air(body: Volume, slope: float, found: str | None) -> None:
    findings = check(spoil(body, body.array.astype(np.float32) * slope))
    assert [finding.code for finding in findings] == ([found] if found else [])


def test_metal_is_a_warning_from_two_millilitres_on(body: Volume) -> None:
    for edge, expected in ((4, []), (6, ["metal"])):  # cubes of 0.8 and 2.6 ml
        array = body.array.copy()
        array[30 : 30 + edge, 30 : 30 + edge, 1 : 1 + edge] = 3071
        assert codes(spoil(body, array), "warn") == expected


def test_metal_of_a_tilted_scan_is_measured_by_its_slanted_voxels(body: Volume) -> None:
    affine = body.affine.copy()
    affine[1, 2] = affine[2, 2] * np.tan(
        np.deg2rad(35)
    )  # slices as far apart as before, and shifted against each other
    array = body.array.copy()
    array[30:36, 30:36, 2:6] = 3071  # 144 voxels of 12 mm3: 1.7 ml, which spacings would make 2.1
    assert codes(Volume(array, affine), "warn") == ["gantry_tilt"]


def test_a_cut_out_of_a_ct_is_a_warning(body: Volume) -> None:
    inside = Volume(body.array[18:46, 18:46], np.diag([-3.0, 3.0, 3.0, 1.0]))
    array = inside.array.copy()
    array[:3] -= 140  # fat and air at one side
    assert [(finding.code, finding.level) for finding in check(spoil(inside, array))] == [("cropped", "warn")]


@pytest.mark.parametrize("degrees", [0.5, 2.0, 15.0, 30.0, 50.0])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_a_tilt_is_told_with_its_angle(body: Volume, degrees: float, orientation: str) -> None:
    affine = body.affine.copy()
    affine[1, 2] = affine[2, 2] * np.tan(np.deg2rad(degrees))
    findings = check(replace(body, affine=affine).reorient(orientation))
    assert [finding.code for finding in findings] == (
        ["sheared"] if degrees > 40 else ["gantry_tilt"] if degrees > 1 else []
    )
    assert all(f"{degrees:g}" in finding.message for finding in findings)


def test_turning_without_shear_is_no_tilt(body: Volume) -> None:
    affine = body.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 25], degrees=True).as_matrix() @ affine[:3, :3]
    assert check(replace(body, affine=affine)) == []


@pytest.mark.parametrize(("axis", "said"), [(0, "sagittal"), (1, "coronal"), (2, None)])
def test_slices_that_are_not_axial_are_a_warning(body: Volume, axis: int, said: str | None) -> None:
    spacing_mm = [2.0, 2.0, 2.5, 1.0]
    spacing_mm[axis] = 6.0
    findings = check(replace(body, array=np.repeat(body.array, 2, 2), affine=np.diag(spacing_mm)))
    assert [finding.code for finding in findings] == (["not_axial"] if said else [])
    assert all(said in finding.message for finding in findings if said)


def test_a_scan_longer_than_a_person_is_refused(body: Volume) -> None:
    assert codes(replace(body, array=np.repeat(body.array, 35, 2), affine=np.diag([2, 2, 10, 1.0]))) == ["large_extent"]


def test_an_mr_must_not_be_a_ct_nor_a_mask(body: Volume) -> None:
    assert [finding.code for finding in check(body, ("MR",))] == ["looks_like_ct"]
    mask = spoil(body, (body.array > 20).astype(np.uint8) * 3)
    assert [finding.code for finding in check(mask, ("MR",))] == ["label_mask"]


def test_an_unknown_modality_is_refused_by_a_model_that_knows_two(body: Volume) -> None:
    (finding,) = check(spoil(body, echoes().astype(float)), ("CT", "MR"))
    assert (finding.code, finding.level) == ("modality_unknown", "refuse")
    assert "modality" in finding.message


def test_what_was_done_to_a_ct_is_told_by_a_model_that_knows_two(body: Volume) -> None:
    (finding,) = check(spoil(body, body.array + 1024.0), ("CT", "MR"))
    assert (finding.code, finding.level) == ("stored_offset", "refuse")
    assert finding.message.endswith("or say that it is an MR")


def test_the_remarks_of_the_reader_are_among_the_findings(body: Volume) -> None:
    remark = warn("slice_gaps", "slices 1 mm thick lie 5 mm apart")
    assert check(Scan(volume=body, findings=(remark,))) == [remark]
    assert check(Scan(volume=spoil(body, body.array * 0), findings=(remark,)))[1:] == [remark]


def test_padding_outside_the_circle_of_reconstruction_is_accepted(body: Volume) -> None:
    padded = body.array.copy()
    padded[:8] = -3024
    assert codes(spoil(body, padded)) == []


def test_real_label_masks_are_not_taken_for_scans(data: Path) -> None:
    assert codes(read_nifti(data / "btcv" / "label" / "label0002.nii.gz")) == ["label_mask"]


def test_rescaled_values_are_named(data: Path) -> None:
    ct = read_nifti(data / "totalsegmentator" / "ct.nii.gz").volume
    values = ct.array.astype(np.float32)
    unit = (values - values.min()) / np.ptp(values)
    assert codes(spoil(ct, unit)) == ["rescaled"]
    assert codes(spoil(ct, unit * 2 - 1)) == ["rescaled"]
    assert codes(spoil(ct, unit * 255)) == ["rescaled"]
    assert codes(spoil(ct, np.rint(unit * 255).astype(np.uint8))) == ["rescaled"]
    assert codes(spoil(ct, (values - values.mean()) / values.std())) == ["rescaled"]
    assert codes(spoil(ct, values / 1000)) == ["rescaled"]
    assert codes(spoil(ct, values * 0.5)) == ["rescaled"]
    assert codes(spoil(ct, values * 2)) == ["rescaled"]


def test_a_ct_without_its_rescale_intercept_is_named_with_the_remedy(data: Path) -> None:
    ct = read_nifti(data / "totalsegmentator" / "ct.nii.gz").volume
    stored = spoil(ct, np.clip(ct.array + 1024, 0, None).astype(np.uint16))
    (finding,) = (finding for finding in check(stored) if finding.level == "refuse")
    assert finding.code == "stored_offset"
    assert "subtract 1024" in finding.message
    assert codes(spoil(ct, stored.array.astype(np.int16) - 1024)) == []


def test_an_intercept_applied_twice_is_refused(body: Volume) -> None:
    (finding,) = check(spoil(body, body.array - 1024))
    assert (finding.code, finding.level) == ("offset_twice", "refuse")
    assert "add 1024" in finding.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_found_and_counted(body: Volume, value: float) -> None:
    array = body.array.astype(np.float32)
    array[17, 23, 5] = value
    (finding,) = check(spoil(body, array))
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
        ((0.002, 0.002, 0.003), ["spacing"], []),
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
    assert "no_geometry" in codes(replace(body, affine=np.eye(4)), "warn")


def test_the_modality_must_be_one_the_model_was_trained_on(body: Volume) -> None:
    echoes = np.random.default_rng(1).gamma(2.0, 100.0, body.array.shape).astype(np.int16)
    mr = as_mr(replace(body, array=echoes))
    assert codes(mr) == ["modality"]
    assert check(mr, ("CT", "MR")) == []
    assert check(replace(mr, modality=None), ("MR",)) == []
    assert [finding.code for finding in check(replace(mr, modality="CT"), ("CT", "MR"))] == ["not_hounsfield"]


def test_voxels_that_are_not_real_numbers_are_refused(body: Volume) -> None:
    assert codes(spoil(body, body.array.astype(np.complex64))) == ["not_numbers"]


def test_all_refusals_are_raised_at_once_with_what_else_was_found(body: Volume) -> None:
    findings = check(replace(body, array=body.array[:, :, :2] * 0))
    assert [finding.code for finding in findings] == ["too_few_slices", "constant", "short_scan"]
    with pytest.raises(InputRefusedError) as caught:
        require_accepted(Scan(volume=body, path=Path("scan.nii"), findings=tuple(findings)))
    # Workers in other processes send their errors.
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.findings == tuple(findings)
        assert str(error) == f"scan.nii: {findings[0].message}; {findings[1].message}"
    require_accepted(Scan(volume=body, path=Path("scan.nii"), findings=tuple(findings[2:])))


def test_messages_are_one_line(body: Volume) -> None:
    spoiled = [body.array * 0, body.array.astype(np.float32) / 5000, np.abs(body.array), body.array[:, :, :1]]
    findings = [finding for array in spoiled for finding in check(spoil(body, array))]
    assert len(findings) >= len(spoiled)
    assert all("\n" not in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("in_file", "said", "trained", "decided"),
    [
        ("MR", None, ("CT",), "MR"),
        ("MR", "MR", ("CT", "MR"), "MR"),
        (None, "MR", ("CT",), "MR"),
        (None, "MR", ("CT", "MR"), "MR"),
        (None, None, ("MR",), "MR"),
        (None, None, ("CT", "MR"), "CT"),
    ],
)
def test_the_modality_is_the_files_or_the_users_or_the_models(
    body: Volume,
    in_file: Modality | None,
    said: Modality | None,
    trained: tuple[Modality, ...],
    decided: Modality,
) -> None:
    examined = examine(Scan(volume=body, modality=in_file), ScanLimits(modalities=trained), said)
    assert examined.modality == decided
    codes = {finding.code for finding in examined.findings}
    assert ("modality" in codes) == (decided not in trained)


def test_a_user_who_contradicts_the_file_is_refused(body: Volume) -> None:
    with pytest.raises(UsageError, match=r"scan\.nii: the file says CT; leave modality MR out") as conflict:
        examine(replace(as_ct(body), path=Path("scan.nii")), ScanLimits(modalities=("CT", "MR")), "MR")
    assert conflict.value.parameter == "modality"


def test_an_open_modality_asks_for_the_parameter(body: Volume) -> None:
    other = spoil(body, echoes().astype(float))
    with pytest.raises(InputRefusedError, match="expected CT or MR") as refusal:
        require_accepted(examine(Scan(volume=other), ScanLimits(modalities=("CT", "MR"))))
    assert refusal.value.parameter == "modality"
