"""Learning rates are tried on training cases alone, each for the same time, and what is done is kept."""

import json
from pathlib import Path

import pytest

from meddelinea.benchmark.bench_file import BenchFile
from meddelinea.benchmark.learning_rate import Search, search_lines, search_rates
from meddelinea.cli.main import main
from meddelinea.errors import UsageError
from meddelinea.training.run_file import load_config
from support.benchmarks import TEST, TRAIN


def test_the_best_rate_is_chosen_and_one_at_the_edge_is_marked() -> None:
    found = Search({"U-Net": {1e-3: 0.4, 2e-3: 0.2, 4e-3: 0.3}, "DiT": {1e-3: float("nan"), 2e-3: 0.1, 4e-3: 0.1}})
    assert (found.best("U-Net"), found.best("DiT")) == (1e-3, 2e-3)
    assert search_lines(found)[2:] == [
        "| U-Net | 0.400 | 0.200 | 0.300 | 0.001 (at the edge) |",
        "| DiT | - | 0.100 | 0.100 | 0.002 |",
    ]


def test_each_rate_is_trained_on_a_fold_on_the_same_early_stages(
    bench: BenchFile, bench_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = bench.model_copy(update={"cpu_minutes": None})
    found = search_rates(short, tmp_path, (1e-3, 2e-3), ("Med Delinea",))
    assert list(found.dice) == ["Med Delinea"]
    assert set(found.dice["Med Delinea"]) == {1e-3, 2e-3}
    folders = [tmp_path / "fold-1-of-3" / f"med-delinea-at-0-00{digit}" for digit in (1, 2)]
    runs = [load_config(folder / "3-control" / "run.json") for folder in folders]
    assert [run.optimiser.learning_rate for run in runs] == [1e-3, 2e-3]
    for run in runs:
        assert set(run.data.train) < set(TRAIN)
        assert not {*run.data.train, *run.data.validation} & set(TEST)
    codecs = [(folder / "1-codec" / "codec" / "diffusion_pytorch_model.safetensors") for folder in folders]
    assert codecs[0].read_bytes() == codecs[1].read_bytes()
    assert load_config(folders[0] / "1-codec" / "run.json").optimiser.learning_rate == 1e-3  # of its own file

    monkeypatch.setattr("meddelinea.benchmark.accuracy.run_test", None)  # nothing is done again
    words = ["benchmark", "learning-rate", str(_written(bench_file, tmp_path)), str(tmp_path), "--rates", "1e-3,2e-3"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--methods", "Med Delinea", "--quiet"])
    assert stop.value.code == 0
    assert json.loads((tmp_path / "learning_rate.json").read_text())["chosen"] == {
        "Med Delinea": found.best("Med Delinea")
    }


def _written(bench_file: Path, folder: Path) -> Path:
    """The benchmark without a budget, its run files where they are."""
    content = json.loads(bench_file.read_text()) | {"cpu_minutes": None}
    content["methods"] = {
        name: [str(bench_file.parent / path) for path in paths] for name, paths in content["methods"].items()
    }
    (folder / "short.yaml").write_text(json.dumps(content))
    return folder / "short.yaml"


def test_what_cannot_be_tried_is_refused(bench: BenchFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"methods V-Net, rates .*; expected some of: Med Delinea, U-Net"):
        search_rates(bench, tmp_path, methods=("V-Net",))
    with pytest.raises(UsageError, match="each once"):
        search_rates(bench, tmp_path, (1e-3, 1e-3))
    with pytest.raises(UsageError, match="learning_rate"):
        search_rates(bench, tmp_path, (2.0,), ("U-Net",))
