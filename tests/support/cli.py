"""What tests of the command line work on: a scan of a simple body, and files."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
#: Runs `meddelinea WORDS...`: exit code, stdout, stderr.
Run = Callable[..., tuple[int, str, str]]


def body() -> np.ndarray:
    """A cylinder of soft tissue with a rim of fat in air."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 6)), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 0.6, radius < 0.8], [45.0, -100.0], -1000.0)
    return (hounsfield + np.random.default_rng(0).normal(0, 5, hounsfield.shape)).astype(np.int16)


def save(array: np.ndarray, path: Path) -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "in")
