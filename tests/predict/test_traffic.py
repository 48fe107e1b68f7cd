"""What a step should send, by arithmetic: every axis that splits the tokens takes part in a gradient's sum."""

from itertools import product

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.predict.traffic import traffic


def test_weight_gradients_are_summed_over_every_axis_that_splits_the_tokens():
    """The reduce-scatter and the all-reduces of a gradient meet every device that saw other tokens."""
    config = cfg.load_config("llama3.1-8b", ["data.kind=synthetic", "data.path=null", "data.batch_size=64"])
    splitters = ("data", "fsdp", "expert", "context")
    for sizes in product((1, 2), (1, 4), (1, 2), (1, 2), (1, 2)):
        mesh = dict(zip((*splitters, "tensor"), sizes, strict=True))
        for name in (op.name for op in blueprint(config.model).ops):
            own = [t for t in traffic(config, mesh) if t.what == f"{name} gradient" and "tensor" not in t.axes]
            met = [axis for t in own for axis in t.axes]
            assert sorted(met) == sorted(a for a in splitters if mesh[a] > 1), (mesh, name)
    plain, split = ({(t.what, t.kind): t for t in traffic(config, m)}
                    for m in ({"data": 2, "fsdp": 4}, {"fsdp": 2, "expert": 2, "context": 2}))  # fmt: skip
    assert plain["up gradient", "all-reduce"].step_bytes == 32 * 4096 * 14336 / 4 * 2
    assert plain["embedding gradient", "all-reduce"].bytes == 128256 * 4096 / 4 * 4
    assert split["up gradient", "reduce-scatter"].axes == ("fsdp", "expert", "context")
    assert split["up gradient", "reduce-scatter"].step_bytes == 32 * 4096 * 14336 * 2
    assert ("up gradient", "all-reduce") not in split  # a dense weight lies over all three
