"""Proposals: a slip of the fingers is understood, and another word is left alone."""

import pytest

from jaxscale.files.spelling import distance, near, nearest

VERBS = ("train", "launch", "show", "generate", "compile", "plan", "chips", "report", "explain", "data", "bench", "rm")
SLIPS = {
    "trian": "train", "tran": "train", "trainn": "train", "lunch": "launch", "shwo": "show", "genrate": "generate",
    "complie": "compile", "explian": "explain", "repotr": "report", "chip": "chips", "gener": "generate",
}  # fmt: skip
OTHERS = (
    "export", "compare", "eval", "run", "test", "plot", "list", "serve", "sample", "init", "ls", "cp", "rn", "sow",
    "resume", "finetune", "explore", "import", "remove", "", "x", "datum1", "configure", "help",
)  # fmt: skip


@pytest.mark.parametrize(("slip", "verb"), SLIPS.items())
def test_a_slip_is_understood(slip, verb):
    assert near(slip, VERBS, letters=4) == verb


@pytest.mark.parametrize("word", OTHERS)
def test_another_word_is_left_alone(word):
    assert near(word, VERBS, letters=4) is None
    assert nearest("nope", VERBS) == ""


def test_distance_counts_slips():
    assert distance("abc", "abc") == 0
    assert distance("abc", "acb") == 1
    assert distance("abc", "abcd") == distance("abcd", "abc") == distance("abc", "abx") == 1
    assert distance("", "abc") == 3
    assert near("gpt2", ("gpt2-124m", "llama")) == "gpt2-124m"
    assert near("llama3", ("llama3.1-8b", "llama3.2-1b")) is None, "two that it may be"
    assert near("x" * 10_000, VERBS) is None
