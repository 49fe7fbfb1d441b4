"""How nnFormer and UNETR++ make tokens of a patch: 2 x 4 x 4 voxels each, and twice as long on each coarser level."""

from __future__ import annotations

Grid = tuple[int, int, int]  # along depth, rows and columns

#: Voxels that become one token of the finest level.
EMBEDDED: Grid = (2, 4, 4)
LEVELS = 4
#: Slices, and rows and columns, of a token of the coarsest level.
COARSEST_TOKEN = (EMBEDDED[0] << (LEVELS - 1), EMBEDDED[1] << (LEVELS - 1))


def token_grids(patch: tuple[int, int]) -> list[Grid]:
    """Tokens along each axis at each level, of a patch (depth, side)."""
    depth, side = patch
    across = [side // EMBEDDED[1] >> level for level in range(LEVELS)]
    return [(depth // EMBEDDED[0] >> level, edge, edge) for level, edge in enumerate(across)]
