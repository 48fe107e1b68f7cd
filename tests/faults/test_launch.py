"""`jaxscale launch`: real processes and signals. Where launch itself is tested, small scripts stand in for `train`."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxscale import cli
from jaxscale.cluster import launch as room
from jaxscale.cluster.codes import BROKEN, CORRUPT, DONE, HUNG, INTERRUPTED, MEANING, MENDABLE, PREEMPTED, VANISHED
from jaxscale.cluster.launch import Progress, Team, prepare, progress
from jaxscale.files.jsonl import read_records

CONFIG = {
    "name": "tiny", "steps": 60, "mesh": {"data": 2},
    "model": {"vocab_size": 64, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
    "data": {"kind": "synthetic", "batch_size": 4, "seq_len": 16},
    "step": {"compute_dtype": "float32", "remat": "none"}, "optimizer": {"schedule": "constant"},
    "metrics": {"tensorboard": False}, "checkpoint": {"every": 10}, "evaluation": {"batches": 1},
    "runtime": {"platform": "cpu", "simulated_devices": 2, "compilation_cache": None},
}  # fmt: skip
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
REAL = "import sys; sys.argv[0] = 'jaxscale'; from jaxscale.cli import main; main()"
# launch with another program in the place of `train`
STAND_IN = (
    "import sys; from jaxscale import cli; from jaxscale.cluster import launch; "
    "launch.VERB = open(sys.argv.pop(1)).read(); cli.main()"
)
HEAD = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
rank, out = int(os.environ["JAXSCALE_PROCESS_ID"]), Path(sys.argv[2]).parent
def at(number, code):
    signal.signal(number, lambda *_: (print("heard", signal.Signals(number).name, flush=True), os._exit(code)))
def ready():
    (out / f"ready-{rank}").write_text(str(os.getpid()))
    print("ready", flush=True)
def until(path):
    while not (out / path).exists(): time.sleep(0.01)
def event(step):
    (out / "run").mkdir(exist_ok=True)
    line = json.dumps({"event": "step", "step": step})
    with (out / "run" / "events.jsonl").open("a") as file: print(line, file=file)
def attempt():
    # of process 0, which counts them
    path = out / "attempts"
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return len(path.read_text())
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"out": str(tmp_path / "run")}))
    return path


class Launch:
    """`jaxscale launch --processes 2 OPTIONS -- train CONFIG OVERRIDES` as a process, its output in a file."""

    def __init__(self, config: Path, *options: object, script: str | None = None, overrides: tuple = (), stdout=None):
        self.config, self.folder = config, config.parent
        start = ["-c", REAL]
        if script is not None:
            (self.folder / "script.py").write_text(HEAD + script)
            start = ["-c", STAND_IN, str(self.folder / "script.py")]
        words = ["launch", "--processes", 2, *options, "--", "train", config, *overrides]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *start, *map(str, words)], stdout=stdout or log, stderr=log, stdin=subprocess.DEVNULL,
                env=os.environ | QUICK, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.log.read_text()

    def code(self, timeout: float = 60) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"launch still runs:\n{self.text()}")

    def ready(self) -> list[int]:
        """Process ids of both children, once they say that they are ready."""
        paths = [self.folder / f"ready-{rank}" for rank in (0, 1)]
        self.until(lambda: all(path.exists() and path.read_text() for path in paths))
        return [int(path.read_text()) for path in paths]

    def children(self) -> list[int]:
        """Of a real run: the children in the order of their start, which is that of their ranks."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def until(self, condition, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)


def alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < end, f"{[p for p in pids if alive(p)]} outlive launch"
        time.sleep(0.02)


# --- what the processes are given, and what is heard of them ---------------------------------------------------


def test_each_process_has_its_place_and_its_lines_their_prefix(config):
    script = """
names = [n for n in os.environ if n.startswith("JAXSCALE")]
print(json.dumps({n: os.environ[n] for n in names} | {"words": sys.argv[1:], "stdin": sys.stdin.read()}))
print("cut short", end="", file=sys.stderr)
"""
    with Launch(config, "--devices-per-process", 3, script=script, overrides=("mesh.data=6",)) as launch:
        assert launch.code() == 0, launch.text()
    lines = launch.text().splitlines()
    assert sorted(line[:4] for line in lines) == ["[0] ", "[0] ", "[1] ", "[1] "]
    assert {"[0] cut short", "[1] cut short"} < set(lines)
    places = {line[:3]: json.loads(line[4:]) for line in lines if "{" in line}
    host, port = places["[0]"]["JAXSCALE_COORDINATOR"].split(":")
    assert (host, places["[1]"]["JAXSCALE_COORDINATOR"]) == ("127.0.0.1", f"{host}:{port}")
    for rank, place in enumerate(places[f"[{rank}]"] for rank in (0, 1)):
        assert (place["JAXSCALE_PROCESS_ID"], place["JAXSCALE_PROCESSES"]) == (str(rank), "2")
        assert place["words"] == ["train", str(config), "mesh.data=6", "runtime.simulated_devices=6"]
        assert place["stdin"] == ""


def test_on_a_terminal_process_0_has_it_for_its_bar(config):
    ours, theirs = pty.openpty()
    script = "print(sys.stdout.isatty())"
    with Launch(config, script=script, stdout=theirs) as launch:
        os.close(theirs)
        assert launch.code() == 0, launch.text()
    text = os.read(ours, 4096).decode().replace("\r\n", "\n")
    os.close(ours)
    assert sorted(re.sub(r"\r?\x1b\[(K|\?25h)", "", text).splitlines()) == ["True", "[1] False"]
    assert text.endswith("\x1b[?25h"), "the cursor of a killed bar is shown again"
    assert "\r\x1b[K[1] False" in text, "another's line takes the bar's place"


def test_a_reader_who_leaves_stops_nothing(config):
    read, write = os.pipe()
    script = """
for i in range(20_000): print("line", i)
(out / f"done-{rank}").touch()
"""
    with Launch(config, script=script, stdout=write) as launch:
        os.close(write)
        os.read(read, 100)
        os.close(read)
        assert launch.code() == 0, launch.text()
    assert (config.parent / "done-0").exists()
    assert (config.parent / "done-1").exists()


# --- how it ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("death", "code", "words"),
    [
        ("os._exit(3)", 3, "process 1 ended with exit code 3;"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV, "process 1 was ended by SIGSEGV;"),
        (f"os._exit({HUNG})", HUNG, f"process 1 ended with exit code {HUNG} (hung, ended by the watchdog);"),
    ],
)
def test_when_one_dies_all_are_stopped_also_those_that_do_not_listen(config, death, code, words):
    script = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
if rank == 1:
    until("ready-0")
    {death}
time.sleep(600)
"""
    with Launch(config, "--grace", 0.5, script=script) as launch:
        pids = launch.ready()
        assert launch.code(30) == code
    assert f"launch: {words} the others of 2 are stopped" in launch.text()
    assert_gone(pids)


def test_those_that_fail_alike_say_so_themselves(config):
    script = f"""
at(signal.SIGTERM, 1)
ready()
if rank == 0:
    until("ready-1")
    while Path("/proc", (out / "ready-1").read_text()).exists(): time.sleep(0.01)
    time.sleep(0.2)
print("error: alike", file=sys.stderr)
os._exit({MENDABLE})
"""
    with Launch(config, "--grace", 10, script=script) as launch:
        assert launch.code(30) == MENDABLE
    assert {"[0] error: alike", "[1] error: alike"} < set(launch.text().splitlines())
    assert "heard SIGTERM" not in launch.text()


def test_the_first_failure_is_the_one_that_vanished_and_not_who_missed_it(config):
    script = f"""
ready()
until(f"ready-{{1 - rank}}")
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
other = Path(f"/proc/{{(out / 'ready-1').read_text()}}/stat")
try:
    while other.read_text().rpartition(")")[2].split()[0] != "Z": pass
except FileNotFoundError: pass
os._exit({VANISHED})
"""
    with Launch(config, script=script) as launch:
        assert launch.code() == 128 + signal.SIGKILL
    assert "process 1 was ended by SIGKILL" in launch.text()


def test_no_process_outlives_a_launch_that_is_killed(config):
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
    with Launch(config, script=script) as launch:
        pids = launch.ready()
        launch.process.kill()
        launch.process.wait()
        assert_gone(pids)


def test_what_a_process_leaves_behind_is_ended_too(config):
    script = """
left = subprocess.Popen(["sleep", "600"])
(out / f"left-{rank}").write_text(str(left.pid))
"""
    with Launch(config, script=script) as launch:
        assert launch.code(30) == 0
    assert_gone([int((config.parent / f"left-{rank}").read_text()) for rank in (0, 1)])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, PREEMPTED),
        (signal.SIGUSR1, PREEMPTED),
        (signal.SIGHUP, PREEMPTED),
        (signal.SIGINT, INTERRUPTED),
    ],
)
def test_told_to_stop_it_waits_until_all_have_saved(config, number, code):
    """The signal goes to its whole process group, as a terminal's Ctrl-C does: the children get one SIGTERM each."""
    script = f"""
at(signal.SIGINT, 1), at(signal.SIGHUP, 1), at(signal.SIGUSR1, 1)
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1 + rank), print("saved", flush=True), os._exit({PREEMPTED})))
ready()
time.sleep(600)
"""
    with Launch(config, "--max-restarts", 3, "--grace", 0.1, script=script) as launch:
        launch.ready()
        os.killpg(launch.process.pid, number)
        assert launch.code() == code
    assert {"[0] saved", "[1] saved"} < set(launch.text().splitlines())
    assert "heard" not in launch.text()
    assert "restart" not in launch.text()


def test_a_second_ctrl_c_kills(config):
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
    with Launch(config, script=script) as launch:
        pids = launch.ready()
        launch.process.send_signal(signal.SIGINT)
        launch.until(lambda: "Ctrl-C again kills" in launch.text())
        time.sleep(0.3)
        assert all(map(alive, pids))
        launch.process.send_signal(signal.SIGINT)
        assert launch.code(10) == INTERRUPTED
        assert_gone(pids)


def test_told_to_stop_before_the_processes_listen(config):
    """One has SIGTERM's default still, and the other waits for it: both end, and nothing was lost."""
    script = """
if rank == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
time.sleep(600)
"""
    with Launch(config, "--grace", 0.5, script=script) as launch:
        pids = launch.ready()
        launch.process.send_signal(signal.SIGTERM)
        assert launch.code(30) == PREEMPTED
        assert_gone(pids)


# --- who waits for a child -------------------------------------------------------------------------------------


def says(program: str) -> list[str]:
    """Lines of a fresh process, as Children fork, and this one has JAX's threads."""
    head = "import os, signal, sys, time\nfrom jaxscale.cluster.local import Children\n"
    done = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("told", ["terminate", "kill"])
def test_a_child_that_has_ended_when_it_is_told_to_stop_is_collected_once(told):
    """It ended after the last look at it. Nobody but `collect` may wait for it: its exit code would be lost."""
    program = f"""
with Children([sys.executable, "-c", "raise SystemExit(7)"], [{{}}, {{}}]) as children:
    for child in children.running.values():
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not waited for
    for _ in range(2):
        children.{told}()
        print(*map(str, children.collect()), sep=", ")
"""
    assert says(program) == ["process 0 ended with exit code 7, process 1 ended with exit code 7", ""]


def test_exit_codes_are_heard_where_the_starter_ignores_its_children():
    """Ignoring SIGCHLD is inherited, and the kernel then keeps no exit code."""
    program = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with Children([sys.executable, "-c", "raise SystemExit(7)"], [{}]) as children:
    while not (found := children.collect()): time.sleep(0.01)
    print(found[0])
"""
    assert says(program) == ["process 0 ended with exit code 7"]


# --- restarts --------------------------------------------------------------------------------------------------


def test_restarts_go_on_while_steps_are_gained(config):
    script = """
if rank == 1: time.sleep(600)
n = attempt()
event(3 * n)
(out / "run" / "checkpoints" / str(2 * n)).mkdir(parents=True)
(out / "run" / "checkpoints" / f"{9 * n}.orbax-checkpoint-tmp").mkdir()
if n < 3: os._exit(1)
os.kill(os.getppid(), signal.SIGTERM)
at(signal.SIGTERM, 75)
time.sleep(600)
"""
    with Launch(config, "--max-restarts", 5, "--grace", 0.2, script=script) as launch:
        assert launch.code() == PREEMPTED
    said = [line for line in launch.text().splitlines() if line.startswith("launch: ")]
    failed = f"launch: process 0 ended with exit code 1 ({MEANING[BROKEN]}); the others of 2 are stopped"
    assert said == [
        failed,
        "launch: restart 1 of 5 in 1 s, from step 2 (3 were done)",
        failed,
        "launch: restart 2 of 5 in 2 s, from step 4 (6 were done)",
    ]


def test_restarts_end(config):
    script = f"""
if rank == 1: time.sleep(600)
event(attempt())
os._exit({HUNG})
"""
    with Launch(config, "--max-restarts", 1, "--grace", 0.2, script=script) as launch:
        assert launch.code() == HUNG
    assert "launch: not restarted: 1 restarts were allowed" in launch.text()
    assert "in 1 s, from the beginning" in launch.text()
    assert len((config.parent / "attempts").read_text()) == 2


def attempts_of(monkeypatch, config, reached: list[tuple[int, int]], limit: int) -> tuple[int, int]:
    """The exit code of launch, and how many attempts it made, each of which comes to the next of `reached`: its newest
    checkpoint and its furthest step. The one after the last is done."""
    made: list[int] = []
    monkeypatch.setattr(room, "run_once", lambda *_: made.append(0) or (HUNG if len(made) <= len(reached) else DONE))
    monkeypatch.setattr(room, "progress", lambda *_: Progress(*reached[len(made) - 1]))
    monkeypatch.setattr(room, "pause", lambda *_: None)
    code = room.launch(["train", str(config)], str(config), [], Team(2, max_restarts=limit))
    return code, len(made)


@pytest.mark.parametrize(
    ("reached", "limit", "attempts"),
    [
        ([(0, 7)] * 9, 9, 4),
        ([(0, 0)] * 9, 9, 4),  # it never makes a step
        ([(0, 7)] * 9, 2, 3),  # no more than were allowed
        ([(10, 12), (10, 11), (10, 12), (20, 21), (20, 21), (20, 20), (20, 22)], 9, 8),  # two in a row, twice
        ([(20, 25), (10, 12), (10, 24), (10, 25), (20, 26)], 9, 4),  # a damaged checkpoint is no way to gain
    ],
)
def test_three_restarts_in_a_row_that_gain_no_step_are_the_last(monkeypatch, capsys, config, reached, limit, attempts):
    code, made = attempts_of(monkeypatch, config, reached, limit)
    assert (code, made) == (DONE if attempts > len(reached) else HUNG, attempts)
    if code and limit > 3:
        saved, done = (max(column) for column in zip(*reached[:made], strict=True))
        why = f"3 restarts in a row gained no step (newest checkpoint {saved}, furthest step {done})"
        assert f"launch: not restarted: {why}\n" in capsys.readouterr().err


@pytest.mark.parametrize("code", [MENDABLE, CORRUPT, PREEMPTED, INTERRUPTED])
def test_some_ends_are_not_restarted(config, code):
    script = f"""
if rank == 0: attempt()
until("attempts")
sys.exit({code})
"""
    with Launch(config, "--max-restarts", 5, "--grace", 0.2, script=script) as launch:
        assert launch.code() == code
    assert (config.parent / "attempts").read_text() == "x"
    assert ("not restarted" in launch.text()) == (code in (MENDABLE, CORRUPT))


def test_told_to_stop_between_two_attempts(config):
    script = "event(attempt()) if rank == 0 else time.sleep(600)\nos._exit(1)"
    with Launch(config, "--max-restarts", 5, "--grace", 0.2, script=script) as launch:
        launch.until(lambda: "restart 1 of 5" in launch.text())
        launch.process.send_signal(signal.SIGTERM)
        assert launch.code(10) == PREEMPTED
    assert (config.parent / "attempts").read_text() == "x"


def test_progress_of_a_directory_that_is_not_there(tmp_path):
    assert progress(tmp_path / "none", str(tmp_path / "none" / "checkpoints")) == Progress(0, 0)


def test_checkpoints_elsewhere_are_progress_too(tmp_path):
    """No step is heard of, as where `out` cannot be written."""
    for name in ("4", "2", "9.orbax-checkpoint-tmp"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    assert progress(tmp_path / "out", str(tmp_path / "elsewhere")) == Progress(4, 0)


def test_a_store_that_cannot_be_listed_leaves_the_steps_that_were_done(tmp_path, capsys):
    (tmp_path / "events.jsonl").write_text('{"event": "step", "step": 7}\n')
    (tmp_path / "file").write_text("")
    assert progress(tmp_path, "az://nowhere/run") == Progress(0, 7)
    assert capsys.readouterr().err.startswith("launch: checkpoints cannot be listed (az://nowhere/run: az://")


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--processes", "0", "--", "train", "CONFIG"], "'--processes'"),
        (["--processes", "two", "--", "train", "CONFIG"], "'--processes'"),
        (["--", "train", "CONFIG"], "Missing option '--processes'"),
        (["--processes", "2"], "Missing argument '-- train CONFIG ...'"),
        (["--processes", "2", "--devices-per-process", "0", "--", "train", "CONFIG"], "'--devices-per-process'"),
        (["--processes", "2", "--max-restarts", "-1", "--", "train", "CONFIG"], "'--max-restarts'"),
        (["--processes", "2", "--", "show", "CONFIG"], "launch starts `train`, not 'show'"),
        (["--processes", "2", "--", "train"], "Missing argument 'config'"),
        (["--processes", "2", "--", "train", "CONFIG", "--bogus"], "No such option: --bogus"),
        (["--processes", "2", "--", "train", "nowhere"], "no config nowhere"),
        (["--processes", "2", "--", "train", "CONFIG", "steps=many"], "steps='many'"),
        (["--processes", "3", "--", "train", "CONFIG"], "take --processes one of [1, 2]"),
        (
            ["--processes", "2", "--devices-per-process", "2", "--", "train", "CONFIG"],
            "needs 2 devices and there are 4",
        ),
        (["--processes", "2", "--", "train", "CONFIG", "runtime.distributed=never"], "runtime.distributed=never"),
        (["--processes", "2", "--", "train", "CONFIG", "runtime.platform=tpu"], "tpu-pod.sh"),
        (["--processes", "2", "--port", "PORT", "--", "train", "CONFIG"], "Address already in use"),
        (["--processes", "3", "--", "train", "CONFIG", "runtime.platform=gpu"], "there are 2: take --processes 2"),
    ],
)
def test_bad_input_is_one_line_before_any_process_starts(config, capfd, monkeypatch, words, says):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr("jaxscale.cluster.launch.Children", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        known = {"CONFIG": str(config), "PORT": str(taken.getsockname()[1])}
        monkeypatch.setattr(sys, "argv", ["jaxscale", "launch", *(known.get(word, word) for word in words)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    out, err = capfd.readouterr()
    assert (exit.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(("each", "ids"), [(None, ["0", "1"]), (2, ["0,1", "2,3"])])
def test_each_process_has_gpus_of_its_own(config, monkeypatch, each, ids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    overrides = ["runtime.platform=gpu", f"mesh.data={2 * (each or 1)}"]
    added, places, _ = prepare(str(config), overrides, Team(2, each))
    assert [place["JAXSCALE_LOCAL_DEVICE_IDS"] for place in places] == ids
    assert added == []


# --- real runs -------------------------------------------------------------------------------------------------


def losses(out: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_records(out / "metrics.jsonl") if r["kind"] == "train"}


@pytest.mark.faults
def test_a_process_is_killed_and_the_run_goes_on_to_the_same_losses(config):
    """To the bit those of one process with both devices, left in peace."""
    with Launch(config, "--max-restarts", 2, "--grace", 2) as launch:
        launch.until(lambda: (config.parent / "run" / "checkpoints" / "10").is_dir())
        os.kill(launch.children()[1], signal.SIGKILL)
        assert launch.code(120) == 0, launch.text()
    text = launch.text()
    assert "launch: process 1 was ended by SIGKILL; the others of 2 are stopped" in text
    step = int(re.search(r"restart 1 of 2 in 1 s, from step (\d+)", text)[1])
    assert f"[0] resuming from step {step} of" in text
    assert "[1]" not in text, "only process 0 speaks"

    peace = config.parent / "peace"
    alone = [sys.executable, "-c", REAL, "train", config, f"out={peace}"]
    subprocess.run(alone, env=os.environ | QUICK, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert losses(config.parent / "run") == losses(peace)
    assert set(losses(peace)) == set(range(1, 61))
