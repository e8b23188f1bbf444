"""Hydra's words as a space to search."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from regkit.errors import InputError
from regkit.sweeps.search import Choice, Number, split


def parse(*words: str):
    return split(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("x=interval(1e-5,1e-2)", Number(1e-5, 1e-2, log=True)),
        ("x=interval(1,100)", Number(1.0, 100.0, log=True)),
        ("x=interval(1,99)", Number(1.0, 99.0)),
        ("x=interval(0,100)", Number(0.0, 100.0)),
        ("x=interval(-1,100)", Number(-1.0, 100.0)),
        ("x=tag(log,interval(1,2))", Number(1.0, 2.0, log=True)),
        ("x=tag(linear,interval(1e-5,1))", Number(1e-5, 1.0)),
        ("x=int(interval(1,8))", Number(1, 8)),
        ("x=range(1,8)", Number(1, 7, step=1)),
        ("x=range(1,8,3)", Number(1, 7, step=3)),
        ("x=range(8,1,-3)", Number(2, 8, step=3)),
        ("x=range(0,0.75,0.25)", Number(0.0, 0.5, step=0.25)),
        ("x=range(3,4)", Choice(("3",))),
        ("x=a,b", Choice(("a", "b"))),
        ("x=choice(a,[a,b],1)", Choice(("a", "[a,b]", "1"))),
        ("x=a,null", Choice(("a", "null"))),
    ],
)
def test_words_become_parts(word: str, part: Number | Choice):
    assert parse("seed=1", word, "~y")[0] == {"x": part}


def test_a_whole_number_is_told_as_one():
    (part,) = parse("x=int(interval(1,8))")[0].values()
    assert isinstance(part, Number)
    assert part.whole
    assert part.word(3) == "3"


def test_other_words_are_shared_and_the_last_wins():
    space, fixed = parse("a=1", "x=1,2", "b='p q'", "a=2", "y=1,2", "y=3", "+c=4", "~d")
    assert list(space) == ["x"]
    assert fixed == ["b='p q'", "a=2", "y=3", "+c=4", "~d"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("x=1", "nothing to search"),
        ("x=interval(2,2)", "low < high"),
        ("x=tag(log,interval(0,1))", "no logarithm"),
        ("x=tag(lgo,interval(1,2))", "'lgo'"),
    ],
)
def test_wrong_words_are_refused(word: str, says: str):
    with pytest.raises(InputError, match=says):
        parse(word)


@given(
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-4, 1e3),
    share=st.floats(0, 1),
)
def test_drawn_numbers_are_told_shortly_and_stay_inside(low: float, width: float, share: float):
    part = Number(low, low + width)
    value = low + share * width
    told = float(part.word(value))
    assert part.low <= told <= part.high
    assert abs(told - value) <= width / 1000


def test_a_small_number_keeps_four_digits():
    assert Number(1e-5, 1e-2, log=True).word(0.00123456) == "0.001235"
