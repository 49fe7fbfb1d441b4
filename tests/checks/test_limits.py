"""What a model takes follows from the scans that it was trained on: those are never refused by it, and others are."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from meddelinea.checks.limits import FILE, OrganSizes, ScanLimits, ScanTraits
from meddelinea.checks.scan import examine, reasons_to_refuse, traits
from meddelinea.errors import WeightsMissingError
from meddelinea.results.mask_check import check_mask
from meddelinea.results.statistics import NOT_FOUND
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume
from support.scans import as_ct, as_mr

ADULT = ScanLimits(modalities=("CT",))


def mr(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Scan:
    """Grey values of an MR on a grid."""
    values = np.random.default_rng(0).gamma(2.0, 100.0, shape).astype(np.float32)
    return as_mr(Volume(values, np.diag([*spacing_mm, 1.0]) @ np.diag([-1.0, 1.0, 1.0, 1.0])))


def ct(side_mm: float, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0), height: int = 12) -> Scan:
    """A cylinder of soft tissue, fat and bone in air, in Hounsfield units."""
    count = round(side_mm / spacing_mm[0])
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (count, count, height)), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 0.1, radius < 0.6, radius < 0.8], [600.0, 45.0, -100.0], -1000.0)
    noise = np.random.default_rng(0).normal(0, 12, hounsfield.shape)
    return as_ct(Volume((hounsfield + noise).astype(np.float32), np.diag([-spacing_mm[0], *spacing_mm[1:], 1.0])))


def grey(scan: Scan, array: np.ndarray) -> Scan:
    return replace(scan, volume=Volume(array, scan.volume.affine))


def trained_on(*scans: Scan, organ_ml: dict[str, float] | None = None, slice_mm: float = 3.0) -> ScanLimits:
    modalities: tuple[Modality, ...] = tuple(sorted({scan.modality for scan in scans if scan.modality}))
    return ScanLimits.of([traits(scan, organ_ml or {}) for scan in scans], modalities, slice_mm=slice_mm)


def codes(scan: Scan, limits: ScanLimits) -> list[str]:
    return [finding.code for finding in examine(scan, limits).findings]


CROPS = [mr((35, 50, 36)), mr((24, 41, 32)), mr((40, 59, 42))]


def test_a_model_of_crops_takes_crops_and_an_adults_does_not() -> None:
    limits = trained_on(*CROPS)
    for scan in (*CROPS, mr((20, 33, 25)), mr((60, 90, 60)), mr((33, 51, 16), (1.0, 1.0, 2.0))):
        assert codes(scan, limits) == []
        assert "small_extent" in codes(scan, replace(ADULT, modalities=("MR",))) or min(scan.volume.shape) >= 60
    assert codes(mr((400, 400, 300)), limits) == ["large_extent"]
    assert codes(mr((35, 50, 36), (0.01, 0.01, 0.01)), limits) == ["spacing"]
    assert codes(mr((35, 50, 36), (0.15, 0.15, 0.15)), limits) == ["small_extent", "short_scan"][:1]


def test_of_one_scan_the_limits_are_widest_and_still_catch_other_units() -> None:
    one, many = trained_on(CROPS[0]), trained_on(*[CROPS[0]] * 20)
    assert one.smallest_mm < many.smallest_mm < 36.0 < 50.0 < many.largest_mm < one.largest_mm
    for factor in (0.2, 0.5, 1.0, 2.0, 5.0):
        assert codes(mr((35, 50, 36), (factor, factor, factor)), one)[:1] in ([], ["thick_slices"], ["short_scan"])
    for factor in (0.001, 0.1, 10.0, 1000.0):
        (code, *_) = codes(mr((35, 50, 36), (factor, factor, factor)), one)
        assert code in ("spacing", "small_extent", "large_extent")


def test_a_mouse_is_refused_by_an_adults_model_and_the_other_way_round() -> None:
    mouse, adult = ct(30.0, (0.4, 0.4, 0.8), 40), ct(320.0)
    assert codes(mouse, ADULT) == ["small_extent"]
    assert codes(adult, ADULT) == []
    assert codes(mouse, trained_on(mouse)) == []
    assert codes(adult, trained_on(mouse)) == ["large_extent"]
    assert codes(mouse, trained_on(adult)) == ["small_extent"]


def test_slices_of_one_thickness_say_little_of_others() -> None:
    limits = trained_on(*[ct(300.0, (1.5, 1.5, 3.0), 60)] * 5)
    for slice_mm, said in ((0.6, []), (1.0, []), (5.0, []), (6.0, []), (8.0, ["thick_slices"]), (20.0, ["spacing"])):
        assert (slice_mm, codes(ct(300.0, (1.5, 1.5, slice_mm), 60), limits)) == (slice_mm, said)


def test_the_planes_of_the_training_scans_are_no_remark_and_others_are() -> None:
    coronal, axial = mr((60, 12, 60), (2.0, 9.0, 2.0)), mr((60, 60, 12), (2.0, 2.0, 9.0))
    assert codes(coronal, trained_on(axial)) == ["not_axial"]
    assert codes(coronal, trained_on(coronal)) == []
    assert codes(axial, trained_on(coronal)) == ["other_plane"]
    assert codes(axial, trained_on(coronal, axial)) == []
    assert codes(mr((60, 60, 60), (2.0, 2.0, 2.0)), trained_on(coronal)) == []


def test_few_voxels_low_scans_crops_and_metal_are_no_remark_where_they_are_usual() -> None:
    low = mr((50, 50, 2), (2.0, 2.0, 4.0))
    assert codes(low, replace(ADULT, modalities=("MR",))) == ["too_few_slices", "short_scan"]
    assert codes(low, trained_on(low)) == []
    whole = ct(300.0)
    side = whole.volume.array.shape[0]
    crop = grey(whole, whole.volume.array[side // 4 : -side // 4, side // 4 : -side // 4])
    assert codes(crop, ADULT) == ["cropped"]
    assert codes(crop, trained_on(crop)) == []
    array = whole.volume.array.copy()
    array[70:80, 70:80, 2:8] = 3071
    assert codes(grey(whole, array), ADULT) == ["metal"]
    assert codes(grey(whole, array), trained_on(grey(whole, array))) == []


def test_grey_values_are_judged_by_most_of_the_training_scans() -> None:
    plain = ct(300.0)
    bytes_ = grey(plain, np.rint((np.clip(plain.volume.array, -160, 240) + 160) * 255 / 400))
    stored = grey(plain, plain.volume.array + 1024)
    exported = trained_on(bytes_, bytes_, plain)
    assert codes(bytes_, ADULT) == ["rescaled"]
    assert codes(bytes_, exported) == []
    assert codes(plain, exported) == ["rescaled"]  # another scale than the model knows
    assert codes(grey(plain, bytes_.volume.array / 255), exported) == ["rescaled"]
    mixed = trained_on(plain, plain, stored)
    assert codes(stored, mixed) == ["stored_offset"]
    assert codes(plain, mixed) == []


def test_the_training_scans_that_their_own_model_refuses_are_known() -> None:
    plain = ct(300.0)
    stored = grey(plain, plain.volume.array + 1024)
    broken = grey(plain, np.where(plain.volume.array > 500, np.nan, plain.volume.array))
    limits = trained_on(plain, plain, stored, broken)
    assert reasons_to_refuse(traits(plain, {}), limits) == []
    for scan, code in ((stored, "stored_offset"), (broken, "not_finite")):
        known = ScanTraits.from_json(json.loads(json.dumps(asdict(traits(scan, {})))))
        (finding,) = reasons_to_refuse(known, limits)
        assert finding.code == code
        assert finding in examine(scan, limits).findings


def test_a_model_trained_further_on_the_same_kind_takes_what_both_take() -> None:
    short, long = trained_on(ct(300.0)), ADULT
    joined = short.joined(long)
    assert (joined.smallest_mm, joined.largest_mm) == (min(short.smallest_mm, 60.0), 2500.0)
    assert (joined.thick_mm, joined.short_mm, joined.fewest_voxels) == (10.0, short.short_mm, 3)


def test_sizes_of_organs_are_those_of_the_training_scans() -> None:
    limits = trained_on(*CROPS, organ_ml={"anterior": 1.5, "posterior": 1.2})
    found = replace(NOT_FOUND, found=True, volume_ml=1.0)

    def said(volume_ml: float, *edges: str) -> list[str]:
        measured = {"anterior": replace(found, volume_ml=volume_ml, touches_edge=edges), "posterior": found}
        return [finding.code for finding in check_mask(measured, limits.sizes)]

    assert [said(ml) for ml in (0.5, 1.0, 3.0)] == [[], [], []]
    assert said(30.0) == said(0.01) == ["unlikely_sizes"]
    assert said(0.01, "head") == []


def test_proportions_stay_an_adults_unless_the_usual_training_scan_has_others() -> None:
    adult = {"liver": 1500.0, "spleen": 200.0, "left kidney": 150.0, "right kidney": 150.0}
    mouse = {"liver": 1.5, "spleen": 1.2, "left kidney": 0.02, "right kidney": 0.02}
    scans = [adult, {**adult, "spleen": 2100.0}, adult]
    assert replace(OrganSizes.of(scans, 4.0), organ_ml={}) == OrganSizes()
    sizes = OrganSizes.of([mouse], 8.0)
    measured = {name: replace(NOT_FOUND, found=True, volume_ml=ml) for name, ml in mouse.items()}
    assert check_mask(measured, sizes) == []


def model_folder(folder: Path, **changes: object) -> Path:
    (folder / "preprocessing.json").write_text(json.dumps({"modalities": ["MR"]}))
    trained_on(*CROPS, organ_ml={"anterior": 1.5}).write(folder)
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **changes}))
    return folder


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert ScanLimits.read(model_folder(tmp_path)) == trained_on(*CROPS, organ_ml={"anterior": 1.5})
    (tmp_path / FILE).unlink()
    assert ScanLimits.read(tmp_path) == replace(ADULT, modalities=("MR",))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"smallest_mm": -1},
        {"smallest_mm": "many"},
        {"smallest_mm": 1e5},
        {"largest_mm": float("nan")},
        {"finest_mm": 30},
        {"planes": ["oblique"]},
        {"sizes": {"organ_ml": {"liver": [1]}}},
        {"scale": "nothing"},
        {"unknown": 1},
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(WeightsMissingError, match=FILE) as refusal:
        ScanLimits.read(model_folder(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"version": 1,'])
def test_a_file_that_is_no_object_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (model_folder(tmp_path) / FILE).write_text(text)
    with pytest.raises(WeightsMissingError, match=FILE) as refusal:
        ScanLimits.read(tmp_path)
    assert "\n" not in str(refusal.value)
