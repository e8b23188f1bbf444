"""A 2-D CNN on each frame, then an LSTM over time."""

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from regkit.models.frame_encoder import make_frame_encoder
from regkit.models.head import make_head
from regkit.models.video_model import VideoModel


@final
class CnnLstm(VideoModel):
    """Frame embeddings, LSTM, then class scores from the mean of its outputs over time.

    encoder: "tiny", or "resnet18", for which pretrained names image weights or a file.
    channels: of the blocks of the tiny encoder; 16, 32, 32 when None.
    """

    frame_embeddings = "encoder"

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
        self.rnn = nn.LSTM(
            hidden_size, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional
        )
        width = hidden_size * (2 if bidirectional else 1)
        self.head = make_head("CnnLstm", width, num_classes, dropout)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        outputs, _ = self.rnn(self.encoder(clip))
        return self.head(outputs.mean(dim=1))
