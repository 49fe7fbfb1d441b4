"""Every run file in `recipes/` starts, and those of the paper hold the paper's numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meddelinea.benchmark.bench_file import TrainedModel, read_bench_file
from meddelinea.methods.dynunet import nnunet_widths
from meddelinea.models.presets import build_codec, build_dit, find_preset
from meddelinea.segmentation.model import load_model
from meddelinea.training.config import RunConfig
from meddelinea.training.run_file import load_config
from support.tiny_models import SIZES, blobs, write_store
from support.training_runs import train

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER = sorted(path.stem for path in (RECIPES / "paper").glob("*.yaml"))
BENCHMARK = sorted(path.stem for path in (RECIPES / "benchmark").glob("*.yaml"))
SMALL = sorted(path.stem for path in (RECIPES / "small").glob("*.yaml"))
#: Of the preset `paper`, whose other sizes stay: among them N = 15 blocks, and the recipe's K.
NARROW: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "resolution": 64,
    "codec": {
        "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    },
}
#: Sides of the recipes' slices in the tiny store, whose own are 128.
SHRUNK = {512: 128, 256: 64, 192: 128, 96: 64}
#: Sizes of the networks that are compared.
COMPARED: dict[str, dict[str, Any]] = {
    "unet": {"widths": [4, 8, 8, 8, 8, 8]},
    "dynunet": {"widths": [4, 8, 8, 8, 8, 8]},
    "transunet": {"root": 8, "units": [1, 1, 1], "width": 16, "heads": 2, "depth": 1, "decoder": [16, 8, 8, 8]},
    "synergynet": {"widths": [4, 8, 8, 8, 8], "heads": 2, "codes": 16},
    "medsegdiff": {"patch": 2, "widths": [8, 8, 16], "units": 1},
    "medsam": {"width": 16, "depth": 1, "heads": 2, "global_blocks": [], "decoder_width": 16, "decoder_hidden": 16},
}
FINETUNE = {"steps": 1500, "schedule": "linear", "resolutions": (256,), "shares": (0.8, 0.1), "start": "pipeline"}
SAMPLING = {"steps": 0, "resolutions": (256,), "start": "pipeline"}
#: Appendix A's and Table 5's settings where they are not those of pre-training.
DEPARTURES: dict[str, dict[str, Any]] = {
    "pretrain": {},
    **{f"finetune-{name}": FINETUNE for name in ("btcv", "amos", "cirrmri", "pansegdata")},
    **{
        f"few-shot-{name}-{percent}": FINETUNE | {"train_share": percent / 100}
        for name in ("btcv", "amos")
        for percent in (1, 10, 25)
    },
    **{f"zero-shot-{name}": FINETUNE | {"steps": 0} for name in ("btcv", "amos", "cirrmri", "pansegdata")},
    "ablation-noise-predictor-only": {"decoder": "none", "pixel_loss": "cross_entropy"},
    "ablation-diffusion-loss-only": {"segmentation": False},
    **{f"ablation-k{k}": {"control_depth": k} for k in (1, 5, 10)},
    "ablation-ddim": SAMPLING | {"scheduler": "ddim"},
    "ablation-dpmpp": SAMPLING | {"scheduler": "dpmpp_2m"},
    "ablation-unipc": SAMPLING | {"scheduler": "unipc"},
    "ablation-lms": SAMPLING | {"scheduler": "lms"},
}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_holds_the_papers_numbers(name: str) -> None:
    run = load_config(RECIPES / "paper" / f"{name}.yaml")
    split, preset = run.data.split, find_preset(run.model.preset, run.model.sizes)
    assert split is not None
    assert {
        "steps": run.steps,
        "learning_rate": run.optimiser.learning_rate,
        "schedule": run.optimiser.schedule,
        "batch_size": run.batch_size,
        "accumulation": run.accumulation,
        "resolutions": run.data.resolutions,
        "shares": (split.train, split.validation),
        "train_share": run.data.train_share,
        "decoder": run.model.trainable_decoder,
        "segmentation": run.objective.segmentation,
        "pixel_loss": run.objective.pixel_loss,
        "prediction": run.objective.prediction_type,
        "control_depth": preset.control_depth,
        "scheduler": run.validation.scheduler,
        "start": "pipeline" if run.model.pipeline else "components",
    } == {
        "steps": 35_000,
        "learning_rate": 2.0e-5,
        "schedule": "cosine",
        "batch_size": 32,
        "accumulation": 8,
        "resolutions": (256, 512),
        "shares": (0.9, 0.1),
        "train_share": 1.0,
        "decoder": "final_layer",
        "segmentation": True,
        "pixel_loss": "bce",
        "prediction": "epsilon",
        "control_depth": 15,
        "scheduler": "euler_ancestral",
        "start": "components",
        **DEPARTURES[name],
    }
    assert run.precision != "no"
    assert run.output == Path("runs/paper") / name
    dataset = {part: part for part in ("btcv", "amos", "cirrmri", "pansegdata") if part in name}
    assert run.data.store == Path("stores") / next(iter(dataset), "abdomenatlas")
    augmentation = run.data.augmentation
    spatial = (augmentation.crop, augmentation.scale, augmentation.shear, augmentation.translation)
    assert all((*spatial, augmentation.elastic, augmentation.rotation_deg))
    assert not any((augmentation.contrast, augmentation.brightness, augmentation.noise))


def test_there_is_a_recipe_for_each_run_of_the_paper() -> None:
    assert set(DEPARTURES) == set(PAPER)


# Each starts, on slices of 64 and 128 pixels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "store", blobs(128), size=128)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pretrain` stands on, with random weights."""
    folder = tmp_path_factory.mktemp("imported")
    preset = find_preset("paper", NARROW)
    build_codec(preset).save_pretrained(folder / "codec")
    build_dit(preset).save_pretrained(folder / "dit")
    return folder


def scaled_down(recipe: str, store: Path, output: Path, *overrides: str) -> RunConfig:
    """A recipe on the tiny store: two steps where it trains, batches of two, no processes beside this one."""
    run = load_config(RECIPES / f"{recipe}.yaml")
    sizes = COMPARED.get(run.model.method, NARROW if run.model.preset == "paper" else SIZES)
    changes = [
        f"output={output}",
        f"data.store={store}",
        "data.workers=0",
        f"steps={min(run.steps, 2)}",
        "batch_size=2",
        f"accumulation={min(run.accumulation, 2)}",
        f"validation.stride={min(run.validation.stride, 2)}",  # the cases have six slices
        *(f"model.sizes.{name}={json.dumps(size)}" for name, size in {**sizes, **run.model.sizes}.items()),
    ]
    if run.data.resolutions:
        changes.append(f"data.resolutions={[SHRUNK[side] for side in run.data.resolutions]}")
    if run.data.train:
        changes.append("data.train=[a, b]")
    return load_config(RECIPES / f"{recipe}.yaml", (*changes, *overrides))


@pytest.fixture(scope="module")
def pretrained(store: Path, imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that `pretrain` leaves."""
    parts = (f"model.dit={imported / 'dit'}", f"model.codec={imported / 'codec'}")
    return train(scaled_down("paper/pretrain", store, tmp_path_factory.mktemp("pretrain") / "run", *parts)) / "pipeline"


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_starts(store: Path, imported: Path, pretrained: Path, tmp_path: Path, name: str) -> None:
    start = (f"model.dit={imported / 'dit'}", f"model.codec={imported / 'codec'}")
    if load_config(RECIPES / "paper" / f"{name}.yaml").model.pipeline is not None:
        start = (f"model.pipeline={pretrained}",)
    run = scaled_down(f"paper/{name}", store, tmp_path / "run", *start)
    train(run)
    log = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == ([1, 2] if run.steps else [0])
    assert 0.0 <= log[-1]["dice"] <= 1.0
    assert (run.output / "test.json").is_file() == (run.data.split is not None and run.data.split.train < 0.9)
    control = json.loads((run.output / "pipeline" / "control" / "config.json").read_text())
    assert control["depth"] == DEPARTURES[name].get("control_depth", 15)


def test_a_dit_of_the_papers_width_is_trained_as_the_guide_says(store: Path, imported: Path, tmp_path: Path) -> None:
    changes = ("stage=base", "model.dit=null", "optimiser.learning_rate=1.0e-4", f"model.codec={imported / 'codec'}")
    assert (train(scaled_down("paper/pretrain", store, tmp_path / "run", *changes)) / "dit" / "config.json").is_file()


def test_the_recipes_of_small_follow_each_other(store: Path, tmp_path: Path) -> None:
    assert set(SMALL) == {"codec", "base", "coarse", "control"}
    codec = train(scaled_down("small/codec", store, tmp_path / "codec")) / "codec"
    dit = train(scaled_down("small/base", store, tmp_path / "base", f"model.codec={codec}")) / "dit"
    parts = (f"model.codec={codec}", f"model.dit={dit}")
    coarse = train(scaled_down("small/coarse", store, tmp_path / "coarse", *parts)) / "pipeline"
    run = scaled_down("small/control", store, tmp_path / "control", f"model.pipeline={coarse}")
    model = load_model(train(run) / "pipeline", "cpu")
    assert model.files.preprocessing.size == 128  # the store's, not that of `coarse`
    assert load_model(coarse, "cpu").files.preprocessing.size == 64


@pytest.mark.parametrize("name", ["unet", "dynunet"])
def test_a_baselines_recipes_follow_each_other_and_see_what_control_sees(
    store: Path, tmp_path: Path, name: str
) -> None:
    start = ""
    for ending, like in (("-coarse", "coarse"), ("", "control")):
        run, control = (
            load_config(RECIPES / f"{path}.yaml") for path in (f"benchmark/{name}{ending}", f"small/{like}")
        )
        assert (run.data, run.objective) == (control.data, control.objective)
        assert (run.batch_size, run.model.method, run.saved_dtype) == (4, name, "float32")
        small = scaled_down(f"benchmark/{name}{ending}", store, tmp_path / f"run{ending}", *([start] if start else []))
        folder = train(small) / "pipeline"
        assert load_model(folder, "cpu").files.training_cases["train"] == ["a", "b"]
        start = f"model.pipeline={folder}"


def test_the_dynunets_widths_are_those_of_nnunets_rules() -> None:
    run = load_config(RECIPES / "benchmark" / "dynunet-coarse.yaml")
    assert tuple(run.model.sizes["widths"]) == nnunet_widths(192)


def test_the_papers_form_and_the_one_without_diffusion_differ_from_small_as_they_say(
    store: Path, tmp_path: Path
) -> None:
    for ending, like in (("-coarse", "coarse"), ("", "control")):
        small, direct = (
            load_config(RECIPES / f"{path}.yaml") for path in (f"small/{like}", f"benchmark/direct{ending}")
        )
        ours = small.model_dump(exclude={"output", "model"})
        assert direct.model_dump(exclude={"output", "model"}) == ours
        same = {"pipeline": small.model.pipeline, "method": "meddelinea"}
        assert (direct.model.method, direct.model.model_copy(update=same)) == ("direct", small.model)
    codec = f"model.codec={train(scaled_down('small/codec', store, tmp_path / 'codec')) / 'codec'}"
    dit = f"model.dit={train(scaled_down('small/base', store, tmp_path / 'base', codec)) / 'dit'}"
    run = scaled_down("benchmark/direct-coarse", store, tmp_path / "direct", codec, dit)
    assert load_model(train(run) / "pipeline", "cpu").pipeline.sampler().scheduler is None


def test_the_papers_own_form_sees_the_image_through_its_latent_alone(store: Path, tmp_path: Path) -> None:
    names = ("codec", "base", "literal-base", "literal", "learnable", "learnable-tilted")
    assert {path.stem for path in (RECIPES / "faithful").glob("*.yaml")} == set(names)
    runs = {name: load_config(RECIPES / "faithful" / f"{name}.yaml") for name in names}
    sizes = runs["codec"].model.sizes
    preset = find_preset("small", sizes)
    assert not any((preset.stem_channels, preset.head_hidden))
    assert all(run.model.sizes == sizes and run.data.train == runs["codec"].data.train for run in runs.values())
    for name in ("learnable", "literal"):
        model = runs[name].model
        assert (model.base, model.trainable_decoder, model.method) == ("frozen", "final_layer", "meddelinea")
        assert runs[name].validation.sampling_steps > 1
    tilted = runs["learnable-tilted"].data.augmentation
    assert replace(tilted, tilt_deg=0.0) == runs["learnable"].data.augmentation != tilted
    literal, paper = runs["literal"], load_config(RECIPES / "paper" / "pretrain.yaml")
    assert literal.objective == paper.objective
    assert literal.data.augmentation == paper.data.augmentation
    assert (literal.data.rare_organ_share, literal.data.empty_share, literal.data.thickest) == (0.0, 1.0, 1)

    small = (
        "model.sizes.codec={channels: 16, encoder_blocks: 1, decoder_blocks: 1, latent_channels: 6, "
        "image_channels: 12, fine_channels: 48}"
    )
    codec = train(scaled_down("faithful/codec", store, tmp_path / "codec", small)) / "codec"
    for base, control in (("base", "learnable"), ("literal-base", "literal")):
        on = (small, f"model.codec={codec}")
        dit = train(scaled_down(f"faithful/{base}", store, tmp_path / base, *on)) / "dit"
        run = scaled_down(f"faithful/{control}", store, tmp_path / control, *on, f"model.dit={dit}")
        assert load_model(train(run) / "pipeline", "cpu").pipeline.sampler().steps == run.validation.sampling_steps


def test_the_benchmark_compares_the_recipes_that_there_are() -> None:
    both = {f"{name}{ending}" for name in ("direct", "unet", "dynunet", "round-7") for ending in ("", "-coarse")}
    files = {"accuracy", "first-fold", "folds", "paper", "paper-form", "paper-small"}
    assert set(BENCHMARK) == {*files, "ct-alone", *both}
    bench = read_bench_file(RECIPES / "benchmark" / "accuracy.yaml")
    stages = {name: [load_config(path) for path in paths] for name, paths in bench.methods.items()}
    assert {name: [run.stage for run in runs] for name, runs in stages.items()} == {
        "MedDelinea": ["codec", "base", "model", "model"],
        "Without diffusion": ["codec", "base", "model", "model"],
        "U-Net": ["model", "model"],
        "DynUNet": ["model", "model"],
    }
    for run in (run for runs in stages.values() for run in runs):
        assert (run.data.store, run.data.train) == (bench.store, bench.train)
    assert not set(bench.train) & set(bench.test)
    fold = read_bench_file(RECIPES / "benchmark" / "first-fold.yaml")
    assert fold.test == bench.train[::3]
    assert {*fold.train, *fold.test} == set(bench.train)
    assert fold.cpu_minutes / len(fold.train) == bench.cpu_minutes / len(bench.train)
    assert fold.methods.items() <= bench.methods.items()
    form = read_bench_file(RECIPES / "benchmark" / "paper-form.yaml")
    assert (form.train, form.test, form.store) == (bench.train, bench.test, bench.store)
    trained = [paths for paths in form.methods.values() if not isinstance(paths, TrainedModel)]
    assert len(trained) == 3
    for paths in trained:
        (run,) = map(load_config, paths)
        assert (run.cpu_minutes, run.seed, run.stage) == (form.cpu_minutes, form.seed, "model")


#: What a run file of `first-fold` is but for its cases, its output and where its parts lie.
LIKE = {
    "codec": "faithful/codec",
    "base": "faithful/base",
    "base-450": "faithful/base",
    "learnable": "faithful/learnable",
    "base-trained": "faithful/learnable",
    "base-random": "faithful/learnable",
    "base-short": "faithful/learnable",
    "small-codec": "small/codec",
    "small-base": "small/base",
    "small-coarse": "small/coarse",
    "small-control": "small/control",
}


def test_the_recipes_of_the_first_fold_are_those_of_all_patients_on_fewer() -> None:
    folder = RECIPES / "first-fold"
    assert {path.stem for path in folder.glob("*.yaml")} == {*LIKE, "freezing", "few-patients"}
    fold = read_bench_file(RECIPES / "benchmark" / "first-fold.yaml")
    parts = {"codec", "dit", "pipeline", "base"}
    for name, like in LIKE.items():
        ours, theirs = load_config(folder / f"{name}.yaml"), load_config(RECIPES / f"{like}.yaml")
        assert ours.data.train == fold.train
        free = {"output": True, "data": {"train"}, "model": parts, "steps": True, "cpu_minutes": True}
        assert ours.model_dump(exclude=free) == theirs.model_dump(exclude=free)
        stands_on = (ours.model.codec, ours.model.dit, ours.model.pipeline)
        assert all(str(path).startswith("runs/first-fold/") for path in stands_on if path)
    for bench in (read_bench_file(folder / f"{name}.yaml") for name in ("freezing", "few-patients")):
        assert (bench.train, bench.test, bench.store) == (fold.train, fold.test, fold.store)
    runs = {name: load_config(folder / f"{name}.yaml") for name in LIKE}
    assert [runs[f"base-{kind}"].model.base for kind in ("trained", "random", "short")] == [
        "trained",
        "random",
        "frozen",
    ]
    assert runs["base-450"].steps == 450


def test_the_methods_over_latents_differ_from_the_learnable_form_in_what_is_trained_alone() -> None:
    ours = load_config(RECIPES / "comparison" / "dit.yaml")
    theirs = load_config(RECIPES / "faithful" / "learnable.yaml")
    assert (ours.data, ours.objective, ours.validation) == (theirs.data, theirs.objective, theirs.validation)
    assert (ours.batch_size, ours.cpu_minutes, ours.seed) == (theirs.batch_size, theirs.cpu_minutes, theirs.seed)
    for name in ("stable-diffusion", "controlnet", "vqdiffusion"):
        other = load_config(RECIPES / "comparison" / f"{name}.yaml")
        assert (other.data, other.optimiser, other.cpu_minutes) == (ours.data, ours.optimiser, ours.cpu_minutes)
        assert other.model.codec == ours.model.codec
    for method in ("controlnet", "vqdiffusion"):
        base = load_config(RECIPES / "comparison" / f"{method}-base.yaml")
        assert load_config(RECIPES / "comparison" / f"{method}.yaml").model.dit == base.result


@pytest.mark.parametrize("name", ["transunet", "synergynet", "medsegdiff", "medsam"])
def test_the_methods_over_pixels_have_the_same_data_and_time_and_start(store: Path, tmp_path: Path, name: str) -> None:
    ours, like = (load_config(RECIPES / "comparison" / f"{recipe}.yaml") for recipe in (name, "dit"))
    sizes = {"resolutions", "neighbour_pairs"}
    assert ours.data.model_dump(exclude=sizes) == like.data.model_dump(exclude=sizes)
    assert (ours.batch_size, ours.cpu_minutes, ours.seed) == (like.batch_size, like.cpu_minutes, like.seed)
    assert (ours.model.codec, ours.model.method, ours.saved_dtype) == (None, name, "float32")
    start = ()
    if name == "medsam":
        pytest.importorskip("transformers")
        assert ours.model.boxes == load_config(RECIPES / "benchmark" / "unet.yaml").result
        boxes = train(scaled_down("benchmark/unet-coarse", store, tmp_path / "unet")) / "pipeline"
        start = (f"model.boxes={boxes}",)
    folder = train(scaled_down(f"comparison/{name}", store, tmp_path / "run", *start)) / "pipeline"
    assert load_model(folder, "cpu").files.training_cases["train"] == ["a", "b"]


def test_what_small_is_compared_with_differs_in_what_it_says() -> None:
    unlike = {"output": True, "model": {"pipeline"}}
    for ending in ("", "-coarse"):
        small = load_config(RECIPES / "small" / f"{'coarse' if ending else 'control'}.yaml")
        before = load_config(RECIPES / "benchmark" / f"round-7{ending}.yaml")
        assert (before.optimiser.kind, before.data.augmentation.tilt_deg) == ("adamw", 0.0)
        assert before.data.augmentation.appearance == 0.0
        drawn = small.data.augmentation
        same_drawn = replace(before.data.augmentation, tilt_deg=drawn.tilt_deg, appearance=drawn.appearance)
        data = before.data.model_copy(update={"augmentation": same_drawn})
        optimiser = before.optimiser.model_copy(update={"kind": small.optimiser.kind})
        same = before.model_copy(update={"data": data, "optimiser": optimiser})
        assert same.model_dump(exclude=unlike) == small.model_dump(exclude=unlike)
    alone, small = load_config(RECIPES / "benchmark" / "ct-alone.yaml"), load_config(RECIPES / "small" / "control.yaml")
    assert alone.data.augmentation == replace(small.data.augmentation, appearance=0.0)
    assert alone.model == small.model
