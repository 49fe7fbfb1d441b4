"""The 48 ways in which the axes of a volume may run."""

from itertools import permutations, product

ORIENTATIONS = tuple(
    "".join(sides)
    for axes in permutations(("RL", "AP", "SI"))
    for sides in product(*axes)  # one side of each axis: 6 orders times 8 flips
)
