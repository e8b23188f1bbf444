"""torchvision's MC3-18: 3-D convolutions first, 2-D ones after; all frames are kept to the end."""

from typing import final

from regkit.models.torchvision_model import VideoResNet


@final
class MC318(VideoResNet):
    """ResNet-18 for clips: 3-D convolutions first, 2-D ones after; all frames are kept."""

    architecture = "mc3_18"
    frame_embeddings = "net.layer4"
