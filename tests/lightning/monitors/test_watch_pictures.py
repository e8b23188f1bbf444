"""Pictures of a run: the numbers in them, that they outlive a kill, and where they go."""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from regkit import InputError, RegularizerCallback
from regkit.lightning.monitors import density_map, filters, survivors
from regkit.lightning.monitors.canvas import percent, rgba, short_names, tint
from regkit.lightning.monitors.pictures import Pictures, first_filters
from regkit.palette import PALE, RED
from regkit.penalties import L1, GroupLasso
from regkit.structure.selectors import weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Checkpoint directory .* is not empty",  # that of a run that continues
)
NAMES = ("density", "filters", "survivors")


def conv3d_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 2 * 2, 2)
    )


def linear_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2 * 2, 2))


class Module(pl.LightningModule):
    """A user's module; `spoil` makes its weights NaN in the second epoch."""

    def __init__(self, make: Callable[[], nn.Module] = conv3d_net, spoil: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = make()
        self.spoil = spoil
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", float(self.current_epoch))

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if self.spoil and self.current_epoch == 1:
            with torch.no_grad():
                next(self.net.parameters())[0, 0] = float("nan")

    def on_train_epoch_end(self) -> None:
        self.seen.append({name: by_hand(p) for name, p in weights(self).items()})

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), lr=0.1)


def by_hand(tensor: Tensor) -> float:
    """Count one entry after the other."""
    entries = tensor.detach().flatten().tolist()
    return sum(entry != 0.0 for entry in entries) / len(entries)


def clips() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(torch.randn(6, 3, 4, 2, 2, generator=generator), batch_size=2)  # type: ignore[arg-type]: a tensor is a dataset


def fit(
    module: Module,
    folder: Path,
    *callbacks: pl.Callback,
    max_epochs: int = 3,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    found = callbacks or (RegularizerCallback([L1(0.05)]), Pictures(folder))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(found),
        **{"logger": False, "enable_checkpointing": False, **options},
    )
    trainer.fit(module, clips(), clips(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def tensorboard(folder: Path) -> dict[str, Any]:
    logger = TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
    return {"logger": logger, "log_every_n_steps": 1}


def shown(folder: Path) -> dict[str, list[Any]]:
    """Return the images of an event file, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]  # type: ignore[attr-defined]


def main_axes(figure: Figure) -> Axes:
    return figure.axes[0]


def test_the_pictures_stand_in_tensorboard_and_in_the_folder(tmp_path: Path):
    trainer = fit(Module(), tmp_path, **tensorboard(tmp_path))
    images = shown(tmp_path)
    assert set(images) == {f"pictures/{name}" for name in NAMES}
    for name in NAMES:
        (image,) = images[f"pictures/{name}"]
        assert image.step == trainer.global_step
        file = np.asarray(Image.open(tmp_path / f"{name}.png"))
        np.testing.assert_array_equal(
            np.asarray(Image.open(BytesIO(image.encoded_image_string))), file
        )
        assert 300 < file.shape[1] < 2500
        assert file.std() > 5
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("make", [None, CSVLogger])
def test_without_tensorboard_there_are_the_files(make: Callable[..., Any] | None, tmp_path: Path):
    logger = make(tmp_path / "logs") if make is not None else False
    fit(Module(), tmp_path / "not yet there", logger=logger, log_every_n_steps=1)
    files = {path.name for path in (tmp_path / "not yet there").glob("*")}
    assert files == {f"{name}.png" for name in NAMES}


def test_the_history_is_what_counting_gives(tmp_path: Path):
    module, pictures = Module(), Pictures(tmp_path)
    fit(module, tmp_path, RegularizerCallback([L1(0.05)]), pictures)
    state = pictures.state_dict()
    assert state["epochs"] == [0, 1, 2]
    assert [dict(zip(state["names"], row, strict=True)) for row in state["shares"]] == module.seen
    assert 0 < state["shares"][-1][0] < 1
    assert state["sizes"] == [p.numel() for p in weights(module).values()]


def test_only_what_is_penalised_counts(tmp_path: Path):
    pictures = Pictures(tmp_path)
    fit(Module(), tmp_path, RegularizerCallback([L1(0.05, params="Linear")]), pictures)
    assert pictures.state_dict()["names"] == ["net.3.weight"]
    fit(Module(), tmp_path, pictures)
    assert pictures.state_dict()["names"] == ["net.0.weight", "net.3.weight"]


def kept(folder: Path, name: str) -> list[pl.Callback]:
    checkpoint = {
        "last": ModelCheckpoint(folder, filename="last"),
        "best": ModelCheckpoint(folder, filename="best", monitor="val", mode="max"),
        "within": ModelCheckpoint(folder, filename="within", every_n_train_steps=7),
    }[name]
    return [RegularizerCallback([L1(0.05)]), Pictures(folder), checkpoint]


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_continued_run_gives_the_same_pictures(name: str, tmp_path: Path):
    """Best is saved when validation ends, before the epoch does."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(Module(), whole, *kept(whole, name), enable_checkpointing=True, max_epochs=4)
    fit(Module(), parts, *kept(parts, name), enable_checkpointing=True, max_epochs=2)
    for picture in NAMES:
        (parts / f"{picture}.png").unlink()
    fit(
        Module(),
        parts,
        *kept(parts, name),
        enable_checkpointing=True,
        max_epochs=4,
        ckpt_path=parts / f"{name}.ckpt",
    )
    for picture in NAMES:
        assert (parts / f"{picture}.png").read_bytes() == (whole / f"{picture}.png").read_bytes()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_run_continued_within_an_epoch_has_each_epoch_once(tmp_path: Path):
    fit(Module(), tmp_path, *kept(tmp_path, "within"), enable_checkpointing=True)
    callbacks = kept(tmp_path, "within")
    path = tmp_path / "within.ckpt"
    fit(Module(), tmp_path, *callbacks, enable_checkpointing=True, max_epochs=4, ckpt_path=path)
    assert callbacks[1].state_dict()["epochs"] == [0, 1, 2, 3]


def test_another_fit_starts_anew(tmp_path: Path):
    pictures = Pictures(tmp_path)
    for epochs in (3, 2):
        fit(Module(), tmp_path, RegularizerCallback([L1(0.05)]), pictures, max_epochs=epochs)
        assert pictures.state_dict()["epochs"] == list(range(epochs))


def test_a_running_run_is_drawn_every_n_epochs(tmp_path: Path):
    callbacks = RegularizerCallback([L1(0.05)]), Pictures(tmp_path, every_n_epochs=2)
    fit(Module(), tmp_path, *callbacks, max_epochs=5, **tensorboard(tmp_path))
    for name in NAMES:
        assert [image.step for image in shown(tmp_path)[f"pictures/{name}"]] == [6, 12, 15]
    with pytest.raises(InputError, match="every_n_epochs=0; allowed: 1 or more"):
        Pictures(tmp_path, every_n_epochs=0)


def test_the_end_is_drawn_once(tmp_path: Path):
    callbacks = RegularizerCallback([L1(0.05)]), Pictures(tmp_path, every_n_epochs=2)
    fit(Module(), tmp_path, *callbacks, max_epochs=2, **tensorboard(tmp_path))
    assert len(shown(tmp_path)["pictures/density"]) == 1


def test_a_diverged_run_says_so(tmp_path: Path):
    module, pictures = Module(spoil=True), Pictures(tmp_path)
    fit(module, tmp_path, RegularizerCallback([L1(0.05)]), pictures, **tensorboard(tmp_path))
    assert set(shown(tmp_path)) == {f"pictures/{name}" for name in NAMES}
    history = density_map.History(**pictures.state_dict())
    assert np.isnan(history.shares[1][0])
    assert not np.isnan(history.shares[0]).any()
    assert any("diverged in epoch 2" in text for text in texts(density_map.draw(history)))
    chosen = dict(weights(module))
    layers = survivors.measure(module, chosen)
    assert layers[0].diverged
    assert any("diverged" in text for text in texts(survivors.draw(layers)))
    found = first_filters(module, chosen)
    assert found is not None
    assert any("diverged" in text for text in texts(filters.draw(*found)))


def test_a_net_without_convolution_has_no_filters(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="regkit.lightning.monitors"):
        pictures = Pictures(tmp_path, every_n_epochs=1)
        fit(Module(linear_net), tmp_path, RegularizerCallback([L1(0.05)]), pictures)
    assert {path.name for path in tmp_path.glob("*.png")} == {"density.png", "survivors.png"}
    assert caplog.text.count("filters.png is left out: Module has no 2-D or 3-D convolution") == 1


def test_a_net_of_frames_shows_its_2d_filters():
    net = nn.Sequential(nn.Conv2d(2, 5, (2, 3)), nn.Conv3d(5, 5, 3))
    found = first_filters(net, dict(weights(net)))
    assert found is not None
    weight, name = found
    assert name == "0"
    np.testing.assert_array_equal(weight[:, :, 0], net[0].weight.detach().numpy())


def some_zeros(weight: Tensor, share: float = 0.5) -> None:
    with torch.no_grad():
        weight[torch.rand(weight.shape) < share] = 0


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., tuple[int, int]]]] = {
    # How (input, output) channels follow from the place of an entry, written out.
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 2, 3)), lambda o, i, *_: (i, o)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), lambda o, i, *_: (i, o)),
    "groups": (lambda: nn.Conv3d(4, 6, 3, groups=2), lambda o, i, *_: (i + 2 * (o // 3), o)),
    "transposed": (lambda: nn.ConvTranspose3d(4, 6, 3), lambda i, o, *_: (i, o)),
    "linear": (lambda: nn.Linear(4, 6), lambda o, i: (i, o)),
    "recurrent": (lambda: nn.GRUCell(4, 6), lambda o, i: (i, o % 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_survivors_are_what_counting_gives(kind: str):
    make, channels = LAYERS[kind]
    net = nn.Sequential(make())
    name, weight = next(iter(weights(net).items()))
    some_zeros(weight)
    layer = survivors.measure(net, {name: weight})[0]
    inputs: dict[int, list[bool]] = {k: [] for k in range(4)}
    outputs: dict[int, list[bool]] = {k: [] for k in range(6)}
    places: dict[Any, list[bool]] = {}
    for at in itertools.product(*map(range, weight.shape)):
        alive = weight[at].item() != 0
        i, o = channels(*at)
        inputs[i].append(alive)
        outputs[o].append(alive)
        place = (0,) * (5 - len(at)) + at[2:] if len(at) > 2 else (0, 0, 0)
        places.setdefault(place, []).append(alive)
    for found, wanted in ((layer.inputs, inputs), (layer.filters, outputs)):
        means = [np.mean(alive) for alive in wanted.values()]
        np.testing.assert_allclose(found, means, rtol=1e-6)
    for place, alive in places.items():
        np.testing.assert_allclose(layer.kernel[place], np.mean(alive), rtol=1e-6)
    assert layer.kernel.size == len(places)


def test_survivors_are_told_in_words():
    """Three of six filters and two of three colours are left, and the first tap is gone."""
    conv = nn.Conv3d(3, 6, 3)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[:3], conv.weight[:, 1], conv.weight[:, :, 0] = 0, 0, 0
    net = nn.Sequential(conv)
    found = texts(survivors.draw(survivors.measure(net, dict(weights(net)))))
    assert {"2 of 3", "3 of 6", "0%", "33%"} <= set(found)
    assert found.count("33%") == 2


def test_the_map_tells_the_end_and_the_dead():
    history = density_map.History(["net.a.weight", "net.b.weight"], [30, 10])
    history.epochs, history.shares = [0, 4], [[1.0, 1.0], [0.25, 0.0]]
    figure = density_map.draw(history)
    found = texts(figure)
    assert {"25% of 30", "0% of 10  dead", "19% of 40", "a", "b", "1", "5"} <= set(found)
    image = main_axes(figure).images[0].get_array()
    np.testing.assert_allclose(image, tint(np.array([[1.0, 0.25], [1.0, 0.0]])))


def test_colours_tell_none_from_few_from_nan():
    colours = tint(np.array([0.0, 1e-4, 1.0, np.nan]))
    assert colours[0].tolist() == [1, 1, 1, 1]
    assert colours[3].tolist() == rgba(RED)
    assert colours[1, :3].min() < 0.9
    assert colours[2, :3].sum() < colours[1, :3].sum()


def test_filters_stand_longest_first_and_the_dead_last():
    weight = np.zeros((5, 3, 3, 2, 2), dtype=np.float32)
    weight[1, 0, 1, 0, 1], weight[3, 2, 0], weight[4, 1, 2, 1, 1] = -1.0, 5.0, 2.0
    figure = filters.draw(weight, "net.conv")
    axes = main_axes(figure)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ["3", "4", "1", "0 dead", "2 dead"]
    assert any("3 of 5 live" in text for text in texts(figure))
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert columns == [f"{c}\n{t}" for c in "RGB" for t in ("-1", "t", "+1")]
    picture = axes.images[0].get_array()
    assert picture is not None

    def colour(row: int, column: int, y: int, x: int) -> list[float]:
        """Return the colour in the middle of one weight, found by the ticks."""
        top = axes.get_yticks()[row] - filters.CELL_PIXELS / 2
        left = axes.get_xticks()[column] - filters.CELL_PIXELS / 2
        half = filters.CELL_PIXELS // 2
        return picture[int(top + (y + 0.5) * half), int(left + (x + 0.5) * half)].tolist()

    grey = rgba(PALE)
    assert colour(3, 4, 0, 0) == grey
    assert colour(0, 6, 1, 1) != grey  # filter 3: B, first tap
    assert colour(0, 7, 1, 1) == grey
    red, _, blue, _ = colour(2, 1, 0, 1)  # filter 1: R, middle tap, -1: violet
    assert blue > red
    red, _, blue, _ = colour(1, 5, 1, 1)  # filter 4: G, last tap, +2: orange
    assert red > blue
    assert colour(2, 1, 1, 1) == grey


def test_of_many_filters_and_channels_it_says_how_many_are_not_shown():
    weight = np.random.default_rng(0).normal(size=(70, 9, 1, 3, 3)).astype(np.float32)
    weight[:, 6], weight[:10] = 100, 0
    figure = filters.draw(weight, "conv")
    found = texts(figure)
    assert any("6 shorter filters are not shown" in text for text in found)
    assert any("5 weaker input channels are not shown" in text for text in found)
    assert "in 6" in [t.get_text() for t in main_axes(figure).get_xticklabels()]
    rows = [t.get_text() for axes in figure.axes for t in axes.get_yticklabels()]
    assert len(rows) == 64
    assert sum("dead" in row for row in rows) == 4


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.9999, ">99%"), (1e-5, "<0.1%"), (0.0314, "3.1%"), (0.5, "50%")],
)
def test_a_share_is_0_or_100_percent_only_where_it_is(share: float, text: str):
    assert percent(share) == text


def test_names_are_short_and_distinct():
    long = "net." + "block." * 12 + "conv.weight"
    names = ["net.rnn.weight_ih_l0", "net.fc.weight", "net.$a_{.weight", long]
    short = short_names(names)
    assert short[:3] == ["rnn.weight_ih_l0", "fc", "$a_{"]
    assert len(short[3]) < 40
    assert short_names(["fc.weight"]) == ["fc"]


def test_group_penalties_leave_whole_filters_dead(tmp_path: Path):
    module = Module()
    fit(
        module,
        tmp_path,
        RegularizerCallback([GroupLasso(0.5, params="Conv3d")]),
        Pictures(tmp_path),
    )
    chosen = {"net.0.weight": module.net[0].weight}
    (layer,) = survivors.measure(module, chosen)
    alive = [bool(row.any()) for row in module.net[0].weight]
    assert (layer.filters > 0).tolist() == alive
    assert not all(alive)


@pytest.mark.slow
def test_ranks_count_together_and_one_draws(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "watched_ranks.py", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
    assert {tag: len(found) for tag, found in shown(tmp_path).items()} == dict.fromkeys(
        (f"pictures/{name}" for name in NAMES), 1
    )


def test_an_epoch_done_again_counts_once_and_other_layers_start_anew():
    history = density_map.History()
    for tensor in (torch.ones(4), torch.eye(2)):
        history.add(0, {"a": tensor})
    assert (history.epochs, history.shares) == ([0], [[0.5]])
    history.add(1, {"b": torch.ones(3)})
    assert (history.names, history.sizes, history.epochs) == (["b"], [3], [1])
