"""What a learner's file may do to the grader: each time one clear line, and the next file is graded all the same."""

import re
import time
from pathlib import Path

import pytest
from puzzles.answers import SOLUTIONS, fill

from jaxscale.puzzles import files
from jaxscale.puzzles.catalogue import PUZZLES, find
from jaxscale.puzzles.grade import FLOOD, grade

NAME = "partial-sums"
(RIGHT,) = SOLUTIONS[NAME]
LINE = next(i for i, text in enumerate(fill(NAME, []).splitlines(), 1) if "raise NotImplementedError" in text)
# what stands in place of the missing line -> what the one line about it holds
BAD = {
    "os.exit": ("import os; os._exit(0)", "the process ended by exit code 0 while project was traced"),
    "exit": ("exit(0)", f"line {LINE}: exit ends the grader, not your function: return instead"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "the process ended by SIGSEGV"),
    "flood": ("\n    while True: print('x' * 1000)", f"it printed more than {FLOOD:,} bytes and was stopped"),
    "import": ("import torchy", f"line {LINE}: ModuleNotFoundError: No module named 'torchy'"),
    "syntax": ("return lax.psum(x w)", f"line {LINE}: SyntaxError: invalid syntax"),
    "memory": ("\n    a = []\n    while True: a.append(bytearray(2**20))", "more memory than a puzzle may have, 2 GiB"),
    "device memory": (
        "import jax.numpy as jnp; return unreduced[:4] + jnp.sort(jnp.arange(2.0**28))[:24]",
        "the compiled program needs 1 GiB on each device; too much to be run here",
    ),
    "input": ("input()", f"line {LINE}: EOFError"),
    "numpy": ("import numpy; return numpy.asarray(unreduced)", f"line {LINE}: TracerArrayConversionError"),
    "a host's array": ("import numpy; return numpy.zeros((4, 24), 'float32')", "numpy says"),
    "nothing": ("return None", "0 arrays were returned; wanted 1"),
    "dtype": (f"{RIGHT}.astype('bfloat16')", "out is bfloat16[4,24] on each device; wanted float32[4,24]"),
    "axis": ("return lax.psum_scatter(unreduced, 'fsdp', tiled=True)", "NameError: unbound axis name: fsdp"),
    "branch": ("return unreduced if x.sum() > 0 else -unreduced", f"line {LINE}: TracerBoolConversionError"),
    "an error without words": (
        "\n    class E(Exception):\n        def __str__(self): 1 / 0\n    raise E",
        ": E, in `raise E`",
    ),
    "a pipe closed": ("import os; os.closerange(3, 99)", "the process ended by exit code"),
}  # fmt: skip


def write(folder, texts: dict[str, str]) -> list:
    found = []
    for i, text in enumerate(texts.values()):
        path = folder / f"bad{i}.py"
        path.write_text(text, encoding="utf-8")
        found.append((path, find(NAME)))
    return found


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict:
    texts = {key: fill(NAME, [line]) for key, (line, _) in BAD.items()}
    texts["no function"] = fill(NAME, [RIGHT]).replace("def project", "def projekt")
    texts["another config"] = fill(NAME, [RIGHT]) + "jax.config.update('jax_enable_x64', True)\n"
    texts["printing"] = fill(NAME, [f"print('rows', len(x))\n    {RIGHT}"])
    texts["right"] = fill(NAME, [RIGHT])
    return dict(zip(texts, grade(write(tmp_path_factory.mktemp("bad"), texts), 120), strict=True))


@pytest.mark.parametrize("name", BAD)
def test_one_line_says_it(name, verdicts):
    verdict = verdicts[name]
    assert not verdict.solved
    told = verdict.problem or next(c.seen for c in verdict.checks if not c.passed)
    assert BAD[name][1] in told
    assert "\n" not in told


def test_a_file_without_the_function_says_how_to_get_one(verdicts):
    assert "defines no function project; `jaxscale puzzle get partial-sums" in verdicts["no function"].problem


def test_what_is_printed_is_shown_up_to_a_measure(verdicts):
    assert verdicts["printing"].solved
    assert verdicts["printing"].printed == "rows 32\nrows 16\n"
    assert len(verdicts["flood"].printed) < 3000


def test_after_all_of_them_a_right_file_passes(verdicts):
    """Though one before it changed jax's config, and others ended the process."""
    assert verdicts["right"].solved, verdicts["right"]


def test_an_endless_loop_ends_and_names_its_line(tmp_path):
    text = fill(NAME, [RIGHT]) + "\nwhile True:\n    pass\n"
    (verdict,) = grade(write(tmp_path, {"loop": text}), 2)
    assert re.match(r"line \d+: not done after 2 s, while its own lines ran; there it was then: ", verdict.problem)


def test_nothing_that_it_started_is_left(tmp_path):
    note = tmp_path / "pid"
    text = fill(NAME, [RIGHT]) + (
        f"\nimport subprocess, time\n"
        f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\ntime.sleep(600)\n"
    )
    (verdict,) = grade(write(tmp_path, {"sleeper": text}), 5)
    assert "not done after 5 s" in verdict.problem
    pid = int(note.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # dead, and nobody has asked for it
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} still runs")


# --- which puzzle a file is ---------------------------------------------------------------------------------------


def test_a_shipped_file_is_its_puzzle():
    for puzzle in PUZZLES:
        assert files.which(puzzle.file) == puzzle


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"print('hello')\n", "not a puzzle's file"),
        (b"", "not a puzzle's file"),
        (b'"""Puzzle 11, more"""\n', "there is no puzzle 11; there are 1 to 10"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"#" * 300_000, "300,000 bytes; a puzzle's file has at most 200,000"),
    ],
)
def test_what_is_no_puzzle_is_refused(content, message, tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.which(path)
