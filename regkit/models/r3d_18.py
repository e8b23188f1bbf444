"""torchvision's R3D-18: 3-D convolutions throughout."""

from typing import final

from regkit.models.torchvision_model import VideoResNet


@final
class R3D18(VideoResNet):
    """ResNet-18 for clips: 3-D convolutions throughout."""

    architecture = "r3d_18"
    frame_embeddings = "net.layer2"
