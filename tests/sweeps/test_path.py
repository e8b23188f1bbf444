"""What a point of a path begins with."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from regkit import InputError
from regkit.config import register
from regkit.sweeps.path import follow, learned
from regkit.words import CONFIGS


def test_a_point_that_learned_nothing_is_not_gone_on_from(tmp_path: Path):
    path = tmp_path / "lam=1" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"hyper_parameters": {"classes": list("abcdef")}}, path)
    assert learned(path, 0.94 * math.log(6)) == path
    assert learned(path, 0.96 * math.log(6)) is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("path.direction=up", "it is decreasing or increasing"),
        ("path.epochs=0", "path.epochs=0"),
        ("path.lr_share=2", "path.lr_share=2"),
        ("ckpt_path=x", "give resume="),
    ],
)
def test_mistakes_are_said(tmp_path: Path, word: str, said: str):
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("path", overrides=[word])
    with pytest.raises(InputError, match=said):
        follow(config, tmp_path)
