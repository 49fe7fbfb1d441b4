"""The slice store: what is written is what is read, a crash loses nothing, and bad cases do not stop good ones."""

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid
from meddelinea.data.store import Manifest, SliceStore, StoredCase, read_manifest, write_case, write_manifest
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io import read_volume
from meddelinea.io.nifti import write_nifti
from meddelinea.labels import BTCV
from meddelinea.volume import Volume

Crops = dict[str, tuple[Volume, Volume]]

SMALL = Preprocessing(size=32, spacing_mm=5.0)
NAMES = ("img0002", "img0005", "img0006")


@pytest.fixture(scope="module")
def crops(data: Path) -> Crops:
    """Real crops of three cases, image and mask."""
    found = {}
    for name in NAMES:
        pair = []
        for path in (f"img/{name}.nii.gz", f"label/{name.replace('img', 'label')}.nii.gz"):
            volume = read_volume(data / "btcv" / path)
            affine = volume.affine @ nib.affines.from_matvec(np.eye(3), (70, 70, 92))
            pair.append(Volume(volume.array[70:180, 70:180, 92:100].copy(), affine, "CT"))
        found[name] = (pair[0], pair[1])
    return found


@pytest.fixture
def source(crops: Crops, tmp_path: Path) -> Path:
    """The crops as BTCV is published."""
    root = tmp_path / "btcv"
    for folder in ("img", "label"):
        (root / folder).mkdir(parents=True)
    for name, (image, mask) in crops.items():
        write_nifti(image, root / "img" / f"{name}.nii.gz")
        write_nifti(mask, root / "label" / f"{name.replace('img', 'label')}.nii.gz")
    return root


def contents(root: Path) -> dict[str, np.ndarray]:
    """Every slice of a store, image and mask."""
    slices = SliceStore(root)
    return {
        f"{case.name} {kind}": np.stack([read(i, s) for s in range(case.slices)])
        for i, case in enumerate(slices.cases)
        for kind, read in (("image", lambda i, s: slices.image(i, s, 0)[1]), ("mask", slices.mask))
    }


def written(root: Path, slices: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A store of one case with random values."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (slices, 12, 12)).astype(np.float32)
    image[0, 0, :2] = -1, 1
    mask = rng.integers(0, 14, (slices, 12, 12)).astype(np.uint8)
    write_case(root, "one", image, mask)
    write_manifest(Manifest(tuple(BTCV.values()), SMALL, (StoredCase("one", "btcv", "CT", "ab", slices, []),)), root)
    return image, mask


def test_a_case_comes_back_within_half_a_grey_level(tmp_path: Path) -> None:
    image, mask = written(tmp_path)
    slices = SliceStore(tmp_path)
    for s in range(5):
        grey = slices.image(0, s, 0)
        assert grey.shape == (3, 12, 12)
        assert grey.dtype == np.uint8
        assert np.abs(grey / 127.5 - 1.0 - image[s]).max() <= 0.5 / 127.5 + 1e-6
        np.testing.assert_array_equal(slices.mask(0, s), mask[s])


def test_neighbours_stand_in_the_outer_channels_and_the_ends_are_repeated(tmp_path: Path) -> None:
    written(tmp_path)
    slices = SliceStore(tmp_path)
    alone = [slices.image(0, s, 0)[1] for s in range(5)]
    for reach, index, expected in (
        (0, 2, (2, 2, 2)),
        (1, 2, (1, 2, 3)),
        (2, 1, (0, 1, 3)),
        (2, 4, (2, 4, 4)),
        (9, 0, (0, 0, 4)),
    ):
        np.testing.assert_array_equal(slices.image(0, index, reach), np.stack([alone[i] for i in expected]))


def test_the_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = Manifest(("spleen", "liver"), Preprocessing(size=64, window_hu=(-100.0, 240.0)))
    for name in ("b", "a", "b"):
        manifest = manifest.with_case(StoredCase(name, "btcv", "CT", "0f", 2, [[1, 2], [0, 5]]))
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert [case.name for case in manifest.cases] == ["a", "b"]


def test_what_is_no_store_of_this_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a slice store"):
        SliceStore(tmp_path)
    written(tmp_path)
    with pytest.raises(InputRefusedError, match="two, three are not in the store"):
        SliceStore(tmp_path, ("one", "two", "three"))
    assert SliceStore(tmp_path, ()).cases == ()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(InputRefusedError, match="version 99, expected 1"):
        SliceStore(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1, "org')
    with pytest.raises(InputRefusedError, match=r"manifest\.json: not readable JSON"):
        SliceStore(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_case_that_is_gone_or_damaged_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    path = tmp_path / "one.h5"
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputRefusedError, match=r"one\.h5: missing or damaged"):
        SliceStore(tmp_path).mask(0, 0)


@pytest.mark.parametrize("layout", ["flat", "Training"])
def test_both_layouts_of_btcv_are_prepared(source: Path, layout: str, tmp_path: Path) -> None:
    if layout == "Training":
        (tmp_path / "published").mkdir()
        source.rename(tmp_path / "published" / "Training")
        source = tmp_path / "published"
    seen = []
    report = prepare_store(
        "btcv", source, tmp_path / "store", preprocessing=SMALL, progress=lambda *step: seen.append(step)
    )
    assert (report.stored, report.present, report.failed) == (NAMES, (), {})
    assert seen == [(0, 3, NAMES[0]), (1, 3, NAMES[1]), (2, 3, NAMES[2]), (3, 3, "")]
    again = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert (again.stored, again.present) == ((), NAMES)


def test_slices_are_the_model_grid_with_rows_to_the_back(source: Path, crops: Crops, tmp_path: Path) -> None:
    prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    slices = SliceStore(tmp_path / "store", ("img0005",))
    stored = slices.cases[0]
    scan, mask = crops["img0005"]
    model = to_model_grid(scan, SMALL)
    labels = mask_to_model_grid(Volume(mask.array.astype(np.uint8), mask.affine), model)
    assert stored.slices == model.array.shape[2]
    assert stored.fingerprint == fingerprint(scan)
    assert (stored.dataset, stored.modality) == ("btcv", "CT")
    for s in range(stored.slices):
        assert np.abs(slices.image(0, s, 0)[0] / 127.5 - 1 - model.array[:, :, s].T).max() <= 0.5 / 127.5 + 1e-6
        np.testing.assert_array_equal(slices.mask(0, s), labels.array[:, :, s].T)
        assert stored.organ_pixels[s] == [int((labels.array[:, :, s] == label).sum()) for label in range(1, 14)]
    assert sum(map(sum, stored.organ_pixels)) > 0


def test_organs_are_numbered_in_the_order_asked_for(source: Path, tmp_path: Path) -> None:
    everything, some = tmp_path / "all", tmp_path / "some"
    prepare_store("btcv", source, everything, preprocessing=SMALL)
    prepare_store("btcv", source, some, preprocessing=SMALL, organs=("liver", "spleen"))
    wide, narrow = contents(everything)["img0002 mask"], contents(some)["img0002 mask"]
    assert set(np.unique(narrow)) <= {0, 1, 2}
    liver, ours = wide == 6, narrow == 1  # they differ where a neighbour outside the list wins a pixel
    assert 2 * (liver & ours).sum() / (liver.sum() + ours.sum()) > 0.9
    with pytest.raises(UsageError, match="other organs or preprocessing"):
        prepare_store("btcv", source, some, preprocessing=SMALL)
    with pytest.raises(UsageError, match="other organs or preprocessing"):
        prepare_store("btcv", source, everything, preprocessing=Preprocessing(size=64))


def crashing_at(call: int, action: Callable[..., Any]) -> Callable[..., Any]:
    """`action`, interrupted in place of its `call`-th call."""
    calls = count(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return action(*args, **kwargs)

    return interrupted


@pytest.mark.parametrize(
    ("owner", "name", "call", "stored"),
    [
        (h5py.Group, "create_dataset", 2, 0),  # between image and mask of the first case
        (h5py.Group, "create_dataset", 4, 1),
        (os, "replace", 3, 1),  # each case moves its slices and then the manifest: the second case's slices
        (os, "replace", 4, 1),  # the second case's slices are in place, the manifest does not know them
    ],
)
def test_a_crash_leaves_whole_cases_only_and_the_next_run_completes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, stored: int
) -> None:
    whole, root = tmp_path / "whole", tmp_path / "store"
    prepare_store("btcv", source, whole, preprocessing=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crashing_at(call, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            prepare_store("btcv", source, root, preprocessing=SMALL)
    known = {case.name for case in read_manifest(root).cases} if (root / "manifest.json").exists() else set()
    assert known == set(NAMES[:stored])
    for case in known:
        assert (root / f"{case}.h5").is_file()

    report = prepare_store("btcv", source, root, preprocessing=SMALL)
    assert set(report.present) == known
    assert set(report.stored) == set(NAMES) - known
    expected, found = contents(whole), contents(root)
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])
    assert read_manifest(root) == read_manifest(whole)


def test_a_case_that_cannot_be_used_is_reported_and_the_others_are_stored(source: Path, tmp_path: Path) -> None:
    mask = read_volume(source / "label" / "label0005.nii.gz")
    moved = mask.affine.copy()
    moved[2, 3] += 3.0
    write_nifti(Volume(mask.array, moved), source / "label" / "label0005.nii.gz")
    whole = (source / "img" / "img0006.nii.gz").read_bytes()
    (source / "img" / "img0006.nii.gz").write_bytes(whole[: len(whole) // 2])
    report = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert report.stored == ("img0002",)
    assert set(report.failed) == {"img0005", "img0006"}
    assert "label0005.nii.gz" in report.failed["img0005"]
    assert "affine differs" in report.failed["img0005"]
    assert "img0006.nii.gz" in report.failed["img0006"]
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"manifest.json", "img0002.h5"}
    # Once repaired, a second run adds what was missing.
    (source / "img" / "img0006.nii.gz").write_bytes(whole)
    again = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert (again.stored, again.present, set(again.failed)) == (("img0006",), ("img0002",), {"img0005"})


def test_a_mask_of_another_shape_is_reported(source: Path, tmp_path: Path) -> None:
    mask = read_volume(source / "label" / "label0002.nii.gz")
    write_nifti(Volume(mask.array[:, :, :-1], mask.affine), source / "label" / "label0002.nii.gz")
    report = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert "shape (110, 110, 7)" in report.failed["img0002"]


def test_a_source_that_is_not_that_dataset_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown dataset format 'magic'; known: .*btcv"):
        prepare_store("magic", source, tmp_path / "store")
    with pytest.raises(InputRefusedError, match="no img/imgNNNN"):
        prepare_store("btcv", tmp_path, tmp_path / "store")
    (source / "label" / "label0005.nii.gz").unlink()


def test_an_image_without_its_mask_is_reported(source: Path, tmp_path: Path) -> None:
    (source / "label" / "label0005.nii.gz").unlink()
    report = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert report.stored == ("img0002", "img0006")
    assert "label0005.nii.gz is missing" in report.failed["img0005"]
