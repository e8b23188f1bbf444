"""torchvision's S3D: inception blocks with 3-D convolutions split into space and time."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d
from torchvision.models import get_model

from regkit.errors import InputError
from regkit.models.head import check_head
from regkit.models.pretrained import load_pretrained
from regkit.models.video_model import VideoModel

# Frames, height, width. The last pool halves what is left, a fourth of the frames and a sixteenth
# of each side (rounded up), and needs two of each.
LEAST_CLIP = (5, 17, 17)


@final
class S3D(VideoModel):
    """Separable 3D inception net, which also takes clips smaller than 13x209x209.

    pretrained: name of torchvision's weights, or path of a checkpoint.
    Source: Xie et al., Rethinking Spatiotemporal Feature Learning, 2018.
    """

    frame_embeddings = "net.features.6"

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        check_head("S3D", num_classes, dropout)
        self.net = get_model("s3d", num_classes=num_classes, dropout=dropout)
        if pretrained is not None:
            load_pretrained(self.net, "s3d", pretrained, head="classifier.1")
        self.net.avgpool = _FittingPool()

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits).

        Raises: InputError when a clip is too small for the last pool.
        """
        size = clip.shape[2:]
        if any(given < least for given, least in zip(size, LEAST_CLIP, strict=True)):
            raise InputError(
                f"S3D got clips of {_times(size)} (frames x height x width); "
                f"allowed: {_times(LEAST_CLIP)} or more. Take more frames or larger crops."
            )
        return self.net(clip)


class _FittingPool(nn.Module):
    """torchvision's pool of 2x7x7, cut to the features where they are smaller."""

    def forward(
        self, features: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch channels frames_left height_left width_left"]:
        sizes = zip((2, 7, 7), features.shape[2:], strict=True)
        return avg_pool3d(features, [min(window, size) for window, size in sizes], stride=1)


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
