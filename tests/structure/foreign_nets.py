"""Small nets of libraries that people train, with random weights, and an input of each."""

from collections.abc import Callable

import pytest
import torch
from own_nets import OWN, example_of
from torch import Tensor, nn

from regkit.models.cnn_lstm import CnnLstm
from regkit.models.tiny3d import Tiny3D

Make = Callable[[], nn.Module]
CLASSES = 3


class Scores(nn.Module):
    """A net of transformers, called with a tensor for its scores alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of clips."""
        return self.net(pixel_values=x).logits


def videomae() -> nn.Module:
    """Hugging Face's VideoMAE, of two layers with four heads."""
    hf = pytest.importorskip("transformers")
    config = hf.VideoMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=8, num_frames=4, num_labels=CLASSES,
    )  # fmt: skip
    return Scores(hf.VideoMAEForVideoClassification(config))


def timesformer() -> nn.Module:
    """Hugging Face's TimeSformer, which attends over time and space in turn."""
    hf = pytest.importorskip("transformers")
    config = hf.TimesformerConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=8, num_frames=4, num_labels=CLASSES,
    )  # fmt: skip
    return Scores(hf.TimesformerForVideoClassification(config))


def of_timm(name: str) -> Make:
    """Return what makes a net of timm."""
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=CLASSES)


def r3d_18() -> nn.Module:
    """Make torchvision's net."""
    from torchvision.models.video import r3d_18

    return r3d_18(num_classes=CLASSES)


VIDEO, FRAMES, PICTURE = (1, 3, 4, 16, 16), (1, 4, 3, 16, 16), (1, 3, 32, 32)
FOREIGN: dict[str, tuple[Make, tuple[int, ...]]] = {
    "videomae": (videomae, FRAMES),
    "timesformer": (timesformer, FRAMES),
    "timm vit": (of_timm("test_vit"), (1, 3, 160, 160)),
    "timm resnet": (of_timm("test_resnet"), PICTURE),
    "timm efficientnet": (of_timm("test_efficientnet"), PICTURE),
}
# Those that are there without another package.
HERE: dict[str, tuple[Make, tuple[int, ...]]] = {
    "tiny3d": (lambda: Tiny3D(num_classes=CLASSES), VIDEO),
    "cnn_lstm": (lambda: CnnLstm(num_classes=CLASSES, num_layers=2, bidirectional=True), VIDEO),
    "r3d_18": (r3d_18, VIDEO),
    **{name: (OWN[name], tuple(example_of(name).shape)) for name in ("conv_lstm", "unet")},
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Make a net, in eval mode, and an input; skip the test where its library is absent."""
    make, shape = (HERE | FOREIGN)[name]
    torch.manual_seed(seed)
    return make().eval(), torch.randn(shape)
