"""MViT and Swin: torchvision's nets for any clip, frame by frame, and open to every penalty."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torchvision.models import get_model

from regkit import Regularizer
from regkit.models.mvit_v2_s import LAST_OF_STAGE_2, MViTV2S
from regkit.models.swin3d_t import Swin3DT
from regkit.models.video_model import VideoModel
from regkit.penalties import L1, GroupLasso, Penalty, WeightPenalty
from regkit.regularizer.activations import as_frames
from regkit.structure.selectors import NORMS, select_parameters

PENALTIES = Path(__file__).parents[2] / "configs" / "penalty"
SIZE = (1, 3, 8, 48, 32)

both = pytest.mark.parametrize("kind", [MViTV2S, Swin3DT])


@cache
def built(kind: Callable[..., VideoModel]) -> VideoModel:
    """Return a model in eval mode that no test changes."""
    torch.manual_seed(0)
    return kind(num_classes=3).eval()


def outputs(model: VideoModel, *names: str) -> list[Any]:
    """Return what the modules of these names give for one clip."""
    caught: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: caught.update({name: output})
        )
        for name in names
    ]
    with torch.no_grad():
        model(torch.randn(SIZE))
    for handle in handles:
        handle.remove()
    return [caught[name] for name in names]


@torch.no_grad()
def test_mvit_is_torchvisions_net_where_that_one_runs():
    """torchvision's own pass, told of the size as it wants to be."""
    model, clip = built(MViTV2S), torch.randn(2, 3, 8, 64, 64)
    encoding = model.net.pos_encoding
    before = encoding.spatial_size, encoding.temporal_size
    encoding.spatial_size, encoding.temporal_size = (16, 16), 4
    theirs = model.net(clip)
    encoding.spatial_size, encoding.temporal_size = before
    assert torch.equal(model(clip), theirs)


def test_the_frames_of_mvit_are_means_over_their_own_tokens():
    name = f"net.blocks.{LAST_OF_STAGE_2}"
    (tokens, (time, height, width)), frames = outputs(built(MViTV2S), name, "frames")
    assert (time, height, width) == (4, 6, 4)
    assert tokens.shape[1] == 1 + 4 * 6 * 4
    for place in range(time):
        own = tokens[:, 1 + place * height * width : 1 + (place + 1) * height * width]
        torch.testing.assert_close(frames[:, place], own.mean(1))


def test_the_frames_of_swin_are_means_over_height_and_width():
    model = built(Swin3DT)
    last, output = outputs(model, "net.norm", model.frame_embeddings)
    frames = as_frames(output, model.get_submodule(model.frame_embeddings), None)
    assert last.shape == (1, 4, 2, 1, 768)
    torch.testing.assert_close(frames, last.mean((2, 3)))


@both
@torch.no_grad()
def test_a_frame_feels_most_what_happens_in_it(kind: type[VideoModel]):
    """Attention lets every frame hear of the others too."""
    model, found = built(kind), list[Tensor]()
    module = model.get_submodule(model.frame_embeddings)
    handle = module.register_forward_hook(lambda m, _, o: found.append(as_frames(o, m, None)))
    still = torch.randn(1, 3, 16, 64, 64)
    model(still)
    for place in (1, 4, 6):
        moved = still.clone()
        moved[:, :, 2 * place : 2 * place + 2, 16:48, 16:48] += 1  # two frames are one of the net's
        model(moved)
        most = int((found[-1] - found[0]).norm(dim=2)[0].argmax())
        assert abs(most - place) <= 1  # MViT's patches reach into the frame before
    handle.remove()


@both
@pytest.mark.parametrize("num_classes", [7, 3])
def test_they_take_torchvisions_weights(
    kind: type[VideoModel], num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = {MViTV2S: "mvit_v2_s", Swin3DT: "swin3d_t"}[kind]
    source = get_model(name, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    net = kind(num_classes=num_classes, pretrained=str(tmp_path / "weights.pt")).net
    state = net.state_dict()
    other = [key for key, tensor in source.state_dict().items() if not same(tensor, state[key])]
    assert state.keys() == source.state_dict().keys()
    assert len(other) == (0 if num_classes == 7 else 2)
    assert all(key.startswith("head.") for key in other)


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def plug(name: str) -> Penalty:
    config = OmegaConf.merge({"lam": 0.01}, OmegaConf.load(PENALTIES / f"{name}.yaml"))
    return hydra.utils.instantiate(OmegaConf.select(config, name), _convert_="all")


@both
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in PENALTIES.glob("*.yaml") if path.stem != "none")
)
def test_every_penalty_finds_what_it_is_for(kind: type[VideoModel], name: str):
    model, penalty = built(kind), plug(name)
    regularizer = Regularizer(model, {name: penalty}, example=torch.zeros(SIZE))
    regularizer.detach()
    chosen = regularizer.named_parameters()
    if not isinstance(penalty, WeightPenalty):
        assert chosen == {}
        return
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and "rel" not in n}
    if penalty.layout == "time":
        weights = {n: p for n, p in weights.items() if p.ndim == 5 and p.shape[2] > 1}
    if penalty.layout == "filter" and not penalty.joint:  # rows of the head are classes
        weights = {n: p for n, p in weights.items() if not n.startswith("net.head.")}
    assert chosen.keys() == weights.keys()


@both
def test_tables_of_positions_norms_and_biases_are_left_out(kind: type[VideoModel]):
    entries = {entry.name: entry for entry in select_parameters(built(kind))}
    left_out = {name for name, entry in entries.items() if not entry.chosen}
    for name, entry in entries.items():
        special = "rel_pos" in name or "relative" in name or "class_token" in name
        plain = name.endswith("bias") or isinstance(entry.module, NORMS) or special
        assert (name in left_out) == plain, name


def stepped(model: VideoModel, penalty: WeightPenalty, prepare: Callable[..., None]) -> Regularizer:
    """Bind the penalty, prepare its groups and take one step."""
    clip = torch.randn(2, 3, 4, 32, 32)
    regularizer = Regularizer(model, {"p": penalty}, example=clip[:1])
    prepare(regularizer)
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    regularizer.attach(optimizer)
    cross_entropy(model(clip), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert model(clip).isfinite().all()
    return regularizer


@both
def test_a_step_of_l1_ends_at_exact_zeros(kind: type[VideoModel]):
    regularizer = stepped(kind(num_classes=3), L1(lam=10.0), lambda _: None)
    chosen = nn.utils.parameters_to_vector(regularizer.named_parameters().values())
    # Of normal weights of deviation 0.02, so many are below step * lam = 0.01.
    assert float((chosen == 0).float().mean()) == pytest.approx(0.38, abs=0.1)


@pytest.mark.slow
@both
@pytest.mark.parametrize("groups", ["filter", "head", "channel"])
def test_a_step_empties_the_groups_that_are_small(kind: type[VideoModel], groups: str):
    def weaken(regularizer: Regularizer) -> None:
        for group_set in (part.group_set for part in regularizer.bound["p"].parts):
            rows = group_set.rows().clone()
            rows[::2] *= 1e-3
            group_set.write(rows)

    regularizer = stepped(kind(num_classes=3), GroupLasso(lam=5.0, groups=groups), weaken)
    for group_set in (part.group_set for part in regularizer.bound["p"].parts):
        alive = group_set.rows().any(1)
        assert not alive[::2].any(), group_set.name
        assert alive[1::2].all(), group_set.name
