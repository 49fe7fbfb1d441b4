"""DICOM-SEG: what is written lies where the scan has it for two other readers, and what others wrote is read."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.dicom_codes import code_of, organ_of, precoordinated
from meddelinea.io.dicom_seg import read_dicom_seg, write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.read_back import require_same
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.labels import ORGANS, canonical_name
from meddelinea.volume import Volume
from support.dicom_series import (
    COLUMNS,
    LABELS,
    OBLIQUE,
    ROWS,
    SLICES,
    SPACING_MM,
    enhanced,
    foreign,
    mask_in,
    refused,
    rewritten,
    voxels_of,
    write_ct,
)
from support.orientations import ORIENTATIONS

KINDS = ("labelmap", "binary", "fractional")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def organs_by_highdicom(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Voxels and RAS affine of each segment, by highdicom alone."""
    file = hd.seg.segread(path)
    organs = {}
    for number in file.segment_numbers:
        volume = file.get_volume(segment_numbers=[number], rtol=0.1)
        organs[file.get_segment_description(number).segment_label] = (
            volume.array[..., 0] > 0,
            LPS_TO_RAS @ volume.affine,
        )
    return organs


def organs_by_dcmqi(path: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same by dcmqi's reader, a C++ program on DCMTK and ITK that shares no code with highdicom."""
    folder.mkdir()
    program = Path(sys.executable).with_name("segimage2itkimage")
    subprocess.run(
        [program, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"], check=True, capture_output=True
    )
    described = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    organs = {}
    for k, group in enumerate(described, start=1):
        image = sitk.ReadImage(str(folder / f"{k}.nrrd"))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        for segment in group:
            # Of a fractional file it gives the stored shares, each segment in a file of its own.
            inside = array == segment["labelID"] if len(group) > 1 else array > 0
            organs[segment["SegmentLabel"]] = inside, LPS_TO_RAS @ affine
    return organs


def places(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(voxels, 3) patient millimetres of the voxels inside, in an order that does not depend on the axes."""
    points = np.argwhere(array) @ affine[:3, :3].T + affine[:3, 3]
    return points[np.lexsort(points.round(2).T)]


def assert_in_place(organs: dict[str, tuple[np.ndarray, np.ndarray]], orientation: str, turn: Rotation | None) -> None:
    """The same voxels at the same places as geometry says, so Dice 1; and the centroids within 0.1 mm."""
    mask, centroids = mask_in(orientation, turn)
    for name, centroid in centroids.items():
        array, affine = organs[name]
        expected = places(mask.array == LABELS[name], mask.affine)
        assert len(expected) == array.sum() == voxels_of(name)
        np.testing.assert_allclose(places(array, affine), expected, atol=1e-3)
        np.testing.assert_allclose(places(array, affine).mean(axis=0), centroid, atol=0.1)
        assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(np.prod(SPACING_MM), rel=1e-5)


def written(folder: Path, orientation: str, turn: Rotation | None, kind: str, axes: str = "RAS") -> Path:
    """A series in `folder / "ct"` and its organs, the mask given with other axes than the series has."""
    source = read_source(write_ct(folder / "ct", orientation, turn))
    mask, _ = mask_in(orientation, turn)
    path = folder / f"{kind}.dcm"
    write_dicom_seg(mask.reorient(axes), LABELS, path, source, kind=kind, model="small", parameters={"steps": "4"})
    return path


@pytest.mark.parametrize(
    "turn", [None, pytest.param(OBLIQUE, marks=pytest.mark.slow)], ids=["straight", "oblique"]
)  # dcmqi's default run has the oblique ones
@pytest.mark.parametrize("number", range(48), ids=ORIENTATIONS)
def test_every_orientation_is_read_by_highdicom_where_it_was(
    tmp_path: Path, number: int, turn: Rotation | None
) -> None:
    orientation, kind = ORIENTATIONS[number], KINDS[number % 3]
    organs = organs_by_highdicom(written(tmp_path, orientation, turn, kind, axes=ORIENTATIONS[-1 - number]))
    assert set(organs) == set(LABELS)
    assert not organs["gallbladder"][0].any()
    assert_in_place(organs, orientation, turn)


@pytest.mark.parametrize(
    ("number", "turn", "kind"),
    [
        pytest.param(
            number,
            turn,
            kind,
            id=f"{ORIENTATIONS[number]}-{'oblique' if turn else 'straight'}-{kind}",
            marks=() if turn and kind == KINDS[number % 3] else pytest.mark.slow,
        )
        for number in range(48)
        for turn in (None, OBLIQUE)
        for kind in KINDS
    ],
)
def test_every_orientation_is_read_by_dcmqi_where_it_was(
    tmp_path: Path, number: int, turn: Rotation | None, kind: str
) -> None:
    orientation = ORIENTATIONS[number]
    path = written(tmp_path, orientation, turn, kind)
    assert_in_place(organs_by_dcmqi(path, tmp_path / "dcmqi"), orientation, turn)


@pytest.mark.parametrize("kind", KINDS)
def test_our_reader_gives_the_mask_on_the_grid_of_the_scan(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPS", OBLIQUE, kind)
    scan = read_volume(tmp_path / "ct")
    read, labels = read_dicom_seg(path)
    assert set(labels) == set(LABELS)
    mask, _ = mask_in("LPS", OBLIQUE)
    expected = mask.onto(scan.affine, scan.array.shape)
    assert expected is not None
    on_scan = read.onto(scan.affine, scan.array.shape)
    assert on_scan is not None
    assert read.spacing_mm == pytest.approx(scan.spacing_mm)
    assert np.sign(read.affine[:3, :3]).tolist() == np.sign(scan.affine[:3, :3]).tolist()
    for name, index in LABELS.items():
        np.testing.assert_array_equal(on_scan.array == labels[name], expected.array == index)


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_slices_without_an_organ_between_two_with_one_keep_their_room(tmp_path: Path, kind: str) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    array = np.zeros_like(mask.array)
    array[3:6, 4:8, [1, 4, 7]] = 1
    path = tmp_path / "m.dcm"
    write_dicom_seg(Volume(array, mask.affine), {"liver": 1}, path, source, kind=kind)
    assert pydicom.dcmread(path).NumberOfFrames == 3
    expected = places(array == 1, mask.affine)
    np.testing.assert_allclose(places(*organs_by_highdicom(path)["liver"]), expected, atol=1e-3)
    np.testing.assert_allclose(places(*organs_by_dcmqi(path, tmp_path / "dcmqi")["liver"]), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_organ_of_one_voxel_and_no_organ_at_all_are_written(tmp_path: Path, kind: str) -> None:
    source = read_source(write_ct(tmp_path / "ct", "PSR", OBLIQUE))
    mask, _ = mask_in("PSR", OBLIQUE)
    for voxels in (1, 0):
        array = np.zeros_like(mask.array)
        array[4, 7, 5] = 3 * voxels
        write_dicom_seg(Volume(array, mask.affine), {"liver": 3, "spleen": 7}, tmp_path / "m.dcm", source, kind=kind)
        organs = organs_by_highdicom(tmp_path / "m.dcm")
        assert organs["liver"][0].sum() == voxels
        assert organs["spleen"][0].sum() == 0
        assert read_dicom_seg(tmp_path / "m.dcm")[1] == {"liver": 1, "spleen": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_refers_to_the_image_at_its_place(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPI", OBLIQUE, kind)
    images = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    by_uid = {image.SOPInstanceUID: image for image in images}
    file = pydicom.dcmread(path)
    series = file.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(by_uid)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "AccessionNumber"):
        assert file[keyword].value == images[0][keyword].value
    for frame in file.PerFrameFunctionalGroupsSequence:
        referred = by_uid[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            np.array(referred.ImagePositionPatient, float),
            atol=1e-5,
        )


def test_organs_are_coded_for_other_programs(tmp_path: Path) -> None:
    path = written(tmp_path, "LPS", None, "labelmap")
    organs_by_dcmqi(path, tmp_path / "dcmqi")
    (group,) = json.loads((tmp_path / "dcmqi" / "meta.json").read_text())["segmentAttributes"]
    kidney = next(segment for segment in group if segment["SegmentLabel"] == "left kidney")
    assert kidney["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == codes.SCT.Kidney.value
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeValue"] == codes.SCT.Left.value
    liver = next(segment for segment in group if segment["SegmentLabel"] == "liver")
    assert liver["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Liver"
    np.testing.assert_allclose(liver["recommendedDisplayRGBValue"], ORGANS["liver"].colour, atol=2)
    algorithm = pydicom.dcmread(path).SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "MedDelinea small"
    assert algorithm.AlgorithmParameters == "steps=4"


def segment(label: str, code: Code, side: Code | None = None) -> Dataset:
    """An item of a segment sequence as another program may write it."""
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = 1, label
    item.SegmentedPropertyTypeCodeSequence = [hd.sr.CodedConcept.from_code(code)]
    if side is not None:
        modifier = [hd.sr.CodedConcept.from_code(side)]
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return item


@pytest.mark.parametrize("organ", ORGANS)
def test_every_organ_is_known_by_its_code_or_its_label(organ: str) -> None:
    code, side = code_of(organ)
    assert organ_of(segment(organ, code, side)) == organ
    if organ not in ("portal and splenic vein", "hepatic vessel"):
        assert organ_of(segment("Segment_1", code, side)) == organ
        assert organ_of(segment("", precoordinated(organ))) == organ


@pytest.mark.parametrize(
    ("item", "organ"),
    [
        (segment("Seg", Code("T-62000", "SRT", "Liver")), "liver"),
        (segment("Kidney", Code("T-71000", "SRT", "Kidney"), Code("G-A101", "SRT", "Left")), "left kidney"),
        (segment("kidney_right", codes.SCT.Kidney), "right kidney"),
        (segment("Kidney", codes.SCT.Kidney), "kidney"),
        (segment("vessel 3", codes.SCT.BloodVessel), "vessel 3"),
        (segment("Portal vein", codes.SCT.PortalVein), "portal vein"),
        (segment("Lesion 1", codes.SCT.Neoplasm), "lesion 1"),
        (segment("rib_left_4", codes.SCT.Rib, codes.SCT.Left), "left rib 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_segments_of_other_programs_are_named_by_label_and_code(item: Dataset, organ: str) -> None:
    assert organ_of(item) == organ


@pytest.mark.parametrize(
    "item",
    [
        segment("Liver", codes.SCT.Spleen),
        segment("left kidney", codes.SCT.Kidney, codes.SCT.Right),
        segment("", codes.SCT.Neoplasm),
    ],
    ids=["organ", "side", "nothing"],
)
def test_a_segment_that_says_two_things_or_nothing_is_refused(item: Dataset) -> None:
    with pytest.raises(InputRefusedError, match="segment 1"):
        organ_of(item)


def test_an_organ_without_a_code_keeps_its_name(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    labels = {"left lung upper lobe": 1, "liver": 6, "left kidney": 3}
    write_dicom_seg(mask, labels, tmp_path / "m.dcm", source)
    assert set(read_dicom_seg(tmp_path / "m.dcm")[1]) == set(labels)
    assert code_of("left lung upper lobe") == (codes.SCT.AnatomicalStructure, None)


def test_a_tilted_gantry_is_refused_with_its_angle_and_rounded_positions_are_not(tmp_path: Path) -> None:
    mask, _ = mask_in("LPS", OBLIQUE)
    step_mm = SPACING_MM[2]
    for degrees in (15.0, 0.5):  # highdicom's own reader lets half a degree pass, and misplaces the last slice
        tilted = read_source(
            write_ct(tmp_path / str(degrees), "LPS", OBLIQUE, (0, step_mm * np.tan(np.deg2rad(degrees)), 0))
        )
        lying = Volume(mask.array[:, ::-1], tilted.affine)
        said = refused(lambda: write_dicom_seg(lying, LABELS, tmp_path / "m.dcm", tilted), tmp_path)  # noqa: B023
        assert f"{degrees:.2f} degrees" in said
        assert "rtstruct" in said
    rounded = read_source(write_ct(tmp_path / "rounded", "LPS", OBLIQUE, (0, 0.01, 0)))
    write_dicom_seg(Volume(mask.array[:, ::-1], rounded.affine), LABELS, tmp_path / "m.dcm", rounded)


def test_positions_that_a_scanner_rounded_are_kept(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        image.ImagePositionPatient[2] = round(float(image.ImagePositionPatient[2]) * 1.01, 1)

    source = read_source(rewritten(tmp_path, change))
    mask, _ = mask_in("LPS")
    mask = Volume(mask.array[:, ::-1], source.affine)
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", source)
    for organs in (organs_by_highdicom(tmp_path / "m.dcm"), organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi")):
        for name in ("liver", "left kidney", "spleen"):
            expected = places(mask.array == LABELS[name], mask.affine)
            np.testing.assert_allclose(places(*organs[name]), expected, atol=0.06)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image.__setattr__("SOPInstanceUID", ""), "SOPInstanceUID"),
        (lambda image: image.__delattr__("FrameOfReferenceUID"), "FrameOfReferenceUID"),
        (lambda image: image.__setattr__("SOPInstanceUID", "1.2.3"), "either"),
        (lambda image: image.__setattr__("StudyInstanceUID", generate_uid()), "StudyInstanceUID differs"),
        (lambda image: image.__setattr__("SeriesInstanceUID", generate_uid()), "SeriesInstanceUID differs"),
    ],
    ids=["no image uid", "no frame of reference", "one image uid", "several studies", "a series each"],
)
def test_images_that_nothing_can_refer_to_are_refused(
    tmp_path: Path, change: Callable[[Dataset], None], said: str
) -> None:
    folder = rewritten(tmp_path, change)
    read_volume(folder)  # it can be segmented all the same
    assert said in refused(lambda: read_source(folder), tmp_path)


def test_what_anonymisers_and_scanners_leave_out_is_left_empty(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID"):
            delattr(image, keyword)
        del image.AccessionNumber, image.SliceThickness
        image.PatientSex = "U"

    source = read_source(rewritten(tmp_path, change))
    mask, _ = mask_in("LPS")
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", source)
    file = pydicom.dcmread(tmp_path / "m.dcm")
    assert (file.PatientSex, file.PatientID, file.StudyID) == ("", "", "")
    assert_in_place(organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi"), "LPS", None)


def test_names_in_another_alphabet_stay_as_they_are(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName = "Müller^Jörg"

    source = read_source(rewritten(tmp_path, change))
    write_dicom_seg(mask_in("LPS")[0], LABELS, tmp_path / "m.dcm", source)
    assert pydicom.dcmread(tmp_path / "m.dcm").PatientName == "Müller^Jörg"


def test_only_a_dicom_series_can_be_referred_to(tmp_path: Path) -> None:
    write_volume(mask_in("LPS")[0], tmp_path / "scan.nii.gz")
    write_ct(tmp_path / "ct")
    for path, said in (("scan.nii.gz", "DICOM series"), ("none", "no such"), ("ct/00.dcm", "one slice")):
        assert said in refused(lambda: read_source(tmp_path / path), tmp_path)  # noqa: B023


def test_a_zip_is_referred_to_like_its_folder(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", "AIL", OBLIQUE)
    shutil.make_archive(str(tmp_path / "ct"), "zip", tmp_path / "ct")
    mask, _ = mask_in("AIL", OBLIQUE)
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", read_source(tmp_path / "ct.zip"))
    assert_in_place(organs_by_highdicom(tmp_path / "m.dcm"), "AIL", OBLIQUE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_multi_frame_scan_is_referred_to_frame_by_frame(tmp_path: Path, kind: str) -> None:
    write_ct(tmp_path / "ct", "LPS", OBLIQUE)
    order = [3, 0, 8, 1, 7, 2, 6, 4, 5]
    images = [pydicom.dcmread(file) for file in sorted((tmp_path / "ct").iterdir())]
    enhanced(images, order).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    mask, _ = mask_in("LPS", OBLIQUE)
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", read_source(tmp_path / "enhanced.dcm"), kind=kind)
    assert_in_place(organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi"), "LPS", OBLIQUE)
    for frame in pydicom.dcmread(tmp_path / "m.dcm").PerFrameFunctionalGroupsSequence:
        number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        np.testing.assert_allclose(
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            np.array(images[order[number - 1]].ImagePositionPatient, float),
            atol=1e-5,
        )


def test_a_mask_of_another_scan_or_with_unnamed_ids_is_refused(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    away = mask.affine.copy()
    away[0, 3] += 0.4
    for other in (Volume(mask.array[:, :, 1:], mask.affine), Volume(mask.array, away)):
        said = refused(lambda: write_dicom_seg(other, LABELS, tmp_path / "m.dcm", source), tmp_path)  # noqa: B023
        assert "grid" in said
    with pytest.raises(UsageError, match=r"\[3\]"):
        write_dicom_seg(mask, {"liver": 6, "spleen": 1}, tmp_path / "m.dcm", source)


def move(file: Dataset) -> None:
    for frame in file.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[1] += 0.3


def stretch(file: Dataset) -> None:
    file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0] *= 1.01


def shift(file: Dataset) -> None:
    file.PixelData = np.roll(np.frombuffer(file.PixelData, np.uint8), 1).tobytes()


def swap(file: Dataset) -> None:
    a, b = file.SegmentSequence[1:3]
    a.SegmentedPropertyTypeCodeSequence, b.SegmentedPropertyTypeCodeSequence = (
        b.SegmentedPropertyTypeCodeSequence,
        a.SegmentedPropertyTypeCodeSequence,
    )
    a.SegmentLabel, b.SegmentLabel = b.SegmentLabel, a.SegmentLabel


def rename(file: Dataset) -> None:
    file.SegmentSequence[1].SegmentLabel = "Duodenum"
    file.SegmentSequence[1].SegmentedPropertyTypeCodeSequence = [hd.sr.CodedConcept.from_code(codes.SCT.Duodenum)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [(move, "elsewhere"), (stretch, "ml"), (shift, "other voxels"), (swap, "other voxels"), (rename, "names")],
)
def test_a_file_that_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None], said: str
) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    (tmp_path / "m.dcm").write_bytes(b"the old file")
    save = hd.seg.Segmentation.save_as

    def save_damaged(file: hd.seg.Segmentation, path: Path) -> None:
        damage(file)
        save(file, path)

    monkeypatch.setattr(hd.seg.Segmentation, "save_as", save_damaged)
    assert said in refused(lambda: write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", source), tmp_path)
    assert (tmp_path / "m.dcm").read_bytes() == b"the old file"


@pytest.mark.parametrize(("moved_mm", "scale", "said"), [(0.2, 1.0, "centre"), (0.0, 1.002, "ml"), (0.03, 1.0, None)])
def test_centroids_and_volumes_are_measured_in_each_sides_own_millimetres(
    moved_mm: float, scale: float, said: str | None
) -> None:
    mask, _ = mask_in("LPS")
    affine = mask.affine @ np.diag([scale, 1, 1, 1])
    affine[2, 3] += moved_mm
    read = Volume(mask.array, affine)
    if said is None:
        require_same(Path("m.dcm"), mask, LABELS, read, LABELS)
    else:
        with pytest.raises(InputRefusedError, match=said):
            require_same(Path("m.dcm"), mask, LABELS, read, LABELS)


def test_a_fractional_file_holds_an_organ_from_half_on(tmp_path: Path) -> None:
    shares = np.random.default_rng(3).random((SLICES, ROWS, COLUMNS, 1))
    shares[abs(shares - 0.5) < 0.01] = 0.9  # files store 255 steps
    read, labels = read_dicom_seg(foreign(tmp_path, shares, "FRACTIONAL", ("Liver",)))
    assert labels == {"liver": 1}
    scan = read_volume(tmp_path / "ct")
    on_scan = read.onto(scan.affine, scan.array.shape)
    assert on_scan is not None
    np.testing.assert_array_equal(on_scan.array, shares[:, ::-1, :, 0].transpose(2, 1, 0) >= 0.5)


def test_a_background_that_a_labelmap_describes_is_no_organ(tmp_path: Path) -> None:
    path = written(tmp_path, "LPS", None, "labelmap")
    expected, labels = read_dicom_seg(path)
    file = pydicom.dcmread(path)
    assert file.SegmentSequence[0].SegmentLabel == "Background"
    del file.PixelPaddingValue  # which segment it is, is then known by its number alone
    file.save_as(path)
    read, without_padding = read_dicom_seg(path)
    assert without_padding == labels
    np.testing.assert_array_equal(read.array, expected.array)


def test_what_ids_cannot_hold_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((SLICES, ROWS, COLUMNS, 2), np.uint8)
    pixels[2:6, 3:8, 3:8, 0] = pixels[4:7, 5:9, 5:9, 1] = 1
    path = foreign(tmp_path / "a", pixels, "BINARY", ("Liver", "Lesion"))
    said = refused(lambda: read_dicom_seg(path), tmp_path)
    assert "'liver' and 'lesion' overlap" in said
    path = foreign(tmp_path / "b", pixels, "BINARY", ("Liver", "liver"))
    assert "both named 'liver'" in refused(lambda: read_dicom_seg(path), tmp_path)


def test_a_tilted_file_of_another_program_is_refused(tmp_path: Path) -> None:
    pixels = np.ones((SLICES, ROWS, COLUMNS), np.uint8)
    path = foreign(tmp_path / "slightly", pixels, "BINARY", ("Liver",), shear_mm=0.09)  # 2 degrees
    assert "upright" in refused(lambda: read_dicom_seg(path), tmp_path)
    path = foreign(tmp_path / "clearly", pixels, "BINARY", ("Liver",), shear_mm=0.9)
    assert str(path) in refused(lambda: read_dicom_seg(path), tmp_path)


def test_other_files_are_no_segmentations(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    assert "CT, not a DICOM-SEG" in refused(lambda: read_dicom_seg(tmp_path / "ct" / "00.dcm"), tmp_path)
    path = written(tmp_path / "w", "LPS", None, "labelmap")
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:-400])
    (tmp_path / "text.dcm").write_text("no DICOM")
    for name in ("cut.dcm", "text.dcm"):
        assert name in refused(lambda: read_dicom_seg(tmp_path / name), tmp_path)  # noqa: B023


def test_dcmqis_own_file_is_read_as_dcmqi_converts_it(data: Path) -> None:
    read, labels = read_dicom_seg(data / "dcmqi" / "liver.dcm")
    assert labels == {"liver": 1}
    image = sitk.ReadImage(str(data / "dcmqi" / "liver_seg.nrrd"))
    expected = sitk.GetArrayFromImage(image).transpose(2, 1, 0) > 0
    affine = LPS_TO_RAS @ np.block(
        [
            [np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing()), np.array([image.GetOrigin()]).T],
            [np.array([[0, 0, 0, 1]])],
        ]
    )
    assert expected.sum() > 1000
    assert read.array.sum() == expected.sum()
    np.testing.assert_allclose(places(read.array == 1, read.affine), places(expected, affine), atol=1e-3)
    scan = read_volume(data / "dcmqi" / "ct-3slice")
    assert read.onto(scan.affine, scan.array.shape) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_series_is_referred_to_and_read_by_dcmqi(data: Path, tmp_path: Path, kind: str) -> None:
    source = read_source(data / "dcmqi" / "ct-3slice")
    liver, _ = read_dicom_seg(data / "dcmqi" / "liver.dcm")
    write_dicom_seg(liver, {"liver": 1}, tmp_path / "m.dcm", source, kind=kind)
    array, affine = organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi")["liver"]
    np.testing.assert_allclose(places(array, affine), places(liver.array, liver.affine), atol=1e-3)


def test_a_series_that_was_stripped_of_its_identifiers_is_refused(data: Path, tmp_path: Path) -> None:
    said = refused(lambda: read_source(data / "totalsegmentator" / "ct_dicom"), tmp_path)
    assert "SOPInstanceUID" in said


@pytest.mark.slow
def test_a_whole_real_mask_of_many_organs_survives(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    series, study = generate_uid(), generate_uid()
    for file in (data / "totalsegmentator" / "ct_dicom").iterdir():
        image = pydicom.dcmread(file)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.save_as(tmp_path / "ct" / f"{image.InstanceNumber}.dcm")
    numbering = json.loads((data / "totalsegmentator" / "label_names.json").read_text())["v2_total"]
    mask = read_volume(data / "totalsegmentator" / "ct_dicom_seg_v2.nii.gz")
    labels = {canonical_name(name): int(number) for number, name in numbering.items()}
    source = read_source(tmp_path / "ct")
    mask = Volume(mask.array.astype(np.uint8), mask.affine)
    for kind in KINDS:
        write_dicom_seg(mask, labels, tmp_path / "m.dcm", source, kind=kind)
        organs = organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / kind)
        assert len(organs) > 10
        for name, number in labels.items():
            if name in organs:
                np.testing.assert_allclose(
                    places(*organs[name]), places(mask.array == number, mask.affine), atol=2e-2, err_msg=name
                )
