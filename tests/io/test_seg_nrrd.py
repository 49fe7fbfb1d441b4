"""Segmentations of 3D Slicer: its segment names, its cropped grid and its layers, as slicerio reads them."""

from pathlib import Path

import nrrd
import numpy as np
import pytest
import slicerio

from meddelinea.errors import InputRefusedError
from meddelinea.evaluation.compare import evaluate_paths
from meddelinea.io.seg_nrrd import is_seg_nrrd, read_seg_nrrd, segment_numbers
from meddelinea.io.volumes import write_volume
from meddelinea.labels import canonical_name
from meddelinea.volume import Volume

DATA = Path(slicerio.__file__).parent / "data"
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.mark.parametrize("name", ["Segmentation.seg.nrrd", "SegmentationOverlapping.seg.nrrd"])
def test_each_segment_is_that_of_slicerio(name: str) -> None:
    path = DATA / name
    theirs = slicerio.read_segmentation(str(path))
    voxels = theirs["voxels"] if theirs["voxels"].ndim == 4 else theirs["voxels"][None]
    numbers = segment_numbers(path)
    assert list(numbers) == [canonical_name(segment["name"]) for segment in theirs["segments"]]
    for segment in theirs["segments"]:
        organ = canonical_name(segment["name"])
        inside = voxels[segment.get("layer", 0)] == segment["labelValue"]
        ours = read_seg_nrrd(path, [organ])
        np.testing.assert_array_equal(ours.array == numbers[organ], inside)
        np.testing.assert_allclose(ours.affine, np.diag([-1, -1, 1, 1]) @ theirs["ijkToLPS"], atol=1e-9)


def written(path: Path, layers: np.ndarray, affine: np.ndarray, segments: dict[str, tuple[int, int]]) -> Path:
    """(layers, I, J, K) ids as Slicer writes them; each segment with its layer and its value."""
    header: dict[str, object] = {
        "space": "RAS",
        "space directions": np.vstack([[np.nan] * 3, affine[:3, :3].T]),
        "space origin": affine[:3, 3],
        "kinds": ["list", "domain", "domain", "domain"],
    }
    for number, (name, (layer, value)) in enumerate(segments.items()):
        header |= {
            f"Segment{number}_Name": name,
            f"Segment{number}_Layer": str(layer),
            f"Segment{number}_LabelValue": str(value),
        }
    nrrd.write(str(path), layers, header)
    return path


@pytest.fixture
def organs() -> dict[str, np.ndarray]:
    """A liver, and a spleen and a tumour that lie in part in it."""
    i, j, k = np.indices((20, 18, 12))
    return {
        "liver": (i < 12) & (j > 3) & (k > 2),
        "spleen": (i >= 12) & (j > 5) & (k > 2) & (k < 9),
        "tumour": (i > 8) & (i < 14) & (j > 5) & (k == 5),
    }


def test_a_cropped_reference_of_layers_is_compared_by_its_names(tmp_path: Path, organs: dict[str, np.ndarray]) -> None:
    mask = Volume((organs["liver"] * 7 + organs["spleen"] * 3).astype(np.uint8), AFFINE)
    write_volume(mask, tmp_path / "mask.nii.gz")
    (tmp_path / "mask.json").write_text('{"labels": {"liver": 7, "spleen": 3, "aorta": 1}}')
    low = np.eye(4)
    low[:3, 3] = 0, 4, 3
    cropped = {name: inside[:, 4:, 3:] for name, inside in organs.items()}
    layers = np.stack([cropped["liver"] + 2 * cropped["spleen"], 5 * cropped["tumour"]]).astype(np.uint8)
    reference = written(
        tmp_path / "ref.seg.nrrd", layers, AFFINE @ low, {"Liver": (0, 1), "Spleen": (0, 2), "tumour": (1, 5)}
    )
    (case,) = evaluate_paths(tmp_path / "mask.nii.gz", reference).cases
    assert {score.organ: score.dice for score in case.scores} == {"liver": 1.0, "spleen": 1.0}
    assert case.only_in_reference == ("tumour",)
    (case,) = evaluate_paths(reference, tmp_path / "mask.nii.gz").cases
    assert {score.organ: score.dice for score in case.scores} == {"liver": 1.0, "spleen": 1.0}


def test_what_a_segmentation_cannot_mean_is_refused(tmp_path: Path, organs: dict[str, np.ndarray]) -> None:
    layers = np.stack([organs["liver"], organs["tumour"]]).astype(np.uint8)
    path = written(tmp_path / "a.seg.nrrd", layers, AFFINE, {"liver": (0, 1), "tumour": (1, 1), "spleen": (7, 1)})
    with pytest.raises(InputRefusedError, match="'liver' and 'tumour' overlap"):
        read_seg_nrrd(path, ["liver", "tumour"])
    with pytest.raises(InputRefusedError, match="'spleen' is in layer 7; expected 0 to 1"):
        read_seg_nrrd(path, ["spleen"])
    with pytest.raises(InputRefusedError, match="two segments are named 'liver'"):
        segment_numbers(written(tmp_path / "b.seg.nrrd", layers, AFFINE, {"liver": (0, 1), "Liver": (1, 1)}))


def test_a_nrrd_without_segments_is_an_ordinary_mask(tmp_path: Path, organs: dict[str, np.ndarray]) -> None:
    write_volume(Volume(organs["liver"].astype(np.uint8), AFFINE), tmp_path / "mask.nrrd")
    assert not is_seg_nrrd(tmp_path / "mask.nrrd")
    assert not is_seg_nrrd(tmp_path / "mask.nii.gz")
