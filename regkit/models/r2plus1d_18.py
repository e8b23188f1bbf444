"""torchvision's R(2+1)D-18: each 3-D convolution split into space and time."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from regkit.models.video_model import VideoModel
from regkit.models.video_resnet import make_video_resnet


@final
class R2Plus1D18(VideoModel):
    """ResNet-18 for clips: each 3-D convolution split into space and time.

    pretrained: name of torchvision's weights, or path of a checkpoint.
    Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, 2018.
    """

    frame_embeddings = "net.layer2"

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        self.net = make_video_resnet("r2plus1d_18", num_classes, dropout, pretrained)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.net(clip)
