"""Checkpoints in an object store: real runs, a real S3 server on loopback, SIGKILL in the middle of a save."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from jaxscale.cluster.codes import HUNG
from jaxscale.cluster.launch import Progress, progress
from jaxscale.files import places
from jaxscale.files.jsonl import read_records

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from s3_server import BUCKET, Server

ROOT = Path(__file__).parents[2]
RUN = {
    "name": "tiny", "steps": 6, "data": {"kind": "synthetic", "batch_size": 4, "seq_len": 16},
    "model": {"vocab_size": 257, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
    "mesh": {"data": 2}, "step": {"compute_dtype": "float32", "remat": "none"},
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant"}, "metrics": {"tensorboard": False},
    "checkpoint": {"every": 2, "keep_last": 2}, "evaluation": {"batches": 1},
    "runtime": {"platform": "cpu", "simulated_devices": 2},
}  # fmt: skip

# without what takes time and is tested elsewhere: the measured peak, and the drawn curve
CLI = """
from jaxscale.report import curve
from jaxscale.training import trainer
trainer.find_peak = lambda devices, dtype: None
curve.plot_losses = lambda records, path, title: path
from jaxscale.cli import main
main()
"""


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _answers_all(server):
    yield
    server.before = lambda method, path: None


class Shell:
    """`jaxscale ...` in processes of its own, with a user's environment."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        self.file = folder / "run.yaml"
        cache = {"compilation_cache": str(ROOT / ".pytest_cache" / "xla-remote")}
        self.file.write_text(yaml.safe_dump(RUN | {"runtime": RUN["runtime"] | cache}))

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "JAX_", "XLA_"))}
        environment = inherited | self.server.environment() | {"PYTHONPATH": str(ROOT)} | environment
        program = ["-c", CLI] if arguments[0] == "train" else ["-m", "jaxscale.cli"]
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *arguments: object, code: int = 0, **environment: str) -> str:
        """Its stdout; with an error expected, its stderr."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, (process.returncode, out, err)
        assert "Traceback" not in out + err, err
        assert self.server.secret not in out + err
        return err if code == 2 else out

    def train(self, run: str, *overrides: str, **options) -> str:
        return self(
            "train", self.file, f"out={self.folder / run}", f"checkpoint.directory={url(run)}", *overrides, **options
        )

    def listed(self, run: str) -> list[tuple[int, str]]:
        found = json.loads(self("checkpoint", "list", url(run), "--json"))
        return [(one["step"], one["status"]) for one in found["checkpoints"]]


@pytest.fixture
def shell(server, tmp_path):
    return Shell(server, tmp_path)


def url(run: str) -> str:
    return f"s3://{BUCKET}/{run}/checkpoints"


def fingerprints(server: Server, run: str, step: int) -> dict[str, str]:
    body = server.s3.get_object(Bucket=BUCKET, Key=f"{run}/checkpoints/{step}/meta/metadata")["Body"].read()
    return json.loads(body)["fingerprints"]


def flip_a_bit(server: Server, prefix: str) -> None:
    """In the middle of the largest object: an array's data."""
    sizes = {key: server.s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"] for key in server.keys(prefix)}
    key = max(sizes, key=sizes.__getitem__)
    body = bytearray(server.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    server.s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))


@pytest.mark.faults
def test_a_run_lives_in_an_object_store(server, shell):
    """Killed in a save, resumed bitwise, the last N kept, a damaged one left aside, listed, checked and removed."""
    refused = []

    def refuse(method, path):  # for a while nothing may be written
        if method == "PUT" and "/straight/checkpoints/4/" in path:
            refused.append(path)
            return "403 Forbidden"
        return None

    server.before = refuse
    told = shell.train("straight")
    assert refused
    assert "checkpoint 4 could not be written" in told
    assert "training goes on, the last good checkpoint is step 2" in told
    assert (6, "committed") in shell.listed("straight")

    def kill(method, path):  # all of step 4 is there but the file that makes it a checkpoint
        if method == "PUT" and path.endswith("/run/checkpoints/4/commit_success.txt"):
            os.kill(process.pid, signal.SIGKILL)
            return "500 Killed"
        return None

    server.before = kill
    process = shell.start("train", shell.file, f"out={shell.folder / 'run'}", f"checkpoint.directory={url('run')}")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert "run/checkpoints/4/state/manifest.ocdbt" in server.keys("run/")
    assert shell.listed("run") == [(2, "committed"), (4, "half-written")]

    server.before = lambda method, path: None
    assert "resuming from step 2" in shell.train("run")
    assert shell.listed("run") == [(4, "committed"), (6, "committed")]
    assert fingerprints(server, "run", 6) == fingerprints(server, "straight", 6)
    assert len(shell("generate", shell.folder / "run", "--tokenizer", "byte", "--max-new-tokens", 2)) > 0

    flip_a_bit(server, "run/checkpoints/6/state/ocdbt")
    verdict = shell("checkpoint", "verify", shell.folder / "run", code=1)
    assert "step 4: " in verdict
    assert "all as they were saved" in verdict
    assert [
        line for line in verdict.splitlines() if line.startswith("step 6: ") and ("params" in line or "opt_" in line)
    ]
    told = shell.train("run", "steps=8")
    assert "checkpoint 6 is damaged" in told
    assert "resuming from step 4" in told
    assert shell.listed("run") == [(6, "committed"), (8, "committed"), (6, "set aside")]

    freed = shell("checkpoint", "rm", url("run"), "--keep-last", 1)
    assert "removed step 6: " in freed
    assert shell.listed("run") == [(8, "committed"), (6, "set aside")]
    assert not server.keys("run/checkpoints/6/")
    assert "the last whole checkpoint" in shell("checkpoint", "rm", url("run"), "--step", 8, code=2)
    assert "all as they were saved" in shell("checkpoint", "verify", url("run"))


@pytest.mark.faults
def test_a_slow_store_holds_nothing_up_but_the_next_save_and_one_that_hangs_is_ended(server, shell, monkeypatch):
    """Step 2's arrays are taken slowly: step 3 is done meanwhile, step 4 waits. Those of step 6 are never taken."""
    slow, never = threading.Event(), threading.Event()
    done: list[str] = []

    def before(method, path):
        if method == "PUT" and "/slow/checkpoints/2/state/" in path:
            slow.wait(120)
            done.append(path)
        if method == "PUT" and "/slow/checkpoints/6/state/" in path:
            never.wait(120)
        return None

    server.before = before
    process = shell.start("train", shell.file, f"out={shell.folder / 'slow'}", f"checkpoint.directory={url('slow')}",
                          "steps=100", "watch.save=15")  # fmt: skip
    try:
        said = until_line(process, "step 4 waits")
        assert "checkpoint 2 is still being written after" in said
        losses = [r["step"] for r in read_records(shell.folder / "slow" / "metrics.jsonl") if r["kind"] == "train"]
        assert losses == [1, 2, 3, 4]
        assert not done
        slow.set()
        _, err = process.communicate(timeout=120)
    finally:
        slow.set()
        never.set()
        process.kill()
    assert process.returncode == HUNG
    assert "the run stood still: at step 8, checkpoint for 1" in err
    assert "trainer.py" in (shell.folder / "slow" / "stacks" / "process-0.txt").read_text()
    server.before = lambda method, path: None
    assert shell.listed("slow") == [(2, "committed"), (4, "committed"), (6, "half-written")]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    fsspec = pytest.importorskip("fsspec")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert progress(shell.folder / "slow", url("slow")) == Progress(4, 8)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def until_line(process: subprocess.Popen, words: str) -> str:
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if words in line:
            return line
    raise AssertionError(f"never said: {words}\n{''.join(said)}")


CASES = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "notTheSecretOfTheUser"}, url("run"), "refused"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, url("run"), "refused"),
    "no credentials": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, url("run"), "redentials"),
    "no such bucket": ({}, "s3://nowhere/run", "there is no bucket nowhere"),
    "nobody listens": ({"AWS_ENDPOINT_URL": "http://me:hushhush@127.0.0.1:9"}, url("run"), "cannot be reached"),
    "no extra": ({}, "gs://bucket/run", "jaxscale[gcs]"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_store_that_cannot_be_used_is_told_in_one_line(shell, case):
    if case == "no extra" and any(Path(p, "gcsfs").exists() for p in sys.path):
        pytest.skip("gcsfs is here")
    environment, place, words = CASES[case]
    line = shell("checkpoint", "list", place, code=2, **environment)
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert words in line
    assert "hushhush" not in line
    assert environment.get("AWS_SECRET_ACCESS_KEY", "-") not in line or not environment["AWS_SECRET_ACCESS_KEY"]


def test_a_server_that_says_nothing_is_left_after_a_while(server, monkeypatch):
    import fsspec

    monkeypatch.setattr(places, "ANSWER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in server.environment(AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"no answer at http://127.0.0.1:\d+ within 1 s"):
            places.open_place(url("run"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


BAD_URLS = {
    "s3://id:hushhush@bucket/run": "credentials",
    "s3://bucket": "name a bucket and a prefix",
    "az://bucket/run": "az:// is not known",
    "s3://bucket/run?x=1": "is not s3://bucket/prefix",
}


@pytest.mark.parametrize("bad", BAD_URLS)
def test_a_url_is_refused_before_anything_starts(shell, bad):
    line = shell("show", shell.file, f"checkpoint.directory={bad}", code=2)
    assert BAD_URLS[bad] in line
    assert "hushhush" not in line
    assert line.count("\n") == 1
