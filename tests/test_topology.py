"""Topologies, and the speed of mesh axes on them, by hand."""

import pytest

from jaxscale.hardware.topology import assign, combined, find_topology, links


@pytest.mark.parametrize(
    ("name", "devices", "wraps"),
    [
        ("v5p:8x8x8", 512, (True, True, True)),
        ("v5p:2x4x4", 32, (False, False, False)),
        ("v6e:8x16", 128, (False, True)),
        ("v6e:16x16", 256, (True, True)),
        ("tpu7x:4x4x4", 128, (True, True, True)),
    ],
)
def test_tpu_topologies(name, devices, wraps):
    found = find_topology(name)
    assert (found.devices, found.wraps) == (devices, wraps)


def test_gpu_topologies_are_nodes_times_gpus():
    assert find_topology("h100:16x8").devices == 128
    assert find_topology("h200:8").shape == (1, 8)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5p:9x9x9", "nearest are v5p:8x8x12"),
        ("v6e:3x3", "nearest are v6e:2x4"),
        ("v5q:4x4", "did you mean v5p"),
        ("h100:4x16", "at most 8 GPUs a node"),
        ("v5p", "give the shape, as v5p:4x4x4"),
        ("v6e:0x4", "give the shape"),
        ("v6e:4x4x4x4x4", "nearest are"),
    ],
)
def test_an_unknown_topology_says_what_would_do(name, says):
    with pytest.raises(ValueError, match=says):
        find_topology(name)


def test_gpus_have_no_slices():
    with pytest.raises(ValueError, match="has nodes, not slices"):
        find_topology("h100:2x8", slices=2)


def test_axes_take_whole_torus_dims_where_they_fit():
    assert assign((8, 8, 8), {"fsdp": 64, "tensor": 8}) == {"tensor": [(0, 8, 1)], "fsdp": [(1, 8, 1), (2, 8, 1)]}
    assert assign((16, 16), {"fsdp": 256}) == {"fsdp": [(0, 16, 1), (1, 16, 1)]}


def test_an_axis_that_does_not_fit_a_dim_shares_it():
    found = assign((16, 16), {"data": 64, "tensor": 4})
    assert found["tensor"] == [(0, 4, 1)]
    assert sorted(found["data"]) == [(0, 4, 4), (1, 16, 1)]


def test_a_ring_takes_in_from_both_sides_a_line_from_one():
    """All-gather of 1.8 GB over 8 chips of v5p: 7/8 V / (2 * 90 GB/s) on a ring."""
    ring = links(find_topology("v5p:8x8x8"), {"fsdp": 64, "tensor": 8})["tensor"]
    assert ring.seconds("all-gather", 1.8e9) == {"ICI": pytest.approx(7 / 8 * 1.8e9 / 180e9)}
    assert ring.seconds("all-reduce", 1.8e9) == {"ICI": pytest.approx(2 * 7 / 8 * 1.8e9 / 180e9)}
    line = links(find_topology("v6e:8x8"), {"fsdp": 8, "tensor": 8})["tensor"]
    assert line.seconds("reduce-scatter", 1.8e9) == {"ICI": pytest.approx(7 / 8 * 1.8e9 / 90e9)}


def test_small_messages_cost_their_hops():
    ring = links(find_topology("v5p:8x8x8"), {"fsdp": 64, "tensor": 8})["tensor"]
    assert ring.seconds("all-gather", 8.0) == {"ICI": pytest.approx(4e-6)}


def test_two_torus_dims_have_twice_the_bandwidth():
    own = links(find_topology("v5p:8x8x8"), {"fsdp": 64, "tensor": 8})
    assert own["fsdp"].seconds("all-gather", 1e9)["ICI"] == pytest.approx(63 / 64 * 1e9 / 360e9)
    both = combined(own, ("fsdp", "tensor"))
    assert both.seconds("all-gather", 1e9)["ICI"] == pytest.approx(511 / 512 * 1e9 / 540e9)


def test_between_slices_only_the_shard_travels():
    """Data over 2 slices beside fsdp=256: a device's all-reduce of 12.5 MB takes 2 * 1/2 * V / 12.5 GB/s."""
    own = links(find_topology("v6e:16x16", slices=2), {"fsdp": 256}, {"data": 2})
    assert own["data"].seconds("all-reduce", 12.5e6) == {"DCN": pytest.approx(1e-3)}
    own = links(find_topology("v6e:16x16", slices=2), {"fsdp": 256}, {"fsdp": 2})
    seconds = own["fsdp"].seconds("all-gather", 25.6e9)
    assert seconds["DCN"] == pytest.approx(25.6e9 / 256 / 2 / 12.5e9)


def test_within_a_node_nvlink_between_nodes_the_network():
    own = links(find_topology("h100:16x8"), {"data": 16, "fsdp": 8})
    assert own["fsdp"].seconds("all-gather", 4.5e9) == {"NVLink": pytest.approx(7 / 8 * 0.01)}
    assert own["data"].seconds("reduce-scatter", 5e9) == {"network": pytest.approx(15 / 16 * 0.1)}
    wide = links(find_topology("h100:16x8"), {"fsdp": 128})["fsdp"]
    assert wide.seconds("all-gather", 4e9)["network"] == pytest.approx(15 / 16 * 4e9 / 400e9)  # V / the node's 400 GB/s


def test_gpu_meshes_that_do_not_divide_a_node_count_on_the_network():
    """Three GPUs side by side, eight a node: groups of the outer axis straddle nodes."""
    own = links(find_topology("h100:3x8"), {"fsdp": 8, "tensor": 3})
    assert [s.kind for s in own["tensor"].stages] == ["network"]
    assert [s.kind for s in own["fsdp"].stages] == ["network"]
    own = links(find_topology("h100:2x8"), {"data": 2, "fsdp": 4, "tensor": 2})
    assert [s.kind for s in own["fsdp"].stages] == ["NVLink"]
    assert [s.kind for s in own["data"].stages] == ["network"]


def test_the_two_devices_of_a_chip_share_its_links():
    """TPU7x: 3 dims, both ways, 100 GB/s a link make 600 GB/s a chip, 300 a device."""
    own = links(find_topology("tpu7x:4x4x4"), {"fsdp": 128})["fsdp"]
    assert own.stages[0].bandwidth == pytest.approx(300e9)
    core = links(find_topology("tpu7x:4x4x4"), {"fsdp": 64, "tensor": 2})["tensor"]
    assert core.stages[0].bandwidth == pytest.approx(600e9)
