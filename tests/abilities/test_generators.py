"""The examples: the same for a seed, of the chance that is claimed, with right answers, and taught by no document."""

import hashlib
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jaxscale import abilities
from jaxscale.abilities.draw import Draw
from jaxscale.abilities.example import METRICS
from jaxscale.abilities.library import SWAP
from jaxscale.abilities.table import tasks_of
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import stdlib_source
from jaxscale.data.tokenizer import ByteTokenizer

NAMES = list(abilities.ABILITIES)
OF_LIBRARY = ["swap", "bracket", "indent"]
SYNTHETIC = [name for name in NAMES if name not in OF_LIBRARY]


def examples(name, *, seed=0, count=256):
    return [one for task in tasks_of(name, seed=seed, count=count) for one in task.examples]


def test_draws_are_those_of_every_python():
    """Numbers that were written down: another Python, another machine draws the same."""
    r = Draw("document", "copy", 0, 0)
    assert [r.below(100) for _ in range(6)] == [63, 96, 41, 12, 34, 84]
    texts = "".join(abilities.documents(SYNTHETIC, 3, 200))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "f7f3f51668214bba"
    asked = "".join(one.prompt + "".join(one.answers + one.choices) for name in SYNTHETIC for one in examples(name))
    assert hashlib.sha256(asked.encode()).hexdigest()[:16] == "ac382ce9dd01147f"


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_and_no_example_comes_twice(name):
    assert examples(name, seed=1) == examples(name, seed=1)
    assert examples(name, seed=1) != examples(name, seed=2)
    for task in tasks_of(name, seed=1, count=64):
        assert len({(one.prompt, one.answers) for one in task.examples}) == len(task.examples)
        assert len(task.examples) == (64 if not name.startswith("parity") else 59)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_come_in_pairs(name):
    ability = abilities.find(name)
    for metric in ability.metrics:
        sharp, partner = METRICS[metric]
        assert METRICS[partner][0] is not sharp
        assert partner in ability.metrics
    assert METRICS[ability.metrics[0]][0]  # the main one is sharp


# --- the answers are right, computed here in another way --------------------------------------------------------


def shift_of(prompt):
    solved = prompt.removeprefix("R:").split(" ")[:-1]
    return {(ord(pair[2]) - ord(pair[0])) % 26 for pair in solved}


def right(name, prompt):
    """The answer to a prompt, from its text alone."""
    question = prompt.partition(":")[2].rpartition("|")[0]
    if name == "copy":
        return question
    if name in ("count", "count_chain"):
        counts = [f"{sum(map(int, question[: i + 1])):x}" for i in range(12)]
        return "".join(counts) if name == "count_chain" else counts[-1]
    if name in ("parity", "parity_chain"):
        chain, last = "", 0
        for bit in question:
            last ^= int(bit)
            chain += str(last)
        return chain if name == "parity_chain" else chain[-1]
    if name == "coin":
        return str(int(hashlib.sha256(question.encode()).hexdigest()[:2], 16) % 2)
    if name == "habit":
        said = prompt.rpartition("|")[2]
        return question[len(said)]
    if name.startswith("add"):
        a, b = prompt[2:-1].split("+")
        total = f"{int(a) + int(b):03d}"
        return "".join(reversed(total)) if name == "add_reversed" else total
    raise AssertionError(name)


@pytest.mark.parametrize("name", [n for n in SYNTHETIC if n not in ("rule", "induction")])
def test_every_answer_is_right(name):
    for one in examples(name):
        assert one.answers == (right(name, one.prompt),)


def test_a_rule_is_defined_by_its_solved_examples():
    for task in tasks_of("rule", seed=0, count=64):
        for one in task.examples:
            shifts, question = shift_of(one.prompt), one.prompt[-2]
            assert len(shifts) == min(1, task.shots)
            assert one.prompt.count(">") == task.shots + 1
            if shifts:
                assert (ord(one.answers[0]) - ord(question)) % 26 in shifts
            assert f"{question}>" not in one.prompt[:-2]  # the question is not among the solved ones


def test_a_habit_has_one_letter_out_of_the_run():
    for one in examples("habit"):
        assert sorted(one.choices) == sorted({*one.choices})
        changed = one.answers[0]
        usual = next(choice for choice in one.choices if choice != changed)
        assert ord(usual) - ord(one.prompt[-1]) == 1  # the next of the alphabet
        assert usual not in one.prompt


def test_questions_about_the_library_are_of_its_text():
    for name in OF_LIBRARY:
        texts = abilities.library_text("train" if name == "swap" else "held_out")
        for one in examples(name, count=64):
            shown, usual = one.prompt, one.answers[0]
            if name == "swap":
                assert shown.startswith(SWAP)
                shown, usual = shown.removeprefix(SWAP), "len(" if one.answers == ("print(",) else "print("
            assert any(shown + usual in text for text in texts)
    for one in examples("indent", count=64):
        assert one.prompt == "" or one.prompt.endswith("\n")
        assert one.answers[0][:-1] == " " * (len(one.answers[0]) - 1)
        assert not one.answers[0][-1].isspace()


# --- chance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if abilities.find(n).metrics[0] == "choice"])
def test_guessing_gets_the_chance_that_is_claimed(name):
    """The first, the last or a random choice: their order says nothing. All within four standard errors."""
    chance, every = abilities.find(name).chance, examples(name, count=2000)
    error = 4 * math.sqrt(chance * (1 - chance) / len(every))
    r = Draw("guess")
    for guess in (lambda one: 0, lambda one: len(one.choices) - 1, lambda one: r.below(len(one.choices))):
        assert sum(one.scores[guess(one)] for one in every) / len(every) == pytest.approx(chance, abs=error)
    for one in every:
        assert sum(one.scores) == 1
        assert len(set(one.choices)) == len(one.choices) == round(1 / chance)
        assert one.choices[one.scores.index(1)] == one.answers[0]


@pytest.mark.parametrize("name", ["parity", "coin", "swap", "bracket", "rule"])
def test_always_giving_one_answer_gets_no_more_than_chance(name):
    for task in tasks_of(name, seed=0, count=2000):
        most = Counter(one.answers[0] for one in task.examples).most_common(1)[0][1]
        assert most / len(task.examples) < task.chance + 4 * math.sqrt(task.chance / len(task.examples))


@pytest.mark.parametrize("name", ["parity", "coin", "rule"])
def test_no_prompt_says_its_answer_by_how_often_a_choice_stands_there(name):
    """Choosing what the prompt holds most often, or least often, is no better than chance."""
    for task in tasks_of(name, seed=0, count=1000):
        for sign in (1, -1):
            score = 0.0
            for one in task.examples:
                counts = [sign * one.prompt.count(choice) for choice in one.choices]
                best = [s for s, c in zip(one.scores, counts, strict=True) if c == max(counts)]
                score += sum(best) / len(best)
            error = 5 * math.sqrt(task.chance / len(task.examples))
            assert score / len(task.examples) == pytest.approx(task.chance, abs=error)


# --- what is taught, and what is held out -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SYNTHETIC if n not in ("habit", "rule")])
def test_no_document_holds_a_question_of_an_example(name):
    documents = abilities.documents([name], 0, 3000)
    asked = {one.prompt or one.answers[0] for one in examples(name)}
    assert not any(document.startswith(tuple(asked)) for document in documents)


def test_with_steps_and_without_the_same_questions_are_held_out():
    for pair in (("count", "count_chain"), ("parity", "parity_chain")):
        for taught, measured in (pair, pair[::-1]):
            questions = {one.prompt[2:-1] for one in examples(measured)}
            taught_questions = {text[2:].partition("|")[0] for text in abilities.documents([taught], 0, 3000)}
            assert not questions & taught_questions


def test_a_document_asks_and_answers_as_an_example_does():
    for name in ("copy", "count", "count_chain", "parity", "parity_chain", "coin", "add", "add_reversed"):
        for text in abilities.documents([name], 0, 50):
            mark = "=" if name.startswith("add") else "|"
            prompt, answer = text[: text.index(mark) + 1], text[text.index(mark) + 1 : -1]
            assert answer == right(name, prompt)


def test_documents_stand_in_turn():
    texts = abilities.documents(["copy", "count", "add"], 5, 7)
    assert [text[0] for text in texts] == ["C", "N", "A", "C", "N", "A", "C"]
    assert texts[:4] == abilities.documents(["copy", "count", "add"], 5, 4)
    assert texts != abilities.documents(["copy", "count", "add"], 6, 7)
    assert all(len(text) <= 500 for text in abilities.documents(OF_LIBRARY, 0, 30))


def test_the_library_is_cut_as_data_prepare_cuts_it(tmp_path):
    """What a quickstart has trained on is held out of no example, and the other way round."""
    prepare(stdlib_source(), "byte", tmp_path / "data", validation_fraction=0.05, progress=lambda p: None)
    sizes = {}
    for split, ours in (("train", "train"), ("validation", "held_out")):
        stored = sum(path.stat().st_size // 2 for path in tmp_path.glob(f"data/{split}*.bin"))
        texts = abilities.library_text(ours)
        sizes[split] = (stored, sum(len(text.encode()) + 1 for text in texts))
    assert all(stored == ours for stored, ours in sizes.values()), sizes
    assert not set(abilities.library_text("train")) & set(abilities.library_text("held_out")) - {"\n"}


def test_shots_stand_solved_before_the_question():
    (task,) = tasks_of("copy:3", seed=0, count=8)
    assert task.shots == 3
    for one in task.examples:
        *solved, question = one.prompt.split("\n")
        assert len(solved) == 3
        assert all(text[2:18] == text[19:] for text in solved)
        assert question == f"C:{one.answers[0]}|"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpoy", "no ability 'cpoy'; did you mean copy?"),
        ("", "no ability ''; there are copy, count_chain"),
        ("copy:x", "copy:x: after the colon stands how many solved examples the prompt shows, 0 to 64"),
        ("copy:65", "0 to 64"),
        ("copy:", "0 to 64"),
        ("copy:²", "0 to 64"),
        ("induction:1", "induction takes no solved examples in its prompt; write induction"),
        ("rule:17", "rule takes no solved examples"),
        ("swap:1", "swap takes no solved examples"),
    ],
)
def test_what_is_no_task_is_refused(name, message):
    with pytest.raises(ValueError, match=r".") as error:
        tasks_of(name, seed=0, count=4)
    assert message in str(error.value)


def test_other_refusals():
    with pytest.raises(ValueError, match="no abilities given"):
        abilities.documents([], 0, 1)
    with pytest.raises(ValueError, match="split 'test' of the library: it is one of train, held_out"):
        abilities.library_text("test")


def test_the_bytes_of_every_example_fit_a_row_of_128():
    for name in NAMES:
        for one in examples(name):
            for text in {*one.answers, *one.choices}:
                assert len(ByteTokenizer().encode(one.prompt + text)) <= 128, name


def test_the_generators_need_no_jax():
    code = "import sys; from jaxscale import abilities as a; a.documents(['swap'], 0, 4); print('jax' in sys.modules)"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize("name", ["coin", "parity", "swap", "bracket"])
def test_who_always_says_the_same_is_right_by_chance_alone(name):
    """Exactly, not on average: an ability that is flat would else seem to move with what a model happens to prefer."""
    every, chance = examples(name, count=256), abilities.find(name).chance
    for answer in sorted({one.answers[0] for one in every}):
        assert abs(sum(one.answers[0] == answer for one in every) - chance * len(every)) <= 2
