"""The slice store: what is written is what is read, wherever from, and bad cases do not stop good ones."""

import io
import json
import multiprocessing
import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from meddelinea.data import store as store_module
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid
from meddelinea.data.store import SliceStore, StoredCase, case_file, read_manifest
from meddelinea.data.store_writer import begin_store, compile_store, write_record, write_slices
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.nifti import write_nifti
from meddelinea.io.volumes import read_volume
from meddelinea.labels import BTCV
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.config import DataConfig
from meddelinea.volume import Volume
from support.scans import as_ct

Crops = dict[str, tuple[Volume, Volume]]

SMALL = Preprocessing(size=32, spacing_mm=5.0)
NAMES = ("img0002", "img0005", "img0006")
ORGANS = tuple(BTCV.values())


@pytest.fixture(scope="module")
def crops(data: Path) -> Crops:
    """Real crops of three cases, image and mask."""
    found = {}
    for name in NAMES:
        pair = []
        for path in (f"img/{name}.nii.gz", f"label/{name.replace('img', 'label')}.nii.gz"):
            volume = read_volume(data / "btcv" / path)
            affine = volume.affine @ nib.affines.from_matvec(np.eye(3), (70, 70, 92))
            pair.append(Volume(volume.array[70:180, 70:180, 92:100].copy(), affine))
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
    begin_store(root, ORGANS, SMALL)
    sha256 = write_slices(root, "one", image, mask, len(ORGANS))
    write_record(
        root,
        StoredCase(
            name="one",
            dataset="btcv",
            patient="p1",
            modality="CT",
            fingerprint="ab",
            sketch="cd",
            slices=slices,
            sha256=sha256,
            remarks=("a remark",),
        ),
    )
    compile_store(root)
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
    for reach, index, expected in ((1, 2, (0, 1, 2, 3, 4)), (2, 3, (0, 1, 3, 4, 4)), (1, -1, (0, 0, 0, 0, 1))):
        np.testing.assert_array_equal(slices.image(0, index, reach, 2), np.stack([alone[i] for i in expected]))


def test_what_is_known_of_cases_comes_back_sorted_by_name(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=64, window_hu=(-100.0, 240.0))
    begin_store(tmp_path, ("spleen", "liver"), preprocessing)
    rng = np.random.default_rng(0)
    masks = {name: rng.integers(0, 3, (slices, 8, 8)).astype(np.uint8) for name, slices in (("b", 2), ("a", 3))}
    for name, mask in masks.items():
        sha256 = write_slices(tmp_path, name, np.zeros(mask.shape, np.float32), mask, 2)
        write_record(
            tmp_path,
            StoredCase(
                name=name,
                dataset="btcv",
                patient="p",
                modality="CT",
                fingerprint="0f",
                sketch="ä\n",
                slices=len(mask),
                sha256=sha256,
                remarks=("x", "y"),
            ),
        )
    compile_store(tmp_path)
    manifest = read_manifest(tmp_path)
    assert (manifest.organs, manifest.preprocessing) == (("spleen", "liver"), preprocessing)
    assert [(case.name, case.sketch, case.remarks) for case in manifest.cases] == [
        ("a", "ä\n", ("x", "y")),
        ("b", "ä\n", ("x", "y")),
    ]
    for names in (None, ("b", "a"), ("b",)):
        slices = SliceStore(tmp_path, names)
        assert len(slices) == sum(case.slices for case in slices.cases)
        places = [(c, s) for c, case in enumerate(slices.cases) for s in range(case.slices)]
        assert [slices.place(number) for number in range(len(slices))] == places
        for c, case in enumerate(slices.cases):
            counted = [[int((ids == organ).sum()) for organ in (1, 2)] for ids in masks[case.name]]
            np.testing.assert_array_equal(slices.organ_pixels(c), counted)


def test_a_store_without_cases_is_empty(tmp_path: Path) -> None:
    begin_store(tmp_path, ORGANS, SMALL)
    compile_store(tmp_path)
    assert len(SliceStore(tmp_path)) == 0


def test_what_is_no_store_of_this_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a slice store"):
        SliceStore(tmp_path)
    begin_store(tmp_path, ORGANS, SMALL)
    with pytest.raises(InputRefusedError, match=r"cases\.jsonl: missing, its preparation was interrupted"):
        SliceStore(tmp_path)
    written(tmp_path)
    with pytest.raises(InputRefusedError, match="two, three are not in the store"):
        SliceStore(tmp_path, ("one", "two", "three"))
    assert SliceStore(tmp_path, ()).cases == ()
    settings = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**settings, "version": 99}))
    with pytest.raises(InputRefusedError, match="version 99, expected 2"):
        SliceStore(tmp_path)
    (tmp_path / "store.json").write_text('{"version": 1, "org')
    with pytest.raises(InputRefusedError, match=r"store\.json: not readable JSON"):
        SliceStore(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("cases.jsonl", lambda content: content[:40], r"cases\.jsonl: damaged"),
        (
            "cases.jsonl",
            lambda content: content + content.replace(b"one", b"two"),
            r"shape \(5, 13\), expected \(10, 13",
        ),
        ("organ_pixels.npy", lambda content: content[:-4], r"organ_pixels\.npy: missing or damaged"),
    ],
)
def test_a_damaged_list_or_table_is_named(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], complaint: str
) -> None:
    written(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(InputRefusedError, match=complaint):
        SliceStore(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut off", "a bit"])
def test_a_case_that_is_gone_or_damaged_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    path = case_file(tmp_path, "one")
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    if damage == "a bit":
        with h5py.File(io.BytesIO(content)) as file:
            content[file["mask"].id.get_chunk_info(0).byte_offset + 20] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputRefusedError, match=r"one\.h5: missing or damaged"):
        SliceStore(tmp_path).mask(0, 0)


def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    _, mask = written(tmp_path)
    slices = SliceStore(tmp_path)
    slices.mask(0, 0)  # opens a file, which cannot be handed on
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        read = pool.starmap(SliceStore.mask, [(slices, 0, index) for index in range(5)])
        pixels = pool.apply(SliceStore.organ_pixels, (slices, 0))
    np.testing.assert_array_equal(np.stack(read), mask)
    np.testing.assert_array_equal(pixels, slices.organ_pixels(0))


def test_a_forked_process_opens_its_own_files(tmp_path: Path) -> None:
    _, mask = written(tmp_path)
    slices = SliceStore(tmp_path)
    inherited = slices._open(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if slices._open(0) is not inherited and (slices.mask(0, 1) == mask[1]).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert slices._open(0) is inherited


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_FILES", 3)
    blank = np.zeros((2, 8, 8), np.uint8)
    names = [f"case{number}" for number in range(7)]
    begin_store(tmp_path, ORGANS, SMALL)
    for number, name in enumerate(names):
        sha256 = write_slices(tmp_path, name, blank.astype(np.float32), blank + np.uint8(number), 13)
        write_record(
            tmp_path,
            StoredCase(
                name=name,
                dataset="x",
                patient="p",
                modality="CT",
                fingerprint="",
                sketch="",
                slices=2,
                sha256=sha256,
                remarks=(),
            ),
        )
    compile_store(tmp_path)
    slices = SliceStore(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for case in [0, 1, 2, 3, 0, 6, 5, 4, 3, 2, 1, 0]:
        assert (slices.mask(case, 1) == case).all()
        assert len(list(Path("/proc/self/fd").iterdir())) - before <= 3


def test_a_store_of_three_million_slices_opens_in_seconds(tmp_path: Path) -> None:
    cases, slices, organs = 8000, 375, 3
    begin_store(tmp_path, ("spleen", "liver", "pancreas"), SMALL)
    line = json.dumps(
        asdict(
            StoredCase(
                name="NAME",
                dataset="x",
                patient="p",
                modality="CT",
                fingerprint="0" * 64,
                sketch="s" * 2000,
                slices=slices,
                sha256="0" * 64,
                remarks=(),
            )
        )
    )
    (tmp_path / "cases.jsonl").write_text("".join(line.replace("NAME", f"{n:05d}") + "\n" for n in range(cases)))
    table = np.zeros((cases * slices, organs), np.uint32)
    table[np.arange(1_000_000), np.arange(1_000_000) % organs] = 7
    np.save(tmp_path / "organ_pixels.npy", table)
    began = time.monotonic()
    tracemalloc.start()
    try:
        names = tuple(f"{n:05d}" for n in range(1, cases))
        config = DataConfig(store=tmp_path, train=names, rare_organ_share=0.5, empty_share=0.1)
        batches = TrainingBatches(
            SliceStore(tmp_path, names), config, batch_size=4, noise_channels=4, seed=0, rank=0, processes=1
        )
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 30  # a few seconds where tracemalloc does not watch
    assert held < 120e6
    assert peak < 250e6
    rng = np.random.default_rng(0)
    for _ in range(1000):
        case, index = batches._pick(rng)
        assert 0 <= case < cases - 1
        assert 0 <= index < slices


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
    assert seen == [(1, 3, NAMES[0]), (2, 3, NAMES[1]), (3, 3, NAMES[2])]
    again = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert (again.stored, again.present) == ((), NAMES)


def test_slices_are_the_model_grid_with_rows_to_the_back(source: Path, crops: Crops, tmp_path: Path) -> None:
    prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    slices = SliceStore(tmp_path / "store", ("img0005",))
    stored = slices.cases[0]
    scan, mask = crops["img0005"]
    model = to_model_grid(as_ct(scan), SMALL)
    labels = mask_to_model_grid(Volume(mask.array.astype(np.uint8), mask.affine), model)
    assert stored.slices == model.array.shape[2]
    assert stored.fingerprint == fingerprint(scan)
    assert (stored.dataset, stored.patient, stored.modality) == ("btcv", "0005", "CT")
    for s in range(stored.slices):
        assert np.abs(slices.image(0, s, 0)[0] / 127.5 - 1 - model.array[:, :, s].T).max() <= 0.5 / 127.5 + 1e-6
        np.testing.assert_array_equal(slices.mask(0, s), labels.array[:, :, s].T)
        counted = [int((labels.array[:, :, s] == label).sum()) for label in range(1, 14)]
        assert slices.organ_pixels(0)[s].tolist() == counted
    assert slices.organ_pixels(0).any()


def test_organs_are_numbered_in_the_order_asked_for(source: Path, tmp_path: Path) -> None:
    everything, some = tmp_path / "all", tmp_path / "some"
    prepare_store("btcv", source, everything, preprocessing=SMALL)
    prepare_store("btcv", source, some, preprocessing=SMALL, organs=("liver", "spleen"))
    wide, narrow = contents(everything)["img0002 mask"], contents(some)["img0002 mask"]
    assert set(np.unique(narrow)) <= {0, 1, 2}
    liver, ours = wide == 6, narrow == 1  # they differ where a neighbour outside the list wins a pixel
    assert 2 * (liver & ours).sum() / (liver.sum() + ours.sum()) > 0.9
    with pytest.raises(UsageError, match="other organs than asked for"):
        prepare_store("btcv", source, some, preprocessing=SMALL)
    with pytest.raises(UsageError, match="another preprocessing"):
        prepare_store("btcv", source, everything, preprocessing=Preprocessing(size=64))


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
    assert {path.name for path in (tmp_path / "store" / "cases").iterdir()} == {"img0002.h5", "img0002.json"}
    written = json.loads((tmp_path / "store" / "report.json").read_text())
    assert (written["held"], written["failed"]) == (["img0002"], report.failed)
    # Once repaired, a second run adds what was missing.
    (source / "img" / "img0006.nii.gz").write_bytes(whole)
    again = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert (again.stored, again.present, set(again.failed)) == (("img0006",), ("img0002",), {"img0005"})


def test_only_the_cases_asked_for_are_taken(source: Path, tmp_path: Path) -> None:
    (source / "label" / "label0006.nii.gz").unlink()
    report = prepare_store("btcv", source, tmp_path / "store", only=("img0005",), preprocessing=SMALL)
    assert (report.stored, report.failed) == (("img0005",), {})


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


def test_an_image_without_its_mask_is_reported(source: Path, tmp_path: Path) -> None:
    (source / "label" / "label0005.nii.gz").unlink()
    report = prepare_store("btcv", source, tmp_path / "store", preprocessing=SMALL)
    assert report.stored == ("img0002", "img0006")
    assert "label0005.nii.gz is missing" in report.failed["img0005"]
