"""torchvision's Video Swin-T: attention within windows that shift from layer to layer."""

from collections import OrderedDict
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model

from regkit.models.head import check_head
from regkit.models.pretrained import load_pretrained
from regkit.models.video_model import VideoModel


@final
class Swin3DT(VideoModel):
    """Video Swin transformer, tiny; takes clips of any size, two frames to one of its own.

    With stochastic depth as published: of its 12 layers, the last is left out of a training clip
    with probability 0.1, those before it more rarely.

    pretrained: name of torchvision's weights, or path of a checkpoint.
    Source: Liu et al., Video Swin Transformer, 2021.
    """

    frame_embeddings = "net.avgpool.frames"

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        check_head("Swin3DT", num_classes, dropout)
        self.net = get_model("swin3d_t", num_classes=num_classes)
        if pretrained is not None:
            load_pretrained(self.net, "swin3d_t", pretrained, head="head")
        # Before the pool alone are the channels where frame embeddings are read from: the second.
        parts = {
            "frames": nn.Identity(),
            "pool": self.net.get_submodule("avgpool"),
            "dropout": nn.Dropout(dropout),
        }
        self.net.avgpool = nn.Sequential(OrderedDict(parts))

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.net(clip)
