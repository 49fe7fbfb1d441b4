"""From a scan to organs, volumes and pictures in a few cells; run it whole, or cell by cell in an editor or a notebook.

pip install '.[demo]' && python examples/segment_a_scan.py
"""

# %% A scan: the real CT of thorax and upper abdomen that the package slicerio ships
from importlib.resources import files
from pathlib import Path

from meddelinea import load_model, segment

scan = Path(str(files("slicerio") / "data" / "CTChest4.nrrd"))

# %% The model is loaded once, however many scans follow
model = load_model("small")

# %% A path, an image of nibabel's, or a Volume
result = segment(scan, model)
for finding in result.findings:
    print(f"{finding.level}: {finding.message}")

# %% What was found, how large, and how sure the model is
for organ, measured in result.statistics.items():
    sure = result.segmentation.confidence[organ].expected_dice
    if measured.found:
        cut = f", cut by the scan's edge: {', '.join(measured.touches_edge)}" if measured.touches_edge else ""
        print(f"{organ:24} {measured.volume_ml:7.1f} ml, expected Dice {sure:.2f}{cut}")

# %% The mask as an array on the scan's own grid, and where the model is least sure
liver = result.mask.array == result.labels["liver"]
print(f"liver: {liver.sum()} voxels; mean uncertainty inside {result.uncertainty.array[liver].mean():.0f} per cent")

# %% Files: the mask with the names of its organs beside it
output = Path("meddelinea_demo")
output.mkdir(exist_ok=True)
result.save(output / "mask.nii.gz")
print(f"written: {output / 'mask.nii.gz'}")
