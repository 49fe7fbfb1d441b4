"""`predict` writes the kind of file that a name or an option asks for, or refuses before the work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.io.dicom_seg import read_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.rtstruct import read_rtstruct
from meddelinea.io.volumes import read_volume
from support.cli import Run, save, written
from support.counting import Openings
from support.dicom_series import OBLIQUE, rewritten, write_ct

#: Large enough for a scan of a body.
COARSE_MM = (6.0, 7.0, 9.0)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_ct(tmp_path / "in" / "ct", "PIR", OBLIQUE, spacing_mm=COARSE_MM)


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("m.dcm", [], "LABELMAP"),
        ("m.DCM", ["--output-type", "dicom_seg"], "LABELMAP"),
        ("m.dcm", ["--segmentation-type", "binary"], "BINARY"),
        ("m.dcm", ["--segmentation-type", "fractional"], "FRACTIONAL"),
    ],
)
def test_predict_writes_dicom_seg(
    run: Run, series: Path, tmp_path: Path, name: str, options: list[str], kind: str
) -> None:
    code, out, err = run("predict", "-i", series, "-o", tmp_path / name, "--seed", 7, *options)
    assert (code, err) == (0, "")
    assert written(tmp_path) == [name, "m.json"] if name < "m.json" else ["m.json", name]
    assert name in out.replace("\n", "")
    file = pydicom.dcmread(tmp_path / name)
    assert (file.Modality, file.SegmentationType) == ("SEG", kind)
    parameters = file.SegmentSequence[-1].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert "seed=7" in parameters
    scan = read_volume(series)
    read, labels = read_dicom_seg(tmp_path / name)
    on_scan = read.onto(scan.affine, scan.array.shape)
    assert on_scan is not None
    np.testing.assert_array_equal(on_scan.array == labels["liver"], scan.array > 20)
    assert json.loads((tmp_path / "m.json").read_text())["input"] == "ct"


@pytest.mark.usefixtures("fake_model")
def test_predict_writes_rtstruct(run: Run, series: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", "-i", series, "-o", tmp_path / "m.dcm", "--output-type", "rtstruct", "--quiet")
    assert (code, err) == (0, "")
    scan = read_volume(series)
    read, labels = read_rtstruct(tmp_path / "m.dcm", read_source(series))
    np.testing.assert_array_equal(read.array == labels["liver"], scan.array > 20)


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize(("name", "kind"), [("m.nii", "nifti"), ("m.nrrd", "nrrd")])
def test_an_output_type_may_be_said_where_the_ending_says_it(
    run: Run, series: Path, tmp_path: Path, name: str, kind: str
) -> None:
    code, _, err = run("predict", "-i", series, "-o", tmp_path / name, "--output-type", kind)
    assert (code, err) == (0, "")
    image = sitk.ReadImage(str(tmp_path / name))
    assert image.GetSize() == read_volume(series).array.shape


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-o", "OUT/m.nii.gz", "--output-type", "dicom_seg"], 2, ".dcm"),
        (["-o", "OUT/m.dcm", "--output-type", "nrrd"], 2, ".nrrd"),
        (["-o", "OUT/m.dcm", "--output-type", "stl"], 2, "rtstruct"),
        (["-o", "OUT/m.dcm", "--segmentation-type", "surface"], 2, "labelmap"),
        (["-o", "OUT/m.nii", "--segmentation-type", "binary"], 2, "leave it out"),
        (["-o", "OUT/m.dcm", "--output-type", "rtstruct", "--segmentation-type", "binary"], 2, "leave it out"),
        (["-o", "OUT/none/m.dcm"], 3, "none"),
    ],
)
def test_an_output_that_cannot_be_meant_is_refused(
    run: Run, series: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    met, out, err = run("predict", "-i", series, *(word.replace("OUT", str(tmp_path)) for word in words))
    assert (met, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert written(tmp_path) == []


@pytest.mark.parametrize("kind", ["dicom_seg", "rtstruct"])
@pytest.mark.parametrize("problem", ["nifti", "tilted", "stripped"])
def test_a_scan_that_cannot_be_referred_to_is_refused_before_the_work(
    run: Run, tmp_path: Path, fake_model: dict[str, object], problem: str, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    if problem == "nifti":
        source, said = save(np.zeros((9, 9, 9), np.int16), tmp_path / "in" / "scan.nii.gz"), "DICOM series"
    elif problem == "tilted":
        source, said = write_ct(tmp_path / "in" / "ct", shear_mm=(0, 2, 0), spacing_mm=COARSE_MM), "tilted"
    else:
        source, said = rewritten(tmp_path / "in", lambda image: image.__delattr__("SOPInstanceUID")), "SOPInstanceUID"
    code, out, err = run(
        *("predict", "-i", source, "-o", tmp_path / "m.dcm", "--output-type", kind),
        *("--statistics", tmp_path / "s.json"),
    )
    if problem == "tilted" and kind == "rtstruct":
        assert code == 0  # contours lie in the planes of their slices
        return
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert said in err
    assert written(tmp_path) == []
    assert "samples" not in fake_model  # nothing was segmented


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("words", [["m.nii.gz"], ["m.dcm"], ["m.dcm", "--output-type", "rtstruct"]], ids=" ".join)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_series_is_unpacked_and_parsed_once(
    run: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], packed: bool
) -> None:
    source = Path(shutil.make_archive(str(series), "zip", series)) if packed else series
    openings = Openings(monkeypatch)
    code, _, err = run("predict", "-i", source, "-o", tmp_path / words[0], *words[1:])
    assert (code, err) == (0, "")
    files = [file.name for file in series.iterdir()]
    assert {name: openings.parsed[name] for name in files} == dict.fromkeys(files, 1)
    assert openings.unpacked == ({source.name: 1} if packed else {})


@pytest.mark.usefixtures("fake_model")
def test_an_image_of_a_zip_is_named_by_its_place_in_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stripped = rewritten(tmp_path / "in", lambda image: image.__delattr__("StudyInstanceUID"))
    source = shutil.make_archive(str(stripped), "zip", stripped)
    code, _, err = run("predict", "-i", source, "-o", tmp_path / "m.dcm")
    assert code == 3
    assert f"{source}/" in err
