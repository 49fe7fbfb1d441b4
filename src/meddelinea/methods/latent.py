"""What the pipelines over a codec's latents share: the palette that masks are painted with, and other organs."""

from __future__ import annotations

import torch
from torch import Tensor

from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.models.codec import extend_palette, palette


class LatentPipeline(SlicePipeline):
    """A pipeline with a `codec`, a `mask_head` that may be None, and the palette in its configuration."""

    @property
    def palette(self) -> Tensor:
        """(L + 1, 3)."""
        stored = self.config.colours
        return palette(len(self.config.organs) + 1) if stored is None else torch.tensor(stored)

    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Carry colours and the mask head's channels over to other organs, by their names."""
        known, colours = self.organs, self.palette
        fresh = iter(extend_palette(colours, len(colours) + len(organs))[len(colours) :])
        rows = [colours[0], *(colours[1 + known.index(name)] if name in known else next(fresh) for name in organs)]
        if self.mask_head is not None:
            self.register_modules(mask_head=self.mask_head.for_organs(known, organs))
        self.register_to_config(organs=list(organs), colours=torch.stack(rows).tolist())
