"""A trained model's folder, here or on the Hugging Face hub: what its files say, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from meddelinea.checks.limits import ScanLimits
from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.training_cases import TrainingCases
from meddelinea.errors import InputRefusedError, UsageError, WeightsMissingError, first_fault, reason_of
from meddelinea.labels import LabelIds, canonical_name
from meddelinea.models.component import read_document
from meddelinea.scan import Modality
from meddelinea.segmentation.hub import HubModel

if TYPE_CHECKING:
    from meddelinea.methods.pipeline import SlicePipeline
    from meddelinea.segmentation.calibration import Calibration

#: In the folder of a model that was calibrated (`meddelinea benchmark calibration`).
CALIBRATION_FILE = "calibration.json"
#: Models that ship inside the package.
SHIPPED = ("small",)
#: Of a longer model card the rest is not read.
CARD_BYTES = 1 << 20
DEVICES = ("auto", "cpu", "cuda")


@plain(frozen=True, kw_only=True)
class ModelFiles:
    """What the files of a model's folder say, read without its weights.

    Parameters
    ----------
    name
        Of a shipped model or of its folder; from the hub `owner/name@commit`, which stays the same model.
    folder
        Where its files are.
    labels
        Canonical organ name -> id.
    preprocessing
        How a scan becomes slices.
    limits
        Which scans it takes, by those that it was trained on.
    least_component_share
        Pieces of an organ smaller than this share of its largest are dropped.
    training_cases
        Names of the cases by role: `train`, `validation`.
    licence
        From the model card, where stated.
    calibration
        What its shares mean; None where that was not measured.
    """

    name: str
    folder: Path
    labels: dict[str, int]
    preprocessing: Preprocessing
    limits: ScanLimits
    least_component_share: float
    training_cases: dict[str, list[str]]
    licence: str | None
    calibration: Calibration | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it was trained on."""
        return self.limits.modalities

    @property
    def on_hub(self) -> bool:
        """Whether it came from the Hugging Face hub: `name` finds it again, at the same commit, on any computer."""
        return HubModel.of_folder(self.folder) is not None

    @property
    def source(self) -> str:
        """What another process loads it by, on any computer that has it: a name if there is one, else its folder.

        Of a model from the hub it names the commit, so that all processes have the same model.
        """
        return self.name if self.on_hub or self.folder == _shipped_folder(self.name) else str(self.folder)

    @property
    def card(self) -> str:
        """Text of the model card, Markdown; empty where there is none."""
        return _card(self.folder)


@plain(frozen=True)
class Model:
    """A model that is ready to segment."""

    files: ModelFiles
    pipeline: SlicePipeline


def model_folder(model: str | Path) -> Path:
    """Where a model's files are: in the package, in a folder, or in the cache of the Hugging Face hub.

    Parameters
    ----------
    model
        Name of a shipped model; a folder; or `owner/name`, or `owner/name@revision`, of a repository on the hub. Where
        there is a folder of that name, the folder is meant and the hub is not asked.

    Raises
    ------
    WeightsMissingError
        If there is no such model.
    """
    folder, remedy = Path(model), f"expected a model's folder, owner/name on the hub, or one of: {', '.join(SHIPPED)}"
    on_hub = HubModel.parse(str(model))
    if str(model) in SHIPPED:
        folder = _shipped_folder(str(model))
        remedy = "install the package with its weights"
    elif on_hub is not None and not folder.exists():
        folder, remedy = on_hub.download(), "expected a model that MedDelinea saved"
    if not (folder / "model_index.json").is_file():
        raise WeightsMissingError(f"{model}: no model_index.json in {folder}; {remedy}")
    return folder


def _shipped_folder(name: str) -> Path:
    return Path(str(files("meddelinea"))) / "weights" / name


def read_model_files(model: str | Path) -> ModelFiles:
    """Describe a model, named as `model_folder` takes it, once its files are checked as a whole.

    Every file is what it should be by itself, and they agree: `labels.json` numbers the organs as the network's output
    channels are numbered in `model_index.json`. Networks and weights, which a description may do without, are left for
    `load_model`.

    Raises
    ------
    WeightsMissingError
        If there is no such model, its folder lacks a file, or one is damaged, out of range or contradicts another.
    """
    from meddelinea.methods.known import read_index

    folder = model_folder(model)
    try:
        index = read_index(folder)
        labels = LabelIds.read(folder / "labels.json").one_each()
        _check_labels(labels, index.organs)
        preprocessing = read_document(folder / "preprocessing.json")
        use = _Use(**{field.name: preprocessing[field.name] for field in fields(_Use)})
        cases = TrainingCases.read(folder)
        return ModelFiles(
            name=str(HubModel.of_folder(folder) or folder.name),
            folder=folder,
            labels=labels,
            preprocessing=Preprocessing.from_json(preprocessing),
            limits=ScanLimits.read(folder),
            least_component_share=use.least_component_share,
            training_cases={
                "train": [scan.name for scan in cases.train],
                "validation": [scan.name for scan in cases.validation],
            },
            licence=_licence(_card(folder)),
            calibration=_calibration(folder / CALIBRATION_FILE),
        )
    except WeightsMissingError:
        raise
    except ValidationError as error:
        raise _incomplete(folder, first_fault(error)) from error
    except KeyError as error:
        raise _incomplete(folder, f"{error} is missing") from error
    except (InputRefusedError, OSError, ValueError, TypeError) as error:
        raise _incomplete(folder, reason_of(error)) from error


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class _Use:
    """What a model is for, in `preprocessing.json`."""

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, max_length=2)]
    least_component_share: Annotated[float, Field(strict=True, ge=0.0, le=1.0)]


def _incomplete(folder: Path, fault: str) -> WeightsMissingError:
    return WeightsMissingError(f"{folder}: not a complete model ({fault}); install or train it again")


def _check_labels(labels: Mapping[str, int], organs: tuple[str, ...]) -> None:
    """Refuse labels that would give the organs of the network's output channels other names."""
    expected = {canonical_name(organ): channel for channel, organ in enumerate(organs, start=1)}
    if labels == expected:
        return
    for organ, channel in expected.items():
        if labels.get(organ) != channel:
            found = f"id {labels[organ]}" if organ in labels else "no id"
            raise ValueError(
                f"labels.json: '{organ}' has {found}; expected {channel}, its place in the organs of model_index.json"
            )
    more = next(organ for organ in labels if organ not in expected)
    raise ValueError(f"labels.json: '{more}' is none of the {len(organs)} organs of model_index.json")


def require_device(device: str) -> None:
    """Refuse a device of another name, before any work.

    Raises
    ------
    UsageError
        If it is none of `DEVICES`.
    """
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}", parameter="device")


def load_model(model: str | Path | ModelFiles = "small", device: str = "auto") -> Model:
    """Load a model onto a device.

    Parameters
    ----------
    model
        As `model_folder` takes it, or what `read_model_files` made of it.
    device
        `cpu`, `cuda`, or `auto`: CUDA where there is one.

    Raises
    ------
    WeightsMissingError
        If the model's folder is absent or incomplete.
    UsageError
        If the device is unknown or absent, or the network of a baseline is not installed.
    """
    import torch

    from meddelinea.methods.known import load_pipeline
    from meddelinea.models.convolutions import set_channels_last

    require_device(device)
    model_files = model if isinstance(model, ModelFiles) else read_model_files(model)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError(f"device '{device}' is not available here; use auto or cpu", parameter="device")
    pipeline = load_pipeline(model_files.folder)
    size = model_files.preprocessing.size
    if size % pipeline.multiple:
        raise _incomplete(
            model_files.folder, f"preprocessing.json: size {size}; its networks need a multiple of {pipeline.multiple}"
        )
    for network in pipeline.networks:
        set_channels_last(network)
    pipeline.to("cuda" if available and device != "cpu" else "cpu")
    return Model(model_files, pipeline)


def _calibration(path: Path) -> Calibration | None:
    from meddelinea.segmentation.calibration import Calibration

    return Calibration.from_json(read_document(path)) if path.exists() else None


def _card(folder: Path) -> str:
    path = folder / "README.md"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(CARD_BYTES).decode("utf-8", errors="replace")


def _licence(card: str) -> str | None:
    """The `license:` line at the head of a model card, without what would steer the terminal that it is printed on."""
    lines = card.splitlines()[:40]
    stated = [line.removeprefix("license:").strip() for line in lines if line.startswith("license:")]
    return "".join(filter(str.isprintable, stated[0]))[:100] if stated else None
