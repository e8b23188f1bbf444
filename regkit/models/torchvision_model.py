"""What torchvision's models share: published weights, a new head, and dropout before it."""

from abc import abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model

from regkit.models.head import check_head
from regkit.models.pretrained import load_pretrained
from regkit.models.video_model import VideoModel


class TorchvisionModel(VideoModel):
    """A model of torchvision's, as `net`, with another number of classes.

    architecture: torchvision's name of it.
    last_layer: its name; it stays new where weights are of other classes.
    pretrained: name of torchvision's weights, or path of a checkpoint.
    """

    architecture: ClassVar[str]
    last_layer: ClassVar[str]

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        check_head(type(self).__name__, num_classes, dropout)
        self.net: Any = get_model(self.architecture, num_classes=num_classes)
        if pretrained is not None:
            load_pretrained(self.net, self.architecture, pretrained, head=self.last_layer)
        self.fit_head(dropout)

    @abstractmethod
    def fit_head(self, dropout: float) -> None:
        """Put dropout before the last layer of `net`, once its weights are loaded."""

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.net(clip)


class VideoResNet(TorchvisionModel):
    """One of three ResNets of 18 layers for clips.

    Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, 2018.
    """

    last_layer = "fc"

    def fit_head(self, dropout: float) -> None:
        """Put dropout after the pool, not before fc: parameters keep torchvision's names."""
        self.net.avgpool = nn.Sequential(self.net.avgpool, nn.Dropout(dropout))
