"""Replica groups in every form that HLO has, and the mesh axes, or parts of axes, that they run over."""

from itertools import combinations

import numpy as np
import pytest

from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.examine import cut_axes
from jaxscale.compiled.groups import GroupAxes, SubAxis, replica_groups
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.instructions import parse_instruction
from jaxscale.compiled.work import KINDS
from jaxscale.hardware.topology import find_topology, links


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", {(0, 1), (2, 3)}),
        ("{{0},{1},{2},{3}}", {(0,), (1,), (2,), (3,)}),
        ("[2,2]<=[4]", {(0, 1), (2, 3)}),
        ("[2,2]<=[2,2]T(1,0)", {(0, 2), (1, 3)}),
        ("mesh['a'=2,'b'=2] {'a'}", {(0, 2), (1, 3)}),
        ("mesh['a'=2,'b'=2] {'b','a'}", {(0, 1, 2, 3)}),
        ("mesh['a'=4] {'a'}", {(0, 1, 2, 3)}),
        ("mesh[a=2,b=2] {b}", {(0, 1), (2, 3)}),  # names without quotes
        ("mesh['a'=4] {'a':(1)2}", {(0, 2), (1, 3)}),
        ("mesh['a'=4] {'a':(2)2}", {(0, 1), (2, 3)}),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", {(0, 1), (2, 3)}),
        ("mesh['a'=4], device_ids=([2,2]T(1,0)) {'a':(2)2}", {(0, 2), (1, 3)}),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", {(0, 3), (1, 2)}),
        ("mesh['a,b'=2,'c'=2] {'a,b'}", {(0, 2), (1, 3)}),
        ("{}", {(0, 1, 2, 3)}),
    ],
)
def test_replica_groups_in_every_form(text, groups):
    assert replica_groups(f"channel_id=1, replica_groups={text}, x=1", 4) == frozenset(map(frozenset, groups))


def test_several_parts_of_one_axis():
    """Positions of 16 as 2 x 2 x 2 x 2: groups over the first and the third factor."""
    cells = np.arange(16).reshape(2, 2, 2, 2)
    wanted = frozenset(frozenset(map(int, cells[:, i, :, j].ravel())) for i in range(2) for j in range(2))
    assert replica_groups("replica_groups=mesh['a'=16] {'a':(1)2,'a':(4)2}", 16) == wanted
    assert replica_groups("replica_groups=mesh['a'=16] {'a':(4)2,'a':(1)2}", 16) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "@what",
        "mesh['a'=4] {'b'}",
        "mesh['a'=4] {}",
        "mesh['a'=4] {'a':(3)2}",
        "mesh['a'=4], device_ids=(0,1) {'a'}",
        "[2,2]<=[2,3]",
    ],
)
def test_replica_groups_in_a_form_that_is_not_known_are_an_error(text):
    with pytest.raises(ValueError, match="form that is not known: replica_groups="):
        replica_groups(f"channel_id=1, replica_groups={text}", 4)


def span(groups: str, mesh: dict[str, int]):
    i = parse_instruction(f"  %c = f32[8] all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add")
    assert i
    return GroupAxes(mesh).of(i)


def test_groups_over_part_of_an_axis():
    """In libtpu 0.0.52 an axis may be cut; the same groups written as a list say the same."""
    mesh = {"data": 2, "fsdp": 64}
    found = span("mesh['data'=2,'fsdp'=64] {'fsdp':(8)8}", mesh)
    assert (found.axes, found.count, found.parts) == (("fsdp",), 8, (SubAxis("fsdp", 8, 8),))
    assert span("[16,8]<=[128]", mesh) == found
    outer = span("mesh['data'=2,'fsdp'=64] {'data','fsdp':(1)4}", mesh)
    assert (outer.axes, outer.count, outer.parts) == (("data", "fsdp"), 8, (SubAxis("fsdp", 1, 4),))
    assert span("{{0,3},{1,2}}", {"fsdp": 4}).axes == ()  # no part of an axis


def test_every_part_of_every_axis_is_found_again():
    """All subsets of the prime factors of a mesh 4 x 6: from the groups to the parts, and from these to the groups."""
    mesh, shape = {"a": 4, "b": 6}, (2, 2, 2, 3)
    ids = np.arange(24).reshape(shape)
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            rest = [k for k in range(4) if k not in chosen]
            rows = ids.transpose([*rest, *chosen]).reshape(-1, int(np.prod([shape[k] for k in chosen]))).tolist()
            listed = "{" + ",".join("{" + ",".join(map(str, r)) + "}" for r in rows) + "}"
            found = span(listed, mesh)
            assert found.count == len(rows[0])
            names = [p.name for p in found.parts] + [a for a in found.axes if a not in {p.axis for p in found.parts}]
            again = f"mesh['a'=4,'b'=6] {{{','.join(names)}}}"
            assert replica_groups(f"replica_groups={again}", 24) == frozenset(map(frozenset, rows))


def test_part_of_an_axis_rides_its_own_torus_dim():
    """fsdp=64 over 8x8: its inner half is one ring of 8, which has half of the links of both."""
    mesh = cut_axes({"data": 2, "fsdp": 64}, [SubAxis("fsdp", 8, 8)])
    assert mesh == {"data": 2, "fsdp before 8": 8, "fsdp:(8)8": 8, "fsdp from 64": 1}
    topology = find_topology("v6e:8x8")
    whole = links(topology, {"fsdp": 64})["fsdp"].stages[0].bandwidth
    part = links(topology, cut_axes({"fsdp": 64}, [SubAxis("fsdp", 8, 8)]))["fsdp:(8)8"].stages[0]
    assert (part.size, part.bandwidth) == (8, whole / 2)


PLAIN = """HloModule m

%other (q: f32[8]) -> f32[8] {{
  %q = f32[8] parameter(0)
  ROOT %r = f32[8] {kind}(%q), channel_id=2, replica_groups={{{{0,1}}}}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8] parameter(0)
  ROOT %o = f32[8] {line}
}}
"""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_collective_is_counted(kind):
    (found,) = collectives(parse(PLAIN.format(kind=kind, line="call(%p), to_apply=%other")), {"data": 2})
    assert (found.kind, found.axes, found.times) == (kind, ("data",), 1)


def test_a_collective_that_nothing_known_calls_is_an_error():
    text = PLAIN.format(kind="all-reduce", line="summon(%p), spell=%other")
    with pytest.raises(ValueError, match="nothing that is known calls other"):
        collectives(parse(text), {"data": 2})


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('"%o": f32[8] all-reduce(%p), replica_groups={{0,1}}', "cannot be read: \"%o\""),
        ("%o = f32[8] all-reduce(%p, replica_groups={{0,1}}", "unbalanced"),
        ("%o = f32[8]", "cannot be read: %o = f32"),
        ("%o = z9[8] all-reduce(%p), replica_groups={{0,1}}", "type that is not known: z9"),
        ("%region [p: f32[8]] {", "cannot be read: %region"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_one_clear_error(line, match):
    text = PLAIN.format(kind="negate", line="negate(%p)").replace("  ROOT %o = f32[8] negate(%p)", f"  {line}")
    with pytest.raises(ValueError, match=match):
        collectives(parse(text), {"data": 2})
