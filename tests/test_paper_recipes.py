"""The two files of the paper's comparisons: what they train is what the recipes train, on the cases they say."""

from pathlib import Path
from typing import Any

import pytest

from meddelinea.benchmark.bench_file import read_bench_file
from meddelinea.benchmark.paper import make_tables
from meddelinea.benchmark.paper_file import read_paper_bench
from meddelinea.benchmark.paper_methods import changed_run_file
from meddelinea.benchmark.paper_run import default_of
from meddelinea.benchmark.published import published
from meddelinea.training.run_file import load_config

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER, SMALL = (RECIPES / "benchmark" / f"{name}.yaml" for name in ("paper", "paper-small"))
#: Methods that see patches of volumes, of which fewer make a batch.
PATCHED = {"dynunet_3d", "nnformer", "unetr++"}
#: Setting -> recipe that trains the same.
SAME = {
    "BTCV, fine-tuned": "finetune-btcv",
    "AMOS, fine-tuned": "finetune-amos",
    "CirrMRI600+, fine-tuned": "finetune-cirrmri",
    "PanSegData, fine-tuned": "finetune-pansegdata",
    "BTCV, 1 %": "few-shot-btcv-1",
    "AMOS, 25 %": "few-shot-amos-25",
    "noise predictor only": "ablation-noise-predictor-only",
    "L_diff only": "ablation-diffusion-loss-only",
    "K = 1": "ablation-k1",
    "K = 5": "ablation-k5",
    "K = 10": "ablation-k10",
}


@pytest.mark.parametrize("title", SAME)
def test_a_setting_of_the_paper_trains_what_its_recipe_trains(title: str, tmp_path: Path) -> None:
    bench, recipe = read_paper_bench(PAPER), load_config(RECIPES / "paper" / f"{SAME[title]}.yaml")
    setting, method = bench.settings[title], bench.methods["MedDelinea"]
    assert isinstance(method, tuple)
    start = None if setting.after is None else Path("runs/paper/pretrain/pipeline")
    ours = load_config(changed_run_file(method[-1], setting, tmp_path, start))
    free: dict[str, Any] = {"output": True, "data": {"store", "split", "train_share"}}
    assert ours.model_dump(exclude=free) == recipe.model_dump(exclude=free)
    assert (bench.datasets[setting.dataset].store, setting.share) == (recipe.data.store, recipe.data.train_share)
    assert setting.split is not None
    assert recipe.data.split is not None
    assert setting.split.train == recipe.data.split.train


def test_the_paper_has_a_setting_for_each_part_of_its_tables(tmp_path: Path) -> None:
    """Every figure that the paper has stands beside one that is measured here: no section is the paper's alone."""
    bench = read_paper_bench(PAPER)
    made, _ = make_tables(bench, tmp_path, (1, 2, 3, 4, 5, 6, 7, 9), train=False, beside_paper=True)
    for table in made:
        assert len(published(table.number)) <= len(table.sections)
        assert all(not row.paper for section in table.sections for row in section.rows[:1])
    assert {row.name for section in made[4].sections for row in section.rows if not row.paper} == set(
        published(5)[0].rows
    )
    assert any("abdomenatlas" in note for note in made[1].notes)  # which holds scans of BTCV and AMOS


def test_the_papers_methods_are_pretrained_alike() -> None:
    pretrain = load_config(RECIPES / "paper" / "pretrain.yaml")
    bench = read_paper_bench(PAPER)
    for method in bench.methods.values():
        assert isinstance(method, tuple)
        run = load_config(method[-1])
        free: dict[str, Any] = {"output": True, "model": True}
        if run.model.method in PATCHED:
            free |= {"batch_size": True, "accumulation": True, "data": {"resolutions"}}
        assert run.model_dump(exclude=free) == pretrain.model_dump(exclude=free)
        assert run.model.preset == "paper"
    named = {path.name for method in bench.methods.values() if isinstance(method, tuple) for path in method}
    assert {path.name for path in (RECIPES / "paper" / "methods").glob("*.yaml")} == named - {"pretrain.yaml"}


def test_the_small_comparison_is_on_the_first_fold() -> None:
    bench, fold = read_paper_bench(SMALL), read_bench_file(RECIPES / "benchmark" / "first-fold.yaml")
    setting = bench.settings["BTCV, first fold"]
    assert (setting.train, setting.test, setting.cpu_minutes) == (fold.train, fold.test, 20.0)
    assert {bench.settings[default_of(bench, name) or ""].train for name in bench.methods} == {fold.train}
    assert {*bench.settings["curves"].train, *bench.settings["curves"].validation} == set(fold.train)
    accuracy = read_bench_file(RECIPES / "benchmark" / "accuracy.yaml")
    assert bench.settings["BTCV, val"].test == accuracy.test
    mr = [setting for title, setting in bench.settings.items() if title.startswith("CHAOS")]
    assert len({setting.test for setting in mr}) == 1
    for method in bench.methods.values():
        assert isinstance(method, tuple)
        if all(path.is_file() for path in method):
            assert load_config(method[-1]).stage == "model"
