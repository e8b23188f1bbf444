"""Nets whose scores depend on the clip, so that a wrong file cannot give the right ones."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

MODELS = sorted((Path(__file__).parents[3] / "configs" / "model").glob("*.yaml"))


def alive(net: nn.Module, example: Tensor) -> nn.Module:
    """Let batch norms see noise, or an untrained net gives the same scores for every clip."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None  # the plain mean of what it sees; S3D's own forgets nothing
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, *example.shape[1:]))
    net.eval()
    scores = expected(net, torch.randn(4, *example.shape[1:]))
    assert scores.std(0).max() > 1e-2 * scores.abs().max()
    return net


def built(path: Path, example: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return alive(instantiate(OmegaConf.load(path), num_classes=7), example)


def expected(net: nn.Module, clip: Tensor) -> Tensor:
    with torch.no_grad():
        return net(clip)


class Small(nn.Module):
    """One convolution, one norm, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(clip)).relu().mean((2, 3, 4)))
