"""An export by several processes, killed and run again: whole at the end, and never taken for whole before."""

import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.interop import tensors
from jaxscale.interop.weights import Tensors
from jaxscale.serving import export as room
from jaxscale.serving.export import Share, export, files_of
from jaxscale.training.initial import Beginning, unread
from jaxscale.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """With tables and matrices of several sizes: 8 files of 20 KB."""
    return train(make_config({"fsdp": 8}, steps=1, out=str(tmp_path_factory.mktemp("run")))).out


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes, by name."""
    return contents(by(run, tmp_path_factory.mktemp("whole") / "out", 0, 1))


def by(
    run: Path, out: Path, process: int, processes: int, *, wait: float = 60.0, most: int = 20_000, **options
) -> Path:
    export(run, out, dtype="float32", most=most, share=Share(process, processes, wait), **options)
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def half(out: Path) -> Path:
    return out.with_name(out.name + room.HALF_WRITTEN)


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_several_processes_write_what_one_does(run, whole, tmp_path, processes):
    """Also where there are more of them than files; process 0 is the first to be done with its own."""
    out = tmp_path / "out"
    first = threading.Thread(target=by, args=(run, out, 0, processes))
    first.start()
    for process in range(1, processes):
        assert not out.exists() or process >= len(whole) - 3  # three of these are no weights
        by(run, out, process, processes)
    first.join()
    assert contents(out) == whole
    assert not half(out).exists()


def test_each_writes_every_nth_file_and_process_0_says_who_is_late(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^model-00002-of-\d+.safetensors has not come within 0 s .* of process 1\)"):
        by(run, out, 0, 2, wait=0)
    assert not out.exists()
    numbers = [int(path.name[6:11]) for path in half(out).glob("*.safetensors")]
    assert sorted(numbers) == list(range(1, max(numbers) + 1, 2))
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        tensors.tensors(half(out))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_export_goes_on_where_it_was(run, whole, tmp_path, monkeypatch, processes):
    """Killed within a file, it leaves that one under another name, and writes no file twice."""
    out, write, written = tmp_path / "out", tensors.write, []

    def dies(path, *arguments):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *arguments)

    monkeypatch.setattr(tensors, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        by(run, out, processes - 1, processes)
    assert not out.exists()
    assert len(list(half(out).glob("*.safetensors"))) == 2
    monkeypatch.setattr(tensors, "write", lambda path, *more: written.append(path.name) or write(path, *more))
    for process in reversed(range(processes)):
        by(run, out, process, processes)
    assert contents(out) == whole
    assert len(written) == len(set(written))


def test_what_is_of_another_export_is_not_mixed_in(run, whole, tmp_path):
    out = tmp_path / "out"
    by(run, out, 1, 2, most=10_000)
    with pytest.raises(ValueError, match=r"is of another export .*; remove it, or give its options"):
        by(run, out, 1, 2)
    assert contents(by(run, out, 0, 1)) == whole  # one alone begins anew


def test_a_full_disk_of_several_leaves_the_others_files(run, whole, tmp_path, monkeypatch):
    out, write = tmp_path / "out", tensors.write

    def full(path, *arguments):
        raise OSError(28, "No space left on device")

    by(run, out, 1, 2)
    monkeypatch.setattr(tensors, "write", full)
    with pytest.raises(ValueError, match="No space left on device; once that is mended, run this process again"):
        by(run, out, 0, 2)
    monkeypatch.setattr(tensors, "write", write)
    assert contents(by(run, out, 0, 2)) == whole


def test_as_a_person_types_it(run, tmp_path, jaxscale_here):
    """Process 0 in a process of its own, as SLURM starts it; and what is refused."""
    out = tmp_path / "out"
    options = ["--dtype", "float32", "--max-shard", "20KB", "--processes", "2"]
    program = "from jaxscale.cli import main; main()"
    first = subprocess.Popen(
        [sys.executable, "-c", program, "export", str(run), str(out), *options, "--process", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    other = jaxscale_here("export", run, out, *options, "--process", 1)
    assert other.stdout.startswith("process 1 of 2: ")
    said, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (0, "")
    assert "of 2" not in said
    assert (out / "config.json").is_file()
    wrong = jaxscale_here("export", run, tmp_path / "b", "--process", 2, "--processes", 2)
    assert wrong.returncode == 2
    assert "--process 2 --processes 2: processes are counted from 0 to 1" in wrong.stderr


def test_405b_on_paper():
    """Llama-3.1-405B: 405.85e9 parameters, and the largest tensors are its two tables."""
    model = cfg.load_config("models/llama3.1-405b").model
    every = Tensors("llama", model)
    files = files_of(every, "bfloat16", 5 * 10**9)
    assert sum(files.bytes) == 2 * sum(int(np.prod(shape, dtype=np.int64)) for shape in every.shapes.values())
    assert sum(files.bytes) == pytest.approx(2 * 405.85e9, rel=1e-4)
    assert files.largest[1] == 2 * 128_256 * 16_384
    assert max(files.bytes) <= 5 * 10**9
    assert files.seconds(1, 1e9) == pytest.approx(811.7, abs=0.1)
    assert files.seconds(16, 1e9) == max(sum(files.bytes[i::16]) for i in range(16)) / 1e9


def test_a_state_that_is_read_is_not_drawn_first():
    """The program that makes the rest of the state holds less than a tenth of the parameters at any time."""
    setup = Setup(make_config({"fsdp": 8}, optimizer={"name": "adafactor"}))
    with setup.context():
        everything = Beginning(lambda *_: np.zeros(0), lambda _: True, "")
        memory = unread(setup.program, [everything]).lower().compile().memory_analysis()
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(setup.program.abstract.params)) / 8
    assert memory.temp_size_in_bytes < whole / 10


def test_a_layer_is_a_chunk_of_its_own(run):
    """Or an export, which goes layer by layer, would read all layers for each."""
    stored = Stored(run)
    for name in ("params.layers.attention.q", "params.layers.mlp.down"):
        whole = stored.read(name, (slice(None),))
        chunk = stored.open[name].chunk_layout.read_chunk.shape
        assert (whole.shape[0], chunk[0]) == (2, 1)
