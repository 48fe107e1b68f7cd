"""Files of BIG-bench's tasks, each changed, read to the rows of tokens that a model is given."""

import json
from pathlib import Path

from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.targets import Case, Target
from jaxscale.abilities.bigbench import read_task
from jaxscale.abilities.rows import prepare
from jaxscale.data.tokenizer import ByteTokenizer

CHOICES = {
    "name": "colours", "description": "of things", "keywords": ["a"], "canary": "b", "task_prefix": "Say it.\n",
    "metrics": ["multiple_choice_grade", "bleu"], "preferred_score": "multiple_choice_grade",
    "example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: ", "choice_prefix": "\n  ",
    "append_choices_to_input": True, "few_shot_example_separator": "\n", "stop_string": "\n",
    "examples": [{"input": "sky", "target_scores": {"blue": 1, "red": 0}, "comment": "c"},
                 {"input": "grass", "target_scores": {"green": 0.5, "red": 0.25, "blue": 0}}],
}  # fmt: skip
ANSWERS = {
    "name": "sums", "metrics": ["exact_str_match", "log_likelihood"], "output_regex": "[0-9]+",
    "examples": [{"input": "1+1", "target": "2"}, {"input": "2+2", "target": ["4", "four"]}],
}  # fmt: skip


def read_file(directory: Path, shots: int, count: int) -> None:
    task = read_task(directory / "task.json", shots=shots, seed=0, count=count, say=lambda line: None)
    prepare([task], ByteTokenizer(), seq_len=256)


def task_cases(folder: Path) -> st.SearchStrategy[Case]:
    trees = st.sampled_from([CHOICES, ANSWERS])
    whole = trees.flatmap(mu.json_text)
    torn = trees.flatmap(lambda tree: mu.damaged(json.dumps(tree).encode()))
    numbers = st.tuples(st.integers(0, 2), st.integers(1, 3))
    return st.tuples(whole | whole | torn, numbers).map(lambda both: Case({"task.json": both[0]}, both[1]))


TARGETS = [Target("bigbench", 300, task_cases, read_file)]
