"""torchvision's S3D: inception blocks with 3-D convolutions split into space and time."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from regkit.errors import InputError
from regkit.models.torchvision_model import TorchvisionModel

# Frames, height, width. The last pool halves what is left, a fourth of the frames and a sixteenth
# of each side (rounded up), and needs two of each.
LEAST_CLIP = (5, 17, 17)


@final
class S3D(TorchvisionModel):
    """Separable 3D inception net, which also takes clips smaller than 13x209x209.

    Source: Xie et al., Rethinking Spatiotemporal Feature Learning, 2018.
    """

    architecture, last_layer = "s3d", "classifier.1"
    frame_embeddings = "net.features.6"

    def fit_head(self, dropout: float) -> None:
        """Set the dropout of `net`, and let its pool take small features."""
        self.net.classifier[0].p = dropout
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
        return super().forward(clip)


class _FittingPool(nn.Module):
    """torchvision's pool of 2x7x7, cut to the features where they are smaller."""

    def forward(
        self, features: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch channels frames_left height_left width_left"]:
        sizes = zip((2, 7, 7), features.shape[2:], strict=True)
        return avg_pool3d(features, [min(window, size) for window, size in sizes], stride=1)


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
