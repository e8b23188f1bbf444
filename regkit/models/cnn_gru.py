"""A 2-D CNN on each frame, then a GRU over time."""

from typing import final

from torch import nn

from regkit.models.frame_rnn import FrameRNN


@final
class CnnGru(FrameRNN):
    """Frame embeddings, GRU, then class scores from the mean of its outputs over time."""

    layer = nn.GRU
