"""Slices along tilted planes: values on the plane, ids of the nearest slice, the last slice beyond the scan."""

import torch

from meddelinea.data.oblique import cut, cut_ids, heights


def test_a_plane_rises_from_the_centre() -> None:
    plane = heights(5, (0.5, -1.0))
    assert plane[2, 2] == 0.0
    torch.testing.assert_close(plane[2], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    torch.testing.assert_close(plane[:, 2], torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]))


def test_values_are_linear_between_slices_and_ids_those_of_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    base, step = torch.rand(6, 6, generator=generator), torch.rand(6, 6, generator=generator)
    slab = base + step * torch.arange(4.0)[:, None, None]  # linear in the height at each pixel
    at = torch.rand(3, 6, 6, generator=generator) * 5.0 - 1.0
    torch.testing.assert_close(cut(slab, at), base + step * at.clamp(0.0, 3.0))
    ids = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 6, 6)
    assert torch.equal(cut_ids(ids, at), at.round().clamp(0, 3).to(torch.uint8))


def test_one_slice_stands_for_all() -> None:
    slab = torch.rand(1, 4, 4)
    assert torch.equal(cut(slab, torch.tensor([-2.0, 0.5])[:, None, None].expand(2, 4, 4)), slab.expand(2, 4, 4))
