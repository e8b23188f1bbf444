"""torchvision's MC3-18: 3-D convolutions first, 2-D ones after; all frames are kept to the end."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from regkit.models.video_model import VideoModel
from regkit.models.video_resnet import make_video_resnet


@final
class MC318(VideoModel):
    """ResNet-18 for clips: 3-D convolutions first, 2-D ones after; all frames are kept to the end.

    pretrained: name of torchvision's weights, or path of a checkpoint.
    Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, 2018.
    """

    frame_embeddings = "net.layer4"

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        self.net = make_video_resnet("mc3_18", num_classes, dropout, pretrained)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.net(clip)
