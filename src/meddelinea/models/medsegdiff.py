"""MedSegDiff (Wu et al. 2022): a UNet that denoises masks in pixels, beside an encoder of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D, Upsample2D
from torch import Tensor, nn

from meddelinea.models.codec import FACTOR
from meddelinea.models.mask_head import carry_classes
from meddelinea.models.transformer import TimestepEmbedder


class FrequencyParser(nn.Module):
    """FF-Parser: features filtered by a learnt map over their frequencies, (B, C, h, w) -> the same.

    m' = F^-1[A * F[m]], F the two-dimensional Fourier transform, A complex and one at first: it starts as the identity.
    A is learnt for `grid` x `grid` positions and interpolated for others, up to the highest frequency of each.
    """

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        # Real and imaginary part; rows from the most negative frequency to the highest, columns from 0 to the highest.
        self.attention = nn.Parameter(torch.zeros(2, channels, grid, grid // 2 + 1))
        nn.init.ones_(self.attention[0])

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        real, imaginary = self._attention(rows, columns // 2 + 1).float()  # (C, h, w/2 + 1) each
        attention = torch.fft.ifftshift(torch.complex(real, imaginary), dim=1)  # (C, h, w/2 + 1)
        spectrum = torch.fft.rfft2(x.float())  # (B, C, h, w/2 + 1)
        return torch.fft.irfft2(attention * spectrum, s=(rows, columns)).to(x.dtype)  # (B, C, h, w)

    def _attention(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == self.attention.shape[2:]:
            return self.attention
        return F.interpolate(self.attention, (rows, columns), mode="bilinear", align_corners=True)


class DynamicCondition(nn.Module):
    """Image features that attend to what the noisy mask shows at this step, (B, C, h, w) each -> (B, C, h, w).

    m_I + LN(m_I) * LN(m_x') * m_I, m_x' the mask's features behind the FF-Parser. The image's own features stay beside
    the product, which is small and of either sign while the mask is noise.
    """

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.parser = FrequencyParser(channels, grid)
        self.image_norm = nn.GroupNorm(1, channels)
        self.mask_norm = nn.GroupNorm(1, channels)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image + self.image_norm(image) * self.mask_norm(self.parser(mask)) * image


class Units(nn.ModuleList):
    """Residual units one after the other, (B, C_in, h, w) and a vector of the timestep or None -> (B, C_out, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, count: int, *, time_width: int | None) -> None:
        super().__init__(
            ResnetBlock2D(
                in_channels=before,
                out_channels=channels_out,
                temb_channels=time_width,
                # Behind the norm: one that is added before it would be taken away again by groups of one channel.
                time_embedding_norm="default" if time_width is None else "scale_shift",
                groups=math.gcd(32, before),
                groups_out=math.gcd(32, channels_out),
            )
            for before in (channels_in, *[channels_out] * (count - 1))
        )

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        for unit in self:
            x = unit(x, time)  # (B, C_out, h, w)
        return x


class MedSegDiffUNet(ModelMixin, ConfigMixin):
    """Noisy masks and images in, what the diffusion predicts out: eps_theta(x_t, I, t) = D(E_x + E_I, t).

    Two encoders, of the noisy mask and of the image, meet at the two middle resolutions by dynamic conditional
    encoding; the decoder is given the sum of their features at every resolution.

    Parameters
    ----------
    organs
        L.
    slices
        Channels of an image: a slice and its neighbours.
    side
        Rows and columns of the slices that the weights are trained at.
    patch
        Squares of so many pixels a side are folded into channels at the finest resolution; a power of 2.
    widths
        Channels of each resolution, the finest first; at least two.
    units
        Residual units a resolution, of either encoder and of the decoder.
    """

    @register_to_config
    def __init__(self, organs: int, slices: int, side: int, patch: int, widths: list[int], units: int) -> None:
        super().__init__()
        first, time_width = widths[0], 4 * widths[0]
        inputs = list(zip((first, *widths), widths, strict=False))
        self.t_embedder = TimestepEmbedder(time_width)
        self.x_embedder = nn.Conv2d((organs + 1) * patch**2, first, 3, padding=1)
        self.image_embedder = nn.Conv2d(slices * patch**2, first, 3, padding=1)
        self.mask_encoder = nn.ModuleList(Units(a, b, units, time_width=time_width) for a, b in inputs)
        self.image_encoder = nn.ModuleList(Units(a, b, units, time_width=None) for a, b in inputs)
        self.mask_downs, self.image_downs = (
            nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[:-1]) for _ in range(2)
        )
        middle = (len(widths) // 2 - 1, len(widths) // 2)
        self.conditions = nn.ModuleDict(
            {str(level): DynamicCondition(widths[level], side // patch // 2**level) for level in middle}
        )
        self.middle = Units(widths[-1], widths[-1], units, time_width=time_width)
        self.ups = nn.ModuleList(Upsample2D(b, use_conv=True, out_channels=a) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(Units(2 * width, width, units, time_width=time_width) for width in widths)
        self.norm_out = nn.GroupNorm(math.gcd(32, first), first)
        self.conv_out = nn.Conv2d(first, (organs + 1) * patch**2, 3, padding=1)

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return max(FACTOR, int(self.config.patch) * 2 ** (len(self.config.widths) - 1))

    def forward(self, noisy: Tensor, t: Tensor, images: Tensor) -> Tensor:
        """Noisy masks (B, L + 1, H, W) at timesteps (B,) and images (B, slices, H, W) -> (B, L + 1, H, W).

        H and W are multiples of `multiple`; one timestep stands for all slices.
        """
        patch = self.config.patch
        time = self.t_embedder(t)  # (B, 4 w0)
        x = self.x_embedder(F.pixel_unshuffle(noisy.to(self.dtype), patch))  # (B, w0, H/p, W/p)
        image = self.image_embedder(F.pixel_unshuffle(images.to(self.dtype), patch))  # (B, w0, H/p, W/p)
        skips = []
        for level, (mask_units, image_units) in enumerate(zip(self.mask_encoder, self.image_encoder, strict=True)):
            x, image = mask_units(x, time), image_units(image, None)  # (B, w_k, H/2^k p, W/2^k p) each
            if str(level) in self.conditions:
                image = self.conditions[str(level)](image, x)
            skips.append(x + image)
            if level < len(self.mask_downs):
                x, image = self.mask_downs[level](x), self.image_downs[level](image)
        h = self.middle(skips[-1], time)  # the coarsest
        for level in reversed(range(len(skips))):
            h = self.decoder[level](torch.cat([h, skips[level]], dim=1), time)  # (B, w_k, H/2^k p, W/2^k p)
            if level:
                h = self.ups[level - 1](h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), patch)  # (B, L + 1, H, W)

    def for_organs(self, known: Sequence[str], wanted: Sequence[str], *, new: float) -> MedSegDiffUNet:
        """A copy for the `wanted` organs: `known` ones keep their channels, new ones are answered with `new`."""
        copy = MedSegDiffUNet.from_config({**self.config, "organs": len(wanted)})
        state = self.state_dict()
        classes = (len(known) + 1, int(self.config.patch) ** 2)
        seen = state["x_embedder.weight"].transpose(0, 1).unflatten(0, classes)  # (L + 1, p^2, w0, 3, 3)
        state["x_embedder.weight"] = carry_classes(seen, known, wanted, new=0.0).flatten(0, 1).transpose(0, 1)
        for name, value in (("conv_out.weight", 0.0), ("conv_out.bias", new)):
            answered = state[name].unflatten(0, classes)  # (L + 1, p^2, ...)
            state[name] = carry_classes(answered, known, wanted, new=value).flatten(0, 1)
        copy.load_state_dict(state)
        return copy
