"""What a person can get wrong: one line that begins with `error:`, a non-zero exit, no traceback, and nothing lost."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxscale import cli
from jaxscale.config import load_config
from jaxscale.files.jsonl import read_records
from jaxscale.files.lock import Lock
from jaxscale.report import curve
from jaxscale.training import owner, trainer

MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}
STEPS, EVERY = 4, 2


class Shell:
    """Runs `jaxscale ...` in this process; every answer is (exit code, stdout, stderr)."""

    def __init__(self, capfd, monkeypatch):
        self.capfd, self.monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["jaxscale", *map(str, arguments)])
        self.capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = 0 if exit.code is None else exit.code
        out, err = self.capfd.readouterr()
        return code, out, err

    def good(self, *arguments: object) -> str:
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: object) -> str:
        """The one line of an error; stdout is looked at for nothing but a traceback."""
        code, out, err = self(*arguments)
        assert code == 2, (code, out, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in out
        return err.strip()


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


def run_file(directory: Path, dataset: Path, **sections) -> Path:
    values = {
        "name": "tiny", "out": str(directory / "run"), "steps": STEPS, "model": MODEL,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "data": {"path": str(dataset), "batch_size": 8, "seq_len": 32},
        "step": {"compute_dtype": "float32", "remat": "none"},
        "optimizer": {"learning_rate": 1e-2}, "metrics": {"tensorboard": False},
        "checkpoint": {"every": EVERY, "keep_last": 3}, "evaluation": {"batches": 1},
        "runtime": {"platform": "cpu", "compilation_cache": None},
    }  # fmt: skip
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Without what takes time and is tested elsewhere: the measured peak, and the drawn curve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "find_peak", lambda devices, dtype: None)
        patch.setattr(curve, "plot_losses", lambda records, path, title: path)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stdlib) -> Path:
    """A directory with a run file and a finished run of it, with checkpoints of steps 2 and 4; not to be changed."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jaxscale", "train", str(run_file(directory, stdlib))])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert not exit.value.code
    return directory


@pytest.fixture
def work(trained, tmp_path) -> Path:
    """A copy of the trained directory, its run file pointing into the copy."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "tiny.yaml", tmp_path / "run" / "config.yaml"):
        path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file with its bytes, and every directory."""
    there = sorted(directory.rglob("*"))
    return {str(p.relative_to(directory)): b"directory" if p.is_dir() else p.read_bytes() for p in there}


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"}


def steps_kept(run: Path) -> list[int]:
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())


# --- configs, meshes, batches ---------------------------------------------------------------------------------

TRAIN = {
    "optimiser.b1=0.9": "command line: unknown key optimiser.b1; did you mean optimizer.b1?",
    "steps=many": "steps='many': input should be a valid integer",
    "steps=true": "steps: true",
    "steps": "override 'steps' is not section.key=value",
    "mesh.tensor=0": "tensor=0 must be a positive size",
    "mesh.data=4": "mesh data=4, fsdp=2, tensor=2 needs 16 devices and there are 8",
    "mesh.data=1": "mesh fsdp=2, tensor=2 needs 4 devices and there are 8",
    "mesh={data: -1, tensor: 3}": "3 does not divide 8 devices",
    "runtime.simulated_devices=16": "runtime.simulated_devices=16, but JAX already started with 8",
    "data.batch_size=6": "is not divisible by 4 (data=2*fsdp=2",
    "step.microbatches=4": "is not divisible by 4 (data=2*fsdp=2",
    "data.seq_len=31": "data.seq_len 31 is not divisible by 2 (tensor=2",
    "data.seq_len=2000000": "one window needs seq_len + 1 = 2000001; try seq_len",
    "model.mlp_dim=65": "mlp_dim 65 is not divisible by 2",
    "mesh={data: 1, tensor: 8}": "num_heads 2 is not divisible by 8",
    "sharding.parameters.embd=fsdp": "no logical axis embd; did you mean embed?",
    "sharding.parameters.embed=fdsp": "no mesh axis fdsp",
    "model.vocab_size=200": "have vocab_size 257, beyond the model's vocab_size 200; give the model 257 or more",
    "optimizer.warmup_steps=9": "optimizer.warmup_steps 9 leaves nothing of 4 steps",
    "optimizer={schedule: wsd, decay_steps: 9}": "optimizer.decay_steps 9 is more than the 4 steps",
    "data.path=nowhere": "nowhere is no prepared dataset: nowhere/index.json is missing; make one with",
    "data={kind: llmc, path: 'no/*.bin', seq_len: 32}": "'no/*.bin' matches no file",
    "checkpoint.resume=false": "has checkpoints and checkpoint.resume=false; choose another out=",
    "model.num_layers=2": "is of another model or optimizer: model.num_layers: 1 -> 2",
    "model.rope_theta=500": "is of another model or optimizer: model.rope_theta: 10000.0 -> 500.0",
    "model.sliding_window=8": "is of another model or optimizer: model.sliding_window: null -> 8",
    "optimizer.name=lion": 'is of another model or optimizer: optimizer.name: "adamw" -> "lion"',
    "out=gs://bucket/run": "give checkpoint.directory=gs://bucket/run for its checkpoints, and out=DIRECTORY",
    "data.path=s3://bucket/tokens": "training reads its data from a file system",
    "optimizer.no_decay=[norms, bias]": "optimizer.no_decay: no parameter is called norms; did you mean norm?",
    "optimizer.no_decay=[embeddings]": "no parameter is called embeddings; did you mean embedding?",
    "optimizer.no_decay=[position]": "optimizer.no_decay: no parameter is called position; their paths are made of",
}


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory) -> Path:
    """A copy of the trained directory as a killed run leaves one; not to be changed."""
    directory = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(trained, directory, dirs_exist_ok=True)
    run_file(directory, Path(yaml.safe_load((trained / "tiny.yaml").read_text())["data"]["path"]))
    run = directory / "run"
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "6.orbax-checkpoint-tmp")
    (run / "checkpoints" / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    for place in (run, run / "checkpoints"):
        (place / ".lock").write_text("process 1 on elsewhere\n")
    for name in ("metrics.jsonl", "events.jsonl"):  # steps after the last checkpoint, and a line that is torn
        with (run / name).open("a") as file:
            file.write('{"kind": "train", "event": "step", "step": 5, "loss": 1.0}\n{"kind": "tr')
    return directory


@pytest.mark.parametrize(("override", "message"), TRAIN.items())
def test_train_refuses_and_changes_nothing(interrupted, shell, override, message):
    before = snapshot(interrupted)
    assert message in shell.refused("train", interrupted / "tiny.yaml", override)
    assert snapshot(interrupted) == before


BOTH = "sharding={{parameters: {{{0}}}, activations: {{{0}}}}}".format
EXPERTS = {
    "model.moe.num_experts=6": "moe.num_experts 6 is not divisible by 4 (expert=4, sharding.parameters.experts); try 4",
    "model.moe.mlp_dim=33": "moe.mlp_dim 33 is not divisible by 2 (tensor=2, sharding.parameters.expert_mlp)",
    "model.moe.top_k=9": "model.moe: top_k 9 is more than num_experts 8; lower it",
    "model.moe.groups=3": "model.moe: num_experts 8 is not divisible by groups 3; try [1, 2, 4, 8]",
    "model.moe.top_groups=3 model.moe.groups=2": "model.moe: top_groups 3 is more than groups 2; lower it",
    "model.moe.groups=8": "top_k 2 is more than the 1 experts of 1 groups; raise top_groups",
    "model.moe.capacity_factor=1.25": "unknown key model.moe.capacity_factor; no token is dropped, so experts have",
    "model.moe.dense_layers=1": "moe.dense_layers 1 leaves no layer of 1 with experts; lower it",
    "model.moe.num_expert=4": "unknown key model.moe.num_expert; did you mean model.moe.num_experts?",
    "step.microbatches=2": "loss.balance=0.01 counts over the whole batch, which 2 microbatches never see at one time",
    "model.mlp=gelu": "moe: experts are SwiGLUs without biases; set mlp=swiglu and mlp_bias=false",
    "model.moe=null": "loss.balance=0.01: the model has no experts; set it to 0",
    "loss.router_z=-1": "loss.router_z=-1",
    "step.expert_exchange=ragged": "step.expert_exchange='ragged'",
    "step.remat={expert_out: save}": "step.remat.expert_out: no such activation; did you mean expert_up?",
    "sharding.activations.experts=fsdp": "sharding.parameters.experts (expert=4) and sharding.activations.experts",
    "sharding.parameters.expert_mlp=null": "sharding.activations.expert_mlp (tensor=2) must be the same: experts stay",
    BOTH("experts: tensor, expert_mlp: null") + " sharding.activations.residual_sequence=null": (
        "sharding.activations.experts: tensor splits no tokens, and tokens are exchanged"
    ),
    BOTH("experts: pipeline")
    + " mesh={pipeline: 2, expert: 4} step.microbatches=2 model.num_layers=2 loss.balance=0": (
        "sharding.parameters.experts: pipeline splits the layers into stages"
    ),
}


@pytest.mark.parametrize(("overrides", "message"), EXPERTS.items())
def test_experts_that_cannot_be(tmp_path, stdlib, shell, overrides, message):
    moe = {"num_experts": 8, "top_k": 2, "mlp_dim": 32}
    mesh, loss = {"expert": 4, "tensor": 2}, {"balance": 0.01}
    path = run_file(tmp_path, stdlib, model=MODEL | {"moe": moe}, mesh=mesh, loss=loss)
    assert message in shell.refused("train", path, *re.split(r" (?=[\w.]+=)", overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "message"), [
    ("loss.router_z=0.1", "loss.router_z=0.1: the model has no experts; set it to 0"),
    ("step.remat={expert_in: save}", "step.remat.expert_in: the model has no experts; remove it"),
])  # fmt: skip
def test_keys_of_experts_without_experts(trained, shell, key, message):
    assert message in shell.refused("train", trained / "tiny.yaml", key)


@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_a_run_that_lives_is_not_joined_by_another(interrupted, shell, monkeypatch, place):
    monkeypatch.setattr(owner, "ENDING_SECONDS", 0.0)
    before = snapshot(interrupted)
    with contextlib.closing(Lock(interrupted / place)):
        message = shell.refused("train", interrupted / "tiny.yaml")
    assert f"{interrupted / place} is in use by another process (process 1 on elsewhere); wait for it" in message
    assert snapshot(interrupted) == before


def test_a_first_start_that_is_refused_leaves_no_directory(trained, tmp_path, shell, monkeypatch):
    """Also where it is refused after its directory was locked."""
    monkeypatch.setattr(trainer, "open_checkpoints", lambda config: (_ for _ in ()).throw(ValueError("no")))
    shell.refused("train", trained / "tiny.yaml", f"out={tmp_path / 'new' / 'run'}")
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_moved_goes_on_by_its_directory(work, tmp_path_factory, shell):
    """Also its checkpoints below it, and from another folder than it was started in."""
    old, new = work / "run", tmp_path_factory.mktemp("elsewhere") / "moved"
    config = yaml.safe_load((old / "config.yaml").read_text())
    config["checkpoint"]["directory"] = str(old / "kept")
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (old / "checkpoints").rename(old / "kept")
    old.rename(new)
    out = shell.good("train", new, "steps=5")
    assert f"resuming from step 4 of {new}" in out
    assert not old.exists()
    written = load_config(new / "config.yaml")
    assert (written.out, written.checkpoint.directory) == (str(new), str(new / "kept"))
    assert (new / "kept" / "5").is_dir()
    shell.good("generate", new, "--max-new-tokens", 1)
    listed = json.loads(shell.good("checkpoint", "list", new, "--json"))
    assert (listed["place"], len(listed["checkpoints"])) == (str(new / "kept"), 3)


def test_train_on_a_directory_or_a_typo(trained, shell):
    assert f"{trained} is no run's directory, as it has no config.yaml" in shell.refused("train", trained)
    assert "no config qucikstart; did you mean quickstart?" in shell.refused("train", "qucikstart")


def test_steps_that_are_done_already(work, shell):
    out = shell.good("train", work / "tiny.yaml", "steps=2")
    assert "already at step 4 of 2; raise steps to train on" in out
    assert steps_kept(work / "run") == [2, 4]


# --- output ---------------------------------------------------------------------------------------------------


def test_out_that_cannot_be_written(trained, tmp_path, shell):
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    for out in (blocker, blocker / "run"):
        message = shell.refused("train", trained / "tiny.yaml", f"out={out}")
        assert f"cannot write to out={out}" in message
        assert "choose a directory that can be written" in message
    assert blocker.read_text() == "mine"


def test_checkpoints_that_cannot_be_written(trained, tmp_path, shell):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("mine")
    assert "checkpoints" in shell.refused("train", trained / "tiny.yaml", f"out={tmp_path / 'run'}")
    assert (tmp_path / "run" / "checkpoints").read_text() == "mine"


# --- datasets -------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(stdlib, tmp_path) -> Path:
    return Path(shutil.copytree(stdlib, tmp_path / "dataset"))


def refused_dataset(shell, trained: Path, dataset: Path) -> str:
    """Refused before the run's directory is made."""
    out = dataset.parent / "new"
    message = shell.refused("train", trained / "tiny.yaml", f"data.path={dataset}", f"out={out}")
    assert not out.exists()
    return message


def test_dataset_that_is_a_file(trained, dataset, shell):
    assert "is no prepared dataset" in refused_dataset(shell, trained, dataset / "index.json")


def test_dataset_with_a_shard_missing(trained, dataset, shell):
    (dataset / "train-00000.bin").unlink()
    assert "train-00000.bin is missing, though the index names it; prepare it again" in refused_dataset(
        shell, trained, dataset
    )


def test_dataset_truncated(trained, dataset, shell):
    shard = dataset / "train-00000.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-2])
    message = refused_dataset(shell, trained, dataset)
    assert f"train-00000.bin has {size - 2} bytes, the index says {size}; prepare it again" in message


def test_dataset_edited(trained, dataset, shell):
    """One token, the size unchanged: the checksum tells, though it was verified before."""
    shell.good("train", trained / "tiny.yaml", f"data.path={dataset}", f"out={dataset.parent / 'first'}", "steps=1")
    with (dataset / "train-00000.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    message = refused_dataset(shell, trained, dataset)
    assert "train-00000.bin has changed since it was made (sha256" in message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "jaxscale.tokens", "version": 99}', '{"format": "jaxscale.tokens", "version": 1}'],
)
def test_dataset_with_a_broken_index(trained, dataset, shell, text):
    (dataset / "index.json").write_text(text)
    assert str(dataset / "index.json") in refused_dataset(shell, trained, dataset)


def write_llmc(path: Path, tokens: np.ndarray) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path


def test_token_id_beyond_the_vocabulary(tmp_path, trained, shell):
    """The file's vocabulary fits and one of its tokens does not: found where the row is read."""
    tokens = np.arange(33 * 8) % 100
    tokens[70] = 60_000
    path = write_llmc(tmp_path / "a.bin", tokens)
    message = shell.refused(
        "train", trained / "tiny.yaml", f"data={{kind: llmc, path: '{path}', batch_size: 8, seq_len: 32}}",
        "model.vocab_size=50257", f"out={tmp_path / 'run'}",
    )  # fmt: skip
    assert (
        "token id 60000 at window 2 is beyond the model's vocab_size 50257; give the model a vocab_size of 60001"
        in message
    )
    assert steps_kept(tmp_path / "run") == []


def test_llmc_file_cut_short(tmp_path, trained, shell):
    path = write_llmc(tmp_path / "a.bin", np.arange(1000) % 100)
    path.write_bytes(path.read_bytes()[:-10])
    data = f"data={{kind: llmc, path: '{path}', seq_len: 32}}"
    message = shell.refused("train", trained / "tiny.yaml", data, "model.vocab_size=50257", f"out={tmp_path / 'run'}")
    assert f"{path} has 3014 bytes, its header (1000 tokens) says 3024" in message


# --- data prepare ---------------------------------------------------------------------------------------------


def test_prepare_without_text(tmp_path, shell):
    empty, out = tmp_path / "empty.txt", tmp_path / "out"
    empty.write_text("")
    assert "no text in 1 files; give a corpus with at least one document" in shell.refused(
        "data", "prepare", "--text", empty, "--out", out
    )
    assert [p.name for p in tmp_path.iterdir()] == ["empty.txt"], "nothing half made is left"


def corpus(directory: Path) -> dict[str, Path]:
    files = {
        "text": b"hello",
        "latin": b"caf\xe9",
        "jsonl": b'{"text": "a"}\n{"tekst": "b"}\n',
        "broken": b'{"text": "a"}\n{"te',
        "json": b"{}",
        "parquet": b"no parquet",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return {name: directory / name for name in files}


PREPARE = [
    (["--text", "nowhere"], "'nowhere' names no file"),
    ([], "0 sources given; give exactly one of --text, --jsonl, --parquet, --chat, --pairs, --prompts, --stdlib"),
    (["--stdlib", "--text", "{text}"], "2 sources given"),
    (["--text", "{latin}"], "latin is not UTF-8 at byte 3"),
    (["--jsonl", "{jsonl}"], "jsonl:2"),
    (["--jsonl", "{broken}"], "broken:2"),
    (["--parquet", "{parquet}"], "parquet"),
    (["--text", "{text}", "--tokenizer", "gpt2"], "tokenizer 'gpt2' is neither `byte` nor a file"),
    (["--text", "{text}", "--tokenizer", "bpe:100"], "bpe:N takes a whole number N >= 257"),
    (["--text", "{text}", "--tokenizer", "bpe:many"], "bpe:N takes a whole number N >= 257"),
    (["--text", "{text}", "--tokenizer", "{json}"], "json is not a Hugging Face tokenizer file"),
    (["--text", "{text}", "--separator", "x"], "does not go with the byte tokenizer"),
    (["--text", "{text}", "--validation-fraction", "1"], "validation_fraction 1.0 is not in [0, 1)"),
    (["--text", "{text}", "--validation-fraction", "-0.1"], "validation_fraction -0.1 is not in [0, 1)"),
    (["--text", "{text}", "--validation-fraction", "nan"], "validation_fraction nan is not in [0, 1)"),
    (["--text", "{text}", "--shard-tokens", "0"], "shard_tokens 0 is not positive"),
    (["--text", "{text}", "--template", "chatml"], "--template is of conversations; give --chat"),
    (["--chat", "{jsonl}"], "jsonl:1: a record of conversations has messages, or prompt and completion"),
    (["--pairs", "{jsonl}"], "jsonl:1: a record of pairs has chosen and rejected"),
    (["--prompts", "{broken}"], "broken:1: a record of prompts has prompt; this one has 'text'"),
    (["--chat", "{jsonl}", "--template", "alpaca"], "template 'alpaca' is not one of chatml, llama3, qwen3, plain"),
    (["--chat", "{jsonl}", "--template", "own"], "byte has no template of its own"),
    (["--chat", "{jsonl}", "--validation-tail", "0.1"], "--validation-tail is of text"),
    (["--chat", "{jsonl}", "--validation-text", "{text}"], "--validation-text is of text"),
    (["--text", "{text}", "--shard-tokens", "many"], "Invalid value for '--shard-tokens'"),
]


@pytest.mark.parametrize(("arguments", "message"), PREPARE)
def test_prepare_refuses_and_leaves_nothing(tmp_path, shell, arguments, message):
    files = corpus(tmp_path)
    before = snapshot(tmp_path)
    arguments = [a.format(**files) for a in arguments]
    assert message in shell.refused("data", "prepare", *arguments, "--out", tmp_path / "out")
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_prepare_where_something_stands(tmp_path, dataset, shell):
    text = corpus(tmp_path)["text"]
    before = snapshot(tmp_path)
    there = ["data", "prepare", "--text", text, "--out"]
    assert "already holds another dataset" in shell.refused(*there, dataset)
    assert "lies inside the output" in shell.refused(*there, text)
    assert "cannot write" in shell.refused(*there, text / "below")
    assert "is not a whole dataset" in shell.refused(*there, tmp_path / "json")
    assert "is a file, not a dataset directory" in shell.refused(*there, tmp_path / "json", "--overwrite")
    assert "lies inside the output" in shell.refused(*there, tmp_path, "--overwrite")
    (dataset / "mine.txt").write_text("mine")
    assert "holds 'mine.txt', which `jaxscale data prepare` did not write" in shell.refused(
        *there, dataset, "--overwrite"
    )
    (dataset / "mine.txt").unlink()
    assert snapshot(tmp_path) == before


# --- checkpoints ----------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "array files truncated": lambda c: [truncate(p) for p in (c / "state" / "ocdbt.process_0" / "d").iterdir()],
    "array index changed": lambda c: flip(largest(c / "state" / "d")),
    "array files lost": lambda c: shutil.rmtree(c / "state" / "ocdbt.process_0"),
    "state lost": lambda c: shutil.rmtree(c / "state"),
    "tree truncated": lambda c: truncate(c / "state" / "_METADATA"),
    "meta truncated": lambda c: truncate(c / "meta" / "metadata"),
    "all of it lost": lambda c: [shutil.rmtree(c), c.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_gives_way_to_the_one_before(trained, work, shell, damage):
    run = work / "run"
    before = losses(trained / "run")
    damage(run / "checkpoints" / "4")
    out = shell.good("train", work / "tiny.yaml", "checkpoint.every=0")
    assert "checkpoint 4 is damaged" in out
    assert f"resuming from step 2 of {run}" in out
    assert losses(run) == before, "steps 3 and 4 again, from the same state: the same bits"
    assert steps_kept(run) == [2, 4]
    (aside,) = (run / "checkpoints-damaged").iterdir()
    assert aside.name.startswith("4-"), "what was damaged is kept"


def test_no_checkpoint_that_can_be_read(work, shell):
    for step in (2, 4):
        DAMAGE["array files lost"](work / "run" / "checkpoints" / str(step))
    before = snapshot(work)
    message = shell.refused("train", work / "tiny.yaml")
    assert "no checkpoint under" in message
    assert "4: " in message
    assert "2: " in message
    assert "choose another out= to start again" in message
    assert snapshot(work) == before
    assert "no checkpoint of" in shell.refused("generate", work / "run")
    assert snapshot(work) == before


def test_generate_from_the_checkpoint_before_a_damaged_one(work, shell):
    arguments = ["generate", work / "run", "--prompt", "def ", "--max-new-tokens", 4, "--temperature", 0]
    older = shell.good(*arguments, "--step", 2)
    DAMAGE["array files lost"](work / "run" / "checkpoints" / "4")  # truncated ones may still hold all parameters
    before = snapshot(work)
    code, out, err = shell(*arguments)
    assert (code, out) == (0, older)
    assert err.startswith("checkpoint 4 cannot be read")
    assert err.rstrip().endswith("step 2 is used")
    assert snapshot(work) == before, "generate only reads"
    assert "no checkpoint of" in shell.refused(*arguments, "--step", 4)


def test_what_else_lies_among_the_checkpoints(work, shell):
    """A save that was killed, and a person's own files."""
    checkpoints = work / "run" / "checkpoints"
    killed = checkpoints / "6.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints / "4", killed)
    (killed / "commit_success.txt").unlink(missing_ok=True)
    (checkpoints / "notes").mkdir()
    (checkpoints / "notes" / "why.txt").write_text("mine")
    (checkpoints / "readme.txt").write_text("mine")
    shell.good("generate", work / "run", "--max-new-tokens", 1)
    assert killed.exists(), "it may be a save that is under way"
    assert "resuming from step 4" in shell.good("train", work / "tiny.yaml", "steps=5")
    assert (checkpoints / "notes" / "why.txt").read_text() == (checkpoints / "readme.txt").read_text() == "mine"


# --- numbers that are none ------------------------------------------------------------------------------------


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(work, shell):
    checkpoints = snapshot(work / "run" / "checkpoints")
    code, _, err = shell("train", work / "tiny.yaml", "steps=12", "optimizer.learning_rate=1e30", "checkpoint.every=20")
    assert code == 2
    assert err.startswith("error: loss ")
    assert err.count("\n") == 1
    assert "nan" in err
    step = int(err.split(" at step ")[1].split(":")[0])
    assert 4 < step <= 7
    assert "stopped; the last good checkpoint is step 4; lower optimizer.learning_rate, or set on_nonfinite=skip" in err
    assert snapshot(work / "run" / "checkpoints") == checkpoints
    record = json.loads((work / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (record["kind"], record["step"]) == ("nonfinite", step)
    assert "resuming from step 4" in shell.good("train", work / "tiny.yaml", "steps=6"), "and it goes on from there"
    assert all(np.isfinite(list(losses(work / "run").values())))


def test_nan_before_any_checkpoint(trained, tmp_path, shell):
    message = shell.refused("train", trained / "tiny.yaml", f"out={tmp_path}", "optimizer.learning_rate=1e30")
    assert "stopped; there is no checkpoint yet" in message or "the last good checkpoint is step 2" in message


def test_nan_skipped_by_policy(work, shell):
    out = shell.good("train", work / "tiny.yaml", "steps=8", "optimizer.learning_rate=1e30", "on_nonfinite=skip")
    assert "update skipped" in out
    assert steps_kept(work / "run")[-1] == 8


# --- generate -------------------------------------------------------------------------------------------------

GENERATE = [
    (["--step", 3], "has no checkpoint of step 3; it has [2, 4]"),
    (["--top-p", 2], "top_p=2.0 must be above 0 and at most 1"),
    (["--top-p", 0], "top_p=0.0 must be above 0"),
    (["--top-p", "nan"], "top_p=nan must be"),
    (["--top-k", 0], "top_k=0 must be at least 1"),
    (["--temperature", -1], "temperature=-1.0 is no number"),
    (["--max-new-tokens", 0], "max_new_tokens=0 must be at least 1"),
    (["--max-new-tokens", "many"], "Invalid value for '--max-new-tokens'"),
    (["--seed", -1], "Invalid value for '--seed'"),
    (["--tokenizer", "nowhere.json"], "tokenizer 'nowhere.json' is neither `byte` nor a file"),
    (["model.num_layers=2"], "model.num_layers: 1 -> 2; override mesh and runtime only"),
    (["model.rope_theta=500"], "model.rope_theta: 10000.0 -> 500.0"),
    (["mesh.tensor=16"], "needs 64 devices and there are 8"),
    (["mesh={data: 1, tensor: 8}"], "num_heads 2 is not divisible by 8"),
    (["mseh.tensor=2"], "unknown key mseh.tensor; did you mean mesh.tensor?"),
]


@pytest.mark.parametrize(("arguments", "message"), GENERATE)
def test_generate_refuses(trained, shell, arguments, message):
    before = snapshot(trained)
    assert message in shell.refused("generate", trained / "run", *arguments)
    assert snapshot(trained) == before


def test_generate_where_there_is_no_run(trained, tmp_path, shell):
    assert "is not a run: it has no config.yaml" in shell.refused("generate", tmp_path)
    assert "is not a run" in shell.refused("generate", tmp_path / "nowhere")
    assert "is not a run" in shell.refused("generate", trained / "tiny.yaml")
    for name in ("config.yaml", "tokenizer-identity.json"):
        shutil.copy(trained / "run" / name, tmp_path)
    assert "has no checkpoints yet; train it first" in shell.refused("generate", tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_generate_with_a_damaged_tokenizer_identity(trained, tmp_path, shell, text):
    shutil.copy(trained / "run" / "config.yaml", tmp_path)
    (tmp_path / "tokenizer-identity.json").write_text(text)
    assert f"{tmp_path / 'tokenizer-identity.json'} is damaged" in shell.refused("generate", tmp_path)


def test_tokenizers_that_do_not_match(trained, tmp_path, shell):
    """Another one for `generate`; a dataset whose tokenizer was exchanged; ids that the model does not have."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(8):
        (text / f"{i}.txt").write_text(f"some words {i} and some more of them " * 20)
    for name, size in (("a", 270), ("b", 280)):
        shell.good("data", "prepare", "--text", text, "--tokenizer", f"bpe:{size}", "--out", tmp_path / name)
    other = tmp_path / "b" / "tokenizer.json"
    assert "is not the one that made this run's tokens" in shell.refused(
        "generate", trained / "run", "--tokenizer", other, "model.vocab_size=280"
    )
    shutil.copy(other, tmp_path / "a" / "tokenizer.json")
    message = shell.refused(
        "train", trained / "tiny.yaml", f"data.path={tmp_path / 'a'}", "model.vocab_size=300", f"out={tmp_path / 'run'}"
    )
    assert "is not the tokenizer that made these tokens (fingerprint" in message
    (tmp_path / "config.yaml").write_text((trained / "run" / "config.yaml").read_text().replace("257", "200"))
    message = shell.refused("generate", tmp_path, "--tokenizer", "byte")
    assert "the tokenizer has 257 tokens and the model 200" in message


# --- how verbs are called -------------------------------------------------------------------------------------

USAGE = [
    (["trian", "quickstart"], "No such command 'trian'; did you mean train?"),
    (["prepare"], "No such command 'prepare'; did you mean data prepare?"),
    (["verify", "runs/x"], "No such command 'verify'; did you mean checkpoint verify or law verify?"),
    (["check", "x"], "No such command 'check'; did you mean puzzle check?"),
    (["generat"], "; did you mean generate?"),
    (["bench", "atention"], "; did you mean attention?"),
    (["deploy"], "No such command 'deploy'; `"),  # near no verb
    (["eval", "x"], "No such command 'eval'; did you mean evaluate?"),
    (["plot", "x"], "No such command 'plot'; `"),
    (["run", "x"], "No such command 'run'; did you mean ladder run?"),
    (["test"], "No such command 'test'; `"),
    (["restore"], "No such command 'restore'; `"),
    (["checkpoint", "ls"], "No such command 'ls'; `"),
    (["checkpoint", "cp"], "No such command 'cp'; `"),
    (["puzzle", "set"], "No such command 'set'; `"),
    (["train", "quickstart", "--steps=5"], "No such option: --steps; a key of the config is given as steps=VALUE"),
    (["train", "quickstart", "--data.path", "x"], "a key of the config is given as data.path=VALUE"),
    (["train", "quickstart", "--sampel", "x"], "No such option: --sampel; did you mean --sample?"),
    (["train", "quickstart", "--example", "x"], "No such option: --example; `"),
    (["train", "quickstart", "--resume"], "No such option: --resume; `"),
    (["report", "x", "-o", "s3://bucket/x.html"], "-o s3://bucket/x.html: an object store; give a file"),
    (["data", "prepare", "--stdlib", "--out=gs://bucket/x"], "--out gs://bucket/x: an object store"),
    (["train"], "Missing argument"),
    (["train", "quickstart", "--steps", "5"], "No such option: --steps"),
    (["data", "prepare", "--stdlib"], "Missing option '--out'"),
    (["generate"], "Missing argument"),
    (["evaluate"], "Missing argument"),
    (["generate", "x", "--top-p"], "requires an argument"),
    (["show", "gpt2-124m", "--devices", "0"], "Invalid value for '--devices'"),
    (["show", "gpt2-124m", "--devices", "7", "mesh.fsdp=2"], "2 does not divide 7 devices"),
    (["show", "gpt2"], "no config gpt2; did you mean gpt2-124m?"),
    (["data", "prepar"], "No such command 'prepar'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_wrong_usage_is_one_line_too(shell, arguments, message):
    assert message in shell.refused(*arguments)
