"""A checkpoint or run folder of somebody else is data: nothing that it names is run."""

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from regkit.cli.main import main
from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.models.tiny3d import Tiny3D
from regkit.sweeps.job import resumed
from regkit.training import allowed
from regkit.training.checkpoints import load
from regkit.training.config import make
from regkit.training.overrides import CONFIGS, use_own
from regkit.training.runs import adopt

MODEL = {"_target_": "regkit.models.tiny3d.Tiny3D", "channels": [4, 4, 4]}
DATA = {"_target_": "regkit.data.made.SyntheticMotion", "num_frames": 4, "size_px": 16}
OPTIMIZER = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}
RECIPE = {"model": MODEL, "data": DATA, "optimizer": OPTIMIZER}


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    """Write a checkpoint that names what it likes."""
    model = VideoClassifier(
        Tiny3D(num_classes=2, channels=[4, 4, 4]), ["a", "b"], torch.optim.AdamW
    )
    made = {"classes": ["a", "b"], "recipe": recipe}
    file = folder / "strange.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": made}, file)
    return file


@pytest.fixture(autouse=True)
def _nothing_trusted(monkeypatch):
    monkeypatch.setattr(allowed, "_trusted", set())
    monkeypatch.setattr(allowed, "_folders", set())
    monkeypatch.setattr(sys, "path", list(sys.path))


def calls(mark: Path) -> dict[str, dict[str, Any]]:
    """Return what would leave a mark, or read one, were it run."""
    evil, touch = str(mark.with_name("evil.pkl")), ["touch", str(mark)]
    return {
        "a shell": {"_target_": "os.system", "_args_": [" ".join(touch)]},
        "a process": {"_target_": "subprocess.run", "args": touch},
        "our own helper": {"_target_": "regkit.ops.native.build._run", "command": touch},
        "an expression": {
            "_target_": "sympy.sympify",
            "a": f"__import__('os').system('touch {mark}')",
        },
        "eval": {"_target_": "builtins.eval", "_args_": [f"open({str(mark)!r}, 'w')"]},
        "a pickle of torch": {"_target_": "torch.load", "f": evil, "weights_only": False},
        "a pickle": {"_target_": "numpy.load", "file": evil, "allow_pickle": True},
        "a copy": {"_target_": "shutil.copyfile", "src": evil, "dst": str(mark)},
        "a method": {"_target_": "pathlib.Path.touch", "_args_": [str(mark)]},
        "by another's imports": {
            "_target_": "regkit.models.torchvision_model.torch.load",
            "f": evil,
            "weights_only": False,
        },
        "by torch's imports": {
            "_target_": "torch.optim.adamw.torch.load",
            "f": evil,
            "weights_only": False,
        },
        "of another kind": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"},
        "no name": {"_target_": ["os.system"], "_args_": [" ".join(touch)]},
        "a partial": {"_target_": "os.system", "_partial_": True, "command": " ".join(touch)},
    }


class _Touch:
    """What unpickling runs."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    mark = tmp_path / "mark"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Touch(mark)))
    return mark


NAMES = list(calls(Path("mark")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["model", "data", "optimizer", "data.augment.more", "channels"])
def test_what_a_recipe_names_is_not_run(tmp_path, mark, name, place):
    call = calls(mark)[name]
    recipe = {
        "channels": {**RECIPE, "model": {**MODEL, "channels": call}},
        "data.augment.more": {
            **RECIPE,
            "data": {
                **DATA,
                "augment": {
                    "_target_": "regkit.data.augment.Augment",
                    "_recursive_": False,
                    "more": [call],
                },
            },
        },
    }.get(place, {**RECIPE, place: call})
    with pytest.raises(InputError, match=r"strange\.ckpt names .* it is not run") as refused:
        load(write(tmp_path, recipe))
    assert str(call["_target_"]) in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize("verb", ["predict", "shrink", "export", "explain"])
@pytest.mark.parametrize("name", ["a shell", "a copy", "a pickle of torch"])
def test_no_verb_runs_it(tmp_path, mark, capsys, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, {**RECIPE, "model": calls(mark)[name]})
    (tmp_path / "film.mp4").touch()
    film = ["video=film.mp4"] if verb in ("predict", "explain") else []
    options = ["format=program"] if verb == "export" else []
    assert main([verb, f"ckpt={file}", *film, *options]) == 2
    assert "it is not run" in capsys.readouterr().err
    assert not mark.exists()


def test_the_calls_would_leave_a_mark(mark):
    """Else nothing is shown above. (Hydra itself refuses some by now, os.system among them.)"""
    ran = []
    for name, call in calls(mark).items():
        with contextlib.suppress(InputError):
            make(call)
        if mark.exists():
            ran.append(name)
            mark.unlink()
    assert {
        "our own helper",
        "a copy",
        "a pickle of torch",
        "an expression",
        "by another's imports",
    } <= set(ran)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x ${data.root}", "${oc.decode:'[1]'}"])
def test_nothing_is_looked_up(tmp_path, value):
    file = write(tmp_path, {**RECIPE, "data": {**DATA, "root": value}})
    with pytest.raises(InputError, match=r"data\.root=.*nothing in it is looked up"):
        load(file)


@pytest.mark.parametrize("kind", [*allowed.KINDS])
def test_all_that_our_configurations_name_is_allowed(kind):
    files = sorted(Path(CONFIGS, kind.partition(".")[0]).glob("*.yaml"))
    assert files
    for file in files:
        options: Any = OmegaConf.to_container(OmegaConf.load(file))
        allowed.check_recipe({kind.partition(".")[0]: _without_lookups(options)}, str(file))


def _without_lookups(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_lookups(inner) for key, inner in value.items() if key != "defaults"}
    return 0 if isinstance(value, str) and "${" in value else value


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("model", "torchvision.models.video.resnet.VideoResNet"),
        ("optimizer", "torch.optim.SGD"),
        ("scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
        ("data.augment.more", "torchvision.transforms.v2.RandomRotation"),
        ("callbacks", "lightning.pytorch.callbacks.EarlyStopping"),
    ],
)
def test_classes_of_torch_are_allowed_in_their_place(place, target):
    first, *rest = place.split(".")
    value: Any = {"_target_": target}
    for key in reversed(rest):
        value = {key: value}
    allowed.check_recipe({first: value}, "ckpt=x")
    with pytest.raises(InputError, match="it is not run"):
        allowed.check_recipe({"penalty": value}, "ckpt=x")


OWN = "import os\nfrom regkit.models.tiny3d import Tiny3D\nclass Mine(Tiny3D):\n    pass\n"


def test_ones_own_classes_by_their_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_net.py").write_text(OWN)
    file = write(tmp_path, {**RECIPE, "model": {**MODEL, "_target_": "own_net.Mine"}})
    with pytest.raises(InputError, match=r"own_net\.Mine as model.*--config-dir"):
        load(file)
    use_own(str(tmp_path / "mine"))
    assert type(load(file).model.net).__name__ == "Mine"
    through = write(
        tmp_path, {**RECIPE, "model": {"_target_": "own_net.os.system", "command": "x"}}
    )
    with pytest.raises(InputError, match="it is not run"):
        load(through)


def test_ones_own_classes_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "installed.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    file = write(tmp_path, {**RECIPE, "model": {**MODEL, "_target_": "installed.Mine"}})
    words = ["shrink", f"ckpt={file}", "clips=0", f"out={tmp_path / 'small.ckpt'}"]
    assert main(words) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([*words, "--trust", "installed"]) == 0
    assert (tmp_path / "small.ckpt").is_file()
    through = write(tmp_path, {**RECIPE, "model": {"_target_": "installed.os.system"}})
    with pytest.raises(InputError, match="it is not run"):
        load(through)


@pytest.mark.parametrize("place", ["model", "data", "optimizer"])
@pytest.mark.parametrize("part", ["os.system", None, 3, ["a"]])
def test_parts_that_are_none(tmp_path, place, part):
    with pytest.raises(InputError, match=r"is no checkpoint of train\.py"):
        load(write(tmp_path, {**RECIPE, place: part}))


@pytest.mark.parametrize("place", ["model", "data"])
def test_what_is_made_has_to_be_of_its_kind(tmp_path, place):
    for other in ({**RECIPE[place], "_partial_": True}, {"num_frames": 4}):
        with pytest.raises(InputError, match=r"of which no (net|videos) can be made"):
            load(write(tmp_path, {**RECIPE, place: other}))


def test_copies_are_not_made_where_a_recipe_says(tmp_path):
    place = str(tmp_path / "elsewhere")
    data = {**DATA, "cache": "reencode", "cache_root": place}
    held = load(write(tmp_path, {**RECIPE, "data": data}))
    assert (held.data.cache, held.data.cache_root) == ("none", None)


def test_no_address_is_read_because_a_recipe_says_so(tmp_path, capsys):
    data = {"_target_": "regkit.data.streamed.ShardedData", "root": "s3://stranger/shards"}
    file = write(tmp_path, {**RECIPE, "data": {**data, "num_frames": 4, "size_px": 16}})
    assert main(["shrink", f"ckpt={file}", f"out={tmp_path / 'small.ckpt'}"]) == 0
    assert "give --trust s3://stranger/shards" in capsys.readouterr().out


def started(folder: Path, *words: str, name: str = "train", sweep: bool = False) -> Path:
    """Write what Hydra leaves of a run or sweep."""
    hydra = {
        "overrides": {
            "hydra": [word for word in words if word.lstrip("+~").startswith("hydra")],
            "task": [word for word in words if not word.lstrip("+~").startswith("hydra")],
        },
        "job": {"config_name": name},
        "runtime": {"config_sources": []},
    }
    file = folder / ("multirun.yaml" if sweep else "config/hydra.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), file)
    return folder


BAD = [
    "model._target_=os.system",
    "+model.net={_target_: os.system}",
    "model={_target_:os.system,command:x}",
    "~model._target_",
    "data.root=${oc.env:HOME}",
    "data.root=${${x}:y}",
    "--config-dir=/stranger",
    "-cd",
    "--experimental-rerun=evil.pickle",
    "hydra.searchpath=[file:///stranger]",
    "+hydra.callbacks.x.y=1",
    "hydra.job_logging.handlers.file.()=os.system",
    "hydra.job.env_set.LD_PRELOAD=/stranger.so",
]
BAD_OF_SWEEPS = [
    *BAD,
    "hydra.launcher.setup=[touch x]",
    "hydra.launcher.submitit_folder=/stranger",
    "hydra.launcher._target_=os.system",
    "hydra.sweeper._target_=os.system",
    "hydra.sweeper.params={hydra.job.env_set.LD_PRELOAD: x}",
    "hydra/launcher=../stranger",
]


@pytest.mark.parametrize(("word", "sweep"), [(w, 0) for w in BAD] + [(w, 1) for w in BAD_OF_SWEEPS])
def test_words_of_a_strangers_folder(tmp_path, word, sweep):
    folder = started(tmp_path / "run", "penalty=l1", word, sweep=bool(sweep))
    with pytest.raises(InputError, match="may run or read what its writer chose") as refused:
        resumed([f"resume={folder}"])
    assert word in str(refused.value)
    if not word.startswith("-"):
        assert word in resumed([f"resume={folder}", word])


def test_the_name_of_a_strangers_configuration(tmp_path):
    folder = started(tmp_path / "run", "penalty=l1", name="../../stranger")
    with pytest.raises(InputError, match="no name of a configuration"):
        resumed([f"resume={folder}"])


def test_plain_words_are_taken(tmp_path):
    run = ["penalty=[l1,temporal]", "lam=1e-3", "+trainer.max_steps=3", "~scheduler", "name='a b'"]
    words = resumed([f"resume={started(tmp_path / 'run', *run)}"])
    assert words[2 : 2 + len(run)] == run
    of_sweeps = ["hydra/sweeper=optuna", "hydra.sweeper.num_trials=3", "hydra.launcher.n_jobs=-1"]
    folder = started(tmp_path / "sweep", *of_sweeps, "lam=1e-3,1e-4", sweep=True)
    assert set(of_sweeps) < set(resumed([f"resume={folder}"]))


def test_a_strength_that_is_taken_over_is_a_number(mark):
    config = OmegaConf.create({"penalty": {"l1": {"lam": "auto"}}, "lam": 1.0})
    strange = {"penalty": {"l1": {"lam": calls(mark)["a copy"]}}, "lam": 1.0}
    with pytest.raises(InputError, match="which is no number"):
        adopt(config, strange)


def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded(tmp_path, mark, monkeypatch, capsys):
    folder = started(tmp_path / "run", "trainer.max_epochs=1")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes((tmp_path / "evil.pkl").read_bytes())
    with pytest.raises(InputError, match=r"is no checkpoint of train\.py"):
        load(folder)
    assert not mark.exists()
