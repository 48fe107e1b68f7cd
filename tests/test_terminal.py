"""What the verbs print through a real pseudo-terminal of 80, 100 and 200 columns, and through a pipe."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from support import make_config

from jaxscale.console.tables import NO_LIMIT, make_table, wrapped
from jaxscale.training.trainer import train

WIDTHS = (80, 100, 200)
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
COMMANDS = {
    "chips": ["chips"],
    "plan": ["plan", "gpt2-124m", "data.kind=synthetic", "data.path=null", "data.validation_path=null",
             "--topology", "v5e:2x2", "--rows", "4"],
    "plan of samples": ["plan", "llama3.1-8b-grpo", "--topology", "h100:8", "--rows", "2"],
    "show": ["show", "mixtral-8x7b"],
    "explain": ["explain", "quickstart", "--mesh", "fsdp=2,tensor=2", "--topology", "v5p:2x2x1", "--compiler", "none"],
    "two meshes": ["explain", "quickstart", "--compare", "fsdp=4", "fsdp=2,tensor=2", "--topology", "v5p:2x2x1",
                   "--compiler", "none"],
    "a pipeline": ["explain", "quickstart", "--mesh", "pipeline=4", "step.microbatches=8",
                   "step.remat=full"],
    "puzzles": ["puzzle", "list"],
    "a hint": ["puzzle", "hint", "fsdp", "--all"],
    "ladder": ["ladder", "plan", "library"],
    "law": ["law", "fit", "runs.csv", "--hold-out", "largest"],
    "checkpoints": ["checkpoint", "list", "run"],
    "data": ["data", "show", "text", "--documents", "0"],
    "compared": ["bench", "compare", str(RESULTS / "2026-11-21-sweep-width.json"),
                 str(RESULTS / "2026-11-21-sweep-width.json"), "--all"],
}  # fmt: skip
# One process for all: it gives its terminal each width and runs each verb there, at last into a file; marks stand
# between. What a verb explains is explained once.
DRIVER = """
import fcntl, json, os, pathlib, struct, sys, termios
from jaxscale.bench.record import read_record
from jaxscale.cli.app import app
from jaxscale.console import bench, evaluate
from jaxscale.explain import story
from jaxscale.serving.evaluated import Evaluated, Evaluation
widths, commands, records, file = json.loads(sys.argv[1])
one = Evaluated("a/source/with/a/long/path (validation)", 1199323, 3315000.5, 1199285)
shows = {"evaluate": lambda: evaluate.show(Evaluation("step 24 of runs/x", 24, False, {"fsdp": 8}, 128, True, [one]))}
for name in records:
    shows[name] = lambda name=name: bench.show_record(read_record(pathlib.Path(name)))
kept, explain = {}, story.explain
def once(*asked, **how):
    key = repr((asked, how))
    kept[key] = kept.get(key) or explain(*asked, **how)
    return kept[key]
story.explain = once
for width in [*widths, 0]:
    sys.stdout.flush()
    if width:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    else:
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 1)
    for name, words in commands.items():
        print(f"<<{width} {name}>>", flush=True)
        app(words, standalone_mode=False)
    for name, show in shows.items():
        print(f"<<{width} {name}>>", flush=True)
        show()
sys.stdout.flush()
"""
RULES = str.maketrans(dict.fromkeys("━─│┃┏┓┗┛┡┩┳╇┴┬└┘┌┐├┤┼╋║", " "))
LEFT_OUT = re.compile(r"^left out at a width of \d+: (.*?);\s+a\s+wider\s+terminal\s+shows\s+more$", re.M | re.S)


def in_terminal(command: list[str], folder: Path, width: int = 80) -> str:
    """What a command writes on a terminal of its own, escape codes taken away."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True, **streams)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 2**16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r\n", "\n")
    assert process.wait() == 0, text
    return text


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return own | {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parent.parent)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with checkpoints, prepared text, and runs for a law."""
    folder = tmp_path_factory.mktemp("terminal")
    model = {"vocab_size": 256, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32}
    data = {"kind": "synthetic", "batch_size": 4, "seq_len": 16}
    out = str(folder / "run")
    train(make_config({"data": 2, "fsdp": 2}, steps=4, out=out, model=model, data=data, checkpoint={"every": 2},
                      runtime={"simulated_devices": 4}, evaluation={"batches": 1}))  # fmt: skip
    (folder / "text.txt").write_text("some words of text\n" * 500)
    prepare = [sys.executable, "-m", "jaxscale.cli", "data", "prepare", "--text", "text.txt", "--out", "text",
               "--validation-tail", "0.1"]  # fmt: skip
    subprocess.run(prepare, cwd=folder, env=environment(), check=True, capture_output=True)
    with open(folder / "runs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["parameters", "tokens", "loss"])
        for size in (1e7, 3e7, 1e8, 3e8, 1e9):
            for ratio in (5, 20, 80, 320):
                rows.writerow([size, size * ratio, 1.8 + 480 * size**-0.35 + 2100 * (size * ratio) ** -0.37])
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """(width, or None for a pipe; name) -> what was printed."""
    records = [str(RESULTS / name) for name in ("2026-11-21-sweep-width.json", "2026-11-21-checkpoint-quickstart.json")]
    asked = json.dumps([WIDTHS, COMMANDS, records, "piped"])
    on_terminal = in_terminal([sys.executable, "-c", DRIVER, asked], folder)
    piped = (folder / "piped").read_text()
    found = {}
    for text in (on_terminal, piped):
        parts = re.split(r"^<<(\d+) (.*)>>\n", text, flags=re.M)[1:]
        for width, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            found[int(width) or None, name.rpartition("/")[2]] = body
    return found


NAMES = [*COMMANDS, "evaluate", "2026-11-21-sweep-width.json", "2026-11-21-checkpoint-quickstart.json"]


def words(text: str) -> Counter[str]:
    return Counter(text.translate(RULES).split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_fits_the_terminal(printed, name, width):
    """No line is longer than the terminal, no word or number is torn, and nothing is gone without its name."""
    text, whole = printed[width, name], printed[None, name]
    assert not [line for line in text.splitlines() if len(line) > width]
    notes = LEFT_OUT.findall(text)
    shown = words(LEFT_OUT.sub("", text))
    cut = {"…"} if name == "a pipeline" else set()  # ticks between the first and the last ones
    assert not set(shown) - set(words(whole)) - cut, "words that the pipe does not have: torn"
    if not notes and not cut & set(shown):
        assert not words(whole) - shown


def test_columns_are_left_out_where_it_is_narrow_alone(printed):
    assert "left out at a width of 80: loss chunk, HBM" in printed[80, "plan"]
    for name in NAMES:
        if not name.startswith("2026"):
            assert "left out" not in printed[200, name].replace("Left out", "").replace("were left out", ""), name
    assert not any(LEFT_OUT.search(printed[None, name]) for name in NAMES)


def test_a_wide_terminal_is_used(printed):
    assert max(map(len, printed[200, "plan"].splitlines())) > 100
    assert printed[200, "chips"].count("┃") > 10


def test_a_row_is_one_line_of_a_pipe(printed):
    (line,) = [line for line in printed[None, "puzzles"].splitlines() if "ring-attention" in line]
    assert "attention over a sequence that is split: the online softmax" in line
    (line,) = [line for line in printed[None, "plan"].splitlines() if line.startswith("context was not tried")]
    assert "tries it" in line


# --- the rule -------------------------------------------------------------------------------------------------


def drawn(table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_columns_go_in_their_order_and_are_named():
    table = make_table("Title", "name", "first\nnumber", "second", "third", spare=("second", "first\nnumber"))
    table.add_row("a-name-of-some-length", "123,456,789", "23,456,789", "3,456,789")
    assert "left out" not in drawn(table, 80)
    assert "left out at a width of 54: second; a wider" in " ".join(drawn(table, 54).split())
    narrow = drawn(table, 45)
    assert "left out at a width of 45: first number, second; a" in " ".join(narrow.split())
    assert "3,456,789" in narrow
    assert "123,456,789" not in narrow


def test_rows_are_stacked_where_nothing_else_helps():
    table = make_table("Title", "name", "micro-\nbatches", "path")
    table.add_row("one", "8", "a/path/that/is/longer/than/the/terminal/is/wide")
    text = drawn(table, 30)
    assert text.split("\n")[:4] == ["Title", "one", "  microbatches: 8", "  path:"]
    assert "a/path/that/is/longer/than/the/terminal/is/wide" in drawn(table, NO_LIMIT)


def test_lines_end_between_words():
    line = "  on a device [1,024, 128]·[128, 64]: 16.8 MFLOP"
    assert wrapped(line, 24) == ["  on a device", "    [1,024, 128]·[128, 64]:", "    16.8 MFLOP"]
    assert wrapped("one\n\ntwo", 80) == ["one", "", "two"]
