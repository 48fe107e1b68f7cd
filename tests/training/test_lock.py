"""One run owns its directory, until its process ends, however that is. Real processes."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from support import make_config

from jaxscale import cli
from jaxscale.checkpoint import inventory
from jaxscale.files import lock
from jaxscale.files.lock import NAME, Lock
from jaxscale.training.owner import Owner

HOLDER = """
import sys, time
from pathlib import Path
from jaxscale.files.lock import Lock
held = Lock(Path(sys.argv[1]))
held.sign()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
held.close()
"""


@contextlib.contextmanager
def holder(directory, seconds=600.0):
    command = [sys.executable, "-c", HOLDER, str(directory), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_one_is_refused_and_changes_nothing(tmp_path):
    with holder(tmp_path / "run") as process:
        before = (tmp_path / "run" / NAME).read_bytes()
        with pytest.raises(
            ValueError, match=rf"in use by another process \(process {process.pid} on .* since 2\d\d\d-"
        ):
            Lock(tmp_path / "run")
        assert (tmp_path / "run" / NAME).read_bytes() == before


def test_a_kill_leaves_no_lock_and_its_file_is_taken_over(tmp_path):
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = (tmp_path / NAME).read_bytes()
    refused = Lock(tmp_path)  # a start that is refused for something else
    refused.close()
    assert (tmp_path / NAME).read_bytes() == left
    taken = Lock(tmp_path)
    taken.sign()
    assert f"process {os.getpid()} on" in (tmp_path / NAME).read_text()
    taken.close()
    assert not (tmp_path / NAME).exists()


def test_one_that_is_ending_is_waited_for(tmp_path):
    with holder(tmp_path, seconds=0.5):
        Lock(tmp_path, patience=60).close()


def test_a_run_that_has_its_checkpoints_in_its_directory_does_not_meet_itself(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "link", tmp_path / "run" / "checkpoints"):
        config = make_config(out=str(tmp_path / "run"), checkpoint={"directory": str(place)})
        Owner(config, print).close()


def test_what_is_not_signed_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    for place in (tmp_path / "a", tmp_path / "b" / "c" / "d"):
        Lock(place).close()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["a"]


def test_a_file_that_was_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    """The holder removes it after another has opened it: that one's lock would be on a file that nobody finds."""
    flock, removed = lock.fcntl.flock, []

    def remove_first(file, how):
        if not removed:
            removed.append((tmp_path / NAME).unlink())
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", remove_first)
    with contextlib.closing(Lock(tmp_path)), pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)


def test_a_close_removes_no_others_file(tmp_path):
    """The directory was removed and made again by another run meanwhile."""
    first = Lock(tmp_path)
    first.sign()
    (tmp_path / NAME).unlink()
    with contextlib.closing(Lock(tmp_path)):
        first.close()
        assert (tmp_path / NAME).exists()


@pytest.mark.parametrize("number", lock.UNSUPPORTED)
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said: list[str] = []
    Lock(tmp_path, say=said.append).close()
    assert said == [f"{tmp_path} cannot be locked ({os.strerror(number)}): start no second run in it"]


def test_where_only_what_may_be_written_can_be_locked_it_is_opened_so(tmp_path, monkeypatch):
    """NFS; elsewhere it is open to be read, so that the disk may be remounted."""
    flock, modes = lock.fcntl.flock, []

    def on_nfs(file, how):
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        if modes[-1] == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", on_nfs)
    with contextlib.closing(Lock(tmp_path)), pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)
    assert modes == [os.O_RDONLY, os.O_RDWR] * 2


def test_a_link_in_the_files_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        Lock(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_rm_is_refused_while_a_run_lives_and_reading_is_not(tmp_path, monkeypatch, capsys):
    place = tmp_path / "run" / "checkpoints"
    for step in ("2", "4"):
        (place / step / "state").mkdir(parents=True)
        (place / step / "state" / "data").write_text("x")
    monkeypatch.setattr(sys, "argv", ["jaxscale", "checkpoint", "rm", str(tmp_path / "run"), "--step", "2", "--force"])
    with holder(place):
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert exit.value.code == 2
        assert "in use by another process" in capsys.readouterr().err
        assert [k.step for k in inventory.inventory(inventory.find_place(str(tmp_path / "run")))] == [2, 4]
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    assert not (place / "2").exists()
