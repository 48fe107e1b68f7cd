"""The files of a tiny real run, damaged: restoring and generating read them, or say why not, or use the ones before."""

import json
from pathlib import Path

import jax
from hypothesis import strategies as st
from support import Setup, make_config

from fuzz import mutations as mu
from fuzz.targets import Case, Files, Target
from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.data.tokenizer import ByteTokenizer
from jaxscale.serving import serve
from jaxscale.training.run import write_run_files

SMALL = {
    "vocab_size": 257,
    "num_layers": 1,
    "embed_dim": 8,
    "num_heads": 1,
    "num_kv_heads": 1,
    "mlp_dim": 8,
    "vocab_multiple": 1,
}
KEPT: dict[str, Setup] = {}  # the program, made once a process


def setup() -> Setup:
    if "tiny" not in KEPT:
        KEPT["tiny"] = Setup(make_config(model=SMALL, data={"batch_size": 1, "seq_len": 8}))
    return KEPT["tiny"]


def run_files(folder: Path) -> dict[str, bytes]:
    """A run with checkpoints of steps 1 and 2, as `train` leaves it."""
    tiny, run = setup(), folder / "run"
    write_run_files(run, tiny.config, jax.devices()[:1], ByteTokenizer(), None)
    data = {"seed": 0, "batch_size": 1, "seq_len": 8, "fingerprint": None, "path": None}
    with tiny.context():
        checkpointer = Checkpointer(run / "checkpoints", cfg.Checkpoint())
        for step in (1, 2):
            checkpointer.save(step, tiny.program.init(), tiny.config, data)
        checkpointer.close()
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


@st.composite
def cases(draw, whole: dict[str, bytes]) -> Case:
    files: Files = dict(whole)
    kept = sorted(name for name in whole if "/checkpoints/" in name)
    structured = [name for name in sorted(whole) if whole[name][:1] in (b"{", b"[") and not name.endswith(".yaml")]
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["json", "json", "json", "json", "bytes", "bytes", "gone", "link", "step", "tree"]))
        if kind == "json":
            name = draw(st.sampled_from(structured))
            files[name] = draw(mu.json_text(json.loads(whole[name])))
        elif kind == "bytes":
            name = draw(st.sampled_from(kept))
            files[name] = draw(mu.damaged(whole[name]))
        elif kind == "gone":
            files.pop(draw(st.sampled_from(sorted(whole))), None)
        elif kind == "link":
            name = draw(st.sampled_from(sorted(whole)))
            files[name] = Path(draw(st.sampled_from(["nowhere", "..", Path(name).name])))
        elif kind == "step":  # a directory that looks like a checkpoint, or nearly
            name = draw(st.sampled_from(["3", "02", "-1", "3.orbax-checkpoint-tmp-0", "9" * 30, "x", "1e3", " 4", "٣"]))
            files[f"run/checkpoints/{name}/_CHECKPOINT_METADATA"] = draw(st.sampled_from([b"", b"{}", b"[]", b"\xff"]))
        else:
            part = draw(st.sampled_from(["run/checkpoints/2/state/", "run/checkpoints/2/meta/", "run/checkpoints/2/"]))
            files = {name: content for name, content in files.items() if not name.startswith(part)}
    return Case(files, (draw(st.sampled_from(["resume", "generate"])),))


def read(directory: Path, how: str) -> None:
    tiny, run, said = setup(), directory / "run", []
    with tiny.context():
        if how == "generate":
            if (run / "config.yaml").is_file():
                serve.run_tokenizer(run, None)
                serve.restore_params(run, tiny.program, tiny.config, None, said.append)
            return
        checkpointer = Checkpointer(run / "checkpoints", cfg.Checkpoint())
        try:
            found = checkpointer.restore_latest(tiny.program.abstract, tiny.config, say=said.append)
        finally:
            checkpointer.close()
        if found is not None:
            state, meta = found
            assert int(state.step) >= 0
            assert isinstance(meta["data"], dict), meta["data"]


TARGETS = [
    Target("checkpoint", 500, lambda folder: cases(run_files(folder)), read, ("run/checkpoints",)),
]
