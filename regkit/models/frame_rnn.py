"""One embedding a frame from a 2-D CNN, then a recurrent layer over time."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet18

from regkit.errors import InputError
from regkit.models.torchvision_model import load_pretrained
from regkit.models.video_model import VideoModel, make_head

# Cells a side. One cell (global average pooling) forgets where things are: a recurrent net on top
# of it never learns the direction of a motion.
GRID = 4
TINY = (16, 32, 32)  # channels of the tiny encoder's blocks


class FrameEncoder(nn.Module):
    """Encode each frame alone: CNN, coarse grid, linear map of the flattened grid."""

    def __init__(self, cnn: nn.Module, channels: int, dim: int) -> None:
        super().__init__()
        self.cnn = cnn
        self.grid = nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.project = nn.Linear(channels * GRID**2, dim)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch frames dim"]:
        """Return one embedding a frame."""
        frames = clip.transpose(1, 2)
        embeddings = self.project(self.grid(self.cnn(frames.flatten(0, 1))))
        return embeddings.unflatten(0, frames.shape[:2])


def make_frame_encoder(
    name: str, pretrained: str | None, channels: Sequence[int] | None, dim: int
) -> FrameEncoder:
    """Build the encoder of that name, the resnet18 from ImageNet or file weights if asked.

    channels: of each block of the tiny encoder; `TINY` when None.
    Raises: InputError for another name, for weights that do not fit, or for channels of resnet18.
    """
    if name == "resnet18":
        if channels is not None:
            raise InputError(
                f'FrameEncoder got channels={list(channels)} with encoder="resnet18", whose widths '
                'are its own. Give encoder="tiny", or leave channels out.'
            )
        return FrameEncoder(_resnet18(pretrained), channels=512, dim=dim)
    if name != "tiny":
        raise InputError(
            f'FrameEncoder got encoder="{name}"; allowed: "tiny" or "resnet18". Give one of them.'
        )
    if pretrained is not None:
        raise InputError(
            f'FrameEncoder got pretrained="{pretrained}" with encoder="tiny", which has none. '
            'Give encoder="resnet18", or leave pretrained out.'
        )
    channels = channels or TINY
    return FrameEncoder(_tiny(channels), channels=channels[-1], dim=dim)


def _tiny(channels: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in pairwise((3, *channels))
        )
    )


def _resnet18(pretrained: str | None) -> nn.Sequential:
    net = resnet18()
    if pretrained is not None:
        load_pretrained(net, "resnet18", pretrained, head="fc")
    layers = OrderedDict(net.named_children())
    del layers["avgpool"], layers["fc"]
    return nn.Sequential(layers)


class FrameRNN(VideoModel):
    """Frame embeddings, a recurrent layer, then class scores from the mean of its outputs.

    layer: the recurrent layer, which each plug names.
    encoder: "tiny", or "resnet18", for which pretrained names image weights or a file.
    channels: of the blocks of the tiny encoder; 16, 32, 32 when None.
    """

    frame_embeddings = "encoder"
    layer: ClassVar[type[nn.GRU] | type[nn.LSTM]]

    def __init__(
        self,
        *,
        num_classes: int,
        dropout: float = 0.0,
        encoder: str = "tiny",
        pretrained: str | None = None,
        channels: Sequence[int] | None = None,
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = make_frame_encoder(encoder, pretrained, channels, dim=hidden_size)
        self.rnn = self.layer(
            hidden_size, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional
        )
        width = hidden_size * (2 if bidirectional else 1)
        self.head = make_head(type(self).__name__, width, num_classes, dropout)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        outputs, _ = self.rnn(self.encoder(clip))
        return self.head(outputs.mean(dim=1))
