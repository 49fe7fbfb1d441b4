"""Windows over a scan: whatever its size, each voxel is answered once, and as the whole volume would be."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from meddelinea.methods.protocol import Patch
from meddelinea.methods.windows import blended_slabs, window_shares

PATCH = Patch(depth=4, side=8)


def bright(window: Tensor) -> Tensor:
    """The shares of a network that answers with its input's threshold; it takes windows of one size."""
    assert window.shape == (1, 1, PATCH.depth, PATCH.side, PATCH.side)
    return torch.cat([window <= 0, window > 0], dim=1).float()


def joined(shares: Callable[[range], Tensor], slices: int, depth: int) -> Tensor:
    """The shares of all slices, each of which is answered once and in order."""
    chunks, answers = zip(
        *((chunk, answer.clone()) for chunk, answer in blended_slabs(shares, slices, depth)), strict=True
    )
    assert [index for chunk in chunks for index in chunk] == list(range(slices))
    assert [len(answer) for answer in answers] == [len(chunk) for chunk in chunks]
    return torch.cat(answers)


@pytest.mark.parametrize("shape", [(4, 8, 8), (11, 19, 13), (3, 8, 8), (1, 2, 30), (9, 5, 8)])
def test_a_threshold_in_windows_is_the_volumes_threshold(shape: tuple[int, int, int]) -> None:
    volume = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    found = window_shares(bright, volume, PATCH)
    torch.testing.assert_close(found[:, 1:], (volume > 0).float())

    def of_slab(slab: range) -> Tensor:
        part = volume[:, :, slab.start : slab.stop]
        return window_shares(bright, part, PATCH)[0].transpose(0, 1)

    slab_by_slab = joined(of_slab, shape[0], PATCH.depth)
    torch.testing.assert_close(slab_by_slab[:, 1], (volume[0, 0] > 0).float())


@pytest.mark.parametrize("slices", [8, 12, 13, 30])
def test_slabs_are_blended_as_windows_of_the_whole_volume_are(slices: int) -> None:
    """A network whose answer depends on where in its window a voxel is; MONAI blends the whole volume at once."""
    depth, calls = 8, iter(range(1000))

    def network(window: Tensor) -> Tensor:
        return torch.rand(window.shape, generator=torch.Generator().manual_seed(next(calls)))

    whole = window_shares(network, torch.zeros(1, 1, slices, 9, 9), Patch(depth, 9))[0, 0]
    calls = iter(range(1000))
    found = joined(lambda slab: network(torch.zeros(len(slab), 1, 9, 9)), slices, depth)
    # One window in the plane: in its middle MONAI's weights are those along the depth alone.
    calls = iter(range(1000))
    answers = [network(torch.zeros(1, 1, depth, 9, 9))[0, 0] for _ in range(len(range(0, slices - depth, 4)) + 1)]
    starts = [*range(0, slices - depth, 4), slices - depth]
    weight = np.exp(-0.5 * ((np.arange(depth) - 3.5) / 1.0) ** 2).clip(min=1e-3)
    for level in range(slices):
        held = [(weight[level - start], answer[level - start]) for start, answer in zip(starts, answers, strict=True)
                if start <= level < start + depth]  # fmt: skip
        expected = sum(w * a for w, a in held) / sum(w for w, _ in held)
        torch.testing.assert_close(found[level, 0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[level, 4, 4], expected[4, 4], rtol=1e-4, atol=1e-5)


def test_of_a_long_scan_one_slab_is_asked_for_at_a_time() -> None:
    asked: list[range] = []

    def shares(slab: range) -> Tensor:
        asked.append(slab)
        return torch.ones(len(slab), 2, 1, 1)

    given = 0
    for chunk, answer in blended_slabs(shares, 1000, 64):
        given += len(answer)
        assert asked[-1].stop == min(1000, chunk.start + 64)  # nothing is held but what the last slab reaches
        assert answer.shape[0] <= 64
        torch.testing.assert_close(answer, torch.ones_like(answer))
    assert given == 1000
    assert len(asked) == 31  # of 64 slices, 32 apart
    assert {len(slab) for slab in asked} == {64}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_scan() -> None:
    """In a process of its own, whose peak is of nothing else."""
    program = """
import resource, torch
from meddelinea.methods.protocol import Patch
from meddelinea.methods.volume import VoxelClassifier
from meddelinea.methods.windows import blended_slabs

class Many(torch.nn.Module):
    def forward(self, window):
        return (window.repeat(1, 14, 1, 1, 1),)

method, slices = VoxelClassifier(Many(), "bce", Patch(8, 192)), torch.zeros(1, 3, 192, 192)
for length in (40, 240):
    shares = lambda slab: method.segment(slices.expand(len(slab), -1, -1, -1), []).softmax(dim=1)
    for _ in blended_slabs(shares, length, 8):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=600)
    short, long = map(int, done.stdout.split())
    slab = 4 * 14 * 8 * 192**2
    assert long - short < 6 * slab  # what the allocator scatters; the shares of 200 slices more would be 25
