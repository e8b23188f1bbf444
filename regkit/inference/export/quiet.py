"""Warnings of PyTorch's exporters that are its own affair."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What PyTorch warns of while it exports, which nobody outside of it can mend.
_THEIRS = (
    # nn.RNNBase keeps its parameters in a list as well, and each trace fills a new one.
    (UserWarning, r"The tensor attributes? .*_flat_weights"),
    # Its own decomposition of GRU and LSTM calls what it has deprecated.
    (FutureWarning, "_check_is_size will be removed"),
    # Dynamo, which traces that decomposition, looks at .grad of whatever it meets.
    (UserWarning, r"The \.grad attribute of a Tensor that is not a leaf Tensor"),
    # PyTorch 2.11 asks for the kind of a tree in a way that it has deprecated itself.
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # PyTorch 2.11 reads a program's weights from bytes, and writes to none of them.
    (UserWarning, "The given buffer is not writable"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings that are PyTorch's own affair."""
    with warnings.catch_warnings():
        for category, message in _THEIRS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
