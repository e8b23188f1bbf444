"""Which jobs a sweep has, and what they are called."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from regkit import InputError
from regkit.sweeps.sweeper import Sweeper, choices
from regkit.training.config import register
from regkit.training.overrides import CONFIGS

SMALL = ["data.num_train=12", "data.num_val=6", "data.num_test=6"]


@pytest.fixture
def sweeper(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeper]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        made = Sweeper()
        made._config = compose("train", [], return_hydra_config=True)
        made._loader = GlobalHydra.instance().config_loader()
        yield made


def names(sweeper: Sweeper, *words: str) -> list[str]:
    jobs = sweeper.jobs(list(words))
    return [word.removeprefix("name=").strip("'") for job in jobs for word in job[-1:]]


def test_jobs_are_named_by_what_tells_them_apart(sweeper: Sweeper):
    assert names(sweeper, "penalty=l1,elastic_net", "lam=1e-4", "seed=0,1", *SMALL) == [
        "l1 lam=1e-4 seed=0",
        "l1 lam=1e-4 seed=1",
        "elastic_net lam=1e-4 seed=0",
        "elastic_net lam=1e-4 seed=1",
    ]


def test_no_penalty_has_no_strengths(sweeper: Sweeper):
    assert names(sweeper, "penalty=none,l1", "lam=1e-4,1e-3") == [
        "none",
        "l1 lam=1e-4",
        "l1 lam=1e-3",
    ]
    found = names(sweeper, "penalty=none,l1", "lam=path", "grid.num=3", "grid.high=1", *SMALL)
    assert found == ["none", "l1 lam=1", "l1 lam=0.1", "l1 lam=0.01"]


def test_each_penalty_has_its_own_grid(sweeper: Sweeper):
    one, two = (
        names(sweeper, f"penalty={name}", "lam=path", "grid.num=3", *SMALL)
        for name in ("l1", "elastic_net")
    )
    both = names(sweeper, "penalty=l1,elastic_net", "lam=path", "grid.num=3", *SMALL)
    assert both == [*one, *two]
    assert not {n.split("lam=")[1] for n in one} & {n.split("lam=")[1] for n in two}


def test_equal_names_are_numbered(sweeper: Sweeper):
    found = names(sweeper, "data=folder", "data.root=here/clips,there/clips,third/clips")
    assert found == ["l1 lam=1e-4 root=clips" + end for end in ("", " (2)", " (3)")]


def test_later_words_replace_what_is_swept_without_being_asked():
    parsed = OverridesParser.create().parse_overrides(["lam=path", "seed=1,2", "lam=1e-3,1e-2"])
    assert choices(parsed) == [["lam=0.001", "lam=0.01"], ["seed=1", "seed=2"]]


def test_a_range_without_steps_is_for_searches():
    parsed = OverridesParser.create().parse_overrides(["lam=interval(1,2)"])
    with pytest.raises(InputError, match=r"lam=interval\(1,2\) names no list"):
        choices(parsed)
