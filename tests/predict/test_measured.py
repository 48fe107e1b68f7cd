"""Measured links in a plan: used where the same networks are ridden, refused from another chip."""

import json

import pytest

from jaxscale import config as cfg
from jaxscale.bench.record import BenchRecord, Clock, Device, Figure, Row, write_record
from jaxscale.hardware.topology import find_topology, links
from jaxscale.predict.forecast import axis_links, forecast
from jaxscale.predict.measured import read_measured
from jaxscale.predict.timing import collective_seconds

H100 = "NVIDIA H100 80GB HBM3"
NODE = find_topology("h100:8")


def collectives(axis="fsdp", size=8, *, bandwidth=450e9, latency=0.0, exchange=100e9, topology="h100:8", kind=H100,
                what="collectives") -> BenchRecord:  # fmt: skip
    def fit(name, speed):
        return Row(labels={"fit": True, "collective": name, "axis": axis, "size": size}, figures={
            "latency_seconds": Figure(value=latency, unit="s"), "bandwidth": Figure(value=speed, unit="bytes/s"),
        })  # fmt: skip

    return BenchRecord(
        kind=what, name="test", time="2026-11-21T10:00:00+00:00", device=Device(platform="gpu", kind=kind, count=size),
        topology=topology, mesh={axis: size}, clock=Clock(source="a test"),
        rows=[fit("ring", bandwidth), fit("all-to-all", exchange)],
    )  # fmt: skip


def read(record, topology=NODE):
    return read_measured(record.model_dump(mode="json"), "r.json", topology)


def small(**mesh) -> cfg.Config:
    sizes = {"data": 1} | mesh
    return cfg.load_config("llama3.2-1b", ["data.kind=synthetic", "data.path=null", "mesh.fsdp=1",
                                           *(f"mesh.{a}={n}" for a, n in sizes.items())])  # fmt: skip


def test_a_measurement_at_the_achievable_share_changes_nothing():
    reached = find_topology("h100:8").chip.fractions.network
    measured = read(collectives(bandwidth=reached * 450e9, exchange=reached * 450e9))
    config = small(fsdp=8)
    before, after = (forecast(config, NODE, {"fsdp": 8}, measured=m).time.best for m in (None, measured))
    assert after == pytest.approx(before, rel=1e-3)


def test_seconds_are_the_fitted_line():
    own = axis_links(NODE, {"fsdp": 8}, {}, read(collectives(bandwidth=200e9, latency=1e-4, exchange=50e9)))
    for kind, wanted in {
        "all-gather": 1e-4 + 1e9 * 7 / 8 / 200e9,
        "all-reduce": 2 * (1e-4 + 1e9 * 7 / 8 / 200e9),
        "all-to-all": 1e-4 + 1e9 * 7 / 8 / 50e9,
    }.items():
        seconds, network = collective_seconds(kind, ("fsdp",), 1e9, own, network=0.85)
        assert seconds == pytest.approx(wanted)
        assert network == "NVLink"


def test_slow_links_make_a_slow_step():
    config = small(fsdp=8)
    slow = forecast(config, NODE, {"fsdp": 8}, measured=read(collectives(bandwidth=1e9)))
    assert slow.time.best > 2 * forecast(config, NODE, {"fsdp": 8}).time.best
    assert slow.time.binds.startswith("NVLink")


def test_other_axes_and_other_networks_keep_the_datasheets():
    measured = read(collectives(axis="fsdp", bandwidth=1e9))
    sizes = {"data": 2, "tensor": 4}
    assert axis_links(NODE, sizes, {}, measured) == links(NODE, sizes)
    two = find_topology("h100:2x8")  # fsdp=16 also rides the network between the nodes, which was not measured
    assert axis_links(two, {"fsdp": 16}, {}, measured) == links(two, {"fsdp": 16})
    assert axis_links(two, {"data": 2, "fsdp": 8}, {}, measured)["fsdp"].stages[0].bandwidth == 1e9


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            collectives(topology=None, kind="AMD EPYC, 2 cores"),
            "measured on AMD EPYC, 2 cores, and the plan is for h100",
        ),
        (collectives(topology="h200:8", kind="NVIDIA H200"), "the plan is for h100"),
        (collectives(what="matmul"), "is a matmul record"),
        (collectives().model_copy(update={"rows": []}), "no fitted latency"),
        (collectives(bandwidth=float("inf")), "measure it again"),
    ],
)
def test_what_cannot_be_used_is_refused(record, said):
    with pytest.raises(ValueError, match=said):
        read(record)


def test_plan_takes_a_record(jaxscale_here, tmp_path):
    path = write_record(collectives(bandwidth=5e9), tmp_path / "links.json")
    command = ["plan", "llama3.2-1b", "data.kind=synthetic", "data.path=null", "--topology", "h100:8"]
    told = jaxscale_here(*command, "--measured", path).stdout
    assert "links measured in links.json: fsdp (over 8, NVLink)" in told
    found = json.loads(jaxscale_here(*command, "--json", "--measured", path).stdout)
    assert found["measured_links"] == "links.json"
    assert found["choices"][0]["mesh"] == {"data": 8}  # fsdp over 5 GB/s is not worth it
    refused = jaxscale_here(*command, "--measured", tmp_path / "none.json")
    assert refused.returncode == 2
    assert "none.json" in refused.stderr


def test_a_latency_that_is_infinite_is_refused():
    with pytest.raises(ValueError, match="measure it again"):
        read(collectives(latency=float("inf")))
