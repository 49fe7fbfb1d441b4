"""Which prediction belongs to which reference, and what the ids of a file are called."""

import json

import pytest

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.evaluation.pairing import pair_files, read_label_names
from meddelinea.labels import BTCV, NUMBERINGS, ORGANS, canonical_name


def touch(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_pairs_by_name_then_by_a_number_that_is_unique(tmp_path):
    predictions = touch(
        tmp_path / "p", "a.nii.gz", "x_07.nii", "liver_3.nii.gz", "spleen_3.nii.gz", "n5.nrrd", "a.json", ".b.nii.gz"
    )
    references = touch(tmp_path / "r", "a.nrrd", "label0007.nii.gz", "ref3.nii.gz", "N6.NII.GZ", "notes.txt")
    pairing = pair_files(predictions, references)
    assert [(pair.case, pair.reference.name) for pair in pairing.pairs] == [
        ("a", "a.nrrd"),
        ("x_07", "label0007.nii.gz"),
    ]
    assert [path.name for path in pairing.without_prediction] == ["N6.NII.GZ", "ref3.nii.gz"]
    assert [path.name for path in pairing.without_reference] == ["liver_3.nii.gz", "n5.nrrd", "spleen_3.nii.gz"]


def test_paths_that_cannot_be_paired_are_refused(tmp_path):
    full, empty = touch(tmp_path / "full", "a.nii.gz"), touch(tmp_path / "empty", "a.txt")
    twice = touch(tmp_path / "twice", "a.nii.gz", "a.nrrd")
    with pytest.raises(InputRefusedError, match="no such"):
        pair_files(full, tmp_path / "absent")
    with pytest.raises(InputRefusedError, match="no mask"):
        pair_files(full, empty)
    with pytest.raises(UsageError, match="one is a file"):
        pair_files(full / "a.nii.gz", full)
    with pytest.raises(UsageError, match="same path"):
        pair_files(full, full / ".." / "full")
    with pytest.raises(InputRefusedError, match="two files of one name"):
        pair_files(full, twice)


def test_names_come_from_the_sidecar_then_the_folder_then_the_numbering(tmp_path):
    path = tmp_path / "m.nii.gz"
    with pytest.raises(UsageError, match=r"m\.json .* labels\.json .*btcv"):
        read_label_names(path, None)
    with pytest.raises(UsageError, match="unknown numbering 'btvc'"):
        read_label_names(path, "btvc")
    assert read_label_names(path, "chaos-mr").ids == {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    (tmp_path / "own.json").write_text('{"labels": {"background": 0, "Kidney_Left": 7}}')
    assert read_label_names(path, str(tmp_path / "own.json")).ids == {"left kidney": 7}
    (tmp_path / "labels.json").write_text('{"0": "background", "9": "arota"}')
    assert read_label_names(path, "btcv").ids == {"aorta": 9}
    (tmp_path / "m.json").write_text('{"labels": {"liver": 2}, "model": "small"}')
    assert read_label_names(path, "btcv").ids == {"liver": 2}


@pytest.mark.parametrize(
    "text", ["[1]", "{}", '{"labels": []}', '{"1": 2}', '{"1": "liver", "2": "Liver"}', '{"liver": "one"}', "\xff{"]
)
def test_unreadable_names_are_refused_with_their_path(tmp_path, text):
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputRefusedError, match=r"m\.json"):
        read_label_names(tmp_path / "m.nii.gz", None)


@pytest.mark.parametrize(
    ("numbering", "task"),
    [("totalsegmentator-v1", "v1_total"), ("totalsegmentator-v2", "v2_total"), ("totalsegmentator-mr", "total_mr")],
)
def test_totalsegmentator_numberings_agree_with_its_own_table(data, numbering, task):
    table = json.loads((data / "totalsegmentator" / "label_names.json").read_text())[task]
    theirs = {int(index): canonical_name(name) for index, name in table.items()}
    assert NUMBERINGS[numbering] == {index: name for index, name in theirs.items() if name in ORGANS}
    assert set(NUMBERINGS[numbering].values()) > {*BTCV.values(), "duodenum", "colon", "urinary bladder", "left femur"}
