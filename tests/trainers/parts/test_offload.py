"""Frozen weights leave the memory and come back as the same bytes."""

import errno
import os

import pytest
import torch

from dassl.utils import UserError
from trainers.parts.lskip import shallow_image
from trainers.parts.offload import Offload, mapped


def test_a_mapped_tensor_has_no_name_and_can_be_written(tmp_path):
    tensor = mapped((3, 4), torch.float16, tmp_path)
    assert tensor.shape == (3, 4) and tensor.dtype == torch.float16
    tensor.copy_(torch.arange(12).view(3, 4))
    assert tensor.flatten().tolist() == list(range(12))
    assert os.listdir(tmp_path) == []
    assert not tensor.untyped_storage().resizable()  # the memory is not PyTorch's own


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(file, offset, size):
        assert (offset, size) == (0, 12_000_000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="No room for 12.0 MB in .*No space left"):
        mapped((3000, 1000), torch.float32, tmp_path)
    assert os.listdir(tmp_path) == []


def test_offloaded_parameters_are_empty_outside_and_the_same_bytes_inside(random_clip, tmp_path):
    parameters = list(random_clip.visual.transformer.resblocks[:2].requires_grad_(False).parameters())
    before = [p.detach().clone() for p in parameters]
    images = torch.randn(2, 3, 32, 32)
    expected = shallow_image(random_clip.visual, images, 2)
    offload = Offload(parameters, tmp_path)
    assert all(p.numel() == 0 and p.untyped_storage().nbytes() == 0 for p in parameters)
    with offload.needed():
        with offload.needed():
            assert all(map(torch.equal, parameters, before))
        assert torch.equal(shallow_image(random_clip.visual, images, 2), expected)  # still there
        assert not any(p.untyped_storage().resizable() for p in parameters)  # mapped, not copied
    assert all(p.numel() == 0 for p in parameters)
    with offload.needed():
        assert all(map(torch.equal, parameters, before))
    assert os.listdir(tmp_path) == []


def test_parameters_leave_again_when_something_fails(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3), requires_grad=False)
    offload = Offload([weight], tmp_path)
    with pytest.raises(ZeroDivisionError), offload.needed():
        1 / 0  # noqa: B018
    assert weight.numel() == 0


def test_a_disk_too_full_for_offloading_leaves_the_parameters_where_they_were(tmp_path, monkeypatch):
    weights = [torch.nn.Parameter(torch.ones(size), requires_grad=False) for size in (2, 3)]

    def room_for_one(file, offset, size):
        if size > 8:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", room_for_one, raising=False)
    with pytest.raises(UserError, match="No space left"):
        Offload(weights, tmp_path)
    assert [p.tolist() for p in weights] == [[1.0] * 2, [1.0] * 3]


def test_at_the_end_the_parameters_are_there_for_good(tmp_path):
    weight = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
    offload = Offload([weight], tmp_path)
    offload.end()
    with offload.needed():
        pass
    assert weight.tolist() == [0.0, 1.0, 2.0]
