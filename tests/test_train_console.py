"""What a person sees of a run: its banner, its lines, its bar, on a terminal and through a pipe."""

import io
import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from support import make_config
from test_terminal import environment, in_terminal

from jaxscale import config as cfg
from jaxscale.console import train as console
from jaxscale.console.banner import banner, duration
from jaxscale.console.train import TrainingConsole, step_figures
from jaxscale.training.metrics import Speed
from jaxscale.training.trainer import train

TINY = ["data.kind=synthetic", "data.path=null", "data.validation_path=null", "model.num_layers=1",
        "model.embed_dim=32", "model.mlp_dim=64", "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1",
        "runtime.simulated_devices=1",
        "metrics.tensorboard=false", "data.batch_size=8", "data.seq_len=32", "evaluation.every=0",
        "optimizer.warmup_steps=1",
        "evaluation.batches=1", "out=run"]  # fmt: skip
RUN = [sys.executable, "-m", "jaxscale.cli", "train", "quickstart", *TINY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


def test_a_run_on_a_terminal(folder):
    """At 80 columns: the banner, a bar with labels, the closing table; then it is resumed through a pipe."""
    text = in_terminal([*RUN, "steps=6"], folder)
    lines = [part for line in text.splitlines() for part in line.split("\r")]
    drawn = [line for line in lines if "/train" not in line and "jaxscale" not in line]  # the bar goes up to redraw
    banner_lines = text[: text.index("training steps 1 to 6")].splitlines()
    assert banner_lines[0] == "quickstart"
    labels = [re.match(r"  (\w+) ", line)[1] for line in banner_lines if re.match(r"  \w", line)]
    assert labels == ["model", "mesh", "data", "run", "memory"]
    assert re.search(r"  model   quickstart-1m, [\d,]+ parameters\n", text)
    assert "6 steps of 256 tokens: 1,536 tokens, " in text
    assert re.search(r"step 6/6 ━+ \d:\d\d:\d\d elapsed ETA 0:00:00", text)
    assert re.search(r"loss \d\.\d{4}  learning rate \d\.\d\de-0\d  gradient norm [\d.]+", text)
    for line in drawn:
        for piece in re.split(r"(?=step \d+/\d+ ━)|(?=compiling)|(?=loss \d)|(?=tokens/s)", line):
            assert len(piece) <= 80, piece

    done = subprocess.run([*RUN, "steps=12"], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 6" in done.stdout
    assert "training steps 7 to 12" in done.stdout
    assert "12 steps of 256 tokens: 3,072 tokens" in done.stdout
    steps = re.findall(
        r"^\d\d:\d\d:\d\d  step (\d+)/12  ([\d.e-]+) s a step  (?:ETA (\S+)  )?loss \d", done.stdout, re.M
    )
    assert [int(step) for step, _, _ in steps] == list(range(7, 13))
    assert [bool(left) for _, _, left in steps] == [False] + [True] * 5
    assert steps[-1][2] == "0:00:00"
    assert "\x1b" not in done.stdout


# --- lines without a terminal ---------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    """A console without a terminal, on a clock of ours: says(steps, seconds a step, first) -> (step, line) of each."""

    def says(steps: int, seconds: float, first: int = 0) -> list[tuple[int, str]]:
        now, lines, at = [1000.0], [], [first]
        monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
        watcher = TrainingConsole(make_config(steps=steps))
        monkeypatch.setattr(watcher, "say", lambda line: lines.append((at[0], line)))
        watcher.start(first, watcher.config)
        for step in range(first + 1, steps + 1):
            now[0], at[0] = now[0] + seconds, step
            watcher.step(step, {"loss": 2.0, "step_seconds": seconds}, None)
        return lines[1:]

    return says


def test_a_short_run_has_about_twenty_lines(watched):
    lines = watched(200, 0.1)
    assert [step for step, _ in lines] == [1, *range(10, 201, 10)]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  step 10/200  0.1 s a step  ETA 0:00:19  loss 2.0000", lines[1][1])


@pytest.mark.parametrize("seconds", [0.7, 7.0, 45.0, 90.0])
def test_a_line_comes_every_minute(watched, seconds):
    steps = [step for step, _ in watched(2000, seconds)]
    gaps = [(b - a) * seconds for a, b in itertools.pairwise(steps)]
    assert max(gaps) <= max(60.0, seconds)
    assert steps[-1] == 2000


def test_the_eta_of_a_resumed_run_is_of_what_is_left(watched):
    lines = watched(1000, 2.0, first=900)
    assert "ETA 0:01:40" in dict(lines)[950]
    assert "ETA" not in dict(lines)[901]


def test_only_process_0_speaks(capsys, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    watcher = TrainingConsole(make_config(steps=1))
    watcher.describe(watcher.config, None, None, decoder=True)
    watcher.start(0, watcher.config)
    watcher.step(1, {"loss": 2.0}, None)
    watcher.say("a line")
    assert capsys.readouterr().out == ""


def test_figures_have_labels():
    values = {"loss": 2.5, "learning_rate": 3e-4, "grad_norm": 1.25, "validation/loss": 2.75, "tokens": 4096.0}
    speed = Speed(0.5, 0.6, 8192.0, 0.0, 0.412)
    assert step_figures(values | {"peak_memory_bytes": 3 * 2**30}, speed) == [
        "loss 2.5000", "validation loss 2.7500", "learning rate 3.00e-04", "gradient norm 1.25", "8,192 tokens/s",
        "MFU 41.2%", "memory 3.00 GiB at most",
    ]  # fmt: skip
    of_samples = {"loss": 1e-9, "rollout/reward": 0.625, "rollout_validation/greedy_reward": 0.5}
    assert step_figures(of_samples, None)[:2] == ["reward 0.625", "held-out reward 0.500"]


def test_the_watcher_sees_what_evaluations_found(tmp_path):
    seen = []

    class Watcher(TrainingConsole):
        def say(self, line): ...

        def step(self, step, values, speed):
            seen.append((values.get("validation/loss"), values["learning_rate"], values["grad_norm"]))

    config = make_config({"data": -1}, steps=4, out=str(tmp_path), evaluation={"every": 2, "batches": 1})
    result = train(config, watcher=Watcher(config))
    losses = [loss for loss, _, _ in seen]
    assert losses[0] == losses[1] != losses[2] == losses[3] != result.validation_loss


# --- the banner -----------------------------------------------------------------------------------------------


def chips(kind: str, *shape: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(device_kind=kind, coords=place) for place in itertools.product(*map(range, shape))]


def lines_of(name: str, devices, overrides=(), **more) -> dict[str, str]:
    config = cfg.load_config(name, list(overrides))
    found = banner(config, "the mesh", devices, 1_000_000, **{"decoder": True} | more)
    assert found[0] == config.name
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in found[1:]}


def test_a_known_machine_is_predicted():
    lines = lines_of("llama3.1-8b", chips("TPU v5p", 4, 4, 4))
    assert lines["model"] == "llama3.1-8b, 8,030,261,248 parameters"
    assert lines["run"] == "50,000 steps of 2,097,152 tokens: 104,857,600,000 tokens, 12.8 epochs"
    assert re.fullmatch(r"[\d.]+ GiB a device predicted, \d+% of 95.73 GiB usable", lines["memory"])
    assert re.fullmatch(
        r"[\d.]+ s a step predicted on v5p:4x4x4, [\d,]+ tokens/s, MFU \d\d\.\d%; all steps .*", lines["speed"]
    )
    assert "may not fit" in lines_of("llama3.1-8b", chips("TPU v5 lite", 4, 4, 1))["memory"]
    assert "22.2B are active" in lines_of("qwen3-235b-a22b", [SimpleNamespace(device_kind="NVIDIA H200")] * 64)["model"]


@pytest.mark.parametrize("devices", [chips("TPU v5p", 4, 4, 3), [SimpleNamespace(device_kind="cpu")] * 48])
def test_an_unknown_machine_is_not(devices):
    lines = lines_of("llama3.1-8b", devices, ["data.batch_size=240"])
    assert "speed" not in lines
    assert re.match(
        r"[\d.]+ GiB of state a device; what a step needs besides is not predicted for 48 x ", lines["memory"]
    )


def test_samples_and_own_models_have_what_is_known_of_them():
    lines = lines_of("llama3.1-8b-grpo", [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 8)
    assert lines["run"].endswith("tokens at most, of the model's own samples")
    assert "speed" in lines
    assert set(lines_of("llama3.1-8b", chips("TPU v5p", 4, 4, 4), decoder=False)) == {"mesh", "data", "run"}


def test_durations():
    assert [duration(s) for s in (0.4, 61, 3600 * 25, 86400 * 3 + 5)] == [
        "0:00:00",
        "0:01:01",
        "1 d 1:00:00",
        "3 d 0:00:05",
    ]


def test_the_bar_goes_to_a_narrow_terminal():
    """Figures begin a new line between two of them."""
    text = Console(width=40, file=io.StringIO(), record=True, force_terminal=True)
    bar = console.Bar(text, 0, 100)
    bar.show(50, 90.0, ["loss 2.5000", "validation loss 2.7500", "learning rate 3.00e-04"])
    text.print(bar.get_renderable())
    lines = text.export_text().splitlines()
    assert lines[0].startswith("step 50/100 ")
    assert lines[0].endswith("ETA 0:01:30")
    assert lines[1:] == ["loss 2.5000  validation loss 2.7500", "learning rate 3.00e-04"]
