"""Building blocks of the transformers, ordered by dependency: embeddings, attention and MLP, the adaLN-zero block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meddelinea.errors import UsageError

#: Sinusoidal features of a timestep: cosines, then sines (Vaswani et al. 2017; DiT).
FREQUENCIES = 256


def check_width(width: int, heads: int) -> None:
    """Refuse a width that attention or the position embedding cannot divide.

    Raises
    ------
    UsageError
        If it is not a multiple of `heads`, or not one of 4.
    """
    if width % heads:
        raise UsageError(f"width {width} cannot be divided among {heads} heads; expected a multiple of {heads}")
    if width % 4:
        raise UsageError(f"width {width}; expected a multiple of 4: sines and cosines of rows and of columns")


def position_embedding(width: int, grid: tuple[int, int], base: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2D sine-cosine embedding, (1, rows * columns, width); the first half of the width encodes the column.

    Parameters
    ----------
    width
        Channels, a multiple of 4.
    grid
        Rows and columns of tokens.
    base
        Tokens along each side at the resolution that the weights were trained at. Other grids are interpolated: their
        positions span the same 0..base range, so that a position means a place in the field of view.
    """
    quarter = width // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)  # (D/4,)
    rows = torch.arange(grid[0], dtype=torch.float64, device=device) * (base / grid[0])  # (rows,)
    columns = torch.arange(grid[1], dtype=torch.float64, device=device) * (base / grid[1])  # (columns,)
    of_row, of_column = rows[:, None] * omega, columns[:, None] * omega  # (rows, D/4), (columns, D/4)
    row = torch.cat([of_row.sin(), of_row.cos()], dim=1)[:, None].expand(*grid, -1)  # (rows, columns, D/2)
    column = torch.cat([of_column.sin(), of_column.cos()], dim=1)[None].expand(*grid, -1)  # (rows, columns, D/2)
    return torch.cat([column, row], dim=2).reshape(1, grid[0] * grid[1], width).float()  # (1, T, D)


class TimestepEmbedder(nn.Module):
    """Timestep (B,) -> conditioning vector (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = nn.Linear(FREQUENCIES, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)
        # Small weights, so that the conditioning starts weak and of the same size at every timestep.
        nn.init.normal_(first.weight, std=0.02)
        nn.init.normal_(second.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        features = get_timestep_embedding(t, FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)  # (B, 256)
        return self.mlp(features.to(next(self.parameters()).dtype))  # (B, D)


class PatchEmbedder(nn.Module):
    """Latent (B, C, h, w) -> tokens (B, T, D), T = h/p * w/p: one linear map a patch, and the patch's position.

    Parameters
    ----------
    channels, patch_size, width
        C, p, D.
    base
        Tokens along each side at the resolution that the weights are trained at, see `position_embedding`.
    """

    def __init__(self, channels: int, patch_size: int, width: int, *, base: int) -> None:
        super().__init__()
        self.base = base
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        # Initialised as the linear layer that it is, not as a convolution; so DiT has it.
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, latent: Tensor) -> Tensor:
        patches = self.proj(latent)  # (B, D, h/p, w/p)
        _, D, rows, columns = patches.shape
        x = patches.flatten(2).transpose(1, 2)  # (B, T, D)
        return x + position_embedding(D, (rows, columns), self.base, device=x.device).to(x.dtype)  # (B, T, D)


class Attention(nn.Module):
    """Multi-head self-attention over tokens, (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.queries_keys_values(x)  # (B, heads, T, d) each
        if x.device.type != "cpu":
            attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, d)
        else:  # in float32: on a CPU the gradient takes three to eight times as long in bfloat16
            with torch.autocast("cpu", enabled=False):
                attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
                attended = attended.to(q.dtype)  # (B, heads, T, d)
        return self.proj(attended.transpose(1, 2).reshape(B, T, D))  # (B, T, D)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) -> (3, B, heads, T, d), d = D / heads."""
        B, T, D = x.shape
        return self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)

    def weights(self, x: Tensor) -> Tensor:
        """How much each token attends to each other one, (B, heads, T, T) float32: rows, of a query each, sum to 1.

        Computed anew for whoever looks at them; `forward`, which never holds them, multiplies them with the values.
        """
        q, k, _ = self.queries_keys_values(x).float()  # (B, heads, T, d) each
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, heads, T, T)


class MLP(nn.Module):
    """Token-wise two-layer network with a hidden width of 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(x), approximate="tanh")  # (B, T, 4 D)
        return self.fc2(h)  # (B, T, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine map: tokens (B, T, D) scaled and shifted by per-image vectors (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Transformer block with adaptive layer norm and gates (adaLN-zero, Peebles and Xie 2023).

    Returns the tokens at both of its residual connections, after attention and after the MLP, because the control
    branch reads features there; `injection` is what a control branch adds at the same two places.

    With `gradient_checkpointing` set, the backward pass computes the block's activations anew: one block's worth of
    memory in place of all blocks', for a second forward pass.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(width)
        modulation = nn.Linear(width, 6 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)
        # Tokens and gradients keep their variance through each linear layer.
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Gates at zero: the block starts as the identity.
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)

    def forward(
        self, x: Tensor, condition: Tensor, injection: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D), condition (B, D) and what is added at either place -> tokens at both, (B, T, D) each."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, condition, injection, use_reentrant=False)
        return self._forward(x, condition, injection)

    def _forward(self, x: Tensor, condition: Tensor, injection: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        modulation = self.adaLN_modulation(condition)  # (B, 6 D)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)  # (B, D) each

        h = self.attn(modulate(self.norm1(x), shift_msa, scale_msa))  # (B, T, D)
        after_attention = x + gate_msa[:, None] * h  # (B, T, D)
        if injection is not None:
            after_attention = after_attention + injection[0]  # (B, T, D)

        h = self.mlp(modulate(self.norm2(after_attention), shift_mlp, scale_mlp))  # (B, T, D)
        after_mlp = after_attention + gate_mlp[:, None] * h  # (B, T, D)
        if injection is not None:
            after_mlp = after_mlp + injection[1]  # (B, T, D)
        return after_attention, after_mlp

    def open_gates(self) -> None:
        """Set both gates to one: for a block with no pre-trained weights, which would learn nothing at first."""
        bias = self.get_parameter("adaLN_modulation.1.bias")
        with torch.no_grad():
            for gate in (2, 5):  # gate_msa and gate_mlp
                bias.view(6, -1)[gate] = 1.0


def zero_linear(width: int) -> nn.Linear:
    """A linear layer that starts at zero, weight and bias, so that what it adds starts neutral."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
