"""A 2-D CNN on each frame, then an LSTM over time."""

from typing import final

from torch import nn

from regkit.models.frame_rnn import FrameRNN


@final
class CnnLstm(FrameRNN):
    """Frame embeddings, LSTM, then class scores from the mean of its outputs over time."""

    layer = nn.LSTM
