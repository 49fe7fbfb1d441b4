"""Images that other libraries hold in memory, as scans."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage

from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom import LPS_TO_RAS
from meddelinea.io.nifti import from_nibabel
from meddelinea.scan import Scan
from meddelinea.volume import Volume


def from_image(image: Any) -> Scan:
    """The scan of an image of nibabel's or of SimpleITK's, which need not be installed.

    Raises
    ------
    TypeError
        If it is another object, such as an array, which does not say where its voxels lie.
    InputRefusedError
        If it is not 3D, or holds colours, vectors or complex numbers.
    """
    if isinstance(image, SpatialImage):
        return from_nibabel(image)
    simpleitk = sys.modules.get("SimpleITK")  # whoever has an image of it has imported it
    if simpleitk is not None and isinstance(image, simpleitk.Image):
        return _from_simpleitk(image, simpleitk)
    kind = f"{type(image).__module__}.{type(image).__name__}".removeprefix("builtins.")
    raise TypeError(
        f"a {kind} does not say where its voxels lie; expected a path, an image of nibabel or SimpleITK, or "
        "meddelinea.Volume(array, affine) with a numpy array and the (4, 4) affine from its indices to millimetres, RAS"
    )


def _from_simpleitk(image: Any, simpleitk: Any) -> Scan:
    size = image.GetSize()
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise InputRefusedError(
            f"the voxels are {image.GetPixelIDTypeAsString()}; expected one grey value each; convert it", "not_grey"
        )
    if len(size) < 3 or any(n != 1 for n in size[3:]):
        raise InputRefusedError(f"{len(size)} dimensions {size}; expected one 3D volume; split it", "not_3d")
    count = len(size)
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (count, count)) * image.GetSpacing())[:3, :3]
    affine[:3, 3] = image.GetOrigin()[:3]
    array = simpleitk.GetArrayFromImage(image).reshape(size[2::-1]).T
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    return Scan(volume=Volume(array, LPS_TO_RAS @ affine))
