"""`section.key=value` of the command line: finding the key, reading its value, proposing the key that was meant.

The classes of the config are handed in: this module knows pydantic's models, and none of ours.
"""

from typing import Any, get_origin

from pydantic import BaseModel

from jaxscale.files.reading import NULLS
from jaxscale.files.spelling import near
from jaxscale.files.typed import argument, from_command_line, members

WHERE = "command line"
# what other trainers call a key -> its name here
SYNONYMS = {
    "lr": "optimizer.learning_rate", "rate": "optimizer.learning_rate", "max_lr": "optimizer.learning_rate",
    "peak_lr": "optimizer.learning_rate", "min_lr": "optimizer.final_fraction", "wd": "optimizer.weight_decay",
    "decay": "optimizer.weight_decay", "beta1": "optimizer.b1", "beta2": "optimizer.b2", "betas": "optimizer.b1",
    "adam_beta1": "optimizer.b1", "adam_beta2": "optimizer.b2", "epsilon": "optimizer.eps",
    "adam_epsilon": "optimizer.eps", "clip": "optimizer.clip_norm", "grad_clip": "optimizer.clip_norm",
    "gradient_clipping": "optimizer.clip_norm", "max_grad_norm": "optimizer.clip_norm",
    "clip_grad_norm": "optimizer.clip_norm", "warmup": "optimizer.warmup_steps",
    "warmup_iters": "optimizer.warmup_steps", "lr_schedule": "optimizer.schedule", "scheduler": "optimizer.schedule",
    "lr_scheduler": "optimizer.schedule", "lr_scheduler_type": "optimizer.schedule", "ema_decay": "optimizer.ema",
    "optim": "optimizer.name",
    "batch": "data.batch_size", "bs": "data.batch_size", "bsz": "data.batch_size", "batchsize": "data.batch_size",
    "global_batch_size": "data.batch_size", "train_batch_size": "data.batch_size",
    "per_device_train_batch_size": "data.batch_size", "micro_batch_size": "step.microbatches",
    "block_size": "data.seq_len", "context_length": "data.seq_len", "context_len": "data.seq_len",
    "ctx_len": "data.seq_len", "n_ctx": "data.seq_len", "seq_length": "data.seq_len",
    "sequence_length": "data.seq_len", "max_length": "data.seq_len", "max_seq_length": "data.seq_len",
    "dataset": "data.path", "data_path": "data.path", "data_dir": "data.path",
    "epochs": "steps", "epoch": "steps", "num_epochs": "steps", "num_train_epochs": "steps", "max_steps": "steps",
    "num_steps": "steps", "train_steps": "steps", "total_steps": "steps", "iters": "steps", "iterations": "steps",
    "max_iters": "steps", "num_iterations": "steps", "random_seed": "seed",
    "grad_accum": "step.microbatches", "grad_accum_steps": "step.microbatches",
    "gradient_accumulation": "step.microbatches", "gradient_accumulation_steps": "step.microbatches",
    "accumulation_steps": "step.microbatches", "dtype": "step.compute_dtype", "precision": "step.compute_dtype",
    "bf16": "step.compute_dtype", "fp16": "step.compute_dtype", "gradient_checkpointing": "step.remat",
    "activation_checkpointing": "step.remat", "checkpointing": "step.remat", "flash_attention": "step.attention",
    "layers": "model.num_layers", "n_layer": "model.num_layers", "n_layers": "model.num_layers",
    "num_hidden_layers": "model.num_layers", "depth": "model.num_layers", "heads": "model.num_heads",
    "n_head": "model.num_heads", "n_heads": "model.num_heads", "num_attention_heads": "model.num_heads",
    "n_kv_heads": "model.num_kv_heads", "num_key_value_heads": "model.num_kv_heads", "dim": "model.embed_dim",
    "d_model": "model.embed_dim", "n_embd": "model.embed_dim", "hidden_size": "model.embed_dim",
    "width": "model.embed_dim", "d_ff": "model.mlp_dim", "ffn_dim": "model.mlp_dim",
    "intermediate_size": "model.mlp_dim", "vocab": "model.vocab_size", "n_vocab": "model.vocab_size",
    "max_position_embeddings": "model.max_seq_len", "window": "model.sliding_window",
    "dp": "mesh.data", "tp": "mesh.tensor", "tensor_parallel": "mesh.tensor", "tensor_parallel_size": "mesh.tensor",
    "pp": "mesh.pipeline", "cp": "mesh.context", "ep": "mesh.expert", "device": "runtime.platform",
    "output": "out", "output_dir": "out", "out_dir": "out", "save_dir": "out", "run_name": "name",
    "checkpoint_dir": "checkpoint.directory", "ckpt_dir": "checkpoint.directory", "save_every": "checkpoint.every",
    "save_steps": "checkpoint.every", "save_interval": "checkpoint.every", "save_total_limit": "checkpoint.keep_last",
    "eval_every": "evaluation.every", "eval_steps": "evaluation.every", "eval_interval": "evaluation.every",
    "eval_iters": "evaluation.batches", "log_every": "metrics.every", "logging_steps": "metrics.every",
    "log_interval": "metrics.every", "wandb_log": "metrics.wandb", "xla_flags": "runtime.compiler_options",
}  # fmt: skip
SECTIONS = {
    "optim": "optimizer", "opt": "optimizer", "eval": "evaluation", "validation": "evaluation", "ckpt": "checkpoint",
    "checkpoints": "checkpoint", "train": "", "training": "", "trainer": "", "config": "", "logging": "metrics",
    "dataset": "data", "parallel": "mesh", "parallelism": "mesh", "checkpointing": "checkpoint",
}  # fmt: skip


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section among the types of a key."""
    classes = (kind for kind in members(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next(classes, None)


def keys_of(section: type[BaseModel], before: str = "") -> dict[str, Any]:
    """Every key below a section with its types, `optimizer.learning_rate` as one; sections stand among them."""
    keys = {}
    for name, field in section.model_fields.items():
        keys[before + name] = field.annotation
        if below := section_of(field.annotation):
            keys |= keys_of(below, f"{before}{name}.")
    return keys


def types_of(key: str, root: type[BaseModel]) -> Any:
    """The types that a key takes; LookupError for one that is not there. Names in a mapping are free."""
    annotation: Any = root
    for name in key.split("."):
        section = section_of(annotation)
        if section is not None:
            annotation = str if (key, name) == ("model.file", "file") else section.model_fields[name].annotation
        elif (annotation := argument(members(annotation), dict)) is None:
            raise LookupError(key)
    return annotation


def suggest(key: str, root: type[BaseModel]) -> str:
    """`; did you mean optimizer.learning_rate?` for `lr`, `optimizer.lr` or `optimizer.learning_rte`, or nothing."""
    known = keys_of(root)
    *sections, last = key.lower().lstrip("-+").replace("-", "_").split(".")
    if "capacity" in last:
        return "; no token is dropped, so experts have no capacity; remove it"
    place = ".".join(filter(None, (SECTIONS.get(name, name) for name in sections)))
    if place and place not in known:
        place = near(place, [k for k, kind in known.items() if section_of(kind)]) or ""
    below = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == place}
    values = [name for name, k in below.items() if section_of(known[k]) is None]
    synonym, close = SYNONYMS.get(last), near(last, values) or near(last, below)
    same = [k for k in known if k.rpartition(".")[2] == last and section_of(known[k]) is None]
    same = [k for k in same if "." in k] if place else same  # evaluation.steps is no misspelt steps
    shallow = [k for k in same if k.count(".") == min(k.count(".") for k in same)]  # mesh.tensor, not mesh.dcn.tensor
    if last in below:
        suggestions = [below[last]]
    elif synonym and (not place or synonym in below.values() or not close):
        suggestions = [synonym]
    elif close and (place or not shallow):
        suggestions = [below[close]]
    elif shallow:
        suggestions = shallow
    else:
        letters = near(last, {k.rpartition(".")[2] for k in known})
        suggestions = [k for k in known if letters and k.rpartition(".")[2] == letters] if not place else []
    return f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""


def apply_override(values: dict, override: str, root: type[BaseModel]) -> None:
    """Set `section.key=value` in place, the value as its key takes it. Errors name the command line."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"{WHERE}: override {override!r} is not section.key=value")
    *sections, last = key.split(".")
    try:
        annotation = types_of(key, root)
    except LookupError:
        for end in range(1, len(sections) + 1):
            name = ".".join(sections[:end])
            if name in (known := keys_of(root)) and not inner(known[name]):
                raise ValueError(f"{WHERE}: override {override!r}: {name} is a value, not a section") from None
        raise ValueError(f"{WHERE}: unknown key {key}{suggest(key, root)}") from None
    below = section_of(annotation)
    if below and key != "model" and text.strip()[:1] not in ("", "{") and text.strip() not in NULLS:
        one = f"{key}s" if f"{key}s" in keys_of(root) else f"{key}.{next(iter(below.model_fields))}"
        raise ValueError(f"{WHERE}: {key}={text}: {key} is a section; give a value to a key, as {one}=VALUE")
    for section in sections:
        child = values.get(section)
        if child is None:  # not there, or null
            child = values[section] = {}
        elif isinstance(child, str) and section == "model":
            child = values[section] = {"file": child}
        elif not isinstance(child, dict):
            raise ValueError(f"{WHERE}: override {override!r}: {section} is {str(child)!r}, not a section")
        values = child
    try:
        values[last] = from_command_line(text, annotation)
    except ValueError as error:
        raise ValueError(f"{WHERE}: override {override!r}: {error}") from error


def inner(annotation: Any) -> bool:
    """May a key be followed by another one?"""
    return section_of(annotation) is not None or any(get_origin(kind) is dict for kind in members(annotation))
