"""What the tests of laws share."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def law_file(tmp_path_factory):
    """A law of chinchilla's form, of a ladder drawn from Epoch's parameters."""
    import numpy as np
    from scaling.ladders import ladder

    from jaxscale.scaling.law import write_law
    from jaxscale.scaling.laws import fit

    path = tmp_path_factory.mktemp("law") / "law.json"
    table, _ = ladder("chinchilla", np.random.default_rng(0))
    write_law(fit("chinchilla", table), path)
    return path
