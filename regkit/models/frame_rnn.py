"""What CNNs with a recurrent layer over time share."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regkit.models.frame_encoder import make_frame_encoder
from regkit.models.head import make_head
from regkit.models.video_model import VideoModel


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
