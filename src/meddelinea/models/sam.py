"""Segment Anything (Kirillov et al. 2023): an image, and a box around what is to be outlined in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from meddelinea.errors import UsageError
from meddelinea.models.segmenter import middle_slices

#: Attention heads of the published mask decoder, whatever its width.
DECODER_HEADS = 8


class Boxes(NamedTuple):
    """Boxes around organs in a batch of slices, n in all."""

    slices: Tensor  # (n,) which slice of the batch
    organs: Tensor  # (n,) which organ, from 0
    corners: Tensor  # (n, 4) first column, first row, last column, last row, in pixels


def boxes_of(masks: Tensor, organs: int, margins: Tensor) -> Boxes:
    """The box of each organ in each slice that it is in.

    Parameters
    ----------
    masks
        (B, H, W) organ ids 0..L.
    organs
        L.
    margins
        Pixels by which each side is moved outwards, at most to the slice's edge; of a shape that (B, L, 4) takes.
    """
    ids = torch.arange(1, organs + 1, device=masks.device)
    here = masks[:, None] == ids.view(1, -1, 1, 1)  # (B, L, H, W)
    rows, columns = here.any(dim=3).float(), here.any(dim=2).float()  # (B, L, H), (B, L, W)
    first = [line.argmax(dim=2) for line in (columns, rows)]  # (B, L) each
    last = [line.shape[2] - 1 - line.flip(2).argmax(dim=2) for line in (columns, rows)]  # (B, L) each
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=masks.device)
    corners = torch.stack([*first, *last], dim=2) + outwards * margins  # (B, L, 4)
    edges = torch.tensor([columns.shape[2], rows.shape[2]], device=masks.device).repeat(2) - 1.0  # (4,)
    slices, found = here.flatten(2).any(dim=2).nonzero(as_tuple=True)  # (n,), (n,)
    return Boxes(slices, found, corners.clamp(min=0.0).minimum(edges)[slices, found])


class SAM(ModelMixin, ConfigMixin):
    """The parts of `transformers.SamModel`, which has their positions twice and so cannot be saved by safetensors.

    Parameters
    ----------
    image_size
        Rows and columns that images are scaled to.
    patch_size, width, depth, heads
        Of the image encoder, a vision transformer.
    window
        Side in patches of the windows that its blocks attend in.
    global_blocks
        Those of its blocks, from 0, that attend to the whole image.
    decoder_width, decoder_hidden
        Channels of the mask decoder, and of its MLPs.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        window: int,
        global_blocks: list[int],
        decoder_width: int,
        decoder_hidden: int,
    ) -> None:
        super().__init__()
        sam = transformers_sam()
        config = sam.SamConfig(
            vision_config={
                "image_size": image_size,
                "patch_size": patch_size,
                "hidden_size": width,
                "num_hidden_layers": depth,
                "num_attention_heads": heads,
                "window_size": window,
                "global_attn_indexes": list(global_blocks),
                "output_channels": decoder_width,
                "num_pos_feats": decoder_width // 2,
                "initializer_range": 0.02,  # transformers' own, 1e-10, is for weights that are loaded
            },
            prompt_encoder_config={"image_size": image_size, "patch_size": patch_size, "hidden_size": decoder_width},
            mask_decoder_config={
                "hidden_size": decoder_width,
                "mlp_dim": decoder_hidden,
                "num_attention_heads": DECODER_HEADS,
                "iou_head_hidden_dim": decoder_width,
            },
        )
        config.vision_config.scale = 1.0  # of random positions, as published; transformers' own are finer than a pixel
        config.mask_decoder_config._attn_implementation = "sdpa"
        self.vision_encoder = sam.SamVisionEncoder(config.vision_config)
        self.prompt_encoder = sam.SamPromptEncoder(config)
        self.mask_decoder = sam.SamMaskDecoder(config.mask_decoder_config)

    def forward(self, images: Tensor, boxes: Boxes) -> Tensor:
        """Images (B, slices, H, W) in [-1, 1] and n boxes -> logits (n, H, W) of what each box is around."""
        if not len(boxes.slices):  # of which transformers cannot compute; this way there are gradients, all of them 0
            first = boxes.slices.new_zeros(1)
            return self(images, Boxes(first, first, boxes.corners.new_zeros(1, 4)))[:0]
        H, W = images.shape[2:]
        side, grid = self.config.image_size, self.config.image_size // self.config.patch_size

        # The middle slices as colours from 0 to 1, as MedSAM was trained, without SAM's means and deviations.
        colours = F.interpolate(middle_slices(images), (side, side), mode="bilinear", align_corners=False)
        features = self.vision_encoder(0.5 * (colours + 1.0)).last_hidden_state  # (B, C, h, w)

        # Where each position lies, and each box, in fractions of the image.
        centres = (torch.arange(grid, device=images.device) + 0.5) / grid  # (h,)
        points = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=2)  # (h, w, 2)
        positions = self.prompt_encoder.shared_embedding(points).movedim(2, 0)[None]  # (1, C, h, w)
        scale = torch.tensor([side / W, side / H], device=images.device).repeat(2)  # (4,)
        corners, nothing = self.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=(boxes.corners * scale)[:, None], input_masks=None
        )  # (n, 1, 2, C), (n, C, h, w)

        masks, _ = self.mask_decoder(
            image_embeddings=features[boxes.slices],
            image_positional_embeddings=positions.expand(len(boxes.slices), -1, -1, -1),
            sparse_prompt_embeddings=corners,
            dense_prompt_embeddings=nothing,
            multimask_output=False,
        )  # (n, 1, 1, 4 h, 4 w)
        return F.interpolate(masks[:, 0], (H, W), mode="bilinear", align_corners=False)[:, 0]  # (n, H, W)


def transformers_sam() -> Any:
    """The module of transformers that holds SAM: an extra, imported where a network is built.

    Raises
    ------
    UsageError
        If transformers is not installed.
    """
    try:
        from transformers.models.sam import modeling_sam
    except ImportError as error:
        raise UsageError(f"this network is transformers' ({error}); pip install 'meddelinea[medsam]'") from error
    return modeling_sam
