"""What a run is: pydantic models, a section each.

This module knows nothing of jax or of devices. A config that cannot work on any machine is refused here;
one that does not fit the devices at hand is refused in `parallel.mesh`, before memory is touched.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from jaxscale import optimizers
from jaxscale.config.errors import divisors, nearest_divisor
from jaxscale.config.files import RENAMED
from jaxscale.config.mesh_text import mesh_text, split_axes
from jaxscale.data.vocabulary import VocabSize, data_vocab_size
from jaxscale.files.redact import redact
from jaxscale.files.spelling import nearest
from jaxscale.files.typed import convert
from jaxscale.files.urls import Place, is_url

AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")  # slowest link first
READY_AXES = ("data", "fsdp", "tensor")

INT32 = 2**31  # sizes and steps are int32 on the devices
Positive = Annotated[int, Field(gt=0, lt=INT32)]
NonNegative = Annotated[int, Field(ge=0, lt=INT32)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen part of the config in which an unknown key, a NaN, credentials and a `true` for a number are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name
        annotation = cls.model_fields[info.field_name].annotation
        value = convert(value, annotation)
        whole = isinstance(value, str | list) or "dict" in str(annotation)  # not a section, whose fields are asked
        if whole and redact(text := str(value)) != text:
            raise ValueError("it holds credentials, which would be kept with the run; give them in the environment")
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{str(value).lower()} is not a value that it takes; give a number or a name")
        return value


class RopeScaling(Section):
    """Llama-3.1's stretching of rotary frequencies to longer contexts (arXiv:2407.21783, 3.4.1)."""

    factor: Above0 = 8.0
    low_frequency_factor: Above0 = 1.0
    high_frequency_factor: Above0 = 4.0
    original_max_len: Positive = 8192


class Model(Section):
    """A decoder-only transformer; the shipped files under `configs/models/` hold published ones."""

    name: str = "decoder"
    vocab_size: VocabSize = 0  # null or left out: the data's, which Config fills in
    num_layers: Positive
    embed_dim: Positive
    num_heads: Positive
    num_kv_heads: Positive | None = None  # None: as many as num_heads
    head_dim: Positive | None = None  # None: embed_dim / num_heads
    mlp_dim: Positive
    max_seq_len: Positive = 8192
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: Above0 = 1e-5
    position: Literal["rope", "learned"] = "rope"
    rope_theta: Above0 = 10_000.0
    rope_scaling: RopeScaling | None = None
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: Positive | None = None  # a token sees itself and the window - 1 tokens before it
    tie_embeddings: bool = False
    attention_softcap: Above0 | None = None
    logits_softcap: Above0 | None = None
    init_std: AtLeast0 = 0.02
    vocab_multiple: Positive = 128  # the table is padded to this, so that its shape is the same on every mesh

    @model_validator(mode="after")
    def _fill_and_check(self) -> "Model":
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ValueError(
                    f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; give head_dim"
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs, so make it even")
        return self

    @property
    def kv_heads(self) -> int:
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def head_size(self) -> int:
        assert self.head_dim is not None
        return self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up; the padding is never predicted."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple


class Dcn(Section):
    """How many slices (GPU: groups of nodes) each axis runs over, on the slow network between them."""

    pipeline: Positive = 1
    data: Positive = 1
    fsdp: Positive = 1
    expert: Positive = 1
    context: Positive = 1
    tensor: Positive = 1


class Mesh(Section):
    """Sizes of the mesh axes within a slice. One may be -1: the devices that the others leave.

    An axis's whole size is its size here times its size in `dcn`.
    """

    pipeline: int = 1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    dcn: Dcn = Dcn()

    @model_validator(mode="after")
    def _check(self) -> "Mesh":
        wild = [a for a in AXES if getattr(self, a) == -1]
        if len(wild) > 1 and "data" in wild and "data" not in self.model_fields_set:
            object.__setattr__(self, "data", 1)  # the default gives way to an axis that asks for the rest
            wild.remove("data")
        if len(wild) > 1:
            raise ValueError(f"{' and '.join(wild)} are both -1; only one axis can take the remaining devices")
        for axis in AXES:
            size = getattr(self, axis)
            if size != -1 and size < 1:
                raise ValueError(f"{axis}={size} must be a positive size, or -1 for the remaining devices")
            if axis not in READY_AXES and (size != 1 or self.over_slices.get(axis)):
                size = size if size != 1 else f"1, dcn.{axis}={self.over_slices[axis]}"
                raise ValueError(f"{axis}={size}: the {axis} axis is reserved and not yet supported; set it to 1")
        return self

    @property
    def over_slices(self) -> dict[str, int]:
        """Axis -> size over the slow network, of those that cross it."""
        return {a: n for a in AXES if (n := getattr(self.dcn, a)) > 1}

    def sizes(self, num_devices: int | None) -> dict[str, int]:
        """Resolve -1 and check against the number of devices (None: any number that the sizes multiply to).

        Returns axis name -> size, in the mesh's order, without axes of size 1 (one `data` axis of size 1 when
        nothing is left, as JAX has no sharding on a mesh without axes).
        """
        sizes = {a: getattr(self, a) for a in AXES}
        slices = math.prod(self.over_slices.values())
        fixed = math.prod(s for s in sizes.values() if s != -1) * slices
        wild = [a for a, s in sizes.items() if s == -1]
        text = mesh_text(split_axes(sizes) | {f"dcn.{a}": n for a, n in self.over_slices.items()})
        if num_devices is None:
            num_devices = fixed
        if wild:
            if num_devices % fixed:
                raise ValueError(
                    f"mesh {text}: {fixed} does not divide {num_devices} devices; make the product of the fixed axes "
                    f"one of {divisors(num_devices)}"
                )
            sizes[wild[0]] = num_devices // fixed
        elif fixed != num_devices:
            raise ValueError(
                f"mesh {text or 'of one device'} needs {fixed} devices and there are {num_devices}; set an axis to -1, "
                f"or on CPU runtime.simulated_devices={fixed}"
            )
        sizes = {a: s * getattr(self.dcn, a) for a, s in sizes.items()}
        return {a: s for a, s in sizes.items() if s > 1} or {"data": 1}


AxisNames = str | list[str] | None


class Sharding(Section):
    """Overrides of the logical rules: logical axis -> mesh axis, several, or null for not split."""

    parameters: dict[str, AxisNames] = {}
    activations: dict[str, AxisNames] = {}


class Runtime(Section):
    """Which devices to use. `simulated_devices` counts only where the platform is CPU."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    simulated_devices: Positive | None = None  # of all processes together
    distributed: Literal["auto", "always", "never"] = "auto"  # always: JAX's detection, even where no scheduler is seen
    compilation_cache: str | None = "~/.cache/jaxscale/xla"
    compiler_options: dict[str, bool | int | str] = {}  # XLA's, over the preset of parallel/presets.py


class Data(Section):
    """Where tokens come from and how many make a step. All sizes are global."""

    kind: Literal["tokens", "llmc", "synthetic"] = "tokens"
    path: str | None = None  # tokens: the folder `jaxscale data prepare` wrote; llmc: a glob of .bin files
    mixture: dict[str, Above0] | None = None  # tokens: in place of path, several such folders, each with a weight
    validation_path: str | None = None  # llmc only; `tokens` has its own validation split
    vocab_size: Positive | None = None  # llmc: of the tokenizer that made the files; None: GPT-2's or Llama-3's
    separator_id: NonNegative | None = None  # llmc: the token that begins each document; None: theirs
    batch_size: Positive = 8  # sequences a step
    seq_len: Positive = 1024
    mask_documents: bool = True  # packed documents never see each other, positions restart
    shuffle: bool = True
    verify: Literal["always", "once", "size"] = "once"  # checksums of the shards
    prefetch: Positive = 4  # batches

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.mixture is not None:
            if self.kind != "tokens" or self.path or not self.mixture:
                raise ValueError("data.mixture takes {folder: weight, ...} in place of data.path, with kind=tokens")
            expanded = {os.path.expanduser(path): weight for path, weight in self.mixture.items()}
            object.__setattr__(self, "mixture", expanded)
        elif self.kind != "synthetic" and not self.path:
            raise ValueError(f"data.kind={self.kind} needs data.path; `jaxscale data prepare --help` makes a dataset")
        for name in ("validation_path", "vocab_size", "separator_id"):
            if self.kind != "llmc" and getattr(self, name) is not None:
                raise ValueError(f"data.{name} is only for kind=llmc; kind={self.kind} does not read it")
        if self.kind == "synthetic" and self.path:
            raise ValueError("data.path is not read with kind=synthetic; remove it or choose kind=tokens")
        for name in ("path", "validation_path"):
            if value := getattr(self, name):
                if is_url(value):
                    raise ValueError(f"data.{name}={value}: training reads its data from a file system, not from an "
                                     "object store; copy it to a directory that every process sees")  # fmt: skip
                object.__setattr__(self, name, os.path.expanduser(value))
        return self

    @property
    def places(self) -> list[str]:
        """What is read: folders of kind=tokens, a glob of llm.c's files, nothing."""
        return list(self.mixture or ([self.path] if self.path else []))


RematAction = Literal["save", "offload", "recompute"]
ACTIVATIONS = ("layer_in", "q", "k", "v", "attended", "attention_out", "mlp_gate", "mlp_up", "mlp_out")


class Step(Section):
    """How one training step is computed, leaving what it computes unchanged."""

    microbatches: Positive = 1  # gradient accumulation: the batch in this many parts, one after another
    remat: Literal["none", "full", "dots"] | dict[str, RematAction] = "full"
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"  # bfloat16: an update below 1/256 of a weight is lost
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    unroll_layers: bool | None = None  # None: on CPU, where a loop costs more than the compile it saves

    @model_validator(mode="after")
    def _check(self) -> "Step":
        if isinstance(self.remat, dict):
            for name in self.remat:
                if name in RENAMED:
                    raise ValueError(f"step.remat.{name} is called step.remat.{RENAMED[name]} now; write that")
                if name not in ACTIVATIONS:
                    raise ValueError(f"step.remat.{name}: no such activation{nearest(name, ACTIVATIONS)}")
        return self


class Objective(Section):
    """What a step minimises; see `objectives`."""

    kind: Literal["next_token"] = "next_token"


class Loss(Section):
    chunk: Positive | None = None  # tokens of each sequence whose logits exist at one time; None: all
    z_loss: AtLeast0 = 0.0  # weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5)


NO_DECAY = ("norm", "bias")


class Optimizer(Section):
    """optax's optimizer and its learning-rate schedule."""

    name: optimizers.Name = "adamw"
    learning_rate: AtLeast0 = 3e-4
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: NonNegative = 0
    decay_steps: NonNegative | None = None  # wsd: the last steps that decay; None: a fifth of the run
    final_fraction: Share = 0.1  # learning rate at the end / peak
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Above0 = 1e-8
    weight_decay: AtLeast0 = 0.1
    no_decay: list[str] = list(NO_DECAY)  # parameters with one of these in their path: whole, or after a `_`
    clip_norm: Above0 | None = 1.0
    # decay of an exponential moving average of the parameters, which evaluation and generate then use
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps is only for schedule=wsd; {self.schedule} decays over the whole run, so remove it"
            )
        return self


class Checkpoint(Section):
    every: NonNegative = 1000  # steps; 0: only at the end
    keep_last: Positive = 2
    keep_every: Positive | None = None  # steps whose checkpoints are never deleted
    resume: bool = True
    directory: Place | None = None  # s3://bucket/prefix, gs://bucket/prefix or a directory; None: <out>/checkpoints


BadStep = Literal["stop", "skip", "rollback"]  # rollback: to the last checkpoint, and past the batches since


class Guard(Section):
    """Steps that cannot be right; `on_nonfinite` says what is done about losses that are no number."""

    spike: Above0 | None = None  # a loss so many standard deviations above its recent mean; None: not looked for
    on_spike: BadStep = "skip"
    max_rollbacks: NonNegative = 3  # then the run stops
    recompute_every: NonNegative = 0  # steps; compute one twice and compare all bits; 0: never


Deadline = Annotated[float, Field(ge=0, le=1e6)]


class Watch(Section):
    """Seconds after which a run that stands still names where, and ends; 0: never. See docs/operations.md."""

    enabled: bool = True
    start: Deadline = 1800.0  # joining the others, data, restoring or making the state
    compile: Deadline = 3600.0
    step: Deadline = 600.0
    save: Deadline = 3600.0
    peer: Deadline = 60.0  # a process that is not heard of for so long has vanished; beats come each second

    @model_validator(mode="after")
    def _check(self) -> "Watch":
        for name, least in (("start", 1), ("compile", 1), ("step", 1), ("save", 1), ("peer", 3)):
            if 0 < getattr(self, name) < least:
                raise ValueError(
                    f"watch.{name}={getattr(self, name):g} s is too short; give {least} or more, 0 for never"
                )
        return self


class Evaluation(Section):
    every: NonNegative = 0  # steps; 0: only at the end
    batches: Positive = 8


class Metrics(Section):
    every: Positive = 1  # steps between lines of metrics.jsonl
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: Text | None = None  # None: WANDB_PROJECT, or jaxscale
    wandb_entity: Text | None = None  # None: WANDB_ENTITY, or the account's own
    wandb_tags: list[str] = []  # none: WANDB_TAGS
    mfu: Literal["causal", "palm"] = "causal"


class Config(Section):
    """One run, from data to checkpoints; what a YAML file under `configs/` holds."""

    name: Text
    out: Text | None = None  # None: runs/<name>
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Positive
    on_nonfinite: BadStep = "stop"  # a loss or gradient norm that is NaN or infinite
    model: Model
    mesh: Mesh = Mesh()
    sharding: Sharding = Sharding()
    runtime: Runtime = Runtime()
    data: Data
    step: Step = Step()
    objective: Objective = Objective()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    watch: Watch = Watch()
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.out is None:
            if os.path.isabs(self.name) or ".." in Path(self.name).parts:
                raise ValueError(f"name={self.name} leads out of runs/; give a plain name, or the directory as out=")
            object.__setattr__(self, "out", f"runs/{self.name}")
        object.__setattr__(self, "out", os.path.expanduser(self.out or ""))
        if is_url(self.out or ""):
            raise ValueError(f"out={self.out}: a run's directory is on a file system; give checkpoint.directory="
                             f"{self.out} for its checkpoints, and out=DIRECTORY for its figures")  # fmt: skip
        if not self.model.vocab_size:
            found = data_vocab_size(self.data.kind, self.data.places, self.data.vocab_size)
            object.__setattr__(self, "model", self.model.model_copy(update={"vocab_size": found}))
        if self.model.position == "learned" and self.data.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is beyond the {self.model.max_seq_len} learned positions; "
                "lower it or raise model.max_seq_len"
            )
        if self.data.batch_size % self.step.microbatches:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not divisible by step.microbatches "
                f"{self.step.microbatches}; try {divisors(self.data.batch_size)}"
            )
        if isinstance(self.step.remat, dict) and "mlp_gate" in self.step.remat and self.model.mlp != "swiglu":
            raise ValueError(f"step.remat.mlp_gate: model.mlp={self.model.mlp} has no gate; remove it")
        if self.loss.chunk and self.data.seq_len % self.loss.chunk:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is not divisible by loss.chunk {self.loss.chunk}; "
                f"try {nearest_divisor(self.data.seq_len, self.loss.chunk)}"
            )
        return self

    @property
    def out_dir(self) -> Path:
        assert self.out is not None
        return Path(self.out)

    @property
    def checkpoint_place(self) -> str:
        return self.checkpoint.directory or str(self.out_dir / "checkpoints")
