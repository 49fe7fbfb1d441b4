"""What users of diffusers rely on in any of its models holds for ours: saving, loading, averaging, calling."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from diffusers.utils import BaseOutput
from safetensors.torch import load_file
from torch import Tensor

from meddelinea.models.codec import KLCodec, SpaceToDepthCodec
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import GuidedMaskHead, PlainMaskHead


@dataclass(frozen=True)
class Component:
    """A model so small that it answers in milliseconds, what it is called with, and what a call makes no use of."""

    build: Callable[[], ModelMixin]
    inputs: Callable[[], dict[str, Any]]
    elsewhere: tuple[str, ...] = ()  # parts that other methods use


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


COMPONENTS = {
    "DiT": Component(
        lambda: DiT(latent_size=8, width=32, depth=2, heads=2, classes=3),
        lambda: {"latent": noise(2, 4, 8, 8), "condition": noise(2, 32)},
        ("t_embedder.", "y_embedder."),
    ),
    "ControlDiT": Component(
        lambda: ControlDiT(latent_size=8, width=32, depth=2, heads=2),
        lambda: {"noisy": noise(2, 4, 8, 8), "image_latent": noise(2, 4, 8, 8, seed=2), "condition": noise(2, 32)},
    ),
    "ControlDiT with a stem": Component(
        lambda: ControlDiT(latent_size=8, width=32, depth=1, heads=2, stem_channels=(8, 8)),
        lambda: {
            "noisy": noise(2, 4, 8, 8),
            "image_latent": noise(2, 4, 8, 8, seed=2),
            "condition": noise(2, 32),
            "image_tokens": noise(2, 16, 32, seed=3),
        },
        ("stem.",),
    ),
    "PlainMaskHead": Component(
        lambda: PlainMaskHead(feature_channels=16, feature_factor=8, organs=3),
        lambda: {"features": noise(2, 16, 4, 6), "image_levels": (), "tokens": noise(2, 6, 32)},
    ),
    "GuidedMaskHead": Component(
        lambda: GuidedMaskHead(
            feature_channels=16, feature_factor=8, organs=3, image_channels=(8, 16), hidden=(8, 16), token_width=32
        ),
        lambda: {
            "features": noise(2, 16, 4, 6),
            "image_levels": (noise(2, 8, 8, 12, seed=2), noise(2, 16, 4, 6, seed=3)),
            "tokens": noise(2, 6, 32, seed=4),
        },
    ),
    "KLCodec": Component(
        lambda: KLCodec(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
        ),
        lambda: {"sample": noise(2, 3, 16, 16)},
    ),
    "SpaceToDepthCodec": Component(
        lambda: SpaceToDepthCodec(channels=16, encoder_blocks=1, decoder_blocks=1, scaling_factor=0.7),
        lambda: {"pixels": noise(2, 3, 16, 24)},
    ),
}


@pytest.fixture(params=list(COMPONENTS))
def component(request: pytest.FixtureRequest) -> Component:
    return COMPONENTS[request.param]


def built(component: Component) -> ModelMixin:
    """In evaluation mode, with every parameter drawn anew: zero layers would hide what is behind them."""
    model, generator = component.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def answer(model: ModelMixin, component: Component) -> Tensor:
    """The first tensor of what it returns."""
    return _tensors(model(**component.inputs(), return_dict=False))[0]


def require_same_weights(model: ModelMixin, other: ModelMixin) -> None:
    state, other_state = model.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name


def test_a_saved_model_is_loaded_in_evaluation_mode_and_answers_bit_for_bit(
    component: Component, tmp_path: Path
) -> None:
    model = built(component)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    require_same_weights(model, loaded)
    assert torch.equal(answer(loaded, component), answer(model, component))


def test_the_configuration_alone_rebuilds_the_model(component: Component, tmp_path: Path) -> None:
    model = built(component)
    model.save_config(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["_class_name"] == type(model).__name__
    for config in (model.config, type(model).load_config(tmp_path)):
        again = type(model).from_config(config)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        assert {name: value.shape for name, value in again.state_dict().items()} == shapes
        written = {key: value for key, value in again.config.items() if not key.startswith("_")}
        assert json.loads(json.dumps(written)) == {k: v for k, v in stored.items() if not k.startswith("_")}


def test_a_variant_is_saved_and_loaded_by_its_name(component: Component, tmp_path: Path) -> None:
    model = built(component)
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    require_same_weights(model, type(model).from_pretrained(tmp_path, variant="fp16"))
    with pytest.raises(OSError, match="no file named"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_put_together_again(component: Component, tmp_path: Path, variant: str | None) -> None:
    model = built(component)
    sizes = [value.numel() * value.element_size() for value in model.state_dict().values()]
    model.save_pretrained(tmp_path, max_shard_size=max(*sizes, sum(sizes) // 2), variant=variant)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    (index,) = tmp_path.glob("*.safetensors.index*json")
    weight_map = json.loads(index.read_text())["weight_map"]
    assert weight_map.keys() == model.state_dict().keys()
    assert set(weight_map.values()) == {path.name for path in shards}
    require_same_weights(model, type(model).from_pretrained(tmp_path, variant=variant))


def test_weights_load_with_and_without_the_empty_skeleton(component: Component, tmp_path: Path) -> None:
    """`low_cpu_mem_usage` builds the model without memory first; what `__init__` computes would be lost."""
    model = built(component)
    model.save_pretrained(tmp_path)
    for skeleton in (True, False):
        loaded = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=skeleton)
        assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))
        assert torch.equal(answer(loaded, component), answer(model, component))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_precision_is_kept_on_disk_and_chosen_at_loading(
    component: Component, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = built(component).to(dtype)
    assert model.dtype == dtype
    model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {dtype}
    for chosen in (dtype, torch.float32):
        loaded = type(model).from_pretrained(tmp_path, torch_dtype=chosen)
        assert {value.dtype for value in loaded.state_dict().values()} == {chosen}


def test_a_part_may_be_kept_in_float32(component: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(component)
    model.save_pretrained(tmp_path)
    kept = next(iter(model.state_dict())).split(".")[0]
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", [kept])
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.float16)
    for name, value in loaded.state_dict().items():
        assert value.dtype == (torch.float32 if kept in name.split(".") else torch.float16), name


def test_in_half_precision_it_answers_nearly_the_same(component: Component) -> None:
    model = built(component)
    exact = answer(model, component)
    model.bfloat16()
    with torch.no_grad():
        inputs = {name: _to(value, torch.bfloat16) for name, value in component.inputs().items()}
        half = _tensors(model(**inputs, return_dict=False))[0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


def _to(value: Any, dtype: torch.dtype) -> Any:
    """The tensors within `value` in another precision."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return type(value)(_to(part, dtype) for part in value) if isinstance(value, tuple | list) else value


def test_the_same_question_has_the_same_answer(component: Component) -> None:
    model = built(component)
    assert torch.equal(answer(model, component), answer(model, component))


def test_an_object_and_a_tuple_hold_the_same(component: Component) -> None:
    model = built(component)
    with torch.no_grad():
        found, parts = model(**component.inputs()), model(**component.inputs(), return_dict=False)
    assert isinstance(found, BaseOutput)
    assert type(parts) is tuple
    assert len(found.to_tuple()) == len(parts)
    for name, expected, part in zip(found, parts, found.to_tuple(), strict=True):
        assert getattr(found, name) is found[name]
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name")  # EMAModel does so itself
def test_every_parameter_learns_and_their_average_follows(component: Component, tmp_path: Path) -> None:
    model = built(component).train()
    parameters = dict(model.named_parameters())
    average = EMAModel(model.parameters(), decay=0.5, model_cls=type(model), model_config=model.config)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):  # the average starts at the second step
        optimiser.zero_grad()
        sum(
            part.float().square().mean() for part in _tensors(model(**component.inputs(), return_dict=False))
        ).backward()
        optimiser.step()
        average.step(model.parameters())
    unused = {name for name, value in parameters.items() if value.grad is None}
    assert unused == {name for name in parameters if name.startswith(component.elsewhere)}
    for name in parameters.keys() - unused:
        assert parameters[name].grad.any(), name

    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, type(model))
    assert loaded.optimization_step == 2
    for name, value, again in zip(parameters, average.shadow_params, loaded.shadow_params, strict=True):
        assert torch.equal(value, again), name
    model.eval()
    average.store(model.parameters())
    live = answer(model, component)
    average.copy_to(model.parameters())
    assert not torch.equal(answer(model, component), live)
    average.restore(model.parameters())
    assert torch.equal(answer(model, component), live)


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in _tensors(part)]


def test_checkpointing_changes_memory_and_no_gradient(component: Component) -> None:
    plain, saving = built(component).train(), built(component).train()
    if not plain._supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            saving.enable_gradient_checkpointing()
        return
    assert not saving.is_gradient_checkpointing
    saving.enable_gradient_checkpointing()
    assert saving.is_gradient_checkpointing
    kept: list[list[torch.Size]] = []
    for model in (plain, saving):
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(lambda value: kept[-1].append(value.shape) or value, lambda v: v):
            loss = sum(part.square().mean() for part in _tensors(model(**component.inputs(), return_dict=False)))
        loss.backward()
    assert len(kept[1]) < len(kept[0]) / 2
    for (name, value), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        assert value.grad is None or torch.equal(value.grad, other.grad), name
    saving.disable_gradient_checkpointing()
    assert not saving.is_gradient_checkpointing


def test_attributes_of_the_configuration_are_not_attributes_of_the_model(component: Component) -> None:
    """Only `config` holds them, and nothing of ours relies on the deprecated way."""
    model = built(component)
    model.register_to_config(remark="x")
    assert model.config.remark == "x"
    with pytest.warns(FutureWarning, match="remark"):
        assert model.remark == "x"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = model.absent
