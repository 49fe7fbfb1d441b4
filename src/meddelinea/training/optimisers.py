"""Which optimiser trains which weights of a network."""

from __future__ import annotations

import torch
from torch import nn

from meddelinea.training.config import OptimiserConfig
from meddelinea.training.muon import Muon

#: Layers that see or make what a network is given or asked for, or whose gradients are sums of few outer products, one
#: an image. Muon would move all their singular values alike, where a few of them matter.
OUTER = frozenset(
    {
        "x_embedder",
        "t_embedder",
        "y_embedder",
        "adaLN_modulation",
        "code_embedder",
        "vectors",
        "time_embedding",
        "time_emb_proj",
        "conv_in",
        "controlnet_cond_embedding",
        "controlnet_down_blocks",
        "controlnet_mid_block",
        "zero_conv",
        "final_layer",
        "conv_out",
        "root",
        "codebook",
    }
)
#: Rows and columns from which a weight is a matrix in that sense, and no list of vectors.
LEAST = 32


def build_optimisers(
    settings: OptimiserConfig, module: nn.Module, dtype: torch.dtype | None, *, fused: bool
) -> list[torch.optim.Optimizer]:
    """AdamW for all trained parameters of `module`, or where the settings say so Muon for its hidden matrices.

    Parameters
    ----------
    dtype
        What Muon multiplies in; float32 where None.
    fused
        Whether AdamW passes over the weights once in place of ten times; sharded ones cannot be.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.kind == "adamw":
        return [torch.optim.AdamW(trained.values(), rate, weight_decay=decay, fused=fused)]
    hidden = {name: p for name, p in trained.items() if is_hidden_matrix(name, p)}
    others = [p for name, p in trained.items() if name not in hidden]
    optimisers: list[torch.optim.Optimizer] = []
    if hidden:
        optimisers.append(Muon(hidden.values(), rate, decay, dtype or torch.float32))
    if others:
        optimisers.append(torch.optim.AdamW(others, rate, weight_decay=decay, fused=fused))
    return optimisers


def is_hidden_matrix(name: str, weight: nn.Parameter) -> bool:
    """Whether a parameter is a linear map, or a convolution's kernel, between a network's first layers and its last."""
    matrix = weight.ndim > 1 and min(weight.flatten(1).shape) >= LEAST
    return matrix and OUTER.isdisjoint(name.split("."))
