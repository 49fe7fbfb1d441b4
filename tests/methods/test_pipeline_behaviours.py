"""What users of diffusers rely on in any of its pipelines holds for ours: the call, its answer, saving, precision."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import BaseOutput
from torch import Tensor

from meddelinea.errors import UsageError
from meddelinea.methods.direct import DirectPipeline
from meddelinea.methods.dynunet import DynUNet, DynUNetPipeline
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from support.pipelines import KEYS, ORGANS, images, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

KINDS = ["guided", "paper", "palette"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipeline: DiffusionPipeline) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=KINDS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    return quiet(tiny_pipeline(request.param))


@pytest.fixture
def guided() -> Any:
    return quiet(tiny_pipeline("guided"))


def baseline() -> DynUNetPipeline:
    torch.manual_seed(0)
    return DynUNetPipeline(DynUNet(organs=3, slices=3, widths=[8, 16, 16]), organs=list(ORGANS))


def direct() -> DirectPipeline:
    parts = tiny_pipeline("guided").components
    del parts["scheduler"]
    return DirectPipeline(**parts, organs=list(ORGANS))


def test_the_call_has_the_parameters_that_diffusers_users_write() -> None:
    parameters = inspect.signature(MedDelineaPipeline.__call__).parameters
    optional = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    assert set(parameters) - optional == {"self", "images"}
    expected = {"num_inference_steps", "generator", "output_type", "return_dict", "callback_on_step_end"}
    assert expected <= optional


def test_each_output_type_is_another_view_of_the_same_answer(pipeline: Any) -> None:
    wanted = ("mask", "probabilities", "logits", "latent")
    answers = {kind: pipeline(images(), generator=generator(), output_type=kind) for kind in wanted}
    logits, probabilities = answers["logits"].logits, answers["probabilities"].probabilities
    assert logits.shape == (4, 4, 32, 48)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    masks = answers["mask"].masks
    assert masks.dtype == torch.uint8
    assert torch.equal(masks.long(), logits.argmax(dim=1))
    assert len(masks.unique()) > 1
    latents = answers["latent"].latents
    assert latents.shape == (4, 4, 4, 6)
    for kind, name in zip(wanted, ("masks", "probabilities", "logits", "latents"), strict=True):
        assert isinstance(answers[kind], BaseOutput)
        assert list(answers[kind]) == [name]
        assert answers[kind][0] is answers[kind][name]


def test_mask_is_the_default(guided: Any) -> None:
    answer = guided(images(), generator=generator())
    assert torch.equal(answer.masks, guided(images(), generator=generator(), output_type="mask").masks)


def test_a_tuple_holds_what_the_object_holds(pipeline: Any) -> None:
    (first,) = pipeline(images(), generator=generator(), return_dict=False)
    assert torch.equal(first, pipeline(images(), generator=generator()).masks)


def test_a_seed_repeats_the_answer_and_another_changes_it(pipeline: Any) -> None:
    def logits(**noise: Any) -> Tensor:
        return pipeline(images(), output_type="logits", **noise).logits

    assert torch.equal(logits(generator=generator(3)), logits(generator=generator(3)))
    assert not torch.allclose(logits(generator=generator(3)), logits(generator=generator(4)), atol=1e-3)
    torch.manual_seed(3)
    assert torch.equal(logits(), logits(generator=generator(3)))  # without either, torch's global state
    assert not torch.allclose(logits(), logits(generator=generator(3)), atol=1e-3)  # which has moved on
    assert torch.equal(logits(keys=KEYS), logits(keys=KEYS))


def test_a_batch_is_its_images_alone(pipeline: Any) -> None:
    together = pipeline(images(), generator=[generator(i) for i in range(4)], output_type="logits").logits
    for i in range(4):
        alone = pipeline(images()[i : i + 1], generator=generator(i), output_type="logits").logits
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_as_many_steps_are_taken_as_are_asked_for(guided: Any, steps: int) -> None:
    calls = []
    guided.dit.register_forward_hook(lambda *_: calls.append(1))
    guided(images(), num_inference_steps=steps)
    assert len(calls) == steps == guided.num_timesteps
    calls.clear()
    guided(images())
    assert len(calls) == guided.config.default_steps


def test_the_callback_sees_each_step(guided: Any) -> None:
    seen = []

    def watch(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipe is guided
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    answer = guided(
        images(),
        num_inference_steps=4,
        generator=generator(),
        output_type="latent",
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert torch.equal(seen[-1][2], answer.latents)
    undisturbed = guided(images(), num_inference_steps=4, generator=generator(), output_type="latent")
    assert torch.equal(answer.latents, undisturbed.latents)


def test_the_callback_may_change_the_latents_and_the_mask_follows(guided: Any) -> None:
    def clear(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last = step == pipe.num_timesteps - 1
        return {"latents": torch.zeros_like(tensors["latents"])} if last else tensors

    how = {"generator": generator(), "callback_on_step_end": clear}
    assert not guided(images(), output_type="latent", **how).latents.any()
    changed = guided(images(), output_type="logits", **how | {"generator": generator()}).logits
    plain = guided(images(), output_type="logits", generator=generator()).logits
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_a_callback_that_asks_for_no_tensor_and_returns_none_changes_nothing(guided: Any) -> None:
    given = []
    answer = guided(
        images(),
        generator=generator(),
        callback_on_step_end=lambda pipe, step, timestep, tensors: given.append(tensors),
        callback_on_step_end_tensor_inputs=[],
    )
    assert given == [{}, {}, {}]
    assert torch.equal(answer.masks, guided(images(), generator=generator()).masks)


def test_the_bar_counts_steps_and_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = tiny_pipeline("guided")
    pipeline(images(), num_inference_steps=2)
    assert "2/2" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(images(), num_inference_steps=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"output_type": "pil"}, "output type 'pil'; expected one of mask, probabilities, logits, latent"),
        ({"generator": [generator()] * 3}, "3 generators for 4 images; expected one, or one each"),
        ({"generator": generator(), "keys": KEYS}, "a generator and keys, which are both noise; expected one of them"),
        ({"keys": KEYS[:2]}, "2 noise keys for 4 images; expected one each"),
        ({"num_inference_steps": 0}, r"0 sampling steps; expected 1\.\.1000"),
        (
            {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
            "tensors prompt_embeds for the callback; expected latents",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(guided: Any, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        guided(images(), **wrong)
    assert "\n" not in str(refused.value)


def test_saved_and_loaded_it_answers_bit_for_bit(pipeline: Any, tmp_path: Path) -> None:
    expected = pipeline(images(), generator=generator(), output_type="logits").logits
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(MedDelineaPipeline.from_pretrained(tmp_path))
    assert torch.equal(loaded(images(), generator=generator(), output_type="logits").logits, expected)
    assert loaded.config.organs == pipeline.config.organs


def test_a_component_that_may_be_absent_stays_absent(guided: Any, tmp_path: Path) -> None:
    guided.mask_head = None
    expected = guided(images(), generator=generator(), output_type="logits").logits
    guided.save_pretrained(tmp_path)
    loaded = quiet(MedDelineaPipeline.from_pretrained(tmp_path))
    assert loaded.mask_head is None
    assert not (tmp_path / "mask_head").exists()
    assert torch.equal(loaded(images(), generator=generator(), output_type="logits").logits, expected)


def test_a_variant_is_saved_and_loaded_by_its_name(guided: Any, tmp_path: Path) -> None:
    guided.save_pretrained(tmp_path, variant="fp16")
    networks = [name for name, part in guided.components.items() if isinstance(part, torch.nn.Module)]
    for name in networks:
        assert (tmp_path / name / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = MedDelineaPipeline.from_pretrained(tmp_path, variant="fp16")
    for name in networks:
        for ours, theirs in zip(getattr(guided, name).parameters(), getattr(loaded, name).parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_components_make_another_pipeline_with_the_same_weights(guided: Any) -> None:
    assert set(guided.components) == {"codec", "dit", "control", "mask_head", "scheduler"}
    settings = {name: guided.config[name] for name in ("organs", "prediction_type", "default_steps", "neighbours")}
    again = quiet(MedDelineaPipeline(**guided.components, **settings))
    assert again.dit is guided.dit
    expected = guided(images(), generator=generator(), output_type="logits").logits
    assert torch.equal(again(images(), generator=generator(), output_type="logits").logits, expected)


def test_another_scheduler_may_take_the_place_of_the_default(guided: Any) -> None:
    first = guided(images(), generator=generator(), output_type="latent").latents
    guided.scheduler = DPMSolverMultistepScheduler.from_config(guided.scheduler.config)
    assert not torch.allclose(guided(images(), generator=generator(), output_type="latent").latents, first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_half_precision_it_answers_nearly_the_same(kind: str, dtype: torch.dtype) -> None:
    exact = quiet(tiny_pipeline(kind))(images(), generator=generator(), output_type="probabilities").probabilities
    pipeline = quiet(tiny_pipeline(kind)).to(dtype=dtype)
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in networks} == {dtype}
    half = pipeline(images(), generator=generator(), output_type="probabilities").probabilities
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")  # its new name is not in 0.37
def test_half_precision_survives_the_disk(guided: Any, tmp_path: Path) -> None:
    guided.to(torch.float16).save_pretrained(tmp_path)
    expected = guided(images(), generator=generator(), output_type="logits").logits
    loaded = quiet(MedDelineaPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16))
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded(images(), generator=generator(), output_type="logits").logits, expected)


def test_it_moves_as_a_whole(guided: Any) -> None:
    networks = [part for part in guided.components.values() if isinstance(part, torch.nn.Module)]
    assert guided.to("cpu") is guided
    assert {part.device.type for part in networks} == {"cpu"}
    guided.to("meta")
    assert guided.device.type == "meta"
    assert all(value.is_meta for part in networks for value in part.parameters())


def test_what_it_inherits_does_not_break_it(guided: Any) -> None:
    expected = guided(images(), generator=generator()).masks
    guided.enable_attention_slicing()
    assert torch.equal(guided(images(), generator=generator()).masks, expected)
    guided.disable_attention_slicing()
    with pytest.raises(ValueError, match="CPU offload"):
        guided.enable_model_cpu_offload()
    assert torch.equal(guided(images(), generator=generator()).masks, expected)


@pytest.mark.parametrize("build", [baseline, direct])
def test_a_pipeline_without_steps_has_the_same_answer_and_no_parameters_for_them(
    build: Callable[[], Any], tmp_path: Path
) -> None:
    pipeline = build()
    logits = pipeline(images(), output_type="logits").logits
    assert torch.equal(logits, pipeline.sampler().method.segment(images(), KEYS))
    assert torch.equal(pipeline(images()).masks.long(), logits.argmax(dim=1))
    (probabilities,) = pipeline(images(), output_type="probabilities", return_dict=False)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    assert torch.equal(loaded(images(), output_type="logits").logits, logits)

    with pytest.raises(TypeError, match="num_inference_steps"):
        pipeline(images(), num_inference_steps=4)
    with pytest.raises(UsageError, match="output type 'latent'; expected one of mask, probabilities, logits"):
        pipeline(images(), output_type="latent")
    with pytest.raises(UsageError, match=rf"H and W multiples of {pipeline.multiple}"):
        pipeline(images()[:, :, 1:])


def test_the_index_names_every_setting_of_the_pipeline(guided: Any, tmp_path: Path) -> None:
    guided.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    parameters = inspect.signature(MedDelineaPipeline.__init__).parameters
    assert set(parameters) - {"self"} == {name for name in index if not name.startswith("_")}
