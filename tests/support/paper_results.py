"""Results of a paper's benchmark written by hand, so that its tables can be computed by hand."""

import math
from pathlib import Path
from typing import Any

import yaml

from meddelinea.benchmark.accuracy import RESULT, Trial, trial_document
from meddelinea.benchmark.bench_file import folder_name
from meddelinea.benchmark.paper_file import PaperBench
from meddelinea.benchmark.paper_run import SETTING, setting_document, trial_folder
from meddelinea.evaluation.compare import CaseFailure, CaseResult, Report
from meddelinea.evaluation.metrics import OrganScore
from meddelinea.files import write_json

#: The smallest file with every kind of setting.
BENCH: dict[str, Any] = {
    "datasets": {
        name: {"format": "pairs", "source": "absent", "store": "absent"} for name in ("ATLAS-8k", "BTCV", "AMOS")
    },
    "methods": {"UNet": ["unet.yaml"], "DiT": ["dit.yaml"], "MedDelinea": ["med.yaml"]},
    "settings": {
        "ATLAS-8k": {"kind": "pretrained", "dataset": "ATLAS-8k", "train": ["a"], "test": ["b"]},
        "BTCV fine-tuned": {
            "kind": "fine-tuned", "dataset": "BTCV", "after": "ATLAS-8k", "train": ["c"], "test": ["d"],
        },
        "AMOS zero-shot": {"kind": "zero-shot", "dataset": "AMOS", "after": "ATLAS-8k", "test": ["ct", "mr"]},
        "BTCV 10 %": {
            "kind": "few-shot", "dataset": "BTCV", "after": "ATLAS-8k", "train": ["c"], "test": ["d"], "share": 0.1,
            "methods": ["DiT"],
        },
        "K = 1": {
            "kind": "ablation", "dataset": "ATLAS-8k", "train": ["a"], "test": ["b"], "methods": ["MedDelinea"],
            "changes": {"model": {"sizes": {"control_depth": 1}}},
        },
        "DDIM": {
            "kind": "ablation", "dataset": "ATLAS-8k", "after": "ATLAS-8k", "test": ["b"], "scheduler": "ddim",
            "methods": ["MedDelinea"],
        },
    },
}  # fmt: skip


def write_bench(folder: Path, **changes: Any) -> Path:
    """`BENCH` as a file, with other sections, beside run files that nobody reads."""
    for stages in BENCH["methods"].values():
        (folder / stages[0]).touch()
    (folder / "paper.yaml").write_text(yaml.safe_dump({**BENCH, **changes}, sort_keys=False))
    return folder / "paper.yaml"


def organ(name: str, dice: float, distance: float = 4.0) -> OrganScore:
    """An organ with HD95 of `distance`, half of it pooled and a quarter of it as ASSD."""
    return OrganScore(
        organ=name,
        status="missed" if math.isinf(distance) else "scored",
        dice=dice,
        nsd=dice,
        hd95_mm=distance,
        hd95_pooled_mm=distance / 2,
        assd_mm=distance / 4,
        prediction_ml=1.0,
        reference_ml=1.0,
        nsd_tolerance_mm=2.0,
    )


def write_trial(
    output: Path, setting: str, method: str, cases: dict[str, list[OrganScore]], failed: tuple[str, ...] = ()
) -> None:
    """The result of a method in a setting."""
    report = Report(
        tuple(CaseResult(case, tuple(scores)) for case, scores in cases.items()),
        tuple(CaseFailure(case, "damaged") for case in failed),
        2.0,
    )
    trial = Trial(
        method=method,
        part=folder_name(setting),
        parameters=2_000_000,
        trained_parameters=1_000_000,
        stages=(),
        cpu_hours=None,
        seconds=dict.fromkeys(cases, 1.0),
        report=report,
    )
    folder = trial_folder(output, setting, method)
    folder.mkdir(parents=True)
    write_json(trial_document(trial), folder / RESULT)


def write_cases(bench: PaperBench, output: Path, setting: str, modalities: dict[str, str]) -> None:
    """What a setting is, with the modality of each case."""
    (output / folder_name(setting)).mkdir(parents=True, exist_ok=True)
    cases = {name: {"patient": name, "modality": modality, "role": "test"} for name, modality in modalities.items()}
    write_json({**setting_document(bench, setting), "cases": cases}, output / folder_name(setting) / SETTING)
