"""What `train` says before it begins: the model, the run's length, predicted memory and speed. No jax."""

from collections.abc import Sequence
from typing import Any

from jaxscale import config as cfg
from jaxscale.console.predict import gib
from jaxscale.hardware.topology import Topology, topology_of
from jaxscale.predict import costs
from jaxscale.predict.forecast import forecast
from jaxscale.predict.memory import memory

LABEL = 8  # columns of what a line is about


def banner(config: cfg.Config, mesh: str, devices: Sequence[Any], rows: int, *, decoder: bool) -> list[str]:
    """Lines with a label each.

    Args:
        mesh: in words; `devices`: `jax.Device`s of it.
        rows: of the training data.
        decoder: the model is that of `config.model`; nothing is said of another one.
    """
    lines = {"model": model_words(config)} if decoder else {}
    lines |= {"mesh": mesh, "data": f"{rows:,} rows of {config.data.seq_len:,} tokens", "run": run_words(config, rows)}
    if decoder:
        lines |= predictions(config, devices)
    return [config.name, *(f"  {label:<{LABEL}}{line}" for label, line in lines.items())]


def model_words(config: cfg.Config) -> str:
    parameters = (
        costs.parameter_words(config.model) or f"{sum(costs.parameter_counts(config.model).values()):,} parameters"
    )
    return f"{config.model.name}, {parameters}"


def run_words(config: cfg.Config, rows: int) -> str:
    """Steps, tokens and epochs. A run of samples has no epochs: its rows are made on the way."""
    each = config.data.batch_size * config.data.seq_len
    length = f"{config.steps:,} steps of {each:,} tokens: {config.steps * each:,} tokens"
    if config.objective.samples:
        return f"{length} at most, of the model's own samples"
    if config.data.kind == "synthetic":
        return f"{length}, made up on the way"
    epochs = config.steps * config.data.batch_size / rows
    return f"{length}, {epochs:,.0f} epochs" if epochs >= 100 else f"{length}, {epochs:.3g} epochs"


def predictions(config: cfg.Config, devices: Sequence[Any]) -> dict[str, str]:
    """Memory and speed, where the table has the chip; else the state alone, which is no prediction."""
    sizes, where = config.mesh.sizes(len(devices)), topology_of(devices)
    if where is None:
        state, here = sum(costs.state_bytes(config, sizes).values()), f"{len(devices)} x {devices[0].device_kind}"
        return {"memory": f"{gib(state)} of state a device; what a step needs besides is not predicted for {here}"}
    try:
        speed = speed_words(config, where, sizes)
    except ValueError as error:  # the mesh is laid along this machine in no way that is predicted
        speed = f"not predicted: {error}"
    return {"memory": memory_words(config, where, sizes), "speed": speed}


def memory_words(config: cfg.Config, where: Topology, sizes: dict[str, int]) -> str:
    documents = costs.packs_documents(config)
    needed = memory(config, sizes, documents=documents, chip=where.chip)
    usable = where.chip.usable_hbm_bytes
    line = f"{gib(needed.peak)} a device predicted, {needed.peak / usable:.0%} of {gib(usable)} usable"
    return line if needed.peak <= usable else f"{line}: may not fit"


def speed_words(config: cfg.Config, where: Topology, sizes: dict[str, int]) -> str:
    prediction = forecast(config, where, sizes)
    return (
        f"{prediction.seconds:.3g} s a step predicted on {where.name}, "
        f"{prediction.tokens / prediction.seconds:,.0f} tokens/s, MFU {prediction.mfu:.1%}; "
        f"all steps {duration(prediction.seconds * config.steps)}"
    )


def duration(seconds: float) -> str:
    """`1:02:03`, and days before it where there are some."""
    days, rest = divmod(round(seconds), 24 * 3600)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
