"""RTSTRUCT: contours that enclose exactly the mask's pixels, for other programs' fill rules too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage
from scipy.spatial.transform import Rotation

from meddelinea.errors import InputRefusedError
from meddelinea.io.contours import fill, outlines
from meddelinea.io.dicom import series_affine
from meddelinea.io.dicom_source import read_source
from meddelinea.io.rtstruct import read_rtstruct, write_rtstruct
from meddelinea.labels import ORGANS
from meddelinea.volume import Volume
from support.dicom_series import LABELS, OBLIQUE, SPACING_MM, enhanced, mask_in, refused, write_ct
from support.orientations import ORIENTATIONS

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def noise(seed: int) -> np.ndarray:
    """A binary image of islands, holes, islands in holes, and pixels that touch at a corner or at the edge."""
    generator = np.random.default_rng(seed)
    return generator.random(generator.integers(1, 30, 2)) < generator.choice([0.2, 0.5, 0.8, 0.95])


def by_matplotlib(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """How many polygons each pixel's centre lies in, each polygon by itself."""
    rows, columns = np.indices(shape)
    # A thousandth off the centre: on the channel of a keyhole, which runs through centres, that program is undecided.
    points = np.stack([columns.ravel() + 1e-3, rows.ravel() + 1e-3], axis=1)
    closed = [Polygon(np.vstack([polygon, polygon[:1]]), closed=True) for polygon in polygons]
    return np.sum([polygon.contains_points(points) for polygon in closed] or [np.zeros(len(points))], axis=0).reshape(
        shape
    )


@pytest.mark.parametrize("seed", range(40))
def test_outlines_hold_exactly_the_pixels_inside_under_every_fill_rule(seed: int) -> None:
    inside = noise(seed)
    polygons = outlines(inside)
    np.testing.assert_array_equal(fill(polygons, inside.shape), inside)  # odd number of polygons
    count = by_matplotlib(polygons, inside.shape)
    np.testing.assert_array_equal(count, inside)  # any polygon, and none lies in another


def test_outlines_run_halfway_between_pixels() -> None:
    inside = np.zeros((9, 11), bool)
    inside[2:7, 3:9] = True
    inside[4, 5] = False
    (polygon,) = outlines(inside)
    assert polygon.min(axis=0).tolist() == [2.5, 1.5]
    assert polygon.max(axis=0).tolist() == [8.5, 6.5]
    x, y = polygon.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area == pytest.approx(5 * 6 - 4 / 8 - 0.5)  # each corner is cut by an eighth; the hole is a diamond


def test_nothing_inside_has_no_outline() -> None:
    assert outlines(np.zeros((4, 5), bool)) == []
    assert not fill([], (4, 5)).any()


@pytest.mark.parametrize("seed", range(10))
def test_polygons_of_any_direction_are_filled_like_matplotlib_fills_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    angles = np.sort(generator.uniform(0, 2 * np.pi, 12))
    radii = generator.uniform(2, 30, 12)  # reaches past the image
    star = np.stack([12 + radii * np.cos(angles), 9 + radii * np.sin(angles)], axis=1)
    np.testing.assert_array_equal(fill([star], (20, 25)), by_matplotlib([star], (20, 25)) % 2 == 1)


@pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_contours_lie_on_their_images_around_the_organ(tmp_path: Path, orientation: str, turn: Rotation | None) -> None:
    source = read_source(write_ct(tmp_path / "ct", orientation, turn))
    mask, centroids = mask_in(orientation, turn)
    write_rtstruct(mask.reorient("SAL"), LABELS, tmp_path / "m.dcm", source, model="small")
    file = pydicom.dcmread(tmp_path / "m.dcm")
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    names = {roi.ROINumber: roi.ROIName for roi in file.StructureSetROISequence}
    assert set(names.values()) == set(LABELS) - {"gallbladder"}
    for item in file.ROIContourSequence:
        name = names[item.ReferencedROINumber]
        weighted, volume = np.zeros(3), 0.0
        for contour in item.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            along, down = np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float)
            off = points - np.array(image.ImagePositionPatient, float)
            np.testing.assert_allclose(off @ np.cross(along, down), 0, atol=2e-4)
            flat = np.stack([off @ along, off @ down], axis=1)
            area, centre = area_and_centre(flat)
            weighted += area * (np.array(image.ImagePositionPatient, float) + centre @ np.stack([along, down]))
            volume += area * SPACING_MM[2]
        voxels = (mask.array == LABELS[name]).sum()
        # Corners are cut, so contours hold a little less than the voxels do.
        assert 0.85 < volume / (voxels * np.prod(SPACING_MM)) < 1
        centroid_mm = LPS_TO_RAS @ (weighted * SPACING_MM[2] / volume)
        np.testing.assert_allclose(centroid_mm, centroids[name], atol=0.1)


def area_and_centre(polygon: np.ndarray) -> tuple[float, np.ndarray]:
    """Of a closed polygon, by the shoelace formula."""
    ahead = np.roll(polygon, -1, axis=0)
    cross = polygon[:, 0] * ahead[:, 1] - ahead[:, 0] * polygon[:, 1]
    area = cross.sum() / 2
    return abs(area), ((polygon + ahead) * cross[:, None]).sum(axis=0) / (6 * area)


def test_a_tilted_gantry_is_no_hindrance(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct", "LPS", OBLIQUE, (0, 0.6, 0)))
    mask, _ = mask_in("LPS")
    tilted = Volume(mask.array[:, ::-1], series_affine(source.frames))
    write_rtstruct(tilted, LABELS, tmp_path / "m.dcm", source)
    read, labels = read_rtstruct(tmp_path / "m.dcm", source)
    for name in ("liver", "spleen", "left kidney"):
        np.testing.assert_array_equal(read.array == labels[name], tilted.array == LABELS[name])


def test_frames_of_a_multi_frame_scan_are_referred_to_by_number(tmp_path: Path) -> None:
    images = [pydicom.dcmread(file) for file in sorted(write_ct(tmp_path / "ct", "LPS", OBLIQUE).iterdir())]
    order = [3, 0, 8, 1, 7, 2, 6, 4, 5]
    enhanced(images, order).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    source = read_source(tmp_path / "enhanced.dcm")
    write_rtstruct(mask_in("LPS", OBLIQUE)[0], LABELS, tmp_path / "m.dcm", source)
    for item in pydicom.dcmread(tmp_path / "m.dcm").ROIContourSequence:
        for contour in item.ContourSequence:
            image = images[order[contour.ContourImageSequence[0].ReferencedFrameNumber - 1]]
            normal = np.cross(*np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float))
            first = np.array(contour.ContourData[:3], float)
            assert (first - np.array(image.ImagePositionPatient, float)) @ normal == pytest.approx(0, abs=2e-4)


def test_what_the_contours_are_is_written_for_planning_systems(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    write_rtstruct(mask_in("LPS")[0], LABELS, tmp_path / "m.dcm", source, model="small")
    file = pydicom.dcmread(tmp_path / "m.dcm")
    image = pydicom.dcmread(tmp_path / "ct" / "00.dcm")
    assert file.SOPClassUID == file.file_meta.MediaStorageSOPClassUID == RTStructureSetStorage
    assert (file.PatientID, file.StudyInstanceUID) == (image.PatientID, image.StudyInstanceUID)
    assert file.SeriesInstanceUID != image.SeriesInstanceUID
    assert file.ApprovalStatus == "UNAPPROVED"
    (reference,) = file.ReferencedFrameOfReferenceSequence
    assert reference.FrameOfReferenceUID == image.FrameOfReferenceUID
    series = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert len(series.ContourImageSequence) == 9
    liver = next(roi.ROINumber for roi in file.StructureSetROISequence if roi.ROIName == "liver")
    (observation,) = [item for item in file.RTROIObservationsSequence if item.ReferencedROINumber == liver]
    assert observation.RTROIIdentificationCodeSequence[0].CodeValue == ORGANS["liver"].snomed_code
    (contours,) = [item for item in file.ROIContourSequence if item.ReferencedROINumber == liver]
    assert list(contours.ROIDisplayColor) == list(ORGANS["liver"].colour)
    assert {contour.ContourGeometricType for contour in contours.ContourSequence} == {"CLOSED_PLANAR"}
    assert len(contours.ContourSequence) == 6  # one a slice: the hole is part of its outline


def move(file: Dataset) -> None:
    contour = file.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [float(mm) + 1 for mm in contour.ContourData]


def drop(file: Dataset) -> None:
    del file.ROIContourSequence[0].ContourSequence[2]


def swap(file: Dataset) -> None:
    a, b = file.StructureSetROISequence[:2]
    a.ROIName, b.ROIName = b.ROIName, a.ROIName


def strange(file: Dataset) -> None:
    file.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


@pytest.mark.parametrize(
    ("damage", "said"),
    [(move, "other voxels"), (drop, "other voxels"), (swap, "other voxels"), (strange, "another series")],
)
def test_a_file_that_gives_another_mask_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Dataset], None], said: str
) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    (tmp_path / "m.dcm").write_bytes(b"the old file")
    save = Dataset.save_as

    def save_damaged(file: Dataset, path: Path, **options: bool) -> None:
        damage(file)
        save(file, path, **options)

    monkeypatch.setattr(Dataset, "save_as", save_damaged)
    assert said in refused(lambda: write_rtstruct(mask, LABELS, tmp_path / "m.dcm", source), tmp_path)
    assert (tmp_path / "m.dcm").read_bytes() == b"the old file"


def test_other_files_are_no_structure_sets(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    with pytest.raises(InputRefusedError, match="CT, not an RTSTRUCT"):
        read_rtstruct(tmp_path / "ct" / "00.dcm", source)


def test_a_mask_without_organs_is_a_structure_set_without_contours(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    write_rtstruct(Volume(np.zeros_like(mask.array), mask.affine), LABELS, tmp_path / "m.dcm", source)
    assert len(pydicom.dcmread(tmp_path / "m.dcm").StructureSetROISequence) == 0
