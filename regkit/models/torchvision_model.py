"""torchvision's models: published weights or a checkpoint, a new head, dropout before it."""

import logging
from abc import abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from regkit.errors import InputError
from regkit.models.video_model import VideoModel, check_head

log = logging.getLogger(__name__)

# Names that wrappers (Lightning, DDP, torch.compile, regkit) put before those of the network.
WRAPPERS = {"net", "model", "module", "_orig_mod"}


def load_pretrained(net: nn.Module, name: str, pretrained: str, head: str) -> None:
    """Fill net from torchvision's weights of model `name`, or from a file.

    The head stays new when the weights were trained on another number of classes.

    Raises: InputError when the weights cannot be had or do not fit.
    """
    known = get_model_weights(name)
    if pretrained in known.__members__:
        state = _download(known[pretrained], name)
    elif Path(pretrained).is_file():
        state = _read(Path(pretrained))
    else:
        raise InputError(
            f'{name} got pretrained="{pretrained}", which is neither a file nor a name of its '
            f"weights; allowed: {', '.join(known.__members__)}, or the path of a checkpoint."
        )
    _keep_new_head(state, net, name, head)
    _fill(net, state, who=f'{name} got pretrained="{pretrained}"')


def _download(weights: WeightsEnum, name: str) -> dict[str, Tensor]:
    try:
        return dict(
            weights.get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f'{name} got pretrained="{weights.name}", but {weights.url} could not be had '
            f"({error}). Download it on a machine with network and give the path of the file."
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise InputError(
            f'pretrained="{file}" is no checkpoint that loads safely, with weights_only=True '
            f"({type(error).__name__}). Save the network's state_dict() alone."
        ) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f'pretrained="{file}" holds no weights; allowed: a state_dict, or a dict with one '
            'under "state_dict". Save the network\'s state_dict().'
        )
    return {_bare(key): tensor for key, tensor in state.items()}


def _bare(key: str) -> str:
    first, _, rest = key.partition(".")
    return _bare(rest) if first in WRAPPERS else key


def _keep_new_head(state: dict[str, Tensor], net: nn.Module, name: str, head: str) -> None:
    """Put net's own head into state when the head there has another number of classes."""
    own = {key: tensor for key, tensor in net.state_dict().items() if key.startswith(f"{head}.")}
    given, wanted = state.get(f"{head}.weight"), own[f"{head}.weight"]
    if given is not None and given.ndim and len(given) != len(wanted):
        log.info("%s: head of %d classes dropped for %d", name, len(given), len(wanted))
        state |= own


def _fill(net: nn.Module, state: dict[str, Tensor], who: str) -> None:
    """Load the state, or name what does not fit."""
    own = net.state_dict()
    fitting = {
        key: tensor
        for key, tensor in state.items()
        if key not in own or tensor.shape == own[key].shape
    }
    missing, unexpected = net.load_state_dict(fitting, strict=False)
    if missing or unexpected:
        raise InputError(
            f"{who}, weights of another network. Missing or of another shape: {_few(missing)}; "
            f"not known here: {_few(unexpected)}. Give weights of this very model."
        )


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (", ".join(keys[:3]) or "none") + more


class TorchvisionModel(VideoModel):
    """A model of torchvision's, as `net`, with another number of classes.

    architecture: torchvision's name of it.
    last_layer: its name; it stays new where weights are of other classes.
    pretrained: name of torchvision's weights, or path of a checkpoint.
    """

    architecture: ClassVar[str]
    last_layer: ClassVar[str]

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, pretrained: str | None = None
    ) -> None:
        super().__init__()
        check_head(type(self).__name__, num_classes, dropout)
        self.net: Any = get_model(self.architecture, num_classes=num_classes)
        if pretrained is not None:
            load_pretrained(self.net, self.architecture, pretrained, head=self.last_layer)
        self.fit_head(dropout)

    @abstractmethod
    def fit_head(self, dropout: float) -> None:
        """Put dropout before the last layer of `net`, once its weights are loaded."""

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.net(clip)


class VideoResNet(TorchvisionModel):
    """One of three ResNets of 18 layers for clips.

    Source: Tran et al., A Closer Look at Spatiotemporal Convolutions, 2018.
    """

    last_layer = "fc"

    def fit_head(self, dropout: float) -> None:
        """Put dropout after the pool, not before fc: parameters keep torchvision's names."""
        self.net.avgpool = nn.Sequential(self.net.avgpool, nn.Dropout(dropout))
