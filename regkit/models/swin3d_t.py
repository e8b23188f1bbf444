"""torchvision's Video Swin-T: attention within windows that shift from layer to layer."""

from collections import OrderedDict
from typing import final

from torch import nn

from regkit.models.torchvision_model import TorchvisionModel


@final
class Swin3DT(TorchvisionModel):
    """Video Swin transformer, tiny; takes clips of any size, two frames to one of its own.

    With stochastic depth as published: of its 12 layers, the last is left out of a training clip
    with probability 0.1, those before it more rarely.

    Source: Liu et al., Video Swin Transformer, 2021.
    """

    architecture, last_layer = "swin3d_t", "head"
    frame_embeddings = "net.avgpool.frames"

    def fit_head(self, dropout: float) -> None:
        """Put dropout after the pool, and before it what frame embeddings are read from."""
        # Before the pool alone are the channels where frame embeddings are read from: the second.
        parts = {"frames": nn.Identity(), "pool": self.net.avgpool, "dropout": nn.Dropout(dropout)}
        self.net.avgpool = nn.Sequential(OrderedDict(parts))
