"""nnU-Net v2's own predictor on one scan, with random weights: how long a mask takes does not depend on them.

Run as a program by `benchmark.prediction_speed`, in a process of its own: `python -m
meddelinea.benchmark.timed_nnunet SCAN 2d|3d ORGANS`. It prints an object for each pass from file to mask: when it
ended, and its seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import nibabel as nib

Kind = Literal["2d", "3d"]
#: The 3D network: its voxels, its patches, and its channels by level, about those of TotalSegmentator's fast model.
SPACING_3D, PATCH_3D, FEATURES_3D = (3.0, 3.0, 3.0), (112, 112, 128), (32, 64, 128, 256, 320)
CLASSES_3D = 118


def plan(kind: Kind, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> dict[str, Any]:
    """A plan for scans of this shape and spacing (slices, rows, columns), by the rules of nnU-Net's planner.

    In 2D a patch is a whole slice, halved until it has at least four pixels, and a level has twice the channels of the
    one above it, at most 512.
    """
    if kind == "2d":
        levels = 1
        while min(shape[1:]) / 2**levels >= 4 and levels < 7:
            levels += 1
        step = 2 ** (levels - 1)
        patch = [-(-side // step) * step for side in shape[1:]]
        features, target = [min(32 * 2**level, 512) for level in range(levels)], list(spacing[1:])
    else:
        patch, features, target = list(PATCH_3D), list(FEATURES_3D), list(SPACING_3D)
    axes, levels = len(patch), len(features)
    norm = {"eps": 1e-5, "affine": True}
    network = {
        "n_stages": levels,
        "features_per_stage": features,
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * levels,
        "strides": [[1] * axes, *[[2] * axes] * (levels - 1)],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": norm,
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling: dict[str, Any] = {}
    for what, is_mask, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": is_mask,
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
    configuration = {
        "data_identifier": "timed",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": list(map(float, shape[3 - axes :])),
        "spacing": target,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return {
        "dataset_name": "timed",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {kind: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 80.0, "std": 140.0, "percentile_00_5": -960.0, "percentile_99_5": 300.0}
        },
    }


def predictor(kind: Kind, scan: Path, organs: int) -> Any:
    """nnU-Net's predictor on the processor: one model, no mirrored copies, windows half a patch apart."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    header = nib.load(scan).header
    columns, rows, slices = header.get_data_shape()
    x, y, z = (float(side) for side in header.get_zooms())
    plans = PlansManager(plan(kind, (slices, rows, columns), (z, y, x)))
    configuration = plans.get_configuration(kind)
    classes = organs + 1 if kind == "2d" else CLASSES_3D
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        classes,
        allow_init=True,
        deep_supervision=False,
    )
    labels = {"background": 0, **{f"organ {index}": index for index in range(1, classes)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    ready = nnUNetPredictor(
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    ready.manual_initialization(network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", None)
    return ready


def main() -> None:
    """Segment a scan twice, with everything loaded the second time."""
    scan, kind, organs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        ready = predictor("2d" if kind == "2d" else "3d", scan, organs)
        for _ in range(2):
            began = time.monotonic()
            ready.predict_from_files_sequential([[str(scan)]], [str(Path(folder) / "mask.nii.gz")], overwrite=True)
            print(
                json.dumps({"ended": time.time(), "seconds": time.monotonic() - began}), file=sys.__stdout__, flush=True
            )


if __name__ == "__main__":
    main()
