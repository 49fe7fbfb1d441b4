"""A file that reads back differently than it was written is not kept."""

from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom_seg import write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.read_back import require_same
from meddelinea.volume import Volume
from support.dicom_series import (
    LABELS,
    mask_in,
    refused,
    write_ct,
)


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
