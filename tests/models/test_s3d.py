"""S3D takes small clips, and pools as torchvision's where that one runs."""

import pytest
import torch
from torchvision.models.video import s3d

from regkit.errors import InputError
from regkit.models.s3d import LEAST_CLIP, S3D


@pytest.fixture(scope="module")
def model() -> S3D:
    torch.manual_seed(0)
    return S3D(num_classes=3).eval()


@pytest.mark.parametrize("size", [(2, 7, 7), (3, 7, 9)])
def test_the_pool_equals_torchvisions_where_that_one_runs(model: S3D, size: tuple[int, ...]):
    features = torch.randn(2, 4, *size)
    assert torch.equal(model.net.get_submodule("avgpool")(features), s3d().avgpool(features))


@torch.no_grad()
def test_the_least_clip_runs_and_the_net_itself_fails_below(model: S3D):
    assert model(torch.randn(1, 3, *LEAST_CLIP)).isfinite().all()
    for axis in range(3):
        size = [least - (index == axis) for index, least in enumerate(LEAST_CLIP)]
        with pytest.raises(RuntimeError):
            model.net(torch.randn(1, 3, *size))
        with pytest.raises(InputError, match="allowed: 5x17x17 or more"):
            model(torch.randn(1, 3, *size))
