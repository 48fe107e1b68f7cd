"""Disks that fill, directories that vanish, files that change: training goes on, and the last good checkpoint stays."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from faults.processes import committed, last_step, losses, train
from support import Listener, make_config

from jaxscale.checkpoint.fingerprint import fingerprints
from jaxscale.training.trainer import train as train_here
from jaxscale.training.writer import open_tensorboard

TINY = {
    "name": "tiny",
    "steps": 100_000,
    "model": {"vocab_size": 257, "num_layers": 1, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 128},
    "mesh": {"data": 2},
    "data": {"kind": "synthetic", "batch_size": 4, "seq_len": 32},
    "step": {"compute_dtype": "float32", "remat": "none"},
    "checkpoint": {"every": 20, "keep_last": 1},
    "metrics": {"tensorboard": True},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    runtime = {"platform": "cpu", "simulated_devices": 2, "compilation_cache": str(folder / "cache")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"runtime": runtime}))
    return folder / "tiny.yaml"


@pytest.fixture(params=["disk"])
def small_disk(request, tmp_path):
    """A file system of 6 MB, of memory."""
    folder = tmp_path / request.param
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "other-data"
    with path.open("wb", buffering=0) as file:

        def write_for_ever() -> None:
            while True:
                file.write(b"x" * 4096)

        with pytest.raises(OSError, match="No space left"):
            write_for_ever()
    return path


def test_a_full_disk_ends_nothing(config, small_disk):
    out = small_disk / "run"
    with train(config, out, processes=1) as run:
        run.until(lambda: committed(out) and last_step(out) > 25)
        other = fill(small_disk)
        run.until(lambda: "training goes on, the last good checkpoint is step" in run.text(0))
        good = committed(out)
        assert len(good) == 1
        assert "No space left on device" in run.text(0) or "bytes free" in run.text(0)
        other.unlink()
        run.until(lambda: committed(out) not in ([], good))  # the next one is written, and only then the old one goes
        run.until(lambda: "metrics.jsonl can be written again" in run.text(0))
        run.signal(0, 15)
        assert run.wait() == [75]
        assert "Traceback" not in run.text(0)
    with train(config, out, ["steps=1"], processes=1) as again:
        assert again.wait() == [0]
        assert f"resuming from step {committed(out)[-1]}" in again.text(0)


def test_a_disk_that_stays_full_is_an_error_at_the_end(config, small_disk):
    out = small_disk / "run"
    with train(config, out, processes=1) as run:
        run.until(lambda: committed(out) and last_step(out) > 25)
        fill(small_disk)
        run.until(lambda: "training goes on" in run.text(0))
        run.signal(0, 15)
        assert run.wait() == [2]
        good = committed(out)[-1]
        assert f"the last good checkpoint is step {good}; make room" in run.error(0)


def test_tensorboards_thread_survives_a_full_disk(small_disk):
    """Its queue holds ten: once the thread that empties it has died, the eleventh waits for ever."""
    said = []
    board = open_tensorboard(small_disk, said.append)
    fill(small_disk)
    for step in range(2000):
        board.add_scalar("loss", 1.0, step)
    board.close()
    assert len(said) == 1
    assert "tensorboard cannot be written (No space left on device)" in said[0]


@pytest.mark.parametrize("small_disk", ["run/checkpoints"], indirect=True)
def test_a_disk_that_turns_read_only_ends_nothing(config, small_disk):
    out = small_disk.parent
    with train(config, out, ["metrics.tensorboard=false"], processes=1) as run:
        run.until(lambda: committed(out))
        run.until(lambda: remounted(small_disk, "ro"))  # busy while a checkpoint is being written
        run.until(lambda: "training goes on, the last good checkpoint is step" in run.text(0))
        assert "Read-only file system" in run.text(0)
        good = committed(out)
        assert remounted(small_disk, "rw")
        run.until(lambda: committed(out) not in ([], good))
        run.signal(0, 15)
        assert run.wait() == [75]


def remounted(folder: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], capture_output=True).returncode == 0


def test_a_directory_that_vanishes_is_made_again(config, tmp_path):
    out = tmp_path / "run"
    with train(config, out, ["metrics.tensorboard=false"], processes=1) as run:
        run.until(lambda: committed(out) and last_step(out) > 25)
        shutil.move(out, tmp_path / "away")
        run.until(lambda: committed(out) and losses(out))
        run.signal(0, 15)
        assert run.wait() == [75], run.texts()
        assert "Traceback" not in run.text(0)


# --- files that change ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Checkpoints of steps 2 and 4, and the sums of the state that step 4 had."""
    out = tmp_path_factory.mktemp("finished")
    result = train_here(make_config({"data": 2}, steps=4, out=str(out), runtime={"simulated_devices": 2},
                                    checkpoint={"every": 2}))  # fmt: skip
    return out, fingerprints(result.state)


def damaged(finished, tmp_path, change) -> tuple[list[str], dict[str, str]]:
    """What a run says that starts from a copy whose newest checkpoint `change` has touched, and its state's sums."""
    original, _ = finished
    out = tmp_path / "run"
    shutil.copytree(original, out)
    change(out / "checkpoints" / "4")
    listener = Listener()
    result = train_here(make_config({"data": 2}, steps=4, out=str(out), runtime={"simulated_devices": 2}),
                        watcher=listener)  # fmt: skip
    return listener.lines, fingerprints(result.state)


def data_files(checkpoint: Path) -> list[Path]:
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.parent.name == "d"]
    return sorted(files, key=lambda p: -p.stat().st_size)


def flip(path: Path, where: float, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(len(data) * where))] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(finished, tmp_path):
    found = 0
    for where in (0.1, 0.3, 0.5, 0.7, 0.9):
        change = functools.partial(lambda where, c: flip(data_files(c)[0], where), where)
        lines, sums = damaged(finished, tmp_path / str(where), change)
        assert sums == finished[1]  # by way of step 2, or as the bit was in bytes that nobody reads
        set_aside = any("checkpoint 4 is damaged" in line for line in lines)
        assert any("resuming from step 2" in line for line in lines) == set_aside
        found += set_aside
    assert found >= 2


def test_a_truncated_file_is_found(finished, tmp_path):
    def cut(checkpoint: Path) -> None:
        path = data_files(checkpoint)[0]
        os.truncate(path, path.stat().st_size // 2)

    lines, sums = damaged(finished, tmp_path, cut)
    assert any("checkpoint 4 is damaged" in line for line in lines)
    assert sums == finished[1]


def test_changed_metadata_is_found(finished, tmp_path):
    def change(checkpoint: Path) -> None:
        path = checkpoint / "meta" / "metadata"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))

    lines, _ = damaged(finished, tmp_path, change)
    assert any("checkpoint 4 is damaged (ValueError: its metadata is not what was saved)" in line for line in lines)
