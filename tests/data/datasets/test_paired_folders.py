"""Folders of images beside folders of labels: BTCV, CHAOS as NIfTI, CirrMRI, PanSegData, and any such pair."""

import json
from pathlib import Path

import pytest
from PIL import Image

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.errors import InputRefusedError
from meddelinea.labels import BTCV
from support.dataset_folders import KIDNEYS, Subject, check, known, put, put_pair, write_dicom


def test_btcv(ct: Subject, tmp_path: Path) -> None:
    ids = {organ: index for index, organ in BTCV.items() if organ in ct.organs}
    put_pair(tmp_path, "Training/img/img0001.nii.gz", "Training/label/label0001.nii.gz", ct, ids)
    put(ct.labels(ids), tmp_path / "Training" / "label" / "label0002.nii.gz")
    found = find_cases("btcv", tmp_path)
    assert known(found) == {"img0001": ("0001", "CT")}
    assert "its image img0002 is missing" in found.broken["img0002"]
    assert organs_of(found.cases) == tuple(BTCV.values())
    check(found.cases[0], ct, tuple(ids))


def test_chaos_nifti_of_the_shared_scans(data: Path, mr: Subject, tmp_path: Path) -> None:
    found = find_cases("chaos-nifti", data / "chaos_mr")
    assert found.broken == {}
    assert len(found.cases) == 10
    assert known(found)["t2spir_01"] == ("01", "MR")
    assert organs_of(found.cases) == tuple(KIDNEYS)
    put_pair(tmp_path, "img/t1in_01.nii.gz", "label/t1in_01.nii.gz", mr, KIDNEYS)
    case = find_cases("chaos-nifti", tmp_path).cases[0]
    assert case.patient == "01"
    check(case, mr, tuple(KIDNEYS))


def test_cirrmri(mr: Subject, tmp_path: Path) -> None:
    for place in (
        "Cirrhosis_T1_3D/train_images/12.nii.gz",
        "Cirrhosis_T2_3D/test_images/12.nii.gz",
        "Cirrhosis_T2_3D/test_images/13.nii.gz",
        "Healthy_subjects/T1_W_Healthy/T1_images/12.nii.gz",
        "Healthy_subjects/T2_W_Healthy/T2_images/12.nii.gz",
    ):
        put(mr.scan, tmp_path / place)
        put(mr.mask("liver"), tmp_path / place.replace("images", "masks"))
    (tmp_path / "Cirrhosis_T2_3D" / "test_masks" / "13.nii.gz").unlink()
    (tmp_path / "Cirrhosis_T2_2D" / "train_images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "Cirrhosis_T2_2D" / "train_images" / "12_1.png")
    found = find_cases("cirrmri", tmp_path)
    assert known(found) == {
        "cirrhosis_t1_train_12": ("cirrhosis_12", "MR"),
        "cirrhosis_t2_test_12": ("cirrhosis_12", "MR"),
        "healthy_t1_12": ("healthy_12", "MR"),
        "healthy_t2_12": ("healthy_12", "MR"),
    }
    assert list(found.broken) == ["cirrhosis_t2_test_13"]
    assert organs_of(found.cases) == ("liver",)
    for case in found.cases:
        check(case, mr, ("liver",))
    one = find_cases("cirrmri", tmp_path / "Healthy_subjects" / "T2_W_Healthy")
    assert known(one) == {"healthy_t2_12": ("healthy_12", "MR")}


def test_pansegdata(ct: Subject, tmp_path: Path) -> None:
    for sequence, name in (("t1", "NYU_0001"), ("t2", "NYU_0001"), ("t2", "NYU_0009"), ("t2", "MCF_0003")):
        put(ct.scan, tmp_path / sequence / "imagesTr" / f"{name}_0000.nii.gz")
        put(ct.mask("pancreas"), tmp_path / sequence / "labelsTr" / f"{name}.nii.gz")
    found = find_cases("pansegdata", tmp_path)
    assert known(found) == {
        "t1_NYU_0001": ("nyu_0001", "MR"),
        "t2_NYU_0001": ("nyu_0001", "MR"),
        "t2_NYU_0009": ("nyu_0009", "MR"),
        "t2_MCF_0003": ("mcf_0003", "MR"),
    }
    assert organs_of(found.cases) == ("pancreas",)
    for case in found.cases:
        check(case, ct, ("pancreas",))
    # The dataset's own tables say that T2's 0009 is T1's 0001, and T2's 0001 another person.
    meta = tmp_path / "Meta informations"
    meta.mkdir()
    (meta / "T1-name_mapping.json").write_text('{"nyu_017.nii.gz": "NYU_0001_0000.nii.gz"}')
    (meta / "T2-name_mapping.json").write_text(
        '{"NYU_17_t2.nii.gz": "NYU_0009_0000.nii.gz", "nyu18": "NYU_0001_0000.nii.gz", "nyu19": "Not included"}'
    )
    assert {name: patient for name, (patient, _) in known(find_cases("pansegdata", tmp_path)).items()} == {
        "t1_NYU_0001": "nyu nyu17",
        "t2_NYU_0009": "nyu nyu17",
        "t2_NYU_0001": "nyu nyu18",
        "t2_MCF_0003": "mcf_0003",
    }


def test_pairs(ct: Subject, tmp_path: Path) -> None:
    ids = {"liver": 7, "left kidney": 2, "right kidney": 3}
    put_pair(tmp_path, "images/one.nrrd", "labels/one.nii.gz", ct, ids)
    put_pair(tmp_path, "images/two_0000.nii.gz", "labels/two.nrrd", ct, ids)
    put_pair(tmp_path, "images/last_0000.nii", "labels/last_0000.nii", ct, ids)
    flipped = Subject(ct.scan.reorient("LAS"), {organ: mask[::-1] for organ, mask in ct.organs.items()})
    write_dicom(tmp_path / "images" / "series", flipped, "CT", [f"{k}.dcm" for k in range(ct.scan.array.shape[2])])
    put(flipped.labels(ids), tmp_path / "labels" / "series.nii.gz")
    put(ct.labels(ids), tmp_path / "labels" / "alone.nii.gz")
    described = {"labels": {"background": 0, "Liver": 7, "kidney_left": 2, "kidney_right": 3}}
    (tmp_path / "labels.json").write_text(json.dumps(described))
    found = find_cases("pairs", tmp_path)
    assert known(found) == {name: (name, "CT") for name in ("last_0000", "one", "series", "two")}
    assert list(found.broken) == ["alone"]
    assert organs_of(found.cases) == ("liver", "left kidney", "right kidney")
    for case in found.cases:
        check(case, flipped if case.name == "series" else ct, tuple(ids))
    (tmp_path / "labels.json").rename(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "modality": "MR"}))
    found = find_cases("pairs", tmp_path)
    assert {case.modality for case in found.cases} == {"MR"}
    with pytest.raises(InputRefusedError, match="series: modality CT by its header; expected MR"):
        read_case(found.cases[2], ("liver",))
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "modality": "PET"}))
    with pytest.raises(InputRefusedError, match="modality 'PET'; expected 'CT' or 'MR'"):
        find_cases("pairs", tmp_path)
