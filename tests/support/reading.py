"""What tests of readers compare: what SimpleITK read, what was refused, what was remarked upon."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.errors import InputRefusedError
from meddelinea.io.volumes import read_scan, read_volume
from meddelinea.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def from_simpleitk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) voxels and RAS affine of an image that SimpleITK read."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def assert_same(volume: Volume, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    array, affine = theirs
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=2e-5)


def refusal(path: Path) -> str:
    """The message with which `path` is refused: one line that names it, for a reason that has a name."""
    with pytest.raises(InputRefusedError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    (finding,) = caught.value.findings
    assert (finding.code, finding.level, finding.message) == (caught.value.code, "refuse", message)
    assert finding.code != "refused"
    return message


def remarks(path: Path) -> list[tuple[str, str]]:
    return [(finding.code, finding.level) for finding in read_scan(path).findings]
