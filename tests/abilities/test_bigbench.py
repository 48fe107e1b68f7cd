"""Files of BIG-bench: the prompt as BIG-bench makes it, the metrics, and what is refused."""

import json

import pytest

from jaxscale.abilities.bigbench import read_task

COLOURS = {
    "name": "colours",
    "description": "of things",
    "keywords": ["common sense"],
    "canary": "some words",
    "metrics": ["exact_str_match", "multiple_choice_grade"],
    "preferred_score": "multiple_choice_grade",
    "task_prefix": "Say the colour.\n",
    "examples": [
        {"input": "sky", "target_scores": {"blue": 1, "red": 0, "green": 0}, "comment": "by day"},
        {"input": "grass", "target_scores": {"blue": 0, "red": 0, "green": 1.0}},
        {"input": "sea", "target_scores": {"blue": 0.5, "green": 0.5}},
    ],
}


@pytest.fixture
def read(tmp_path):
    def call(values, said=None, **options):
        path = tmp_path / "task.json"
        path.write_bytes(values if isinstance(values, bytes) else json.dumps(values).encode())
        options = {"shots": 0, "seed": 0, "count": 100} | options
        return read_task(path, **options, say=(said if said is not None else []).append)

    return call


def test_the_prompt_is_that_of_bigbench(read):
    """Prefixes by default, every choice once, in an order that the seed draws."""
    task = read(COLOURS)
    assert (task.name, task.shots, len(task.examples)) == ("colours", 0, 3)
    first = task.examples[0]
    lines = first.prompt.split("\n")
    assert lines[:2] == ["Say the colour.", ""]
    assert lines[2] == "Q: sky"
    assert sorted(lines[3:6]) == ["  choice: blue", "  choice: green", "  choice: red"]
    assert lines[6:] == ["A: "]
    assert first.answers == ("blue",)
    assert dict(zip(first.choices, first.scores, strict=True)) == COLOURS["examples"][0]["target_scores"]
    orders = {read(COLOURS, seed=seed).examples[0].choices for seed in range(30)}
    assert len(orders) == 6
    assert task.examples[2].answers == ("blue", "green")


def test_own_prefixes_and_no_choices_in_the_prompt(read):
    more = {"example_input_prefix": "The ", "example_output_prefix": " is", "append_choices_to_input": False}
    assert read(COLOURS | more).examples[1].prompt == "Say the colour.\nThe grass is"


def test_chance_is_the_mean_worth_of_a_choice(read):
    assert read(COLOURS).chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert read(COLOURS | {"preferred_score": "exact_str_match"}).chance == 0
    assert read(COLOURS).metrics == ("choice", "log_odds", "brier", "exact", "nll", "p_exact")
    assert read(COLOURS | {"metrics": ["log_likelihood"]}).metrics == ("nll", "exact", "p_exact")


def test_solved_examples_are_others_of_the_file(read):
    for seed in range(5):
        task = read(COLOURS, shots=2, seed=seed)
        for one, asked in zip(task.examples, ("sky", "grass", "sea"), strict=True):
            assert one.prompt.count("Q: ") == 3
            assert one.prompt.count(f"Q: {asked}") == 1
            assert one.prompt.rindex("Q: ") == one.prompt.index(f"Q: {asked}")
            assert one.prompt.startswith("Say the colour.\n\nQ: ")


def test_targets_are_one_or_several(read):
    values = {"metrics": ["exact_str_match"], "examples": [{"input": "a", "target": "b"},
                                                           {"input": "c", "target": ["d", "e", "d"]}]}  # fmt: skip
    task = read(values)
    assert [one.answers for one in task.examples] == [("b",), ("d", "e")]
    assert task.name == "task"
    assert task.examples[0].prompt == "\nQ: a\nA: "


def test_some_examples_are_drawn_and_it_is_said(read):
    many = COLOURS | {"examples": [{"input": str(i), "target": "x"} for i in range(50)], "metrics": ["exact_str_match"]}
    said = []
    drawn = [one.prompt for one in read(many, said, count=10).examples]
    assert len(set(drawn)) == 10
    assert said[0].endswith("task.json: 10 of its 50 examples are drawn")
    assert drawn != [one.prompt for one in read(many, seed=1, count=10).examples]


def test_what_is_not_used_is_said(read):
    said = []
    read(COLOURS | {"metrics": ["bleu", "exact_str_match"], "stop_string": "\n"}, said)
    assert said[0].endswith("not measured: bleu")
    assert "stop_string and output_regex are not used" in said[1]


REFUSED = [
    ([], "it holds a list, not an object"),
    (b"{", "is no JSON"),
    (b"\xff", "is no JSON"),
    ({}, "'examples': Field required"),
    ({"subtasks": ["a"]}, "names subtasks and has no examples"),
    (COLOURS | {"examples": []}, "has no examples"),
    (COLOURS | {"metrics": ["rouge"]}, "of its metrics, rouge, none is known; known are exact_str_match"),
    (COLOURS | {"metrics": []}, "of its metrics, none, none is known"),
    (COLOURS | {"examples": [{"input": "a"}]}, "example 1 has neither target nor target_scores"),
    (COLOURS | {"examples": [{"input": "a", "target": []}]}, "example 1 has neither target nor target_scores"),
    (COLOURS | {"examples": [{"input": 3, "target": "b"}]}, "'examples.0.input': Input should be a valid string"),
    (
        COLOURS | {"examples": [{"input": "a", "target": "b"}]},
        "example 1 has 0 target_scores; choosing needs two or more",
    ),
    (COLOURS | {"examples": [{"input": "a", "target_scores": {"b": 2}}]}, "less than or equal to 1"),
    (COLOURS | {"examples": [{"input": "a", "target_scores": {"b": "1"}}]}, "should be a valid number"),
    (COLOURS | {"examples": [{"input": "a", "target_scores": {"b": float("nan")}}]}, "examples.0.target_scores.b"),
    (
        b'{"examples": [{"input": "\\ud800", "target": "b"}], "metrics": ["exact_str_match"]}',
        "half of a surrogate pair",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_is_refused(read, values, message):
    with pytest.raises(ValueError, match=r".") as error:
        read(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_shots_than_other_examples_are_refused(read):
    with pytest.raises(ValueError, match="has 3 examples, too few for 3 solved ones in the prompt; give 2 or fewer"):
        read(COLOURS, shots=3)
