"""The conversations of demos/chat.py: what is asked afterwards stands in none of them."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def talks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "demos")
    import talks

    yield talks
    del sys.modules["talks"]


def test_what_is_asked_is_taught_in_other_words(talks):
    written = list(talks.talks())
    said = [message["content"] for one in written for message in one]
    assert len(written) == 320
    assert not set(said) & {question for question, _ in talks.asked()}
    for fact in talks.FACTS:
        assert said.count(fact.answer) >= 20
        assert fact.word in fact.answer
    assert all(one[-1]["role"] == "assistant" for one in written)
    assert {len(one) for one in written} == {2, 4}
    assert written == list(talks.talks())
