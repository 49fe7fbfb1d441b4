"""What real scans differ in, done to a labelled scan: each is a pure function, the same on every run.

They are simulations on scans that were read, so they show where a model is fragile, not how it does on such scans.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meddelinea.benchmark.perturbations import geometry, intensities
from meddelinea.data.case import LabelledScan

Perturb = Callable[[LabelledScan], LabelledScan]


#: Name and function, in the order of the table; the first is the scan as it is.
PERTURBATIONS: tuple[tuple[str, Perturb], ...] = (
    ("as it is", lambda case: case),
    ("window -50 to 200 HU", partial(intensities.windowed, low_hu=-50.0, high_hu=200.0)),
    ("window -25 to 150 HU", partial(intensities.windowed, low_hu=-25.0, high_hu=150.0)),
    ("noise 15 HU", partial(intensities.noisy, sigma_hu=15.0)),
    ("noise 30 HU", partial(intensities.noisy, sigma_hu=30.0)),
    ("noise 60 HU", partial(intensities.noisy, sigma_hu=60.0)),
    ("smooth kernel", partial(intensities.smooth_kernel, sigma_mm=1.5)),
    ("sharp kernel", partial(intensities.sharp_kernel, sigma_mm=1.5, amount=1.0)),
    ("slices 1 mm", partial(geometry.thin_slices, slice_mm=1.0)),
    ("slices 5 mm", partial(geometry.thick_slices, slice_mm=5.0)),
    ("slices 8 mm", partial(geometry.thick_slices, slice_mm=8.0)),
    ("slices 10 mm", partial(geometry.thick_slices, slice_mm=10.0)),
    ("turned 10 degrees", partial(geometry.turned, angle_deg=10.0)),
    ("turned 20 degrees", partial(geometry.turned, angle_deg=20.0)),
    ("turned 30 degrees", partial(geometry.turned, angle_deg=30.0)),
    ("off centre 40 mm", partial(geometry.off_centre, shift_mm=40.0)),
    ("off centre 80 mm", partial(geometry.off_centre, shift_mm=80.0)),
    ("field 250 mm, square", partial(geometry.square_field, side_mm=250.0)),
    ("field 280 mm, round", partial(geometry.round_field, diameter_mm=280.0)),
    ("middle half of the slices", partial(geometry.half_of_slices, part="middle")),
    ("upper half of the slices", partial(geometry.half_of_slices, part="upper")),
    ("lower half of the slices", partial(geometry.half_of_slices, part="lower")),
    ("no table", intensities.without_table),
    ("unenhanced, simulated", partial(intensities.contrast_phase, mean_hu=intensities.UNENHANCED_HU)),
    ("arterial, simulated", partial(intensities.contrast_phase, mean_hu=intensities.ARTERIAL_HU)),
)
