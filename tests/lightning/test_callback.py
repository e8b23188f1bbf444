"""RegularizerCallback on LightningModules that know nothing of it."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from regkit import InputError, RegularizerCallback, Schedule, density
from regkit.penalties import L1, GroupLasso, TemporalSmoothness

NUM_CLIPS, BATCH = 12, 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*treespec, LeafSpec.*"
)


def smoothness(frames: Tensor) -> Tensor:
    return (frames[:, 1:] - frames[:, :-1]).square().mean()


class Plain(pl.LightningModule):
    """A user's module. `extra` writes the temporal term by hand: the reference."""

    def __init__(self, make: Callable[..., Any] = optim.SGD, extra: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)
        self.make, self.extra = make, extra
        self.seen: list[float] = []

    def objective(self, batch: Tensor) -> Tensor:
        frames = self.encoder(batch)
        loss = self.head(frames.mean(1)).square().mean()
        return loss + self.extra * smoothness(frames.float())

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.objective(batch)
        self.seen.append(loss.item())
        return {"loss": loss, "other": 1} if batch_idx % 2 else loss

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=0.05)


class Manual(Plain):
    """The same by manual optimization, with two optimizers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.objective(batch))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [self.make(m.parameters(), lr=0.05) for m in (self.encoder, self.head)]


def loader() -> DataLoader:
    clips = torch.randn(NUM_CLIPS, 5, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(clips, batch_size=BATCH)  # type: ignore[arg-type]


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def fitted(module: Plain, *callbacks: pl.Callback, **options: Any) -> Plain:
    trainer(*callbacks, **options).fit(module, loader())
    return module


def assert_same(a: nn.Module, b: nn.Module, rtol: float = 1e-6) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def fp16() -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


SETTINGS = {
    "plain": lambda: {},
    "accumulation": lambda: {"accumulate_grad_batches": 2},
    "accumulation with a rest": lambda: {"accumulate_grad_batches": 4},
    "clipping": lambda: {"gradient_clip_val": 0.01},
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16 scaler": fp16,
}


@pytest.mark.parametrize("kind", [Plain, Manual])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_activation_penalty_is_the_term_written_by_hand(kind: type[Plain], setting: str):
    if kind is Manual and ("accumulation" in setting or setting == "clipping"):
        pytest.skip("Lightning leaves these to the user under manual optimization")
    by_hand = fitted(kind(extra=0.7), **SETTINGS[setting]())
    penalty = TemporalSmoothness(0.7, module="encoder")
    ours = fitted(kind(), RegularizerCallback([penalty]), **SETTINGS[setting]())
    without = fitted(kind(), **SETTINGS[setting]())
    assert_same(ours, by_hand)
    with pytest.raises(AssertionError):
        assert_same(without, by_hand)


@pytest.mark.parametrize("kind", [Plain, Manual])
@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
def test_no_strength_is_bitwise_no_regkit(kind: type[Plain], make: Callable[..., Any]):
    plain = fitted(kind(make=make))
    ours = fitted(
        kind(make=make), RegularizerCallback([L1(0.0), TemporalSmoothness(0.0, module="encoder")])
    )
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_prox_for_each_real_step(accumulate: int):
    """With gradients of zero, SGD's soft threshold takes lr * lam off at every step."""

    class Still(Plain):
        def objective(self, batch: Tensor) -> Tensor:
            return 0 * super().objective(batch)

    module = Still()
    with torch.no_grad():
        module.head.weight.fill_(1.0)
    fitted(module, RegularizerCallback(L1(0.1)), max_epochs=1, accumulate_grad_batches=accumulate)
    num_steps = -(-NUM_CLIPS // BATCH // accumulate)
    expected = torch.full((1, 3), 1 - num_steps * 0.05 * 0.1)
    torch.testing.assert_close(module.head.weight.detach(), expected)


def test_the_user_sees_the_own_loss_and_the_module_is_left_as_it_was(tmp_path: Any):
    module = Plain()
    regularize = RegularizerCallback(
        {"sparse": L1(0.3), "smooth": TemporalSmoothness(0.7, module="encoder")}
    )
    logger = CSVLogger(tmp_path)
    fitted(module, regularize, logger=logger, log_every_n_steps=1)
    assert "training_step" not in vars(module)
    assert not module.encoder._forward_hooks
    assert regularize.regularizer is not None
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    header = set(rows[0].split(","))
    assert {
        "objective/total", "objective/loss", "penalty/sparse", "penalty/smooth", "lam/sparse",
        "density/total", "density/live_groups", "density_layer/encoder.weight",
        "speed/prox_share",
    } <= header  # fmt: skip
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert float(first["objective/loss"]) == pytest.approx(module.seen[0])
    total = sum(float(first[k]) for k in ("objective/loss", "penalty/sparse", "penalty/smooth"))
    assert float(first["objective/total"]) == pytest.approx(total)


class Gradients(pl.Callback):
    """Keeps weights and gradients as the optimizer is about to use them."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[Tensor, Tensor]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([(p.detach().clone(), p.grad.clone()) for p in pl_module.parameters()])


def test_the_residual_belongs_to_the_weights_and_gradients_of_one_step(tmp_path: Any):
    """By hand: beside zero g + lam sign(w), at zero what of g exceeds lam; biases are free."""
    module, kept = Plain(), Gradients()
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 2, "max_epochs": 1}
    fitted(module, kept, RegularizerCallback(L1(0.3)), **options)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("objective/kkt")
    logged = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert len(logged) == 3
    for value, pairs in zip(logged, kept.seen[1::2], strict=True):
        total = 0.0
        for w, g in pairs:
            slope = g + 0.3 * w.sign() if w.ndim > 1 else g
            at_zero = (g.abs() - 0.3).clamp_min(0.0)
            total += float(torch.where((w == 0) & (w.ndim > 1), at_zero, slope).square().sum())
        assert value == pytest.approx(total**0.5, rel=1e-4)


def test_live_groups_and_the_strength_of_the_moment_are_logged(tmp_path: Any):
    module = Plain()
    penalty = GroupLasso(3.0, params=["encoder", "head"])
    regularize = RegularizerCallback(penalty, schedule=Schedule(ramp="linear", ramp_until=1.0))
    fitted(module, regularize, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    table = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    strengths = [float(row["lam/group_lasso"]) for row in table]
    assert strengths == pytest.approx([3.0 * step / 12 for step in range(12)])
    live = sum(bool((m.weight[o] != 0).any()) for m in (module.encoder, module.head)
               for o in range(m.out_features))  # fmt: skip
    assert live < 4
    assert float(table[-1]["groups/group_lasso"]) == pytest.approx(live / 4)


def test_the_strength_of_each_layer_is_logged(tmp_path: Any):
    schedule = Schedule(target_density=1 / 3, layerwise=True)
    regularize = RegularizerCallback(L1(0.01), schedule=schedule)
    fitted(Plain(), regularize, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    reg = regularize.regularizer
    assert reg is not None
    (step,) = reg.state_dict()["steps"]
    factors = step["layers"]
    assert set(factors) == {"l1/encoder.weight", "l1/head.weight"}
    assert len(set(factors.values())) == 2
    for layer, factor in factors.items():
        wanted = float(last["lam/l1"]) * factor
        assert float(last[f"lam_layer/{layer}"]) == pytest.approx(wanted)


def test_training_without_an_end_needs_its_number_of_steps():
    endless = {"max_epochs": -1, "max_steps": -1}
    regularize = RegularizerCallback(L1(0.1), schedule=Schedule(target_density=0.5))
    with pytest.raises(InputError, match=r"the trainer has no end\. Set max_epochs"):
        fitted(Plain(), regularize, **endless)


class Progress(pl.Callback):
    """Keeps how far training was after each batch, as the regularizer was told."""

    def __init__(self, regularize: RegularizerCallback, stop_after: int | None = None) -> None:
        self.regularize, self.stop_after = regularize, stop_after
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any, **named: Any) -> None:
        assert self.regularize.regularizer is not None
        self.seen.append(self.regularize.regularizer.progress.value)
        trainer.should_stop = len(self.seen) == self.stop_after


BY_EPOCHS = [(t + 1) / 12 for t in range(12)]


@pytest.mark.parametrize(
    ("kind", "options", "course"),
    [
        (Plain, {}, BY_EPOCHS),
        (Manual, {}, BY_EPOCHS),
        (Plain, {"accumulate_grad_batches": 4}, BY_EPOCHS),
        (Plain, {"max_steps": 4, "max_epochs": None}, [0.25, 0.5, 0.75, 1.0]),
        (Plain, {"max_steps": 4}, [0.25, 0.5, 0.75, 1.0]),
        (Plain, {"max_steps": 100}, BY_EPOCHS),
    ],
)
def test_progress_is_what_ends_training(
    kind: type[Plain], options: dict[str, Any], course: list[float]
):
    regularize = RegularizerCallback(L1(0.1), schedule=Schedule(ramp="linear"))
    progress = Progress(regularize)
    fitted(kind(), regularize, progress, **options)
    assert progress.seen == pytest.approx(course)


def test_a_training_that_ends_before_its_phases_says_so():
    regularize = RegularizerCallback(L1(0.1), schedule=Schedule(settle=0.2, debias=0.8))
    with pytest.warns(
        UserWarning, match="ended at 50% of its length, before debias=0.8: .*Train on"
    ):
        fitted(Plain(), regularize, Progress(regularize, stop_after=6))


def test_a_missed_target_is_told_when_training_ends():
    """Of 15 weights 7 are 0.467, and 8 are 0.533."""
    regularize = RegularizerCallback(L1(0.1), schedule=Schedule(target_density=0.5))
    with pytest.warns(UserWarning, match="target_density=0.5 was asked for, and 0.[45][63]"):
        fitted(Plain(), regularize)
    (result,) = regularize.target_results
    assert not result.is_met


def test_a_second_fit_goes_on_where_the_first_was():
    module = Plain()
    regularize = RegularizerCallback(L1(0.1), schedule=Schedule(ramp="linear", ramp_until=1.0))
    with pytest.warns(UserWarning, match="before ramp_until=1.0"):
        fitted(module, regularize, Progress(regularize, stop_after=9))
    progress = Progress(regularize)
    fitted(module, regularize, progress)
    assert progress.seen == pytest.approx([0.75] * 9 + [10 / 12, 11 / 12, 1.0])
    other = Progress(regularize)
    fitted(Plain(), regularize, other)
    assert other.seen[0] == pytest.approx(1 / 12)


def test_zeros_are_exact_and_in_the_checkpoint(tmp_path: Any):
    module = Plain(make=optim.AdamW)
    checkpoint = ModelCheckpoint(tmp_path, filename="end")
    fitted(
        module, RegularizerCallback(L1(0.02)), checkpoint, enable_checkpointing=True, max_epochs=4
    )
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert 0 < density(module).total < 1
    assert torch.equal(saved["encoder.weight"], module.encoder.weight)


@pytest.mark.parametrize("make", [optim.AdamW, lambda p, lr: optim.SGD(p, lr, momentum=0.9)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_density": 1 / 3, "debias": 0.8},
        {"target_density": 1 / 3, "layerwise": True},
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*Please add the following callbacks", "ignore:.*[Tt]raining ended at 50% of its length"
)
def test_resume_is_bitwise_the_uninterrupted_run(
    tmp_path: Any, make: Callable[..., Any], options: dict[str, Any]
):
    def regularize() -> RegularizerCallback:
        schedule = Schedule(num_steps=4 * NUM_CLIPS // BATCH, **options)
        return RegularizerCallback(L1(0.1), schedule=schedule)

    def callbacks(folder: str) -> list[pl.Callback]:
        return [
            regularize(),
            ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1),
        ]

    whole = fitted(Plain(make=make), *callbacks("a"), max_epochs=4, enable_checkpointing=True)
    fitted(Plain(make=make), *callbacks("b"), max_epochs=2, enable_checkpointing=True)
    resumed = Plain(make=make)
    trainer(regularize(), max_epochs=4).fit(
        resumed, loader(), ckpt_path=str(tmp_path / "b" / "epoch=1.ckpt")
    )
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_skipped_fp16_step_shrinks_nothing():
    class Exploding(Plain):
        def objective(self, batch: Tensor) -> Tensor:
            return super().objective(batch) * float("inf")

    module = Exploding()
    before = copy.deepcopy(module)
    fitted(module, RegularizerCallback(L1(100.0)), max_epochs=1, **fp16())
    assert_same(module, before)


def test_wrong_use_is_said_at_the_start():
    with pytest.raises(InputError, match=r"module='encodr', which names no .* 'encoder'"):
        fitted(Plain(), RegularizerCallback(TemporalSmoothness(0.1, module="encodr")))

    class Frozen(Plain):
        def configure_optimizers(self) -> Any:
            return optim.SGD(self.head.parameters(), lr=0.1)

    with pytest.raises(InputError, match="no penalised parameter in any optimizer of Frozen"):
        fitted(Frozen(), RegularizerCallback(L1(0.1, params="encoder")))

    class Idle(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(4, 4)

    with pytest.raises(InputError, match="'temporal' saw no training pass"):
        fitted(Idle(), RegularizerCallback(TemporalSmoothness(0.1, module="idle")))


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_flatten_weights_are_refused(kind: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pl.Trainer, "strategy", property(lambda self: kind.__new__(kind)))
    with pytest.raises(InputError, match=f"got {kind.__name__}, .* Use DDPStrategy, or FSDP2"):
        RegularizerCallback(L1(0.1)).on_fit_start(pl.Trainer.__new__(pl.Trainer), Plain())


def test_after_a_failure_the_module_is_left_as_it_was():
    class Failing(Plain):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            raise RuntimeError("mine")

    module = Failing()
    with pytest.raises(RuntimeError, match="mine"):
        fitted(module, RegularizerCallback([L1(0.1), TemporalSmoothness(0.1, module="encoder")]))
    assert "training_step" not in vars(module)
    assert not module.encoder._forward_hooks
