"""What others must provide, broken in each way: one line that says so, no traceback, and nothing written."""

import ast
import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec  # noqa: F401  its registry
import pytest
import yaml
from test_bad_input import Shell, snapshot

from jaxscale import blame, private
from jaxscale import config as cfg
from jaxscale.console import train as console
from jaxscale.report.curve import plot_losses
from jaxscale.training import trainer
from jaxscale.training.wandb_run import WandbRun

RUN = {
    "name": "t", "steps": 2, "mesh": {"data": -1},
    "model": {"vocab_size": 257, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
    "data": {"kind": "synthetic", "batch_size": 8, "seq_len": 32},
    "runtime": {"platform": "cpu", "compilation_cache": None}, "metrics": {"tensorboard": False},
}  # fmt: skip
WAYS = {
    "absent": "raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')",
    "of another version": "__version__ = '0.0.1'",
    "does not fit": "import numpy\nnumpy.bool_that_is_gone",
    "a file is missing": "raise OSError('lib{name}.so.1: cannot open shared object file')",
    "fails when used": """
class Kind(type):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Fails
    def __call__(self, *arguments, **options):
        raise RuntimeError("no network")

class Fails(Exception, metaclass=Kind):
    pass

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Fails
""",
}
USES = {
    "wandb": ["train", "run.yaml", "metrics.wandb=true"],
    "tensorboardX": ["train", "run.yaml", "metrics.tensorboard=true"],
    "pyarrow": ["data", "prepare", "--parquet", "a.parquet", "--out", "tokens"],
    "tokenizers": ["data", "prepare", "--text", "run.yaml", "--tokenizer", "bpe:300", "--out", "tokens"],
    "s3fs": ["train", "run.yaml", "checkpoint.directory=s3://bucket/run"],
    "gcsfs": ["train", "run.yaml", "checkpoint.directory=gs://bucket/run"],
    "libtpu": ["compile", "run.yaml", "--topology", "v5e:1x1"],
}


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "find_peak", lambda devices, dtype: None)
        yield


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty directory with a run file, and no account of anything."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "run.yaml").write_text(yaml.safe_dump(RUN))
    (here / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return here


def put(monkeypatch, folder: Path, name: str, source: str) -> None:
    """Have `import name` find this source, here and in child processes."""
    package = folder / "fake" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source.replace("{name}", name))
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    for protocol in ("s3", "gcs", "gs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", USES)
def test_what_is_broken_is_said_in_one_line_and_changes_nothing(place, tmp_path, shell, monkeypatch, name, way):
    if (name, way) in (("libtpu", "of another version"), ("libtpu", "fails when used")):
        pytest.skip("jax finds its file by itself")
    if (name, way) == ("tensorboardX", "fails when used"):
        pytest.skip("it is used once the run has begun, on the disk alone")
    put(monkeypatch, tmp_path, name, WAYS[way])
    before = snapshot(place)
    code, out, err = shell(*USES[name])
    assert code in (1, 2), (code, out, err)
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    assert name in err or {"s3fs": "s3", "gcsfs": "gs"}.get(name, name) in err, err
    assert snapshot(place) == before
    assert not list(place.glob("runs*")), "no directory either"
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        sys.modules.pop(module)  # the fake one


def test_a_curve_that_cannot_be_drawn_ends_no_run(tmp_path, capsys, monkeypatch):
    put(monkeypatch, tmp_path, "matplotlib", WAYS["does not fit"])
    (tmp_path / "metrics.jsonl").write_text("")
    result = SimpleNamespace(out=tmp_path, step=2, speed=None)
    console.summarise(cfg.validate(RUN, source="test"), result, sample=None)
    assert "not drawn (AttributeError: module 'numpy' has no attribute" in " ".join(capsys.readouterr().out.split())
    sys.modules.pop("matplotlib", None)


def test_a_curve_of_nothing_and_of_any_name_gives_no_warning(tmp_path):
    """Warnings are errors here: of an empty legend, of letters that the font lacks."""
    assert plot_losses([], tmp_path / "a.png", title="$x and \u4e2d\u6587").is_file()
    one = [{"kind": "train", "step": 12, "loss": 1.0}]
    assert plot_losses(one, tmp_path / "b.png", title="t").is_file()


# --- W&B ------------------------------------------------------------------------------------------------------

WANDB = """
import json, os, pathlib
from types import SimpleNamespace
LOG = pathlib.Path(os.environ["FAKE_WANDB"])
def say(*what):
    with LOG.open("a") as file:
        file.write(json.dumps(what) + "\\n")
class UsageError(Exception):
    pass
def setup():
    return SimpleNamespace(settings=SimpleNamespace(mode="online"))
def login(verify=False, timeout=None):
    if "WANDB_API_KEY" not in os.environ:
        raise UsageError("No API key configured. Use `wandb login` to log in.")
    return True
class Run:
    def __init__(self, id):
        self.id = id
    def log(self, values, step):
        if step >= int(os.environ.get("FAKE_WANDB_FAILS", 99)):
            raise ConnectionError("gone")
        say("log", step)
    def finish(self, exit_code):
        say("finish", exit_code)
def init(**options):
    say("init", {k: v for k, v in options.items() if k != "config"})
    return Run(options["id"] or "new1")
"""


@pytest.fixture
def wandb(place, tmp_path, monkeypatch):
    """What the fake W&B was told, line by line."""
    put(monkeypatch, tmp_path, "wandb", WANDB)
    log = tmp_path / "wandb.log"
    monkeypatch.setenv("FAKE_WANDB", str(log))
    yield lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    sys.modules.pop("wandb", None)


def test_wandb_without_a_key_is_refused_before_anything_is_written(place, shell, wandb):
    before = snapshot(place)
    message = shell.refused("train", "run.yaml", "metrics.wandb=true")
    assert "No API key configured" in message
    assert "WANDB_MODE=offline, or set metrics.wandb=false" in message
    assert snapshot(place) == before
    assert not wandb()


def test_wandb_has_one_run_over_resumes_with_the_project_that_is_asked_for(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    first = WandbRun(tmp_path, cfg.validate(RUN, source="test"), print)
    first.log({"loss": 1.0}, 1)
    first.finish()
    metrics = {"wandb_project": "mine", "wandb_entity": "team", "wandb_tags": ["a", "b"]}
    WandbRun(tmp_path, cfg.validate(RUN | {"metrics": metrics}, source="test"), print)
    (_, began), logged, finished, (_, again) = wandb()
    assert (began["id"], began["resume"], began["project"]) == (None, "allow", "from-environment")
    assert (began["entity"], began["tags"], began["name"]) == (None, None, "t")
    assert (logged, finished) == (["log", 1], ["finish", 0])
    assert (again["id"], again["project"], again["entity"], again["tags"]) == ("new1", "mine", "team", ["a", "b"])


def test_wandb_that_fails_later_is_said_once_and_the_run_goes_on(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB_FAILS", "2")
    said: list[str] = []
    run = WandbRun(tmp_path, cfg.validate(RUN, source="test"), said.append)
    for step in range(1, 5):
        run.log({"loss": 1.0}, step)
    run.finish()
    assert said == ["W&B gets no more of this run (gone); metrics.jsonl has all of it"]
    assert len(wandb()) == 2


def test_a_damaged_id_of_wandb_is_refused(tmp_path, wandb):
    (tmp_path / "wandb-run.json").write_text("{")
    with pytest.raises(ValueError, match=r"wandb-run.json is damaged; remove it to begin a new W&B run"):
        WandbRun(tmp_path, cfg.validate(RUN, source="test"), print)


# --- whose error it is ----------------------------------------------------------------------------------------


def test_an_error_of_a_library_is_told_from_a_bug_of_ours():
    import numpy

    def error_of(code: str) -> BaseException:
        """Of code that stands in a module of ours."""
        with pytest.raises(Exception) as caught:  # noqa: PT011
            exec(code, {"__name__": "jaxscale.module", "numpy": numpy, "yaml": yaml, "private": private})
        caught.value.__traceback__ = caught.value.__traceback__.tb_next  # without this function
        return caught.value

    assert blame.library_of(error_of("numpy.linalg.inv([[0.0]])")) == "numpy"
    assert blame.library_of(error_of("yaml.safe_load('[')")) == "yaml"
    assert blame.library_of(error_of("numpy.nothing")) == "numpy"
    assert blame.library_of(error_of("from numpy import nothing")) == "numpy"
    assert blame.library_of(error_of("private.NAMES['nothing']")) is None
    assert blame.library_of(error_of("private.nothing")) is None
    assert blame.library_of(error_of("import json; json.loads('[')")) is None
    message = blame.library_message(error_of("yaml.safe_load('[')"))
    assert message is not None
    assert message.startswith("PyYAML ")
    assert "JAXSCALE_TRACEBACK=1 shows where" in message


# --- private names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", private.NAMES)
def test_every_private_name_is_there_and_missed_in_one_line(key, monkeypatch):
    """With the libraries as they are here, and without the name."""
    assert private.find(key) is not None
    owner, last = private.owner_of(key)
    with monkeypatch.context() as patch:
        patch.delattr(owner, last)
        with pytest.raises(ValueError, match=private.NAMES[key].path) as error:
            private.find(key)
    assert "\n" not in str(error.value)
    assert private.NAMES[key].lost in str(error.value)


def test_tensorboard_without_its_writer_says_so():
    with pytest.raises(ValueError, match="has no writer of events where"):
        private.writer_of_events(object())


def test_private_names_stand_in_one_module():
    """No other module imports from `_src`, or a name of jax, orbax, grain or flax that begins with an underscore."""
    package = Path(private.__file__).parent
    for file in sorted(package.rglob("*.py")):
        if file.name == "private.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                with contextlib.suppress(ValueError):
                    names = [ast.unparse(node)]
            for name in names:
                parts = name.split(".")
                private_parts = [p for p in parts[1:] if p.startswith("_") and not p.startswith("__")]
                assert parts[0] not in ("jax", "jaxlib", "orbax", "ocp", "grain", "flax", "nnx", "optax") or not (
                    private_parts
                ), f"{file.name}:{node.lineno}: {name}"


def test_every_library_with_a_private_name_has_an_upper_bound():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for name in {name.package for name in private.NAMES.values()} | {"tensorboardX"}:
        line = next(line for line in text.splitlines() if line.strip().startswith(f'"{name}>'))
        assert "," in line.split('"')[1], line
