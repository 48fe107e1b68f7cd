"""Metrics from the scores of tokens, by hand; and rows from texts."""

import math

import numpy as np
import pytest

from jaxscale.abilities.draw import Draw
from jaxscale.abilities.example import Example, Task, one_of
from jaxscale.abilities.rows import prepare
from jaxscale.abilities.score import Scored, bits_per_byte, measured, values
from jaxscale.data.tokenizer import ByteTokenizer, train_bpe

CHOICES = ("choice", "log_odds", "brier")
ANSWERS = ("exact", "nll", "p_exact", "final", "final_nll")


def scored(*log_p, right=None):
    return Scored(np.array(log_p, float), np.array(right or [True] * len(log_p)))


def test_an_answer_by_hand():
    one = Example("q", ("ab",))
    found = values(one, {"ab": scored(-1.0, -3.0, right=[True, False])}, ANSWERS)
    assert found["exact"] == 0
    assert found["final"] == 0
    assert found["nll"] == 2
    assert found["final_nll"] == 3
    assert found["p_exact"] == pytest.approx(math.exp(-4))
    assert values(one, {"ab": scored(-1.0, -3.0)}, ANSWERS)["exact"] == 1


def test_of_several_answers_the_likeliest_counts():
    one = Example("q", ("a", "b"))
    both = {"a": scored(-2.0, right=[False]), "b": scored(-1.0, -0.5)}
    found = values(one, both, ANSWERS)
    assert found["exact"] == 1
    assert found["nll"] == 0.75
    assert found["p_exact"] == pytest.approx(math.exp(-2) + math.exp(-1.5))


def test_bits_per_byte_are_of_the_text_and_not_of_its_tokens():
    examples = (Example("q", ("äb",)), Example("q", ("a", "bc")), Example("q", (), ("x", "yyyy"), (0.0, 1.0)))
    scores = [
        {"äb": scored(math.log(1 / 2), math.log(1 / 4))},  # 3 bits, 3 bytes
        {"a": scored(-9.0), "bc": scored(math.log(1 / 16))},  # the likeliest: 4 bits, 2 bytes
        {"x": scored(-0.1), "yyyy": scored(math.log(1 / 4))},  # the best choice: 2 bits, 4 bytes
    ]
    for one, texts, wanted in zip(examples, scores, (1, 2, 1 / 2), strict=True):
        assert bits_per_byte(one, texts) == pytest.approx(wanted)
    found = measured(Task("t", examples[:2], 0.0, ANSWERS), scores[:2])
    assert found["bits_per_byte"] == pytest.approx(1.5)


def test_choices_by_hand():
    one = Example("q", ("b",), ("a", "b", "c"), (0, 1, 0))
    p = {"a": 0.2, "b": 0.3, "c": 0.1}
    found = values(one, {text: scored(math.log(x)) for text, x in p.items()}, CHOICES)
    assert found["choice"] == 1
    assert found["log_odds"] == pytest.approx(math.log(0.3 / 0.3))
    assert found["brier"] == pytest.approx((1 / 3) ** 2 + (1 / 2) ** 2 + (1 / 6) ** 2)
    worse = values(one, {text: scored(math.log(x)) for text, x in (p | {"c": 0.4}).items()}, CHOICES)
    assert worse["choice"] == 0
    assert worse["log_odds"] == pytest.approx(math.log(0.3 / 0.6))


@pytest.mark.parametrize(("worth", "grade"), [((1, 0, 0), 1 / 2), ((0, 0, 1), 0), ((0.5, 0.25, 0), 0.375)])
def test_ties_count_one_nth(worth, grade):
    """Wherever the right choice stands."""
    one = Example("q", ("a",), ("a", "b", "c"), worth)
    same = {"a": scored(-1.0), "b": scored(-0.5, -0.5), "c": scored(-2.0)}
    assert values(one, same, CHOICES)["choice"] == grade
    assert values(one, dict.fromkeys("abc", scored(-1.0)), CHOICES)["choice"] == pytest.approx(sum(worth) / 3)


def test_a_model_that_knows_nothing_gets_chance_by_ties():
    examples = tuple(one_of("q", "a", ["b", "c", "d"], Draw(i)) for i in range(100))
    found = measured(Task("x", examples, 0.25, CHOICES), [dict.fromkeys("abcd", scored(-3.0))] * 100)
    assert found["metrics"]["choice"]["value"] == 0.25
    assert found["metrics"]["log_odds"]["value"] == pytest.approx(-math.log(3))
    assert found["metrics"]["log_odds"]["std"] == pytest.approx(0)


def test_choices_are_shuffled():
    places = [one_of("q", "a", ["b", "c"], Draw(i)).choices.index("a") for i in range(3000)]
    assert np.bincount(places) == pytest.approx([1000] * 3, abs=4 * math.sqrt(3000 * 2 / 9))


def test_choices_all_worth_the_same_have_no_odds():
    one = Example("q", ("a", "b"), ("a", "b"), (0.5, 0.5))
    assert values(one, {"a": scored(-1.0), "b": scored(-2.0)}, CHOICES)["log_odds"] == 0


def test_a_record_has_what_the_classifier_reads():
    examples = (Example("q", ("a",)), Example("p", ("a",)), Example("r", ("b",)))
    scores = [{"a": scored(-1.0)}, {"a": scored(-3.0, right=[False])}, {"b": scored(-2.0, right=[False])}]
    found = measured(Task("x", examples, 0.0, ("exact", "nll"), 4), scores)
    assert (found["ability"], found["shots"], found["examples"], found["main"]) == ("x", 4, 3, "exact")
    assert found["commonest"] == pytest.approx(2 / 3)
    assert found["metrics"]["exact"] == {"value": pytest.approx(1 / 3), "n": 3, "sharp": True, "partner": "nll"}
    nll = found["metrics"]["nll"]
    assert (nll["value"], nll["sharp"], nll["partner"]) == (2.0, False, "exact")
    assert nll["std"] == pytest.approx(math.sqrt(2 / 3))


def test_positions_make_a_curve():
    metrics = ("late_right", "late_nll", "early_nll", "gain")
    text = scored(*[-2.0] * 50, *[-0.5] * 50, right=[False] * 50 + [True] * 50)
    found = measured(Task("x", (Example("", ("t",)),) * 2, 0.0, metrics), [{"t": text}] * 2)
    got = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert got == {"late_right": 1.0, "late_nll": 0.5, "early_nll": 2.0, "gain": 1.5}
    assert found["curve"] == [[i + 1, 2.0 if i < 50 else 0.5] for i in range(100)]


# --- rows -------------------------------------------------------------------------------------------------------


def task(*examples, metrics=("exact", "nll", "p_exact")):
    return Task("t", examples, 0.0, metrics, source="ability t")


def test_rows_of_bytes():
    (found,) = prepare([task(Example("né", ("ab",)))], ByteTokenizer(), seq_len=8)
    row = found.rows[0]["ab"]
    assert row.tokens.tolist() == [256, *"néab".encode()]
    assert row.start == 4
    assert found.longest == 5


def test_only_what_the_metrics_read_becomes_a_row():
    one = one_of("q", "a", ["b"], Draw(0))
    both = prepare([task(one), task(one, metrics=CHOICES)], ByteTokenizer(), seq_len=8)
    assert [sorted(found.rows[0]) for found in both] == [["a"], ["a", "b"]]


BPE = train_bpe(iter(["the cat and the hat " * 200]), 280)


def test_a_boundary_within_a_token_is_refused():
    with pytest.raises(
        ValueError, match=r"example 1 of ability t: the tokens of its prompt, ...'th', change if the answer"
    ):
        prepare([task(Example("th", ("e",)))], BPE, seq_len=8)


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_answer():
    """As tokenizers have it; the answer is then scored with its space."""
    (found,) = prepare([task(Example("the ", ("cat",)))], BPE, seq_len=8)
    row = found.rows[0]["cat"]
    assert row.tokens[1:].tolist() == BPE.encode("the cat").tolist()
    assert BPE.decode(row.tokens[row.start :]) == " cat"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            Example("abcd", ("efghi",)),
            "has 10 tokens, and the model reads 8 (data.seq_len); leave the example out, or give",
        ),
        (Example("abcd", ("",)), "the answer '' has no tokens"),
    ],
)
def test_what_is_refused(example, message):
    with pytest.raises(ValueError, match=r"^example 2 of ability t") as error:
        prepare([task(Example("a", ("b",)), example)], ByteTokenizer(), seq_len=8)
    assert message in str(error.value)


def test_the_longest_example_that_fits_is_read():
    (found,) = prepare([task(Example("abcd", ("efgh",)))], ByteTokenizer(), seq_len=8)
    assert found.longest == 8
    with pytest.raises(ValueError, match="ability t has no examples"):
        prepare([task()], ByteTokenizer(), seq_len=8)
