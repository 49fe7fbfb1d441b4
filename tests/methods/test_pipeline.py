"""The pipeline on disk and in use: a folder in diffusers' form, and masks that depend on image and key alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.errors import UsageError
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.models.codec import SHARPNESS
from meddelinea.models.control import ControlDiT
from support.pipelines import KEYS, ORGANS, STEM, images, randomised, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def logits_of(
    pipeline: MedDelineaPipeline,
    pictures: torch.Tensor | None = None,
    keys: Sequence[NoiseKey] = KEYS,
    num_inference_steps: int | None = None,
) -> torch.Tensor:
    pictures = images() if pictures is None else pictures
    return pipeline(pictures, keys=keys, num_inference_steps=num_inference_steps, output_type="logits").logits


@pytest.mark.parametrize("kind", ["guided", "paper", "palette"])
def test_saved_and_loaded_gives_the_same_logits_bit_for_bit(kind: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(kind)
    logits = logits_of(pipeline)
    assert logits.shape == (4, 4, 32, 48)
    assert logits.isfinite().all()
    assert logits.std() > 0
    pipeline.save_pretrained(tmp_path)

    loaded = MedDelineaPipeline.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits)
    assert (loaded.mask_head is None) == (kind == "palette")
    assert tuple(loaded.config.organs) == ORGANS
    assert (loaded.config.default_steps, loaded.config.neighbours) == (3, 2)


def test_the_folder_has_diffusers_layout_and_no_pickle(tmp_path: Path) -> None:
    tiny_pipeline("guided").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "MedDelineaPipeline"
    for component in ("codec", "dit", "control", "mask_head"):
        assert (tmp_path / component / "config.json").is_file()
        assert len(list((tmp_path / component).glob("*.safetensors"))) == 1
    assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_another_scheduler_may_take_the_place_of_the_default(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("guided")
    first = logits_of(pipeline)
    pipeline.save_pretrained(tmp_path)
    other = make_scheduler("dpmpp_2m")
    swapped = MedDelineaPipeline.from_pretrained(tmp_path, scheduler=other)
    assert isinstance(swapped.scheduler, DPMSolverMultistepScheduler)
    second = logits_of(swapped)
    assert not torch.allclose(first, second)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(other.config)
    assert torch.equal(logits_of(pipeline), second)


def test_steps_default_to_the_models_own() -> None:
    pipeline = tiny_pipeline("guided")
    assert torch.equal(
        logits_of(pipeline, images(1), KEYS[:1]), logits_of(pipeline, images(1), KEYS[:1], num_inference_steps=3)
    )
    assert not torch.allclose(
        logits_of(pipeline, images(1), KEYS[:1]), logits_of(pipeline, images(1), KEYS[:1], num_inference_steps=1)
    )


def test_a_slice_has_the_same_logits_alone_in_a_batch_and_in_any_order() -> None:
    pipeline = tiny_pipeline("guided")
    together = logits_of(pipeline)
    for i in range(4):
        torch.testing.assert_close(
            logits_of(pipeline, images()[i : i + 1], KEYS[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5
        )
    backwards = logits_of(pipeline, images().flip(0), KEYS[::-1])
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits_of(pipeline, images()[:1], KEYS[1:2]), together[:1], atol=1e-3)


def test_the_codec_sees_the_three_middle_slices_and_the_stem_all_of_them(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("guided")
    wide = randomised(ControlDiT.copy_of(pipeline.dit, 2, stem_channels=STEM, stem_slices=5))
    pipeline.control = wide
    pipeline.register_to_config(neighbour_pairs=2)
    pipeline.save_pretrained(tmp_path)
    loaded = MedDelineaPipeline.from_pretrained(tmp_path)
    five = torch.cat([images()[:, :1].flip(0), images(), images()[:, 2:].flip(0)], dim=1)
    segmenter = loaded.sampler().method.segmenter
    assert torch.equal(segmenter.encode_image(five).latent, loaded.codec.to_latent(images()))
    logits = logits_of(loaded, five)
    assert torch.equal(logits, logits_of(pipeline, five))
    assert not torch.allclose(logits, logits_of(loaded, five[:, [4, 1, 2, 3, 0]]), atol=1e-3)
    with pytest.raises(UsageError, match=r"\(B, 5, H, W\)"):
        logits_of(loaded)


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 1, 32, 32), (4, 3, 32, 40), (4, 3, 24, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        tiny_pipeline("guided")(torch.zeros(shape), keys=KEYS)


def test_one_key_an_image_is_asked_for() -> None:
    with pytest.raises(UsageError, match="3 noise keys for 4 images"):
        tiny_pipeline("guided")(images(), keys=KEYS[:3])


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="sampling steps"):
        tiny_pipeline("guided")(images(), keys=KEYS, num_inference_steps=steps)


def test_no_mask_head_means_the_nearest_palette_colour() -> None:
    pipeline = tiny_pipeline("palette")
    segmenter = pipeline.sampler().method.segmenter
    image = segmenter.encode_image(images(1))
    clean = torch.randn(1, 4, 4, 6)
    logits = segmenter.decode(clean, image, torch.empty(0))
    painted = pipeline.codec.to_pixels(pipeline.codec.to_features(clean))
    distances = (painted[:, None] - segmenter.palette[None, :, :, None, None]).square().sum(2)
    torch.testing.assert_close(logits, -SHARPNESS * distances, rtol=1e-4, atol=1e-3)
