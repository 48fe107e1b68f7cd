"""From a published model to a run: a checkpoint at step 0, its config and its tokenizer, on any mesh."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Unsaved
from jaxscale.data.chat import read_published
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.parallel.mesh import start_devices
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.build import build_on, mesh_and_rules
from jaxscale.training.feed import open_source
from jaxscale.training.initial import initial_state
from jaxscale.training.owner import Owner, open_checkpoints
from jaxscale.training.position import Position, about_data
from jaxscale.training.run import write_run_files

Say = Callable[[str], None]


def bring_in(config: cfg.Config, *, say: Say) -> None:
    """Write the run of `config`, whose `init.from` names a published model.

    Raises:
        ValueError: `out` has checkpoints already, or the model cannot be read.
    """
    source = config.init.source
    assert source is not None
    assert source.startswith(cfg.PUBLISHED)
    codec = tokenizer_of(Path(source.removeprefix(cfg.PUBLISHED)).expanduser(), say)
    devices = start_devices(config.runtime)
    mesh, rules = mesh_and_rules(config, devices)
    rows = open_source(config, "train")
    assert rows is not None
    with on_mesh(mesh, rules), contextlib.ExitStack() as stack:
        owner = Owner(config, say)
        stack.callback(owner.close)
        checkpointer = open_checkpoints(config)
        stack.callback(checkpointer.close)
        if checkpointer.steps():
            raise ValueError(f"{config.out} has checkpoints already; choose another --out")
        state = initial_state(config, build_on(config, mesh, rules).program, say)
        owner.sign()
        checkpointer.write(config.checkpoint)
        write_run_files(config.out_dir, config, devices, codec, None)
        about = about_data(config, rows) | Position(config.data.batch_size).as_data(0)
        try:
            checkpointer.save(0, state, config, about)
        except Unsaved as error:
            raise ValueError(str(error)) from error
        if problem := checkpointer.settle():
            raise ValueError(problem)


def tokenizer_of(directory: Path, say: Say) -> Tokenizer | None:
    path = directory / "tokenizer.json"
    if path.is_file():
        read_published(directory)  # what is damaged is refused before anything is written
        return load_tokenizer(path)
    say(f"{directory} has no tokenizer.json: `generate` will need --tokenizer")
    return None
