"""What tests of readers read: slices of a real CT, and a small volume off the patient's axes."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.volume import Volume
from support.real_series import SERIES_UID


@pytest.fixture(scope="session")
def slices(data: Path) -> list[Dataset]:
    """Six neighbouring slices of a real CT series, decoded and cropped to 40 rows and 48 columns."""
    cropped = []
    for file in sorted((data / "totalsegmentator" / "ct_dicom").iterdir())[:6]:
        dataset = pydicom.dcmread(file)
        dataset.decompress()
        pixels = dataset.pixel_array[200:240, 180:228]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.tobytes()
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.SeriesInstanceUID = SERIES_UID
        dataset.SeriesDescription = "Abdomen"
        cropped.append(dataset)
    return cropped


@pytest.fixture
def oblique() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix() @ np.diag([-0.7, 0.9, 3.0])
    affine[:3, 3] = 101.25, -33.5, 812.0
    voxels = np.random.default_rng(0).integers(-1024, 3000, (6, 7, 8), dtype=np.int16)
    return Volume(voxels, affine)
