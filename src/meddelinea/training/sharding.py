"""Weights, gradients and optimiser state spread over the processes (FSDP), and gathered again."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from meddelinea.models.transformer import DiTBlock

T = TypeVar("T")


def shard(stage: nn.Module, device: torch.device, processes: int) -> None:
    """Spread the parameters of `stage` over the processes, each transformer block gathered only while it computes.

    In place: parameters become `DTensor`s, so the optimiser has to be made afterwards.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for block in (module for module in stage.modules() if isinstance(module, DiTBlock)):
        fully_shard(block, mesh=mesh)
    # By default the outermost stays gathered after a forward pass, and would miss values that are set in between.
    fully_shard(stage, mesh=mesh, reshard_after_forward=True)
    for method in ("predict", "read_back"):
        register_fsdp_forward_method(stage, method)


def gather(state: T) -> T:
    """The same nested dicts and lists with every sharded tensor gathered; all processes have to call it together.

    What is gathered goes to main memory, a tensor at a time: the model may not fit a device.
    """
    gathered: T = recursively_apply(
        lambda shards: shards.full_tensor().cpu(), state, test_type=lambda value: isinstance(value, DTensor)
    )
    return gathered


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor placed as `like` is: on its device, and as its shard where it is sharded."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
