"""`jaxscale quickstart`."""

from pathlib import Path

from jaxscale.cli import data, train
from jaxscale.cli.options import Overrides

PLACE = 0
EXAMPLE = "jaxscale quickstart"
CONFIG = "quickstart"


def verb(overrides: Overrides = None) -> None:
    """Train a small decoder on 8 simulated devices. It learns from Python's own source code, in about two minutes."""
    from jaxscale.config import load_config

    loaded = load_config(CONFIG, overrides or [])
    if loaded.data == load_config(CONFIG).data:  # other data is the user's own
        data.prepare(out=Path(loaded.data.places[0]), stdlib=True, validation_fraction=0.05)
    train.verb(CONFIG, overrides, sample="def ")
