"""Memory: beside the scan and its mask, nothing that grows with the scan or with the organs."""

import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from meddelinea.checks.limits import ScanLimits
from meddelinea.data import resample
from meddelinea.data.preprocess import Preprocessing
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.io.volumes import read_volume
from meddelinea.methods.protocol import Sampler
from meddelinea.results.statistics import organ_statistics
from meddelinea.segmentation.model import Model, ModelFiles
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.volume import Volume
from support.scans import as_ct

ORGANS = 40


def many_organs() -> Model:
    """FAKE: a model that takes a grey value for its organ, as one with very many organs would."""

    class Bands:
        def segment(self, images: torch.Tensor, noise: list[NoiseKey]) -> torch.Tensor:
            levels = torch.linspace(-1, 1, ORGANS + 1)[:, None, None]
            return -200 * (images[:, 1:2] - levels).square()

    pipeline = SimpleNamespace(
        sampler=lambda *arguments: Sampler(Bands(), None, None),
        device=torch.device("cpu"),
        neighbours=1,
        neighbour_pairs=1,
    )
    labels = {f"organ {number}": number for number in range(1, ORGANS + 1)}
    files = ModelFiles(
        name="bands",
        folder=Path(),
        labels=labels,
        preprocessing=Preprocessing(size=32, spacing_mm=10.0),
        limits=ScanLimits(modalities=("CT",)),
        least_component_share=0.1,
        training_cases={},
        licence=None,
    )
    return Model(files, pipeline)


def test_what_is_needed_beside_scan_and_mask_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "SLAB_VOXELS", 1 << 17)  # in proportion to this scan
    array = np.empty((160, 150, 200), np.int16, order="F")
    array[...] = np.linspace(-130, 280, 160)[:, None, None] + np.random.default_rng(0).normal(0, 5, (150, 1))
    scan = Volume(array, np.diag([-1.7, -1.7, 1.0, 1.0]))
    model = many_organs()
    tracemalloc.start()
    try:
        result = segment(model, as_ct(scan), Sampling(batch_size=4))
        measured = organ_statistics(scan, result.mask, result.labels)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(organ.found for organ in measured.values()) > ORGANS / 2
    # The mask, and less than twice as much for the model's grid, slabs, the widest organ.
    assert peak_bytes < 3 * result.mask.array.nbytes


def test_a_labels_place_does_not_depend_on_the_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    mask = np.stack([ndimage.gaussian_filter(rng.normal(size=(20, 22, 18)), 2) for _ in range(6)]).argmax(axis=0)
    turned = np.diag([1.3, 0.8, 1.1, 1.0])
    turned[0, 2], turned[2, 0], turned[:3, 3] = 0.2, -0.1, (0.4, -1.0, 2.0)
    for affine in (turned, np.diag([0.5, 0.5, 0.7, 1.0]), np.diag([2.0, 1.5, 1.25, 1.0])):
        found = []
        for voxels in (1, 3000, 1 << 22):
            monkeypatch.setattr(resample, "SLAB_VOXELS", voxels)
            volume = Volume(mask.astype(np.uint8), np.eye(4))
            found.append(resample.resample_labels(volume, affine, (24, 26, 21)).array)
        assert found[0].any()
        assert np.array_equal(found[0], found[2])
        assert np.array_equal(found[1], found[2])


def enlarged(source: Path, shape: tuple[int, int, int], path: Path) -> Path:
    """A real CT resampled to `shape`."""
    scan = read_volume(source)
    scale = [(n - 1) / (m - 1) for n, m in zip(scan.array.shape, shape, strict=True)]
    array = ndimage.affine_transform(scan.array, scale, output_shape=shape, output=np.int16, order=1)
    nib.save(nib.Nifti1Image(array, scan.affine @ np.diag([*scale, 1.0])), path)
    return path


@pytest.mark.slow
def test_a_very_long_ct_within_three_gigabytes(data: Path, tmp_path: Path) -> None:
    scan = enlarged(data / "totalsegmentator" / "ct.nii.gz", (512, 512, 1000), tmp_path / "scan.nii.gz")
    program = (
        "import resource, subprocess, sys;"
        "subprocess.run([sys.executable, '-m', 'meddelinea', *sys.argv[1:]], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2)"
    )
    words = ("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--quiet")
    words = (*words, "--statistics", tmp_path / "s.json", "--preview", tmp_path / "p.png")
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3
    assert nib.load(tmp_path / "mask.nii.gz").shape == (512, 512, 1000)
