"""`jaxscale init`: a run file for a text, a machine and some hours that loads, fits and trains; and what it refuses."""

import itertools
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jaxscale.config import load_config
from jaxscale.data.guess import guess_corpus
from jaxscale.hardware.topology import find_topology
from jaxscale.scaling.first_run import EPOCHS, Wish, clock, first_run, run_file

MACHINES = (None, "v5e:2x4", "h100:8")
TEXTS = (2e3, 3e7, 1e12)  # tokens
HOURS = (0.01, 10)


def wish(machine: str | None, tokens: float, hours: float, vocab_size: int = 257) -> Wish:
    where = find_topology(machine) if machine else None
    peak = where.chip.bf16_flops * where.chips if where else 1e11
    return Wish(Path("data/notes"), tokens, vocab_size, hours, peak, where)


@pytest.mark.parametrize(("machine", "tokens"), list(itertools.product(MACHINES, TEXTS)))
def test_every_text_and_machine_gives_a_run_that_loads(machine, tokens, tmp_path):
    for hours in HOURS:
        asked = wish(machine, tokens, hours)
        found = first_run(asked)
        config = found.config
        trained = config.steps * config.data.batch_size * config.data.seq_len
        assert found.epochs == pytest.approx(trained / tokens)
        if tokens > 1e6:
            assert found.epochs < 1.3 * EPOCHS
        if found.choice is not None:
            assert found.choice.memory.peak <= asked.topology.chip.usable_hbm_bytes
            assert found.limited == "text" or found.seconds < 3600 * hours * 2 or trained <= 200 * 2**11
        path = tmp_path / f"{hours}.yaml"
        path.write_text(run_file(asked, found, None, path))
        again = load_config(str(path), [f"model.vocab_size={asked.vocab_size}"])
        assert again.model_dump(exclude={"name"}) == config.model_dump(exclude={"name"})


@pytest.mark.parametrize("vocab_size", [1024, 128256])
def test_every_vocabulary_has_a_model(vocab_size):
    assert first_run(wish(None, 1e6, 1, vocab_size)).config.model.vocab_size == vocab_size


def test_more_hours_make_a_larger_model_until_the_text_ends():
    found = [first_run(wish(None, 1e9, hours)) for hours in (1, 100, 1e5)]
    assert found[0].parameters < found[1].parameters < found[2].parameters
    assert [one.limited for one in found] == ["hours", "hours", "text"]


def test_kinds_of_text_are_guessed(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n' * 100)
    assert guess_corpus(str(tmp_path / "a.txt")).options[0] == "--text"
    assert guess_corpus(str(tmp_path / "b.jsonl")).options[0] == "--jsonl"
    assert guess_corpus(str(tmp_path)).options[0] == "--jsonl"  # most of its bytes
    (tmp_path / "c.json").write_text((tmp_path / "b.jsonl").read_text())
    assert guess_corpus(str(tmp_path / "c.json")).options[0] == "--jsonl"  # as `data prepare` reads it
    assert guess_corpus(str(tmp_path / "a.txt")).tokens == 100


def test_seconds_are_said_as_a_person_would():
    assert [clock(s) for s in (3, 300, 7200, 400_000)] == ["3 seconds", "5 minutes", "2 hours", "4.6 days"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--hours", "1", "--machine", "h100:8"], "--text is missing, and no terminal can be asked; give --text"),
        (["--text", "nowhere", "--hours", "1", "--machine", "h100:8"], "'nowhere' names no file"),
        (["--text", "a.txt", "--hours", "-1", "--machine", "h100:8"], "--hours -1: give a number of hours above 0"),
        (["--text", "a.txt", "--hours", "1", "--machine", "tpu9"], "no chip 'tpu9'"),
        (["--text", "a.txt", "--hours", "1", "--machine", "h100:8", "-o", "a.txt"], "a.txt already exists"),
        (["--text", "tiny.txt", "--hours", "1", "--machine", "h100:8"], "give a text of 100 or more"),
    ],
)
def test_what_it_refuses_is_one_line(words, problem, tmp_path, jaxscale_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text\n" * 1000)
    Path("tiny.txt").write_text("some text\n")
    ran = jaxscale_here("init", *words)
    assert ran.returncode == 2
    assert problem in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not Path("run.yaml").exists()


def test_a_terminal_is_asked_and_what_is_written_plans(tmp_path):
    (tmp_path / "notes.txt").write_text("The tide was out, and the ship lay on the sand.\n" * 4000)
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxscale", "init"],
        cwd=tmp_path,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(follower)
    os.write(leader, b"notes.txt\nh100:8\n0.5\n")
    printed = b""
    try:
        while piece := os.read(leader, 4096):
            printed += piece
    except OSError:  # its end
        pass
    os.close(leader)
    assert child.wait(60) == 0, printed.decode()
    said = printed.decode()
    assert "Text to learn from" in said
    assert "jaxscale data prepare --text notes.txt --tokenizer byte" in said
    assert "--validation-tail" in said  # one document has no others to hold out
    config = load_config(str(tmp_path / "run.yaml"), ["model.vocab_size=257"])
    assert config.mesh.sizes(8)
