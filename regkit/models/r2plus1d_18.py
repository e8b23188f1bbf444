"""torchvision's R(2+1)D-18: each 3-D convolution split into space and time."""

from typing import final

from regkit.models.torchvision_model import VideoResNet


@final
class R2Plus1D18(VideoResNet):
    """ResNet-18 for clips: each 3-D convolution split into space and time."""

    architecture = "r2plus1d_18"
    frame_embeddings = "net.layer2"
