"""The library: what the verbs answer, as values on the mesh in context, with views for a notebook."""

import logging
import math
import subprocess
import sys

import jax
import pytest
from support import make_config

import jaxscale
from jaxscale.compiled.story import fit_mesh
from jaxscale.config import load_config
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.explain import story
from jaxscale.hardware.topology import find_topology
from jaxscale.library.models import as_overrides
from jaxscale.predict.plan import Plan
from jaxscale.predict.plan import plan as plan_of
from jaxscale.serving.evaluate import evaluate_places
from jaxscale.serving.evaluated import Evaluation
from jaxscale.serving.serve import continue_texts
from jaxscale.serving.tasks import evaluate_tasks
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
ONE = ["mesh={data: 1}", "runtime.simulated_devices=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("library")
    (place / "text.txt").write_text("the ship and the wind and the tide\n" * 30)
    prepare(text_source([place / "text.txt"]), "byte", place / "data", validation_tail=0.3)
    runtime = {"platform": "cpu", "simulated_devices": 1}
    data = {"kind": "tokens", "path": str(place / "data"), "seq_len": 32}
    train(
        make_config(model=MODEL, steps=4, out=str(place / "run"), data=data, runtime=runtime, checkpoint={"every": 2})
    )
    return place


# --- load -----------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_over_all_devices(place):
    loaded = jaxscale.load(place / "run")
    assert dict(loaded.mesh.shape) == {"fsdp": 8}
    assert loaded.step == 4
    assert loaded.config.mesh.fsdp == 8
    assert loaded.tokenizer.vocab_size == 257
    assert repr(loaded).startswith(f"<step 4 of {place / 'run'}: ")
    assert "parameters on mesh fsdp=8 (8 devices), its tokenizer>" in repr(loaded)
    with loaded.context():
        logits = jax.jit(lambda tokens: loaded.model(tokens))(jax.numpy.zeros((8, 4), jax.numpy.int32))
    assert logits.shape[:2] == (8, 4)


MESHES = [
    (((2, 2, 2), ("data", "fsdp", "tensor")), {"data": 2, "fsdp": 2, "tensor": 2}),
    (((4, 2), ("tensor", "data")), {"data": 2, "tensor": 4}),  # its axes are put in order
    (((1, 2, 1), ("data", "tensor", "fsdp")), {"tensor": 2}),
    (((1,), ("fsdp",)), {"fsdp": 1}),
]


@pytest.mark.parametrize(("made", "wanted"), MESHES, ids=str)
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto], ids=str)
def test_the_mesh_in_context_is_taken(place, made, wanted, kind):
    shape, names = made
    devices = jax.devices()[: math.prod(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=devices)
    with jax.set_mesh(mesh):
        loaded = jaxscale.load(place / "run")
        inside = jaxscale.evaluate(loaded, place / "text.txt")
    assert dict(loaded.mesh.shape) == wanted
    assert set(loaded.mesh.devices.flat) == set(mesh.devices.flat)
    assert inside.total.loss == pytest.approx(alone(place).total.loss, rel=1e-5)


def alone(place):
    return evaluate_places(str(place / "run"), [str(place / "text.txt")], ONE, say=print)


def test_an_override_of_the_mesh_comes_first(place):
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        loaded = jaxscale.load(place / "run", 2, mesh={"data": 4, "tensor": 2}, data={"seq_len": 16})
    assert dict(loaded.mesh.shape) == {"data": 4, "tensor": 2}
    assert (loaded.step, loaded.config.data.seq_len) == (2, 16)


def test_overrides_in_words():
    values = {"data": {"seq_len": 16, "mixture": None}, "step.remat": "full", "mesh": {"dcn": {"data": 2}}, "seed": 3}
    words = ["data.seq_len=16", "data.mixture=null", "step.remat=full", "mesh.dcn.data=2", "seed=3"]
    assert list(as_overrides(values)) == words


REFUSED = [
    ({"source": "nowhere"}, "nowhere is not a run"),
    ({"step": 3}, r"no checkpoint of step 3; it has \[2, 4\]"),
    ({"mseh": {"tensor": 2}}, "unknown key mseh.tensor; did you mean mesh.tensor"),
    ({"mesh": {"tensor": 3}}, "needs 3 devices and there are 8"),
    ({"model": {"num_layers": 3}}, "model.num_layers: 2 -> 3"),
    ({"tokenizer": "nowhere.json"}, "tokenizer 'nowhere.json' is neither"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_cannot_be_loaded_is_refused(place, options, message):
    with pytest.raises(ValueError, match=message):
        jaxscale.load(**{"source": place / "run"} | options)


def test_a_load_leaves_loggers_as_they_were(place, caplog):
    logger = logging.getLogger("absl")
    before = logger.level
    jaxscale.load(place / "run")
    assert not [r for r in caplog.records if r.name == "absl"]
    assert logger.level == before


def test_a_mesh_with_another_axis_is_refused(place):
    with (
        jax.set_mesh(jax.make_mesh((8,), ("model",))),
        pytest.raises(ValueError, match="the mesh in context has an axis model; the axes are"),
    ):
        jaxscale.load(place / "run")


# --- generate and evaluate ------------------------------------------------------------------------------------


def test_texts_are_those_of_the_verb(place):
    prompts, options = ["the ", "and"], {"max_new_tokens": 8, "temperature": 0.0, "top_k": None, "top_p": None}
    wanted = continue_texts(place / "run", prompts, ONE, seed=0, **options)
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
        loaded = jaxscale.load(place / "run")
    assert jaxscale.generate(loaded, prompts, max_new_tokens=8, temperature=0) == wanted
    assert jaxscale.generate(loaded, "the ", max_new_tokens=8, temperature=0) == wanted[:1]
    with pytest.raises(ValueError, match="has no chat template"):
        jaxscale.generate(loaded, "the ", chat=True)
    with pytest.raises(ValueError, match="top_p=7 must be above 0"):
        jaxscale.generate(loaded, "the ", top_p=7)


def test_abilities_are_measured_as_by_the_verb(place):
    loaded = jaxscale.load(place / "run", mesh={"data": 8})
    found = jaxscale.measure(loaded, ["count", "coin"], examples=16, seed=3)
    (wanted,) = evaluate_tasks(str(place / "run"), ["count", "coin"], examples=16, seed=3, say=print)
    assert [(one["ability"], one["examples"]) for one in found] == [("count", 16), ("coin", 16)]
    for one, verb in zip(found, wanted["abilities"], strict=True):
        for name, metric in one["metrics"].items():
            assert metric["value"] == pytest.approx(verb["metrics"][name]["value"], abs=1e-5)
    assert jaxscale.measure(loaded, "coin", examples=16, seed=3) == found[1:]
    with pytest.raises(ValueError, match="no ability 'coun'; did you mean"):
        jaxscale.measure(loaded, ["coun"])
    with pytest.raises(ValueError, match="lm_eval:x: tasks of lm_eval are measured by"):
        jaxscale.measure(loaded, ["lm_eval:x"])


def test_an_evaluation_is_that_of_the_verb(place):
    loaded = jaxscale.load(place / "run", mesh={"data": 8})
    found, wanted = jaxscale.evaluate(loaded, place / "text.txt"), alone(place)
    assert isinstance(found, Evaluation)
    assert found.total.tokens == wanted.total.tokens
    assert found.total.loss == pytest.approx(wanted.total.loss, rel=1e-5)
    own = jaxscale.evaluate(loaded)
    assert own.sources[0].source == f"{place / 'data'} (validation)"
    both = jaxscale.evaluate(loaded, [place / "text.txt", place / "data"], split="train")
    assert [s.source for s in both.rows] == [str(place / "text.txt"), f"{place / 'data'} (train)", "total"]
    assert f"{found.total.loss:.4f}" in repr(found)
    assert f"{found.total.loss:.4f}" in found._repr_html_()
    assert found._repr_html_().startswith("<pre")


# --- plan and explain -----------------------------------------------------------------------------------------


def test_a_plan_is_that_of_the_verb(capsys):
    found = jaxscale.plan("llama3.2-1b", topology="v5p:2x2x2", held=["step.remat"])
    where = find_topology("v5p:2x2x2")
    wanted = plan_of(fit_mesh(load_config("llama3.2-1b"), where), where, documents=True, held=("step.remat",))
    assert isinstance(found, Plan)
    assert [c.mesh for c in found.choices] == [c.mesh for c in wanted.choices]
    assert found.choices[0].forecast.time.best == wanted.choices[0].forecast.time.best
    assert repr(found).startswith("llama3.2-1b on v5p:2x2x2")
    assert "held as given: step.remat" in repr(found)
    assert f"{found.choices[0].forecast.time.best:.4g}" in found._repr_html_()
    assert "<span" in found._repr_html_()
    assert not capsys.readouterr().out
    found.show()
    assert "llama3.2-1b on v5p:2x2x2" in capsys.readouterr().out


def test_a_plan_without_choices_says_what_would_do():
    found = jaxscale.plan(load_config("llama3.1-405b"), "h100:8")
    assert not found.choices
    assert "DOES NOT FIT" in repr(found)
    assert "what would do" in repr(found)


def test_an_explanation_is_that_of_the_verb():
    found = jaxscale.explain("quickstart", mesh={"data": 2, "tensor": 4}, compiler="none", backward=True)
    wanted = story.explain(story.with_mesh(load_config("quickstart"), "data=2,tensor=4"), compiler="none")
    assert isinstance(found, story.Explanation)
    assert found.rows == wanted.rows
    assert found.mesh == {"data": 2, "tensor": 4}
    assert "backward, with what is recomputed" in repr(found)
    assert "backward, with" not in repr(jaxscale.explain("quickstart", "data=2,tensor=4", compiler="none"))
    assert found._repr_html_().startswith("<pre")
    with pytest.raises(ValueError, match="takes all devices there are"):
        jaxscale.explain(load_config("llama3.2-1b", ["mesh={data: 1, fsdp: -1}"]))
    with pytest.raises(ValueError, match="no axis 'dta'"):
        jaxscale.explain("quickstart", mesh={"dta": 2})


@pytest.mark.parametrize(
    "first", ["import jaxscale", "import jaxscale.explain.story", "import jaxscale.library.models"]
)
def test_explain_is_a_function_and_a_room(first):
    code = (
        f"{first}\nimport jaxscale\nassert callable(jaxscale.explain)\nfrom jaxscale.explain import story\nstory.stages"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predictions_load_no_jax():
    code = (
        "import sys, jaxscale\nassert 'jax' not in sys.modules\n"
        "assert repr(jaxscale.plan('llama3.2-1b', 'v5p:2x2x2'))\n"
        "jaxscale.explain('quickstart', mesh='data=2', compiler='none')._repr_html_()\n"
        "assert 'jax' not in sys.modules, 'jax was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
