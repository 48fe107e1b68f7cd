"""The key of a compiled program: all that decides it, and nothing else."""

from pathlib import Path

import jax
import pytest
from support import TINY, Setup, make_config

from jaxscale import config as cfg
from jaxscale.compiled import source, store
from jaxscale.config.overrides import keys_of, section_of
from jaxscale.hardware.topology import find_topology

LEAVES = {key: kinds for key, kinds in keys_of(cfg.Config).items() if section_of(kinds) is None}
DATA = {"kind": "llmc", "path": "a.bin"}
BASES = {
    "plain": make_config(data=DATA),
    "much": make_config(
        model={**TINY, "position": "learned", "max_seq_len": 64, "norm": "layernorm", "mlp": "gelu",
               "attention_bias": True, "sliding_window": 8, "logits_softcap": 3.0, "tie_embeddings": True},
        data=DATA, guard={"spike": 4.0}, on_nonfinite="skip", loss={"chunk": 8, "z_loss": 1e-3},
        step={"remat": {"q": "save"}, "microbatches": 2},
        optimizer={"name": "muon", "schedule": "wsd", "ema": 0.9},
    ),
}  # fmt: skip
OUTSIDE = {  # every key that does not reach the step, with another value than in the bases
    "name": "other", "out": "elsewhere", "seed": 7, "model.name": "other", "model.init_std": 0.5,
    "init.from": "x", "init.step": 3,
    "data.path": "x", "data.validation_path": "y", "data.vocab_size": 9, "data.separator_id": 3,
    "data.shuffle": False, "data.verify": "size",
    "data.prefetch": 9, "runtime.platform": "auto", "runtime.simulated_devices": 8, "runtime.distributed": "never",
    "runtime.compilation_cache": "/tmp/x",
    "checkpoint.every": 5, "checkpoint.keep_last": 5, "checkpoint.keep_every": 5, "checkpoint.resume": False,
    "checkpoint.directory": "/tmp/y", "watch.enabled": False, "watch.start": 9, "watch.compile": 9, "watch.step": 9,
    "watch.save": 9, "watch.peer": 9, "guard.max_rollbacks": 9, "guard.recompute_every": 9, "evaluation.every": 9,
    "evaluation.batches": 9, "evaluation.abilities": ["copy"], "evaluation.examples": 9,
    "outer.learning_rate": 0.5, "outer.momentum": 0.5,
    "metrics.every": 9, "metrics.tensorboard": True, "metrics.wandb": True,
    "metrics.wandb_project": "p", "metrics.wandb_entity": "e", "metrics.wandb_tags": ["t"], "metrics.mfu": "palm",
}  # fmt: skip
OUTSIDE_ALONE = {"data.mixture", "outer.every", "init.adapter"}  # in place of data.path; with replicas; with LoRA
INSIDE_BY_ANOTHER_NAME = {"data.kind", "data.mask_documents"}  # as `documents`


def changed(config: cfg.Config, values: dict[str, object]) -> cfg.Config:
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[last] = value
    return cfg.validate(tree, source="test")


def in_key(key: str) -> bool:
    """Is a leaf of the config among what the key is made of?"""
    values = store.what_it_depends_on(BASES["plain"])["config"]
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return isinstance(values, dict) is False or not values  # below an empty mapping, or a value
        values = values[name]
    return True


def test_each_key_of_the_config_is_inside_or_outside():
    """A key that is new must be put on one of the two sides, here too."""
    for key in LEAVES:
        if key.startswith("model.rope_scaling."):
            continue  # null in the base
        assert in_key(key) + (key in {*OUTSIDE, *OUTSIDE_ALONE}) + (key in INSIDE_BY_ANOTHER_NAME) == 1, key
    assert set(OUTSIDE) <= set(LEAVES)


def test_a_mixture_is_the_program_of_its_parts():
    mixed = make_config(data={"kind": "tokens", "mixture": {"a": 1.0, "b": 2.0}})
    plain = make_config(data={"kind": "tokens", "path": "a"})
    assert store.what_it_depends_on(mixed)["config"] == store.what_it_depends_on(plain)["config"]


@pytest.mark.parametrize("base", BASES)
def test_what_is_outside_changes_neither_the_key_nor_the_program(base):
    config = BASES[base]
    other = changed(config, OUTSIDE)
    assert all(config.model_dump()[key.split(".")[0]] != other.model_dump()[key.split(".")[0]] for key in OUTSIDE)
    assert store.what_it_depends_on(config)["config"] == store.what_it_depends_on(other)["config"]
    texts = []
    for one in (config, other):
        setup = Setup(one)
        with setup.context():
            texts.append(setup.program.step.lower(setup.program.abstract, setup.batch).as_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("base", BASES)
def test_the_step_reads_nothing_that_is_outside(base, monkeypatch):
    """Every field that is read while the step is made and traced; the seed and the first weights are of `init`."""
    read: set[tuple[str, str]] = set()
    plain = cfg.Section.__getattribute__

    def noted(self, name):
        if name in type(self).model_fields:
            read.add((type(self).__name__, name))
        return plain(self, name)

    monkeypatch.setattr(cfg.Section, "__getattribute__", noted)
    setup = Setup(BASES[base])
    with setup.context():
        jax.eval_shape(setup.program.step, setup.program.abstract, setup.batch)
    names = {"Config": "", "LayerKind": "model.pattern."}
    names |= {kind.__name__: f"{key}." for key, annotation in keys_of(cfg.Config).items()
              if (kind := section_of(annotation))}  # fmt: skip
    sections = {key for key, kinds in keys_of(cfg.Config).items() if section_of(kinds)}
    keys = {names[owner] + name for owner, name in read} - sections
    assert "optimizer.b1" in keys or base == "plain"
    assert keys & set(OUTSIDE) <= {"seed", "model.init_std", "runtime.platform"}


def test_other_values_of_what_is_inside_give_other_keys(tmp_path):
    where, kept = find_topology("v5e:2x2"), store.Store(tmp_path)
    config = BASES["plain"]
    others = {
        "steps": 9, "on_nonfinite": "skip", "guard.spike": 3.0, "optimizer.b2": 0.5, "optimizer.no_decay": ["bias"],
        "data.batch_size": 16, "data.seq_len": 64, "loss.z_loss": 0.1, "mesh.fsdp": 4, "step.remat": "full",
        "model.norm_eps": 0.1, "runtime.compiler_options": {"xla_x": True}, "sharding.parameters": {"embed": None},
    }  # fmt: skip
    paths = [kept.path(config, where), *(kept.path(changed(config, {k: v}), where) for k, v in others.items())]
    assert len(set(paths)) == len(paths)
    assert kept.path(changed(config, OUTSIDE), where) == paths[0]


# --- the source -----------------------------------------------------------------------------------------------


def test_the_source_is_all_that_the_step_imports():
    """Against what Python loads: every module of jaxscale that importing the step brings along."""
    import subprocess
    import sys

    code = "import jaxscale.training.step, sys; print(*(m for m in sys.modules if m.startswith('jaxscale.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    files = {path.relative_to(source.PACKAGE).as_posix() for path in source.closure("jaxscale.training.step")}
    for module in loaded:
        path = source.file_of(module)
        assert path is not None
        if path.read_text().strip():  # an empty __init__.py says nothing
            assert path.relative_to(source.PACKAGE).as_posix() in files, module
    assert {"training/spikes.py", "objectives/token_sums.py", "models/attention.py", "blueprint/rules.py"} <= files
    assert not {"training/trainer.py", "console/train.py", "compiled/hlo.py"} & files


def test_the_hash_follows_every_file_of_the_step(tmp_path, monkeypatch):
    import shutil

    copy = Path(shutil.copytree(source.PACKAGE, tmp_path / "jaxscale", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(source, "PACKAGE", copy)

    def now() -> str:
        source.source_hash.cache_clear()
        return source.source_hash()

    source.closure.cache_clear()  # once: which files they are does not change below
    try:
        before = now()
        for path in source.closure("jaxscale.training.step"):
            text = path.read_text()
            path.write_text(f"{text}\n# changed\n")
            assert now() != before, path
            path.write_text(text)
        (copy / "training" / "trainer.py").write_text("changed = 1\n")
        assert now() == before
    finally:
        source.closure.cache_clear()
        source.source_hash.cache_clear()


def test_imports_are_read_without_running_anything(tmp_path):
    (tmp_path / "a.py").write_text(
        "raise SystemExit\nfrom jaxscale import config\ndef f():\n    import jaxscale.files.urls\n"
    )
    assert source.imported(tmp_path / "a.py") == {"jaxscale.config", "jaxscale.files", "jaxscale.files.urls"}
