"""Which scans a model takes: those like the ones that it was trained on.

`ScanTraits` are what a slice store keeps of each training scan, `ScanLimits` what follows from all of them, kept as
`scan_limits.json` in the model's folder. A folder without that file has the defaults, which hold for the abdomen of an
adult: what physics sets (Hounsfield units, the tilt of a gantry) is not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from meddelinea.errors import WeightsMissingError, first_fault
from meddelinea.files import write_json
from meddelinea.findings import Finding, Refusal
from meddelinea.json_files import read_json
from meddelinea.scan import Modality
from meddelinea.volume import Volume

FILE = "scan_limits.json"
VERSION = 1

Plane = Literal["axial", "coronal", "sagittal"]
Length = Annotated[float, Field(gt=0.0, le=1e6)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Millilitres = Annotated[float, Field(ge=0.0, le=1e9)]
Range = tuple[float, float]

#: How many times smaller or larger than any training scan a scan may be; twice that where there was only one.
WIDER = 4.0
#: Scans below this height (feet to head) show parts of organs, unless those that were trained on are as low.
SHORT_MM = 20.0
KIDNEYS = ("left kidney", "right kidney")
VESSELS = ("aorta", "inferior vena cava")
#: Reasons that say on what scale grey values are: a model that was trained on such values takes them.
OF_SCALES: frozenset[Refusal] = frozenset(
    {
        *("label_mask", "rescaled", "stored_offset", "offset_twice", "unsigned_wrap"),
        *("inverted", "narrow_window", "not_hounsfield", "looks_like_ct"),
    }
)


@dataclass(frozen=True, kw_only=True)
class ScanTraits:
    """What a scan is judged by, of one that a model is trained on.

    Parameters
    ----------
    shape, affine
        Its grid: voxels along I, J and K, and (4, 4) voxel index to RAS millimetres.
    values
        1st and 99th percentile of its grey values.
    refusal
        Why its grey values alone are refused by a model that knows nothing else; None where they are not.
    border
        Share of the outermost columns and rows of its axial slices that is body; 0 for an MR.
    dense_ml
        How much of it is denser than any bone; 0 for an MR.
    organ_ml
        Volume of each organ that is labelled in it.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    values: Range
    refusal: Finding | None
    border: float
    dense_ml: float
    organ_ml: Mapping[str, float]

    @classmethod
    def from_json(cls, content: Any) -> ScanTraits:
        """From what `dataclasses.asdict` and JSON made of one; anything else raises ValueError."""
        return _TRAITS.validate_python(content)

    @property
    def grid(self) -> Volume:
        """Its grid, as a volume that takes no memory."""
        return Volume(np.broadcast_to(np.uint8(0), self.shape), np.array(self.affine))


@dataclass(frozen=True, kw_only=True)
class OrganSizes:
    """What sizes of organs are to be expected in a mask.

    Parameters
    ----------
    organ_ml
        Smallest and largest volume of each organ; empty where that is not known.
    largest_spleen, smallest_kidneys, smallest_vessels
        As shares of the liver's volume; both kidneys, and aorta and inferior vena cava, together. Of BTCV's patients:
        spleen 0.04 to 0.27 in 21, 1.4 in one with a spleen of 3 litres; kidneys 0.07 to 0.27; vessels 0.06 to 0.23.
    seen_ml
        So much must be seen of liver and spleen, or of the liver alone, for their shares to mean anything.
    """

    organ_ml: Mapping[str, tuple[Millilitres, Millilitres]] = field(default_factory=dict)
    largest_spleen: Annotated[float, Field(gt=0.0)] = 0.6
    smallest_kidneys: Share = 0.05
    smallest_vessels: Share = 0.03
    seen_ml: Millilitres = 500.0

    @classmethod
    def of(cls, scans: Sequence[Mapping[str, float]], wider: float) -> OrganSizes:
        """From volumes by organ, of each training scan; proportions are an adult's unless the usual scan's are not."""
        adult = cls()

        def usual_share(names: tuple[str, ...], otherwise: float) -> float:
            shares = [
                sum(organ_ml[n] for n in names) / organ_ml["liver"]
                for organ_ml in scans
                if {"liver", *names} <= organ_ml.keys()
            ]
            return median(shares) if shares else otherwise

        organs = sorted({name for organ_ml in scans for name in organ_ml})
        seen = {name: [organ_ml[name] for organ_ml in scans if name in organ_ml] for name in organs}
        return cls(
            organ_ml={name: (_round(min(ml) / wider), _round(max(ml) * wider)) for name, ml in seen.items()},
            largest_spleen=_round(max(adult.largest_spleen, 2 * usual_share(("spleen",), 0.0))),
            smallest_kidneys=_round(min(adult.smallest_kidneys, usual_share(KIDNEYS, 1.0) / 2)),
            smallest_vessels=_round(min(adult.smallest_vessels, usual_share(VESSELS, 1.0) / 2)),
            seen_ml=_round(min(adult.seen_ml, median(seen["liver"]) / 2)) if "liver" in seen else adult.seen_ml,
        )


@dataclass(frozen=True, kw_only=True)
class ScanLimits:
    """What a scan may be like for a model to segment it.

    Parameters
    ----------
    modalities
        What the model was trained on.
    scans
        How many scans these limits come from; 0 for the defaults.
    smallest_mm
        Least extent along the second-longest side.
    largest_mm
        Largest extent along any side.
    finest_mm, coarsest_mm, thick_mm
        Voxel spacings that are possible, and the largest one that needs no remark.
    short_mm
        Height, from feet to head, below which organs are seen in part.
    fewest_voxels
        Least number along any axis.
    planes
        Those of the slices, where they lie further apart than their pixels.
    border
        Share of the axial slices' border that may be body without a remark, of a CT.
    dense_ml
        How much of a CT may be denser than any bone without a remark.
    scale
        Where most of the training scans are on another scale than their modality's: the reason for which a scan on
        it is refused elsewhere.
    values
        Lowest 1st and highest 99th percentile of the training scans, which `scale` is compared with.
    sizes
        Of the organs in a mask.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    modalities: tuple[Modality, ...]
    scans: Annotated[int, Field(ge=0)] = 0
    smallest_mm: Length = 60.0
    largest_mm: Length = 2500.0
    finest_mm: Length = 0.1
    coarsest_mm: Length = 20.0
    thick_mm: Length = 10.0
    short_mm: Length = SHORT_MM
    fewest_voxels: Annotated[int, Field(ge=1, le=3)] = 3
    planes: tuple[Plane, ...] = ("axial",)
    border: Share = 0.5
    dense_ml: Millilitres = 2.0
    scale: Refusal | None = None
    values: Range = (0.0, 0.0)
    sizes: OrganSizes = field(default_factory=OrganSizes)

    @classmethod
    def of(cls, scans: Sequence[ScanTraits], modalities: tuple[Modality, ...], *, slice_mm: float) -> ScanLimits:
        """From the scans that a model was trained on, wider than they are: the wider, the fewer they are.

        Parameters
        ----------
        scans
            One at least.
        slice_mm
            Thinner slices are averaged to this by the model's preprocessing, so they tell nothing of what it sees.
        """
        adult, wider = cls(modalities=modalities), WIDER * (1 + 1 / len(scans))
        grids = [scan.grid for scan in scans]
        extents, spacings = [extent_mm(grid) for grid in grids], [mm for grid in grids for mm in grid.spacing_mm]
        heights = [extent[body_axis(grid)] for extent, grid in zip(extents, grids, strict=True)]
        coarsest = max(slice_mm, *spacings)
        planes = sorted({plane for grid in grids if (plane := slice_plane(grid)) is not None})
        codes = [None if scan.refusal is None else scan.refusal.code for scan in scans]
        ((code, count),) = Counter(codes).most_common(1)
        values = [scan.values for scan, its in zip(scans, codes, strict=True) if its == code]
        return cls(
            modalities=modalities,
            scans=len(scans),
            smallest_mm=_round(min(sorted(extent)[1] for extent in extents) / wider),
            largest_mm=_round(max(max(extent) for extent in extents) * wider),
            finest_mm=_round(min(adult.finest_mm, min(spacings) / 10)),
            coarsest_mm=_round(wider * coarsest),
            thick_mm=_round(2 * coarsest),
            short_mm=_round(min(SHORT_MM, min(heights) / 2)),
            fewest_voxels=min(adult.fewest_voxels, *(min(scan.shape) for scan in scans)),
            planes=tuple(planes) or adult.planes,
            border=max(adult.border, *(scan.border for scan in scans)),
            dense_ml=_round(max(adult.dense_ml, *(scan.dense_ml for scan in scans))),
            scale=code if code in OF_SCALES and 2 * count > len(scans) else None,
            values=(min(low for low, _ in values), max(high for _, high in values)),
            sizes=OrganSizes.of([scan.organ_ml for scan in scans], wider),
        )

    @classmethod
    def read(cls, folder: Path) -> ScanLimits:
        """Those of a model's folder; the defaults, for its modalities, where it says nothing of them.

        Raises
        ------
        WeightsMissingError
            If the file is damaged, of another version, or contradicts itself.
        KeyError, OSError, TypeError, ValueError
            If `preprocessing.json`, which names the modalities, is damaged.
        """
        path, modalities = folder / FILE, read_json(folder / "preprocessing.json")["modalities"]
        try:
            content = dict(read_json(path)) if path.exists() else {"version": VERSION}
            if content.pop("version", None) != VERSION:
                raise ValueError(f"expected version {VERSION} of this file")
            found = _LIMITS.validate_python({**content, "modalities": modalities})
            if found.smallest_mm >= found.largest_mm or found.finest_mm >= found.coarsest_mm:
                raise ValueError("no scan lies within these limits")
        except (OSError, RecursionError, TypeError, ValueError) as error:
            reason = first_fault(error) if isinstance(error, ValidationError) else error
            raise WeightsMissingError(f"{path}: {reason}; install or train the model again") from error
        return found

    def write(self, folder: Path) -> None:
        """Write the file into a model's folder; `modalities` stands in its `preprocessing.json`."""
        content = asdict(self)
        del content["modalities"]
        write_json({"version": VERSION, **content}, folder / FILE)

    def joined(self, earlier: ScanLimits) -> ScanLimits:
        """What either takes: for a model that was trained further on scans of the same kind."""
        least = ("smallest_mm", "finest_mm", "short_mm", "fewest_voxels")
        largest = ("largest_mm", "coarsest_mm", "thick_mm", "border", "dense_ml")
        return replace(
            self,
            planes=tuple(sorted({*self.planes, *earlier.planes})),
            **{name: min(getattr(self, name), getattr(earlier, name)) for name in least},
            **{name: max(getattr(self, name), getattr(earlier, name)) for name in largest},
        )


_TRAITS, _LIMITS = TypeAdapter(ScanTraits), TypeAdapter(ScanLimits)


def extent_mm(volume: Volume) -> tuple[float, ...]:
    """How far a volume reaches along I, J and K."""
    return tuple(n * mm for n, mm in zip(volume.shape, volume.spacing_mm, strict=True))


def body_axis(volume: Volume) -> int:
    """The voxel axis that runs between feet and head."""
    return next(axis for axis, direction in enumerate(volume.orientation) if direction in "SI")


def slice_plane(volume: Volume) -> Plane | None:
    """The plane of slices that lie twice as far apart as their pixels; None where no axis is so much coarser."""
    spacing = volume.spacing_mm
    thick = int(np.argmax(spacing))
    if spacing[thick] < 2.0 * sorted(spacing)[1]:
        return None
    planes: dict[str, Plane] = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal"}
    return planes.get(volume.orientation[thick], "axial")


def _round(value: float) -> float:
    return float(f"{value:.4g}")
