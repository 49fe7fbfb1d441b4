"""What the pipelines of all methods share."""

from __future__ import annotations

from diffusers import DiffusionPipeline


class SlicePipeline(DiffusionPipeline):
    """A `Pipeline` whose organs and neighbours are in its configuration."""

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names behind channels 1..L."""
        return tuple(self.config.organs)

    @property
    def neighbours(self) -> int:
        """Distance in slices of the slices in an image's channels; 0 where the slice is repeated."""
        return int(self.config.neighbours)

    @property
    def neighbour_pairs(self) -> int:
        """Pairs of neighbours in an image's channels, 2 pairs + 1 in all."""
        return int(self.config.neighbour_pairs)
