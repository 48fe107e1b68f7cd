"""How machines are named: the vendors' names, other orders, counts; and what a user states of one."""

import math

import pytest

from jaxscale.hardware.chips import CHIPS
from jaxscale.hardware.names import ALIASES, BY_NAME, MACHINES, examples, read_name, text_of, valid_shapes
from jaxscale.hardware.stated import read_topology
from jaxscale.hardware.topology import find_topology, links


@pytest.mark.parametrize(
    ("name", "is_", "says"),
    [
        ("v5p-128", "v5p:4x4x4", "64 chips: v5p-N counts TensorCores, 2 a chip"),
        ("v4-8", "v4:2x2x1", "4 chips: v4-N counts TensorCores"),
        ("v3-8", "v3:2x2", "4 chips: v3-N counts TensorCores"),
        ("v2-32", "v2:4x4", "16 chips"),
        ("tpu7x-128", "tpu7x:4x4x4", "64 chips: tpu7x-N counts TensorCores"),
        ("v5litepod-16", "v5e:4x4", "16 chips: v5litepod-N counts chips"),
        ("v6e-256", "v6e:16x16", "256 chips: v6e-N counts chips"),
        ("v5e:1", "v5e:1x1", "1 chip"),
        ("v5p:512", "v5p:8x8x8", "the most even; there are v5p:4x8x16 too"),
        ("v4:8", "v4:2x2x2", "v4:N counts chips; the vendor's v4-N counts TensorCores"),
        ("v5p:8x4x4", "v5p:4x4x8", "the same slice"),
        ("v5p:2x2", "v5p:2x2x1", "the same slice"),
        ("v6e:8x4", "v6e:4x8", "the same slice"),
        ("V5P:4x4x4", "v5p:4x4x4", ""),
        ("v5p:4x4x4", "v5p:4x4x4", ""),
        ("h100:16", "h100:2x8", "2 nodes of 8"),
        ("h100:8", "h100:1x8", ""),
        ("16xH100", "h100:2x8", "2 nodes of 8"),
        ("8 x h100", "h100:1x8", "h100:1x8"),
        ("a100-80gb:8", "a100:1x8", "a100:1x8"),
        ("a100-40gb:8", "a100-40gb:1x8", ""),
        ("nvidia-h100-80gb:8", "h100:1x8", "h100:1x8"),
        ("gb200:144", "gb200:2x72", "2 nodes of 72"),
        ("a2-highgpu-8g", "a100-40gb:1x8", "8 GPUs: one a2-highgpu-8g has 8"),
        ("a3-megagpu-8g:4", "h100:4x8", "32 GPUs"),
        ("p4d.24xlarge", "a100-40gb:1x8", "8 GPUs"),
        ("g5.xlarge", "a10g:1x1", "1 GPU"),
        ("GeForce RTX 4090:2", "rtx4090:1x2", "rtx4090:1x2"),
    ],
)
def test_vendors_names(name, is_, says):
    found = read_name(name)
    assert text_of(found.chip, found.shape) == is_
    assert says in found.how
    assert bool(found.how) == bool(says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5p-130", "no slice of 65 chips.*nearest are v5p-128 .v5p:4x4x4. and v5p-256 .v5p:4x4x8"),
        ("v5p-7", "no slice of 3.5 chips.*v5p-2 .*and v5p-8"),
        ("v6e-17", "v6e-N counts chips; the nearest are v6e-16 .v6e:4x4. and v6e-32"),
        ("v5e:512", "no slice of 512 chips; the nearest are v5e:256"),
        ("h100:12", "12 h100 are no whole nodes of 8; take h100:8 or h100:16"),
        ("h100:2x9", "at most 8 GPUs a node"),
        ("a3-highgpu-16g", "1 to 8 GPUs"),
        ("a3-highgpu-8g:x", "how many machines"),
        ("h100", "give the shape, as h100:8"),
        ("gb200", "as gb200:72"),
        ("4090:1", "no chip '4090'"),
        ("", "no chip ''"),
        ("x:y:z", "no chip 'x'"),
    ],
)
def test_what_is_ambiguous_or_impossible_says_what_would_do(name, says):
    with pytest.raises(ValueError, match=says):
        read_name(name)


def test_every_slice_and_every_node_is_read_as_it_is_written():
    """The form that results say is read back; in any order of its dims too."""
    for chip in CHIPS:
        shapes = [(1, n) for n in range(1, min(chip.node, 9))] if chip.node else valid_shapes(chip)
        for shape in shapes:
            found = find_topology(text_of(chip, shape))
            assert (found.chip, found.shape, read_name(found.name).how) == (chip, shape, "")
            if not chip.node:
                assert find_topology(text_of(chip, tuple(reversed(shape)))) == found
                number = math.prod(shape) * (2 if chip.name in ("v2", "v3", "v4", "v5p", "tpu7x") else 1)
                assert find_topology(f"{chip.name}-{number}").chips == math.prod(shape)
        assert all(find_topology(name) for name in examples(chip))


def test_names_lead_to_chips_that_there_are():
    names = [n for c in CHIPS for n in (c.name, *c.aliases, *c.machine_types)]
    assert len(names) == len(set(names)), "a name of two chips"
    assert all(find_topology(f"{alias}:{'1' if BY_NAME[name].node else '4'}") for alias, name in ALIASES.items())
    for machine, (chip, gpus) in MACHINES.items():
        found = read_name(machine if gpus else f"{machine}-1g")
        assert (found.chip, found.shape) == (chip, (1, gpus or 1))


def test_slices_that_cannot_be_joined_are_refused():
    with pytest.raises(ValueError, match="v3 slices cannot be joined"):
        find_topology("v3:4x4", slices=2)


# --- what is stated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "network", "per_chip"),
    [
        ("h100:12x8", "800Gb/s", 12.5e9),
        ("h100:12x8", "100GB/s", 12.5e9),
        ("h100:12x8", "800Gbps", 12.5e9),
        ("h100:12x8", "100 GB/s a node", 12.5e9),
        ("h100:12x8", "400Gb/s/gpu", 50e9),
        ("h100:2x4", "400Gb/s/node", 12.5e9),
        ("rtx4090:2x1", "10Gb/s", 1.25e9),
        ("gb200:2x72", "1600Gb/s", 50e9),  # a tray of 4
        ("v6e:16x16", "200Gb/s", 6.25e9),  # a host of 4
        ("v6e:16x16", "100Gb/s/chip", 12.5e9),
    ],
)
def test_a_network_is_stated_for_a_node_or_a_chip(name, network, per_chip):
    found, (line,) = read_topology(name, network=network)
    assert found.network_bandwidth == per_chip
    assert line.startswith("stated: network")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("800", "give number and unit"),
        ("800Gb", "give number and unit"),
        ("fast", "give number and unit"),
        ("-1Gb/s", "give number and unit"),
        ("0Gb/s", "0 GB/s for each h100"),
        ("8000GB/s", "1,000 GB/s for each h100, and its NVLink has 450"),
    ],
)
def test_a_network_without_a_unit_or_beyond_reason_is_refused(network, says):
    with pytest.raises(ValueError, match=says):
        read_topology("h100:2x8", network=network)


def test_links_ride_the_stated_network():
    """All-gather of 10 GB over 16 nodes: 15/16 V / 12.5 GB/s, where the datasheet's would be 50 GB/s."""
    stated, _ = read_topology("h100:16x8", network="800Gb/s")
    own = links(stated, {"data": 16, "fsdp": 8})
    assert own["data"].seconds("all-gather", 10e9) == {"network": pytest.approx(15 / 16 * 10e9 / 12.5e9)}
    assert own["fsdp"] == links(find_topology("h100:16x8"), {"data": 16, "fsdp": 8})["fsdp"]
    stated, _ = read_topology("v6e:16x16", 2, network="25Gb/s/chip")
    assert links(stated, {"fsdp": 256}, {"data": 2})["data"].stages[0].bandwidth == 25e9 / 8


def test_cards_without_nvlink_ride_pcie_and_amd_s_their_own():
    assert [s.kind for s in links(find_topology("l4:2x8"), {"fsdp": 16})["fsdp"].stages] == ["PCIe", "network"]
    assert [s.kind for s in links(find_topology("mi300x:8"), {"fsdp": 8})["fsdp"].stages] == ["xGMI"]


@pytest.mark.parametrize(
    ("name", "stated", "host"),
    [
        ("v5p:4x4x4", None, 448e9),
        ("v5p:1x1x1", None, 112e9),  # a quarter of a host
        ("v6e:16x16", None, 720e9),
        ("h100:4x8", None, 2000e9),
        ("h100:1", None, 250e9),
        ("h100:4x8", "1872GB", 1872e9),
        ("rtx4090:1", "32GiB", 32 * 2**30),
        ("h100:4x8", "100GB/gpu", 800e9),
    ],
)
def test_host_memory(name, stated, host):
    assert read_topology(name, host_memory=stated)[0].host_bytes == host


@pytest.mark.parametrize("text", ["64", "64Gb", "0GB", "0.5GB", "lots"])
def test_a_host_memory_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="--host-memory"):
        read_topology("h100:8", host_memory=text)


def test_a_host_holds_what_its_devices_offload():
    assert find_topology("tpu7x:4x4x4").on_host(1e9) == 8e9  # 4 chips of 2 devices
    assert find_topology("h100:2").on_host(1e9) == 2e9
