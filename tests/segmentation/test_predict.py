"""Volume inference: the same mask however the scan lies, is stored or is cut into batches, on the scan's own grid.

The network is tiny, untrained and random, its zero layers opened, so that its masks depend on the image and mean
nothing. Scans are real.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.protocol import Sampler
from meddelinea.scan import Scan
from meddelinea.segmentation import predict
from meddelinea.segmentation.confidence import uncertainty_percent
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Computed, Sampling
from meddelinea.volume import Volume
from support.orientations import ORIENTATIONS
from support.scans import as_ct
from support.spoiled_scans import AFFINE, body
from support.tiny_models import ORGANS, write_blobs


@pytest.fixture(autouse=True)
def slow_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that are to be the same are made in float32, whatever this machine is fastest in."""
    monkeypatch.setattr("meddelinea.models.precision.bfloat16_is_fast", lambda device, training: False)


@pytest.fixture(scope="module")
def mask(model: Model, scan: Volume) -> Volume:
    return segment(model, as_ct(scan), Sampling(precision="float32")).mask


def test_the_mask_lies_on_the_scans_grid(scan: Volume, mask: Volume) -> None:
    assert mask.array.dtype == np.uint8
    assert mask.array.shape == scan.array.shape
    assert np.array_equal(mask.affine, scan.affine)
    found = set(np.unique(mask.array).tolist())
    assert found <= {0, 1, 2, 3}
    assert len(found) > 1  # otherwise the tests here would compare empty masks


def test_the_mask_depends_on_the_image(model: Model, scan: Volume, mask: Volume) -> None:
    other = Volume(np.ascontiguousarray(scan.array[::-1]), scan.affine)
    changed = segment(model, as_ct(other)).mask.array
    assert (changed != mask.array).mean() > 0.01


def test_there_are_48_orientations(scan: Volume) -> None:
    assert len(set(ORIENTATIONS)) == 48
    assert scan.orientation in ORIENTATIONS


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_mask_is_the_same_in_every_orientation(model: Model, scan: Volume, mask: Volume, orientation: str) -> None:
    turned = scan.reorient(orientation)
    result = segment(model, as_ct(turned)).mask
    assert result.array.shape == turned.array.shape
    assert np.array_equal(result.affine, turned.affine)
    assert np.array_equal(result.reorient(scan.orientation).array, mask.array)


@pytest.mark.parametrize("pairs", [1, 2])
def test_slices_stand_among_the_neighbours_that_training_reads(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    store = SliceStore(write_blobs(tmp_path / "store"))
    size, slices = store.manifest.preprocessing.size, store.cases[0].slices
    grey = np.stack([store.image(0, i, 0)[0] for i in range(slices)]) / 127.5 - 1.0
    seen: list[torch.Tensor] = []

    class Watching:
        def segment(self, images: torch.Tensor, noise: list[NoiseKey]) -> torch.Tensor:
            seen.append(images)
            return torch.zeros(len(images), len(ORGANS) + 1, size, size)

    pipeline = SimpleNamespace(
        sampler=lambda *arguments: Sampler(Watching(), 1, "euler_ancestral"),
        device=torch.device("cpu"),
        neighbours=1,
        neighbour_pairs=pairs,
    )
    grid = Volume(grey.transpose(2, 1, 0).astype(np.float32), np.eye(4))
    monkeypatch.setattr(predict, "to_model_grid", lambda volume, preprocessing: grid)
    monkeypatch.setattr(predict, "to_source_grid", lambda mask, volume: mask)
    segment(Model(model.files, pipeline), as_ct(grid), Sampling(batch_size=4))
    for index, ours in enumerate(torch.cat(seen).numpy()):
        np.testing.assert_allclose(ours, store.image(0, index, 1, pairs) / 127.5 - 1.0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_the_mask_is_the_same_in_every_batch_size(model: Model, scan: Volume, mask: Volume, batch_size: int) -> None:
    assert np.array_equal(segment(model, as_ct(scan), Sampling(batch_size=batch_size)).mask.array, mask.array)


def test_so_many_organs_that_fewer_slices_fit_change_no_mask(
    model: Model, scan: Volume, mask: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sampled = MedDelinea.segment

    def watched(self: MedDelinea, images: torch.Tensor, noise: list[NoiseKey]) -> torch.Tensor:
        sizes.append(len(images))
        return sampled(self, images, noise)

    monkeypatch.setattr(MedDelinea, "segment", watched)
    two_slices_and_a_half = 4 * (len(ORGANS) + 1) * 64 * 64 * 5 // 2
    monkeypatch.setattr(predict, "SHARES_BYTES", two_slices_and_a_half)
    assert np.array_equal(segment(model, as_ct(scan)).mask.array, mask.array)
    assert max(sizes) == 2


def test_the_seed_fixes_the_mask(model: Model, scan: Volume, mask: Volume) -> None:
    assert np.array_equal(segment(model, as_ct(scan), Sampling(seed=0)).mask.array, mask.array)
    assert not np.array_equal(segment(model, as_ct(scan), Sampling(seed=1)).mask.array, mask.array)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLA"])
def test_a_ball_comes_back_where_it_is_and_as_large(model: Model, orientation: str) -> None:
    """Through a network that calls bright what is bright: all that is left is the geometry."""

    class Bright:
        def segment(self, images: torch.Tensor, noise: list[NoiseKey]) -> torch.Tensor:
            middle = images[:, 1]
            return torch.stack([-middle, middle, *[torch.full_like(middle, -9.0)] * (len(ORGANS) - 1)], dim=1)

    pipeline = SimpleNamespace(
        sampler=lambda *arguments: Sampler(Bright(), 1, "euler_ancestral"),
        device=torch.device("cpu"),
        neighbours=1,
        neighbour_pairs=1,
    )
    affine = np.diag([-0.9, -0.9, 2.5, 1.0])
    affine[:3, 3] = 60.0, 70.0, -30.0
    at = np.moveaxis(np.indices((120, 130, 24)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    centre, radius = np.array([4.3, 8.1, 1.2]), 21.0
    inside = np.linalg.norm(at - centre, axis=-1) < radius
    low, high = model.files.preprocessing.window_hu
    scan = Volume(np.where(inside, high, low).astype(np.float32), affine).reorient(orientation)
    files = replace(model.files, preprocessing=replace(model.files.preprocessing, spacing_mm=3.0))
    found = segment(Model(files, pipeline), as_ct(scan)).mask.reorient("LPS")
    ours = found.array == 1
    assert 2 * (ours & inside).sum() / (ours.sum() + inside.sum()) > 0.98  # 0.969 without interpolated shares
    np.testing.assert_allclose(at[ours].mean(axis=0), centre, atol=0.15)
    assert ours.sum() == pytest.approx(inside.sum(), rel=0.03)


def test_samples_are_averaged_and_none_depends_on_how_many_follow(
    model: Model, scan: Volume, mask: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[NoiseKey, torch.Tensor] = {}
    sampled = MedDelinea.segment

    def watched(self: MedDelinea, images: torch.Tensor, noise: list[NoiseKey]) -> torch.Tensor:
        logits = sampled(self, images, noise)
        drawn.update(zip(noise, logits, strict=True))
        return logits

    monkeypatch.setattr(MedDelinea, "segment", watched)
    monkeypatch.setattr(predict, "remove_small_components", lambda ids, share: ids)
    found: list[np.ndarray] = []
    to_source_grid = predict.to_source_grid
    monkeypatch.setattr(predict, "to_source_grid", lambda m, v: (found.append(m.array), to_source_grid(m, v))[1])
    result = segment(model, as_ct(scan), Sampling(samples=3))
    assert result.samples == 3
    assert len(drawn) == 3 * found[0].shape[2]
    case = next(iter(drawn)).case
    for index in range(found[0].shape[2]):
        logits = torch.stack([drawn[NoiseKey(0, case, index, sample)] for sample in range(3)])
        assert not torch.equal(logits[0], logits[1])
        shares = logits.softmax(dim=1).mean(dim=0)
        finer = ndimage.zoom(shares.numpy(), (1, 2, 2), order=1, mode="nearest", grid_mode=True)
        assert (finer.argmax(axis=0) == found[0][:, :, index].T).mean() > 0.9999  # but for ties
    with pytest.raises(UsageError, match="samples 0"):
        segment(model, as_ct(scan), Sampling(samples=0))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_the_file_format_does_not_matter(
    model: Model, scan: Volume, tmp_path: Path, mask: Volume, dtype: type[np.generic]
) -> None:
    for name in ("scan.nii.gz", "scan.nrrd"):
        write_volume(Volume(scan.array.astype(dtype), scan.affine), tmp_path / name)
        read = read_volume(tmp_path / name)
        result = segment(model, as_ct(read)).mask
        assert np.array_equal(result.reorient(scan.orientation).array, mask.array), name


@pytest.mark.parametrize("batch_size", [1, 5])
def test_confidence_is_that_of_the_mask_and_the_same_in_every_batch_size(
    model: Model, scan: Volume, batch_size: int
) -> None:
    whole, parts = segment(model, as_ct(scan)), segment(model, as_ct(scan), Sampling(batch_size=batch_size))
    assert list(whole.confidence) == list(whole.labels)
    assert whole.uncertainty is not None
    assert parts.uncertainty is not None
    np.testing.assert_allclose(parts.uncertainty.array, whole.uncertainty.array, atol=2e-3)  # kept in half precision
    assert whole.uncertainty.array.min() >= 0.0
    assert whole.uncertainty.array.max() < 1.0
    voxel_ml = np.prod(scan.spacing_mm) / 1000.0
    for name, index in whole.labels.items():
        sure, other = whole.confidence[name], parts.confidence[name]
        assert sure.expected_ml == pytest.approx(other.expected_ml, rel=1e-5)
        assert sure.surely_ml <= sure.possibly_ml
        found_ml = (whole.mask.array == index).sum() * voxel_ml
        assert (sure.expected_dice is not None) == (found_ml > 0)
        if sure.expected_dice is not None:
            assert 0.0 < sure.expected_dice < 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uncertainty_is_drawn_where_the_mask_changes(model: Model, scan: Volume, axis: int) -> None:
    """Beside a border of the mask the model is less sure than on the whole, on the scan's own grid."""
    made = segment(model, as_ct(scan))
    assert made.uncertainty is not None
    percent = uncertainty_percent(made.uncertainty, scan)
    assert percent.array.shape == made.mask.array.shape
    border = np.diff(made.mask.array, axis=axis) != 0
    beside = percent.array.take(range(border.shape[axis]), axis=axis)[border]
    assert beside.mean() > percent.array.mean()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_oblique_scan_gets_its_mask_on_its_own_grid(model: Model, scan: Volume, axis: int) -> None:
    angle = np.deg2rad(20.0)
    rotation = np.eye(3)
    i, j = [a for a in range(3) if a != axis]
    rotation[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    centre = scan.affine @ [*(np.array(scan.array.shape) - 1) / 2, 1.0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ scan.affine[:3, :3]
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ (np.array(scan.array.shape) - 1) / 2
    to_scan = np.linalg.inv(scan.affine) @ affine
    turned = Volume(
        ndimage.affine_transform(scan.array.astype(np.float32), to_scan[:3, :3], to_scan[:3, 3], order=1, cval=-1000),
        affine,
    )
    assert turned.obliqueness_deg == pytest.approx(20.0, abs=1e-3)
    result = segment(model, as_ct(turned)).mask
    assert result.array.shape == turned.array.shape
    assert np.array_equal(result.affine, turned.affine)
    assert result.array.any()


def test_only_the_organs_asked_for_are_kept(model: Model, scan: Volume) -> None:
    everything = segment(replace_share(model, 0.0), as_ct(scan))
    assert everything.labels == {"spleen": 1, "liver": 2, "gallbladder": 3}
    some = segment(replace_share(model, 0.0), as_ct(scan), Sampling(organs=("gallbladder", "spleen")))
    assert some.labels == {"gallbladder": 3, "spleen": 1}
    assert set(np.unique(some.mask.array)) <= {0, 1, 3}
    assert some.mask.array.any()


def replace_share(model: Model, share: float) -> Model:
    return Model(replace(model.files, least_component_share=share), model.pipeline)


def test_what_repeats_a_mask_is_recorded(model: Model, scan: Volume) -> None:
    seen: list[tuple[int, int]] = []
    result = segment(
        model,
        as_ct(scan),
        Sampling(steps=1, scheduler="ddim", seed=3, batch_size=7),
        progress=lambda *done: seen.append(done),
    )
    assert (result.model, result.steps, result.scheduler, result.seed) == ("model", 1, "ddim", 3)
    slices = seen[-1][1]
    assert seen == [(min(done, slices), slices) for done in range(7, slices + 7, 7)]
    default = segment(model, as_ct(scan))
    assert (default.steps, default.scheduler, default.seed) == (2, "euler_ancestral", 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"organs": ("spleen", "brain")}, "no brain; expected some of: spleen, liver, gallbladder"),
        ({"organs": ("brain",)}, "brain"),
    ],
)
def test_an_unknown_organ_is_refused(model: Model, scan: Volume, options: dict, words: str) -> None:
    with pytest.raises(InputRefusedError, match=words):
        segment(model, as_ct(scan), Sampling(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler": "euler"}, "unknown scheduler 'euler'"),
        ({"scheduler": ""}, "unknown scheduler ''"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": 1001}, "1001 sampling steps"),
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_impossible_request_is_refused(model: Model, scan: Volume, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        segment(model, as_ct(scan), Sampling(**options))


def test_the_method_is_built_once_for_all_slices(model: Model, scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[object, ...]] = []
    kind = type(model.pipeline)
    build = kind.sampler

    def sampler(pipeline: object, *arguments: object) -> Sampler:
        built.append(arguments)
        return build(pipeline, *arguments)

    monkeypatch.setattr(kind, "sampler", sampler)
    segment(model, as_ct(scan), Sampling(steps=1, scheduler="ddim", batch_size=4))
    assert built == [(1, "ddim")]


def test_a_scan_of_no_known_modality_is_refused(model: Model, scan: Volume) -> None:
    with pytest.raises(InputRefusedError, match="modality is not known; expected CT or MR") as refusal:
        segment(model, Scan(volume=scan))
    assert (refusal.value.code, refusal.value.parameter) == ("modality_unknown", "modality")


def test_the_same_bytes_for_any_batch_size_and_number_of_threads() -> None:
    """Not the mask alone: its uncertainty and confidence as well, of the shipped model."""
    model = load_model("small", "cpu")
    volume = Volume(body()[:, :, :3], AFFINE)
    threads = torch.get_num_threads()
    made = []
    try:
        for batch_size, count in ((16, 1), (1, 1), (2, 2), (16, 3)):
            torch.set_num_threads(count)
            made.append(segment(model, as_ct(volume), Sampling(steps=2, batch_size=batch_size)))
    finally:
        torch.set_num_threads(threads)
    first = made[0]
    assert first.uncertainty is not None
    for other in made[1:]:
        assert other.uncertainty is not None
        assert other.uncertainty.array.tobytes() == first.uncertainty.array.tobytes()
        assert other.mask.array.tobytes() == first.mask.array.tobytes()
        assert other.confidence == first.confidence


def test_bfloat16_changes_few_voxels() -> None:
    model = load_model("small", "cpu")
    scan = as_ct(Volume(body()[:, :, :3], AFFINE))
    exact, half = (segment(model, scan, Sampling(precision=precision)) for precision in get_args(Computed))
    assert (exact.precision, half.precision) == ("float32", "bfloat16")
    again = segment(model, scan, Sampling(precision="bfloat16"))
    assert again.mask.array.tobytes() == half.mask.array.tobytes()
    assert exact.uncertainty is not None
    assert half.uncertainty is not None
    difference = np.abs(exact.uncertainty.array - half.uncertainty.array)
    assert difference.max() > 0.0
    assert difference.mean() < 0.005
    assert np.mean(exact.mask.array != half.mask.array) < 0.002


def test_networks_compute_in_what_the_device_is_fastest_in(
    model: Model, scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fast, computed in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("meddelinea.models.precision.bfloat16_is_fast", lambda device, training, fast=fast: fast)
        assert segment(model, as_ct(scan), Sampling(steps=1)).precision == computed
