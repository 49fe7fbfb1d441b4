"""The slices of a real CT series written as files, each after a change."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

Change = Callable[[int, Dataset], None]
SERIES_UID = generate_uid()


def write_series(folder: Path, slices: list[Dataset], change: Change = lambda k, dataset: None) -> Path:
    """The slices as files of a new folder, each after `change(number, slice)`."""
    folder.mkdir(parents=True)
    for k, original in enumerate(slices):
        dataset = copy.deepcopy(original)
        change(k, dataset)
        dataset.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)
    return folder


def turn(rotation: Rotation, shear_mm: float = 0.0) -> Change:
    """Rewrite the place of each slice as if the patient had been turned about the scanner, or the gantry tilted."""

    def change(k: int, dataset: Dataset) -> None:
        rows_and_columns = rotation.apply(np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float))
        position = rotation.apply(np.array(dataset.ImagePositionPatient, float) + np.array([0, k * shear_mm, 0]))
        dataset.ImageOrientationPatient = [f"{value:.9f}" for value in rows_and_columns.ravel()]
        dataset.ImagePositionPatient = [f"{value:.7f}" for value in position]

    return change


def put(keyword: str, value: object, number: int | None = None) -> Change:
    """Set an element, in all slices or in one."""

    def change(k: int, dataset: Dataset) -> None:
        if number in (None, k):
            setattr(dataset, keyword, value)

    return change


def zip_folder(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))
