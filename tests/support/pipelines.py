"""Pipelines of random weights so small that a step takes milliseconds, and images for them."""

import torch
from torch import nn

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.models.codec import KLCodec, SpaceToDepthCodec
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import GuidedMaskHead, PlainMaskHead

ORGANS = ("spleen", "right kidney", "liver")
STEM = (8, 16, 16)
KEYS = [NoiseKey(seed=1, case=2**63 + 1, slice=i, sample=0) for i in range(4)]


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def tiny_pipeline(kind: str) -> MedDelineaPipeline:
    """`guided`: all extensions; `paper`: none of them, over the KL codec; `palette`: no mask head."""
    guided = kind == "guided"
    if kind == "paper":
        torch.manual_seed(0)
        blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        codec = KLCodec(3, 3, *blocks, (8, 8, 8, 8), norm_num_groups=4, latent_channels=4)
    else:
        codec = randomised(SpaceToDepthCodec(channels=16, encoder_blocks=1, decoder_blocks=1))
    dit = randomised(DiT(latent_size=4, width=32, depth=3, heads=2, classes=0, learn_sigma=not guided))
    control = ControlDiT.copy_of(dit, 2, stem_channels=STEM if guided else ())
    ends = {"feature_channels": codec.feature_channels, "feature_factor": codec.feature_factor, "organs": 3}
    head = PlainMaskHead(**ends)
    if guided:
        head = GuidedMaskHead(**ends, image_channels=STEM[:2], hidden=(8, 16), token_width=32)
    return MedDelineaPipeline(
        codec=codec,
        dit=dit,
        control=randomised(control),
        mask_head=None if kind == "palette" else randomised(head),
        scheduler=make_scheduler("euler_ancestral"),
        organs=list(ORGANS),
        prediction_type="sample",
        default_steps=3,
        neighbours=2,
    )


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
