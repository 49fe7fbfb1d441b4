"""From noise to a clean latent with the samplers of diffusers, used as they are documented."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LMSDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from meddelinea.diffusion.early import EarlyEndScheduler
from meddelinea.diffusion.noise import Noise
from meddelinea.diffusion.schedule import BETA_END, BETA_START, TIMESTEPS, NoiseSchedule
from meddelinea.errors import UsageError, WeightsMissingError, reason_of
from meddelinea.models.component import is_plain, read_document, shown

Extras = TypeVar("Extras")
#: z_t (B, C, h, w) at the scale of `NoiseSchedule.add_noise`, t (B,) int64 -> predicted noise eps (B, C, h, w), and
#: whatever else the network has to say of the pass.
Denoiser: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Extras]]
#: Number of the step that was taken, its timestep, its latents (B, C, h, w) -> the latents that the next one is given.
StepCallback: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]

SchedulerName = Literal["euler_ancestral", "ddim", "early_ddim", "dpmpp_2m", "unipc", "lms"]

_BY_NAME: dict[str, Callable[..., SchedulerMixin]] = {
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    # First-order DPM-Solver++ is DDIM (Lu et al. 2022, Sec. 4). DDIMScheduler itself takes T // steps as the distance
    # to the next timestep and so leaves noise in the result unless the number of steps divides T.
    "ddim": partial(DPMSolverMultistepScheduler, solver_order=1),
    "early_ddim": partial(EarlyEndScheduler, solver_order=1, steps_offset=900),
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lms": LMSDiscreteScheduler,
}

#: The classes of the schedulers that a saved model may hold.
SCHEDULER_CLASSES: tuple[type[SchedulerMixin], ...] = (
    EulerAncestralDiscreteScheduler,
    EarlyEndScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    LMSDiscreteScheduler,
)

#: Names that `make_scheduler` knows; the first is the paper's, and `early_ddim` ends at timestep 900.
SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)


def make_scheduler(name: str) -> SchedulerMixin:
    """One of the `SCHEDULERS`, over the betas that the network was trained with.

    All take the network's output as noise, whatever its own parameterisation (`Prediction.epsilon` converts it),
    start at the last timestep, t = T - 1, with any number of steps, and clip nothing.

    Raises
    ------
    UsageError
        If there is no scheduler of that name.
    """
    if name not in _BY_NAME:
        raise UsageError(f"unknown scheduler {name!r}; expected one of {', '.join(SCHEDULERS)}")
    with torch.device("cpu"):  # its tables become numpy's, also where networks are built that hold no memory
        return _BY_NAME[name](
            num_train_timesteps=TIMESTEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="linear",
            prediction_type="epsilon",
            timestep_spacing="trailing",
        )


def load_scheduler(folder: Path, kind: type[SchedulerMixin], *, steps: int) -> SchedulerMixin:
    """The scheduler that a saved model holds, once it is sure that it samples `steps` steps of the trained process.

    Raises
    ------
    WeightsMissingError
        If its file is missing or damaged, or it does not.
    """
    path = folder / "scheduler_config.json"
    document, usual = read_document(path), kind().config
    own = {name: value for name, value in document.items() if name in usual and value != usual[name]}
    own.pop("_class_name", None)
    for name, value in own.items():
        if not is_plain(value, TIMESTEPS):
            raise WeightsMissingError(f"{path}: {name} is {shown(value)}; expected that of a {kind.__name__}")
    try:
        scheduler: SchedulerMixin = kind(**own)
        prepared(scheduler, steps)
    except Exception as error:  # settings that diffusers does not know raise whatever they lead it to
        raise WeightsMissingError(f"{path}: {reason_of(error)}; install or train the model again") from error
    return scheduler


def scheduler_name(scheduler: SchedulerMixin) -> str:
    """The name by which `make_scheduler` makes such a scheduler, or else that of its class."""
    for name in SCHEDULERS:
        made = make_scheduler(name)
        if type(made) is type(scheduler) and made.config.get("solver_order") == scheduler.config.get("solver_order"):
            return name
    return type(scheduler).__name__


def unchanged(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
    """A step's latents as they are."""
    return latents


@torch.no_grad()
def sample(
    denoise: Denoiser[Extras],
    noise: Noise,
    scheduler: SchedulerMixin,
    steps: int,
    *,
    device: torch.device | str = "cpu",
    on_step: StepCallback = unchanged,
) -> tuple[Tensor, Extras]:
    """Draw clean latents.

    Parameters
    ----------
    denoise
        The network, conditioned on the slices that the noise is for; it is called once a step, on `device`.
    noise
        All that is random in the result.
    scheduler
        From `make_scheduler`, or any scheduler of diffusers over the same betas. It is not changed.
    steps
        Number of steps, 1..T.
    device
        Where the latents live.
    on_step
        Called after each step; it may change the latents.

    Returns
    -------
    tuple[Tensor, Extras]
        (B, C, h, w) float32, and what else the network said at the last step.

    Raises
    ------
    UsageError
        If `steps` is out of range, or the scheduler would misread the predicted noise or the noise level.
    """
    scheduler = prepared(scheduler, steps)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    step = partial(scheduler.step, generator=noise.generator) if draws else scheduler.step

    latents: Tensor = noise.initial.to(device) * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(latents, timestep)
        t = torch.full((len(latents),), int(timestep), device=device)
        epsilon, extras = denoise(noisy, t)
        latents = step(epsilon.float(), timestep, latents, return_dict=False)[0]
        latents = on_step(number, timestep, latents)
    return latents, extras


def prepared(scheduler: SchedulerMixin, steps: int) -> SchedulerMixin:
    """A copy of `scheduler` set to `steps` steps, once it is sure that it samples from the trained process."""
    name, config = type(scheduler).__name__, scheduler.config
    if not 1 <= steps <= TIMESTEPS:
        raise UsageError(f"{steps} sampling steps; expected 1..{TIMESTEPS}")
    if config.get("prediction_type") != "epsilon":
        raise UsageError(f"{name}: prediction_type is {config.get('prediction_type')!r}; set it to 'epsilon'")
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise UsageError(f"{name}: {option} is on, but latents are not bound to [-1, 1]; set {option}=False")
    alpha_bar = NoiseSchedule.linear().alpha_bar.float()
    if len(scheduler.alphas_cumprod) != TIMESTEPS or not torch.allclose(
        scheduler.alphas_cumprod.cpu(), alpha_bar, rtol=1e-3, atol=0
    ):
        raise UsageError(
            f"{name}: its noise levels are not those of training; "
            f"set {TIMESTEPS} linear betas from {BETA_START} to {BETA_END}, without rescaling"
        )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    # Rounding in diffusers appends t = -1 for 62 numbers of steps (61, 103, ...); Karras sigmas fall between timesteps.
    if timesteps.min() < 0 or (timesteps != timesteps.round()).any():
        raise UsageError(
            f"{name}: {steps} steps give timesteps {timesteps[0]:g} to {timesteps[-1]:g} that are not all integers in "
            f"0..{TIMESTEPS - 1}; change the number of steps or the scheduler's spacing"
        )
    if len(timesteps.unique()) < steps:
        raise UsageError(f"{name}: {steps} steps between timesteps {timesteps[0]} and {timesteps[-1]}; take fewer")
    if not hasattr(scheduler, "sigmas") and TIMESTEPS % steps:
        raise UsageError(f"{name}: {steps} steps do not divide {TIMESTEPS}, and it would leave noise; use 'ddim'")
    return scheduler
