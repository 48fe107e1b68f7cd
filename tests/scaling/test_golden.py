"""Published fits, to their digits: some from data that is not in the repository, some by arithmetic alone."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scaling.ladders import EPOCH, MUENNIGHOFF

from jaxscale.scaling.curves import power_sum, repeated
from jaxscale.scaling.law import Point
from jaxscale.scaling.laws import FORMS, best_size, fit
from jaxscale.scaling.table import make_table

DATA = Path(__file__).parents[3] / "shared" / "golden"
here = pytest.mark.skipif(not DATA.is_dir(), reason="the published points are not in the repository")


def epoch_table():
    """Hoffmann's runs as Besiroglu et al. read them off the figure, without the five highest losses."""
    rows = list(csv.DictReader((DATA / "chinchilla.csv").read_text().splitlines()))
    rows.sort(key=lambda row: float(row["loss"]))
    names = {"parameters": "Model Size", "flops": "Training FLOP", "loss": "loss"}
    return make_table([{key: row[column] for key, column in names.items()} for row in rows[:-5]], "chinchilla.csv")


@here
def test_chinchilla_by_epochs_points():
    law = fit("chinchilla", epoch_table())
    assert len(law.rows) == 240
    assert law.objective == pytest.approx(0.0010182740, abs=5e-11)
    assert list(law.parameters.values()) == pytest.approx(EPOCH, rel=3e-4)  # A and B are loose along a valley
    assert law.parameters["E"] == pytest.approx(1.81724, abs=3e-5)
    spread = dict(zip(law.parameters, law.drawn.std(0), strict=True))
    assert (spread["E"], spread["alpha"], spread["beta"]) == pytest.approx((0.028, 0.0147, 0.0216), rel=0.15)
    N = float(best_size(law.best, 5.76e23))
    assert pytest.approx((7.32e10, 1.31e12), rel=3e-3) == (N, 5.76e23 / 6 / N)
    assert not law.not_identified


@here
def test_the_tasks_of_olmos_ladder():
    predicted = {}
    for name, one in json.loads((DATA / "olmo_ladder_points.json").read_text()).items():
        rows = [{"parameters": N, "tokens": D, "loss": bits} for N, D, bits in one["points"]]
        law = fit("chinchilla", make_table(rows, name), draws=20)
        N, D, *_ = one["targets"]["13B-5T"]
        predicted[name] = float(FORMS["chinchilla"].value(law.best, Point(N, D, 6 * N * D)))
        assert predicted[name] == pytest.approx(one["published"]["step1"]["Pred"], abs=1e-7), name
    assert [round(x, 4) for x in predicted.values()] == [0.6532, 0.8748, 0.9916, 0.5931, 0.6617, 1.2750, 0.7833]


def test_hoffmanns_law_of_the_two_models():
    """The parameters as the paper prints them, in appendix D.3."""
    law = np.array([1.69, 406.4, 0.34, 410.7, 0.28])
    assert float(power_sum(law, 70e9, 1.4e12)) == pytest.approx(1.9366, abs=5e-5)
    assert float(power_sum(law, 280e9, 300e9)) == pytest.approx(1.9933, abs=5e-5)


def test_muennighoffs_two_models():
    assert float(repeated(MUENNIGHOFF, 6.34e9, 242e9, 25e9)) == pytest.approx(2.2256440889984477, abs=1e-14)
    assert float(repeated(MUENNIGHOFF, 8.67e9, 178e9, 25e9)) == pytest.approx(2.2269634075087867, abs=1e-14)
