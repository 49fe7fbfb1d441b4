"""Run files are checked wholly: whatever is wrong with any setting, the command says so in a line and starts nothing.

The settings are walked as pydantic describes them, so that a new one without a range or a closed list fails here.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from meddelinea.errors import UsageError
from meddelinea.methods.dit import DiTSizes
from meddelinea.methods.dynunet import DynUNetSizes
from meddelinea.methods.medsegdiff import MedSegDiffSizes
from meddelinea.methods.synergynet import SynergyNetSizes
from meddelinea.methods.transunet import TransUNetSizes
from meddelinea.methods.unet import UNetSizes
from meddelinea.models.codes import VQDiffusionSizes
from meddelinea.models.latent_unet import LatentUNetSizes
from meddelinea.models.presets import AutoencoderSizes, Preset
from meddelinea.training import engine
from meddelinea.training.config import RunConfig, SplitConfig
from meddelinea.training.run_file import load_config
from support.cli import Run

Document = dict[str, Any]

LEAST: Document = {"stage": "base", "output": "out", "steps": 10, "data": {"store": "s", "train": ["a", "b"]}}
SPLIT: Document = {**LEAST, "data": {"store": "s", "split": {"train": 0.5}}}
SPLIT: Document = {**LEAST, "data": {"store": "s", "split": {"train": 0.5}}}
#: Settings whose values are names that only the user knows.
FREE = {"output", "store", "train", "validation", "test", "codec", "dit", "boxes", "pipeline"}


class Setting(NamedTuple):
    """A setting or a section: where it stands, what pydantic says of it, and a run file that it belongs into."""

    place: tuple[str, ...]
    schema: Document
    nullable: bool
    file: Document

    @property
    def name(self) -> str:
        return ".".join(self.place)

    def given(self, value: Any) -> Document:
        """The run file with this value."""
        content = json.loads(json.dumps(self.file))
        section = content
        for name in self.place[:-1]:
            section = section.setdefault(name, {})
        section[self.place[-1]] = value
        return content


def walk(document: Document, file: Document, place: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting and section of a schema."""
    definitions = document.get("$defs", {})
    for name, entry in document["properties"].items():
        options = entry.get("anyOf", [entry])
        own = next(option for option in options if option.get("type") != "null")
        own = definitions[own["$ref"].split("/")[-1]] if "$ref" in own else own
        yield Setting((*place, name), own, {"type": "null"} in options, file)
        if "properties" in own:
            yield from walk({**own, "$defs": definitions}, file, (*place, name))


def described(kind: Any, place: tuple[str, ...], **model: str) -> Iterator[Setting]:
    """The sizes of a model at their place in a run file, which pydantic does not see there."""
    return walk(TypeAdapter(kind).json_schema(), {**LEAST, "stage": "model", "model": model}, place)


SETTINGS = [
    *(setting for setting in walk(RunConfig.model_json_schema(), LEAST) if setting.place[:2] != ("data", "split")),
    *walk(SplitConfig.model_json_schema(), SPLIT, ("data", "split")),
    *described(Preset, ("model", "sizes")),
    *described(AutoencoderSizes, ("model", "sizes", "codec"), preset="paper"),
    *described(UNetSizes, ("model", "sizes"), method="unet"),
    *described(DynUNetSizes, ("model", "sizes"), method="dynunet"),
    *described(DiTSizes, ("model", "sizes"), method="dit"),
    *described(LatentUNetSizes, ("model", "sizes"), method="controlnet"),
    *described(VQDiffusionSizes, ("model", "sizes"), method="vqdiffusion"),
    *described(TransUNetSizes, ("model", "sizes"), method="transunet"),
    *described(SynergyNetSizes, ("model", "sizes"), method="synergynet"),
    *described(MedSegDiffSizes, ("model", "sizes"), method="medsegdiff"),
]
NUMBERS = [setting for setting in SETTINGS if setting.schema.get("type") in ("integer", "number")]


def bounds(schema: Document) -> tuple[float, float]:
    """The least and the largest value that a number may have, or that it has to stay inside of."""
    return (
        schema.get("minimum", schema.get("exclusiveMinimum", -math.inf)),
        schema.get("maximum", schema.get("exclusiveMaximum", math.inf)),
    )


def items(schema: Document) -> Document:
    """What an array holds; of all else the schema itself."""
    return schema.get("items", schema.get("prefixItems", [schema])[0])


def wrong_values(schema: Document, nullable: bool, rng: np.random.Generator) -> list[Any]:
    """Values that a setting of this schema must not have, some of them random."""
    kind = schema.get("type")
    wrong: list[Any] = [] if nullable else [None]
    if kind in ("integer", "number"):
        least, most = bounds(schema)
        away = float(rng.uniform(1, 1000))
        wrong += [math.nan, math.inf, -math.inf, 10**30, -(10**30), "abc", "3", True, [3], {"a": 3}]
        wrong += [math.floor(least - away), math.ceil(most + away)]
        wrong += [value for name, value in schema.items() if name.startswith("exclusive")]
        wrong += [least + 0.5] if kind == "integer" else []
        wrong += [least + 1] if "multipleOf" in schema else []
    elif kind == "boolean":
        wrong += [1, 0, 0.5, "maybe", "true", [True], {}]
    elif kind == "array":
        wrong += [3, "text", True, {"a": 1}]
        wrong += [[value] for value in wrong_values(items(schema), False, rng)]
        if items(schema).get("type") == "integer":
            wrong += [[bounds(items(schema))[0]] * (schema["maxItems"] + 1)]
    elif "enum" in schema or "const" in schema:
        wrong += ["".join(rng.choice(list("abcdefgh"), 7)), "", 3, 0.5, [], {}]
    elif kind == "string":
        wrong += [3, 0.5, True, ["a", "b"], {"a": "b"}]
    else:
        wrong += [3, "text", True, [1], {"no_such_setting": 1}]
    return wrong


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_wrong_value_ends_the_command_in_one_line_before_anything_starts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    monkeypatch.setattr(engine, "train", None)
    file = tmp_path / "run.yaml"
    rng = np.random.default_rng(zlib.crc32(setting.name.encode()))
    values = wrong_values(setting.schema, setting.nullable, rng)
    drawn = rng.integers(len(values))
    for number, value in enumerate(values):
        file.write_text(yaml.safe_dump(setting.given(value)))
        with pytest.raises(UsageError) as caught:
            load_config(file)
        refusal = str(caught.value)
        assert refusal.startswith(f"{file}: "), value
        assert "\n" not in refusal, value
        assert len(refusal) < 600, value
        assert setting.place[-1] in refusal, (value, refusal)
        if number == drawn:  # the command itself takes longer
            assert run("train", file) == (2, "", f"error: {refusal}\n")
    file.write_text(yaml.safe_dump(setting.file))
    code, out, err = run("train", file, "--set", f"{setting.name}={json.dumps(values[-1])}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_every_number_has_a_range_and_every_name_a_closed_list() -> None:
    for setting in SETTINGS:
        own = items(setting.schema)
        if own.get("type") in ("integer", "number"):
            assert all(math.isfinite(bound) for bound in bounds(own)), setting.name
        elif own.get("type") == "string" and not {"enum", "const"} & own.keys():
            assert setting.place[-1] in FREE, setting.name


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)
def test_the_ends_of_a_range_are_inside_it(tmp_path: Path, setting: Setting) -> None:
    ends: list[Any] = [setting.schema[name] for name in ("minimum", "maximum") if name in setting.schema]
    inside = [sum(bounds(setting.schema)) / 2] if setting.schema["type"] == "number" else []
    for value in (*ends, *inside):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(setting.given(value)))
        try:
            load_config(tmp_path / "run.yaml")
        except UsageError as error:
            refusal = str(error)
            assert "Input should" not in refusal, value  # only that it does not go with other settings


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"sizes": {"width": 190}}, "width: Input should be a multiple of 4 (got 190)"),
        ({"sizes": {"width": 188, "heads": 3}}, "width 188 cannot be divided among 3 heads"),
        ({"sizes": {"widht": 3}}, "widht: Unexpected keyword argument (got 3)"),
        ({"preset": "smal"}, "model.preset: Input should be 'small', 'paper' or 'xl' (got 'smal')"),
        ({"method": "transunet", "sizes": {"heads": 5}}, "width 192 cannot be divided among 5 heads"),
        ({"method": "synergynet", "sizes": {"heads": 3}}, "widths end at 256, which cannot be divided among 3 heads"),
        ({"method": "unet", "preset": "xl"}, "unknown preset 'xl'; expected small or paper"),
        ({"method": "unet", "sizes": {"depth": 3}}, "depth: Unexpected keyword argument (got 3); known: widths"),
    ],
)
def test_sizes_of_networks_that_cannot_be_built_are_refused(
    run: Run, tmp_path: Path, model: Document, words: str
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**LEAST, "stage": "model", "model": model}))
    code, _, err = run("train", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'run.yaml'}: model" in err
    assert words in err


def test_a_number_of_steps_at_which_a_sampler_leaves_the_timesteps_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**LEAST, "validation": {"sampling_steps": 61}}))
    code, _, err = run("train", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "validation: sampling_steps, scheduler: " in err
    assert "61 steps" in err
