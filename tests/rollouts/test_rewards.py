"""Reward functions in processes: what raises, hangs, dies or returns no numbers costs its own samples alone."""

import textwrap
import time

import pytest

from jaxscale.rollouts.rewards import PIECE, is_function, open_function


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
        import os, sys, time

        def length(prompts, completions, bonus=None, **columns):
            assert "jax" not in sys.modules, "a reward's process loads JAX"
            return [len(c) + (b or 0) for c, b in zip(completions, bonus or [0] * len(completions))]

        def raises(prompts, completions, **columns):
            if "bad" in completions:
                raise RuntimeError("I do not like bad")
            return [1.0] * len(completions)

        def hangs(prompts, completions, **columns):
            if "bad" in completions:
                time.sleep(1000)
            return [2.0] * len(completions)

        def dies(prompts, completions, **columns):
            if "bad" in completions:
                os._exit(3)
            return [3.0] * len(completions)

        def odd(prompts, completions, **columns):
            return [float("nan"), float("inf"), None, "x", True, 1.5][: len(completions)]

        def few(prompts, completions, **columns):
            return [1.0]
        """)
    )
    return str(path)


def asked(name: str, completions: list[str], columns=None, *, seconds: float = 20.0, processes: int = 2):
    function = open_function(name, seconds=seconds, processes=processes)
    try:
        return function(["p"] * len(completions), completions, columns or {}), dict(function.failures)
    finally:
        function.close()


def test_rewards_come_in_their_order_with_the_prompts_columns(file):
    texts = ["x" * (i % 7) for i in range(5 * PIECE + 3)]
    found, failures = asked(f"{file}:length", texts, {"bonus": list(range(len(texts)))})
    assert found == [len(t) + i for i, t in enumerate(texts)]
    assert not failures


def test_one_that_raises_has_no_reward_and_the_others_have(file):
    found, failures = asked(f"{file}:raises", ["a", "b", "bad", "c"])
    assert found == [1.0, 1.0, None, None]
    assert failures == {"RuntimeError: I do not like bad": 2}


def test_one_that_hangs_is_ended_and_the_next_call_works(file):
    function = open_function(f"{file}:hangs", seconds=1.0, processes=2)
    try:
        start = time.monotonic()
        assert function(["p"] * 4, ["a", "b", "bad", "c"], {}) == [2.0, 2.0, None, None]
        assert time.monotonic() - start < 30
        assert function(["p"], ["fine"], {}) == [2.0]
        assert function.failures == {"no answer within 1 s": 2}
    finally:
        function.close()


def test_one_whose_process_dies_is_begun_anew(file):
    function = open_function(f"{file}:dies", seconds=20, processes=1)
    try:
        assert function(["p"], ["bad"], {}) == [None]
        assert function(["p"], ["good"], {}) == [3.0]
    finally:
        function.close()


def test_what_is_no_number_is_no_reward(file):
    found, failures = asked(f"{file}:odd", list("abcdef"), processes=1)
    assert found == [None, None, None, None, 1.0, 1.5]
    assert failures == {"NaN, infinite or no number": 4}


def test_too_few_rewards_are_none(file):
    found, failures = asked(f"{file}:few", ["a", "b", "c"], processes=1)
    assert found == [None] * 3
    assert failures == {"ValueError: 1 rewards for 3 samples": 3}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{file}:nothing", "has no function nothing"),
        ("{file}x.py:length", "cannot be imported"),
        ("no.such.module:f", "cannot be imported"),
    ],
)
def test_a_function_that_is_not_there_is_refused_in_one_line(file, name, said):
    with pytest.raises(ValueError, match=said) as error:
        open_function(name.format(file=file), seconds=5, processes=1)
    assert "\n" not in str(error.value)


def test_a_run_is_no_function():
    assert is_function("a.b:c")
    assert is_function("dir/a.py:c")
    assert not is_function("runs/rm")
    assert not is_function("C:/runs/rm")
    assert not is_function(":f")
