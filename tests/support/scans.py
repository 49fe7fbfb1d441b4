"""Scans from volumes, for tests that make their own."""

from __future__ import annotations

from typing import Any

from meddelinea.scan import Scan
from meddelinea.segmentation.predict import Segmentation
from meddelinea.volume import Volume


def as_ct(volume: Volume) -> Scan:
    """The volume as a CT that no file was read for."""
    return Scan(volume=volume, modality="CT")


def as_mr(volume: Volume) -> Scan:
    """The volume as an MR that no file was read for."""
    return Scan(volume=volume, modality="MR")


def a_segmentation(mask: Volume, labels: dict[str, int], **others: Any) -> Segmentation:
    """A mask as a model called `small` might have made it; `others` are further fields of the segmentation."""
    made = {"model": "small", "version": "1", "steps": 4, "scheduler": "ddim", "samples": 1, "seed": 7, "seconds": 0.5}
    made["precision"] = "float32"
    return Segmentation(mask=mask, labels=labels, **{**made, **others})
