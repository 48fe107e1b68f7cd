"""One libtpu for training and for predictions, and a word where another is installed."""

import tomllib
from pathlib import Path

import pytest

from jaxscale.compiled import libtpu

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_extras_for_tpus_name_the_same_libtpu():
    """Else they do not install together. It is the one that predictions follow, where jax can read its programs."""
    ours, aot = ({e for e in EXTRAS[name] if e.startswith("libtpu")} for name in ("tpu", "aot-tpu"))
    assert ours == aot
    assert any(f">={libtpu.FOLLOWED}," in e for e in ours)
    assert not [e for e in EXTRAS["tpu"] if e.startswith("jax[")], "its own pin would be a second one"


@pytest.mark.parametrize(
    ("here", "says"), [("0.0.42.1", True), ("0.0.50", True), ("0.0.51", False), ("0.0.52.dev3", False)]
)
def test_an_older_one_is_told_of(monkeypatch, here, says):
    monkeypatch.setattr(libtpu.metadata, "version", lambda name: here)
    note = libtpu.older_libtpu()
    assert bool(note) == says
    assert not note or (f"libtpu {here} is older than {libtpu.FOLLOWED}" in note and "jaxscale[tpu]" in note)


def test_none_here_is_no_trouble(monkeypatch):
    def missing(name):
        raise libtpu.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libtpu.metadata, "version", missing)
    assert libtpu.older_libtpu() is None
