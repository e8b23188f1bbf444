"""What the configuration accepts, how it names runs, and what it answers to mistakes."""

import inspect
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from regkit import InputError
from regkit.training.config import (
    check,
    check_unchanged,
    make,
    make_penalties,
    register,
    run_dir,
    run_name,
    short,
    started,
)
from regkit.training.overrides import (
    CONFIGS,
    ELSEWHERE,
    check_overrides,
    checked,
    defaults_of,
    quote_paths,
)


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    config.name = ""
    return OmegaConf.to_container(config, resolve=True)


def test_penalties_are_chosen_together_each_with_its_own_strength():
    config = composed("penalty=[l1,temporal]", "lam=1e-3", "penalty.temporal.lam=1e-2")
    made = make_penalties(config["penalty"])
    assert {name: p.lam for name, p in made.items()} == {"l1": 1e-3, "temporal": 1e-2}
    assert make_penalties(composed("penalty=none")["penalty"]) == {}


@pytest.mark.parametrize(
    "path",
    [p for g in ("model", "optimizer", "trainer", "scheduler") for p in (CONFIGS / g).glob("*")],
    ids=lambda p: f"{p.parent.name}={p.stem}",
)
def test_every_yaml_composes(path: Path):
    made = composed(f"{path.parent.name}={path.stem}")[path.parent.name]
    assert made is None if path.stem == "none" else "_target_" in made


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_experiment_composes(path: Path):
    assert composed(f"experiment={path.stem}")["data"]["_target_"]


def test_settings_of_what_was_not_selected_are_refused():
    settings = {"l1": {"_target_": "regkit.penalties.L1", "lam": 1.0}, "temporal": {"lam": 2.0}}
    with pytest.raises(InputError, match=r"temporal was not selected; give penalty=\[l1,temporal"):
        make_penalties(settings)


def test_a_plug_that_refuses_its_options_is_quoted():
    with pytest.raises(InputError, match=r"L1 got lam=-1.0; lam is a number >= 0"):
        make({"_target_": "regkit.penalties.L1", "lam": -1.0})
    with pytest.raises(InputError, match=r"L1 does not take these options: .*lan"):
        make({"_target_": "regkit.penalties.L1", "lam": 1.0, "lan": 1.0})


def test_what_a_plug_says_is_not_hidden_by_what_made_it_say_so(monkeypatch: Any, tmp_path: Path):
    def offline(*args: Any, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"r3d_18.*pretrained"):
        make({"_target_": "regkit.models.r3d_18.R3D18", "num_classes": 3, "pretrained": "DEFAULT"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lam", -1.0, "lam is a number >= 0"),
        ("lam", float("nan"), "lam=nan was given; numbers are finite here"),
        ("data.mean", [float("nan"), 0.0, 0.0], "data.mean=nan was given"),
        ("data.noise", float("inf"), "data.noise=inf was given; numbers are finite"),
        ("penalty.l1.lam", float("-inf"), r"penalty\.l1\.lam=-inf was given"),
        ("trainer.gradient_clip_val", float("nan"), "gradient_clip_val=nan was given"),
        ("trainer.gradient_clip_val", -1, "gradient_clip_val=-1 was given; it is 0 or more"),
        ("trainer.accumulate_grad_batches", 0, "it is 1 or more"),
        ("seed", 2**40, "seed=1099511627776 was given; it is a number from 0 to 4294967295"),
        ("on_divergence", "ignore", "on_divergence=ignore was given; it is stop or warn"),
        ("test_checkpoint", "first", "it is last or best"),
        ("seed", -1, "seed=-1 was given; it is a number from 0 to"),
        ("save_every_n_steps", 0, "1 or more"),
        ("trainer.max_epochs", 0, "trainer.max_epochs=0 was given; it is a whole number >= 1"),
        ("trainer.max_epochs", None, "whole number >= 1, or -1 beside"),
        ("trainer.logger", False, "trainer.logger=False was given; it follows from the other"),
        ("model.num_classes", 3, "model.num_classes=3 was given; it follows from the videos"),
        ("optimizer.lr", -1, "optimizer.lr=-1 was given; it is 0 or more"),
        ("optimizer.lr", float("nan"), "numbers are finite"),
        ("optimizer.weight_decay", -1, "optimizer.weight_decay=-1 was given; it is 0 or more"),
        ("optimizer.eps", -1, "AdamW got lr=0.003, .*eps=-1: Invalid epsilon"),
        ("optimizer.momentum", 1, "AdamW got .*momentum"),
    ],
)
def test_ranges(key: str, value: Any, said: str):
    config = OmegaConf.create(composed())
    OmegaConf.update(config, key, value)
    with pytest.raises(InputError, match=said):
        check(config)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("penalty=l7", "penalty=l7 was given.*There are: .*elastic_net, .*l1, l2, l_half"),
        ("penalty=[l1,temporl]", "temporl was given; close: temporal"),
        ("penalty=l1,l3", "penalty=l3 was given"),
        ("model=tiny", "close: tiny3d"),
        ("experiment=nope", "experiment=nope was given"),
        ("data.root=a=b", "Quote values"),
    ],
)
def test_a_wrong_name_answers_with_the_right_ones(argument: str, said: str):
    with pytest.raises(InputError, match=said):
        check_overrides([argument], CONFIGS)


def test_a_batch_job_that_starts_again_finds_its_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert started("now") == "now"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert started("now") == "now"
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sbatch")
    assert started("now") == "slurm-12"


def test_a_training_may_end_by_steps_or_time():
    for ends in ({"max_steps": 7}, {"max_time": "00:01:00:00"}):
        config = OmegaConf.create(composed())
        config.trainer.update({"max_epochs": -1, **ends})
        check(config)


def words_for(*words: str, swept: bool = False) -> list[str]:
    return checked(words, "train", None, swept)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["learning_rate=0.1"], "no such option; close: optimizer.lr"),
        (["lambda=0.1"], "lambda was given, and there is no such option; close: lam"),
        (["epochs=3"], "close: trainer.max_epochs"),
        (["batch_size=3"], "close: data.batch_size"),
        (["+lamda=3"], "lamda was given, and there is no such option; close: lam"),
        (["penalty.l1.lamb=0.1"], "close: penalty.l1.lam"),
        (["penalty=mcp", "penalty.mcp.gama=3"], "close: penalty.mcp.gamma"),
        (["penalty=L1"], "penalty=L1 was given; close: l1"),
        (["penalty=l1,l2"], "names several values. For a run with each of them, give -m"),
        (["trainer.max_epochs=ten"], "give a number, as in trainer.max_epochs=40"),
        (["shrink=yes"], "give true or false, as in shrink=false"),
        (["zzz=1"], "zzz was given, and there is no such option."),
    ],
)  # fmt: skip
def test_a_wrong_word_answers_with_the_close_one(words: list[str], said: str):
    with pytest.raises(InputError) as refused:
        words_for(*words)
    assert said in str(refused.value)
    assert refused.value.line().count("\n") == 0


def test_what_other_programs_say_names_an_option_of_ours():
    assert set(ELSEWHERE.values()) <= defaults_of(OmegaConf.create(composed())).keys()


def test_an_option_of_any_choice_of_a_sweep_is_known():
    words = ["penalty=l1,mcp", "penalty.mcp.gamma=4", "lam=1e-3,1e-2"]
    assert words_for(*words, swept=True) == words
    with pytest.raises(InputError, match=r"close: penalty\.mcp\.gamma"):
        words_for("penalty=l1,mcp", "penalty.mcp.gama=4", swept=True)


def test_words_that_hydra_takes_are_left_alone():
    words = ["lam=path", "data.augment.flip=0.5", "~trainer.precision", "+trainer.max_steps=3",
             "trainer.devices=auto", "hydra.job.chdir=true", "experiment=shrink",
             "penalty.group_l0.lam=auto", "data.seed=${seed}"]  # fmt: skip
    assert words_for(*words) == words


@pytest.mark.parametrize(
    "word", ["penalty.l1.lam_scale={head: 2.0}", "penalty.l1.lam_scale.head=2.0"]
)
def test_a_mapping_of_the_users_own_needs_no_plus(word: str):
    (taken,) = words_for(word)
    assert composed(taken)["penalty"]["l1"]["lam_scale"] == {"head": 2.0}


def test_settings_of_what_was_not_selected_are_refused_before_hydra_advises_a_plus():
    with pytest.raises(InputError, match=r"temporal was not selected; give penalty=\[l1,temporal"):
        check_overrides(["penalty=l1", "penalty.temporal.lam=1e-2"], CONFIGS)


def test_right_names_pass():
    check_overrides(["-m", "penalty=none,l1,[l1,temporal]", "lam=1e-5,1e-4", "scheduler=none",
                     "~trainer.precision", "penalty.l1.lam=2"], CONFIGS)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e-4, "1e-4"), (3e-3, "3e-3"), (0.05, "0.05"), (1, "1"), (2.5e-5, "2.5e-5"), (1e10, "1e10"),
     ("a", "a"), (0, "0")],
)  # fmt: skip
def test_numbers_are_written_as_people_do(number: Any, text: str):
    assert short(number) == text


def test_run_names_can_be_read():
    both = {"l1": {"lam": 1e-4}, "temporal": {"lam": 0.01}}
    asked = ["penalty=[l1,temporal]", "lam=0.0001", "seed=1", "penalty.temporal.lam=0.01",
             "data.root='/some where/UCF=101'"]  # fmt: skip
    assert run_name(both, 1e-4, asked) == (
        "l1+temporal lam=1e-4 seed=1 temporal.lam=0.01 root=UCF=101"
    )
    assert run_name({}, 1e-4, ["penalty=none"]) == "none"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("penalty=temporal penalty.temporal.lam=0.1", "temporal lam=0.1"),
        ("penalty=[l1,mcp] penalty.mcp.lam=0.1", "l1+mcp lam=1e-4 mcp.lam=0.1"),
        ("penalty=[mcp,l1] penalty.mcp.lam=0.1", "mcp+l1 lam=1e-4 mcp.lam=0.1"),
        ("penalty=[l1,mcp] penalty.l1.lam=1 penalty.mcp.lam=2", "l1+mcp lam=1 mcp.lam=2"),
        ("penalty=l1 strength.target_density=0.3", "l1 target_density=0.3"),
        ("lam=1e-3 strength.target_density=0.3", "l1 start_lam=1e-3 target_density=0.3"),
    ],
)
def test_a_run_is_named_by_the_strength_that_acts(words: str, name: str):
    config, asked = composed(*words.split()), words.split()
    target = config["strength"]
    assert run_name(config["penalty"], config["lam"], asked, target) == name


def test_a_run_continues_in_its_own_folder(tmp_path: Path):
    assert run_dir(None, "runs/new") == "runs/new"
    checkpoint = tmp_path / "old" / "checkpoints" / "last.ckpt"
    assert run_dir(str(checkpoint), "runs/new") == str(tmp_path / "old")


def test_another_configuration_does_not_continue_a_run():
    old, new = composed("lam=1e-4"), composed("lam=1e-3")
    check_unchanged(old, old | {"trainer": {"max_epochs": 99}})
    with pytest.raises(InputError, match=r"penalty: .*0.0001.* became .*0.001"):
        check_unchanged(old, new)


def test_paths_with_special_letters_need_no_care(tmp_path: Path):
    odd = tmp_path / "l1 lam=1e-4" / "last.ckpt"
    odd.parent.mkdir()
    odd.touch()
    assert quote_paths([f"ckpt_path={odd}", "a=b", "-m", "lam=1e-4"]) == [
        f"ckpt_path='{odd}'", "a=b", "-m", "lam=1e-4"]  # fmt: skip
    check_overrides(quote_paths([f"ckpt_path={odd}"]), CONFIGS)


def test_a_regular_expression_is_taken_as_the_shell_hands_it_over():
    words = quote_paths(["data=folder", "data.root=x", r"data.group=(S\d+)__"])
    check_overrides(words, CONFIGS)
    assert composed(*words)["data"]["group"] == r"(S\d+)__"
    assert quote_paths([words[2], "data.group=null"]) == [words[2], "data.group=null"]


@pytest.mark.parametrize(
    ("group", "stem"),
    [(g, p.stem) for g in ("data", "model", "penalty") for p in sorted((CONFIGS / g).glob("*"))],
)
def test_every_option_of_a_plug_stands_in_its_yaml(group: str, stem: str):
    """So that all can be set without a +, and defaults are those of Python."""
    if stem == "none":
        return
    node = composed(f"{group}={stem}", *(["data.root=x"] if stem == "folder" else []))[group]
    assert_options(group, node[stem] if group == "penalty" else node)


def assert_options(group: str, options: dict[str, Any]) -> None:
    plug = get_class(options.pop("_target_"))
    known = inspect.signature(plug).parameters
    given_in_code = {"num_classes"} if group == "model" else {"layout"}
    assert set(known) - given_in_code == set(options) - given_in_code
    from_above = {"lam", "seed", "root"}
    for name in set(options) - from_above:
        if isinstance(options[name], dict) and "_target_" in options[name]:
            assert_options(name, options[name])
            continue
        default = known[name].default
        if name == "lam_scale":  # a mapping in YAML, pairs in Python
            default = dict(default)
        default = list(default) if isinstance(default, tuple) else default
        assert options[name] == default, name


def test_a_plugin_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    check_overrides(["hydra/launcher=basic", "hydra/sweeper=grid"], CONFIGS)
    monkeypatch.setattr("regkit.training.overrides.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs hydra-joblib-launcher, which is not installed"):
        check_overrides(["hydra/launcher=parallel"], CONFIGS)
    with pytest.raises(InputError, match="needs hydra-submitit-launcher"):
        check_overrides(["hydra/launcher=slurm"], CONFIGS)
