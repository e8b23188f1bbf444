"""Every plug of configs/model keeps the promises of VideoModel."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regkit.errors import InputError
from regkit.models.video_model import VideoModel

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
NUM_CLASSES = 3

every_model = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def plug(config: Path) -> type[VideoModel]:
    return get_class(str(OmegaConf.select(OmegaConf.load(config), "_target_")))


def build(config: Path, seed: int = 0, **changes: Any) -> VideoModel:
    torch.manual_seed(seed)
    return instantiate(OmegaConf.load(config), num_classes=NUM_CLASSES, **changes)


@cache
def built(config: Path) -> VideoModel:
    """Return a model in eval mode that no test changes."""
    return build(config).eval()


def clips(batch: int = 2, frames: int = 8, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def embeddings(model: VideoModel, clip: Tensor) -> Tensor:
    """Return the frame embeddings as (batch, frames, all else)."""
    caught: list[Tensor] = []
    module = model.get_submodule(model.frame_embeddings)

    def catch(_module: nn.Module, _args: tuple[Tensor], output: Tensor) -> None:
        caught.append(output)

    handle = module.register_forward_hook(catch)
    model(clip)
    handle.remove()
    (output,) = caught
    return output if output.ndim == 3 else output.movedim(2, 1).flatten(2)


@every_model
def test_a_plug_is_one_module_and_one_yaml_that_restates_its_defaults(config: Path):
    kind = plug(config)
    assert kind.__module__ == f"regkit.models.{config.stem}"
    assert kind.__name__.lower() == config.stem.replace("_", "")
    assert issubclass(kind, VideoModel)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if name != "num_classes"
    }
    assert OmegaConf.load(config) == OmegaConf.create(
        {"_target_": f"{kind.__module__}.{kind.__name__}"} | defaults
    )


@every_model
@pytest.mark.parametrize(("frames", "side"), [(8, 32), (5, 45)])
def test_one_row_of_finite_scores_a_clip(config: Path, frames: int, side: int):
    scores = built(config)(clips(frames=frames, side=side))
    assert scores.shape == (2, NUM_CLASSES)
    assert scores.isfinite().all()


@every_model
def test_the_loss_reaches_every_parameter(config: Path):
    """Or all but a thousandth, which takes no part in the scores: the published net leaves it idle.

    MViT's last block makes queries of all tokens, and the scores read one.
    """
    model, clip = build(config), clips(batch=3)
    cross_entropy(model(clip), torch.tensor([0, 1, 2])).backward()
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    idle = [p for p in model.parameters() if p not in gradients or not gradients[p].any()]
    assert not any(gradient.isnan().any() for gradient in gradients.values())
    assert sum(map(torch.numel, idle)) < sum(map(torch.numel, model.parameters())) / 1000
    model.eval()
    with torch.no_grad():
        scores = model(clip)
        for parameter in idle:
            parameter.add_(1)
        assert torch.equal(model(clip), scores)


@every_model
def test_frame_embeddings_of_16_frames_keep_at_least_two(config: Path):
    assert 2 <= embeddings(built(config), clips(batch=1, frames=16)).shape[1] <= 16


@every_model
def test_the_time_axis_of_frame_embeddings_is_time(config: Path):
    model, clip = built(config), clips(batch=1, frames=16)
    plain = embeddings(model, clip)

    def centre(frame: int) -> float:
        """Return where along the axis, from 0 to 1, a change of one frame is felt."""
        changed = clip.clone()
        changed[:, :, frame] += 1
        felt = (embeddings(model, changed) - plain).square().sum(dim=(0, 2))
        return float((felt / felt.sum()) @ torch.linspace(0, 1, len(felt)))

    assert centre(0) < 0.3 < 0.7 < centre(15)
    assert centre(3) < centre(8) < centre(12)


@every_model
def test_dropout_acts_in_training_only(config: Path):
    model, clip = build(config, dropout=0.9), clips()
    for module in model.modules():
        if not isinstance(module, nn.Dropout):
            module.training = False
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))
    assert torch.equal(model(clip), built(config)(clip))


@every_model
def test_a_state_dict_carries_the_whole_model(config: Path):
    model, clip = built(config), clips()
    other = build(config, seed=7).eval()
    assert not torch.equal(other(clip), model(clip))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(clip), model(clip))


@every_model
@pytest.mark.parametrize("dropout", [1.0, -0.1, float("nan")])
def test_a_dropout_outside_its_range_is_refused(config: Path, dropout: float):
    with pytest.raises(InputError, match="allowed: 0 <= dropout < 1"):
        plug(config)(num_classes=NUM_CLASSES, dropout=dropout)


@every_model
def test_a_single_class_is_refused(config: Path):
    with pytest.raises(InputError, match="allowed: 2 or more"):
        plug(config)(num_classes=1)
