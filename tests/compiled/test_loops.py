"""How often a loop runs, read from its text: starts, steps, directions, and where compilers hide them."""

import operator
from itertools import product

import pytest

from jaxscale.compiled.hlo import parse
from jaxscale.compiled.loops import trips
from jaxscale.compiled.work import Worker, matmuls

HOLDS = {"LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "NE": operator.ne,
         "EQ": operator.eq}  # fmt: skip


@pytest.mark.parametrize("direction", HOLDS)
def test_trips_are_those_of_the_loop_run(direction):
    for start, step, bound in product(range(-5, 6), range(-4, 5), range(-5, 6)):
        i, count = start, 0
        while HOLDS[direction](i, bound) and count < 50:
            i, count = i + step, count + 1
        assert trips(direction, start, step, bound) == (None if count == 50 else count), (start, step, bound)


# a matmul of 2 * 8**3 FLOPs in a loop; what differs is put in
LOOP = """HloModule m, is_scheduled=true

{more}

%body (p.1: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {{
  %p.1 = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  %x.1 = f32[8,8]{{1,0}} get-tuple-element(%p.1), index=1
  %n.1 = s32[] get-tuple-element(%p.1), index=2
  %d.1 = f32[8,8]{{1,0}} dot(%x.1, %x.1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
{step}
  ROOT %t.1 = (s32[], f32[8,8], s32[]) tuple(%next.1, %d.1, %n.1)
}}

%condition (p.2: (s32[], f32[8,8], s32[])) -> pred[] {{
  %p.2 = (s32[], f32[8,8], s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] get-tuple-element(%p.2), index=2
{test}
}}

ENTRY %main (x: f32[8,8], s: s32[]) -> f32[8,8] {{
  %x = f32[8,8]{{1,0}} parameter(0)
  %s = s32[] parameter(1)
  %bound = s32[] constant(30)
{start}
  %t = (s32[], f32[8,8], s32[]) tuple(%first, %x, %bound)
  %w = (s32[], f32[8,8], s32[]) while(%t), condition=%condition, body=%body
  ROOT %o = f32[8,8]{{1,0}} get-tuple-element(%w), index=1
}}
"""
START = "  %first = s32[] constant(0)"
STEP = "  %one.1 = s32[] constant(1)\n  %next.1 = s32[] add(%i.1, %one.1)"
TEST = "  %c.2 = s32[] constant(12)\n  ROOT %less = pred[] compare(%i.2, %c.2), direction=LT"
ADDER = """%adder (p.3: s32[], p.4: s32[]) -> (s32[], s32[]) {
  %p.3 = s32[] parameter(0)
  %p.4 = s32[] parameter(1)
  %two.3 = s32[] constant(2)
  %sum.3 = s32[] add(%two.3, %p.3)
  ROOT %t.3 = (s32[], s32[]) tuple(%p.4, %sum.3)
}

%comparer (p.5: s32[], p.6: s32[]) -> pred[] {
  %p.5 = s32[] parameter(0)
  %p.6 = s32[] parameter(1)
  ROOT %c.5 = pred[] compare(%p.5, %p.6), direction=GT
}
"""


def loop(start=START, step=STEP, test=TEST, more="") -> str:
    return LOOP.format(start=start, step=step, test=test, more=more)


LOOPS = {
    "counts by one": (loop(), 12),
    "counts by two": (loop(step=STEP.replace("constant(1)", "constant(2)")), 6),
    "counts by five, unevenly": (loop(step=STEP.replace("constant(1)", "constant(5)")), 3),
    "starts at three": (loop(start="  %first = s32[]{:T(128)} constant(3)"), 9),
    "starts behind a copy": (loop(start="  %f = s32[] constant(2)\n  %first = s32[]{:T(128)} copy(%f)"), 10),
    "bound included": (loop(test=TEST.replace("LT", "LE")), 13),
    "until equal": (loop(test=TEST.replace("LT", "NE")), 12),
    "counts down": (
        loop(
            start="  %first = s32[] constant(11)",
            step="  %one.1 = s32[] constant(-1)\n  %next.1 = s32[] add(%i.1, %one.1)",
            test="  %c.2 = s32[] constant(0)\n  ROOT %less = pred[] compare(%i.2, %c.2), direction=GE",
        ),
        12,
    ),
    "subtracts": (
        loop(
            start="  %first = s32[] constant(12)",
            step="  %one.1 = s32[] constant(3)\n  %next.1 = s32[] subtract(%i.1, %one.1)",
            test="  %c.2 = s32[] constant(0)\n  ROOT %less = pred[] compare(%i.2, %c.2), direction=GT",
        ),
        4,
    ),
    "bound on the left": (
        loop(test="  %c.2 = s32[] constant(12)\n  ROOT %less = pred[] compare(%c.2, %i.2), direction=GT"), 12,
    ),
    "bound in the loop's tuple": (loop(test="  ROOT %less = pred[] compare(%i.2, %n.2), direction=LT"), 30),
    "another constant in the condition": (
        loop(
            test="  %c.2 = s32[] constant(12)\n  %k.2 = s32[] constant(1)\n  %j.2 = s32[] add(%i.2, %k.2)\n"
            "  ROOT %less = pred[] compare(%j.2, %c.2), direction=LE"
        ),
        12,
    ),
    "two steps a run": (
        loop(
            step="  %one.1 = s32[] constant(1)\n  %half.1 = s32[] add(%i.1, %one.1)\n"
            "  %next.1 = s32[] add(%one.1, %half.1)"
        ),
        6,
    ),
    "in fusions": (
        loop(
            more=ADDER,
            step="  %f.1 = (s32[], s32[]) fusion(%i.1, %n.1), kind=kLoop, calls=%adder\n"
            "  %next.1 = s32[] get-tuple-element(%f.1), index=1",
            test="  %c.2 = s32[] constant(12)\n  ROOT %f.2 = pred[] fusion(%c.2, %i.2), kind=kLoop, calls=%comparer",
        ),
        6,
    ),
    "never": (loop(start="  %first = s32[] constant(12)"), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_loops_run_as_often_as_their_text_says(name):
    text, times = LOOPS[name]
    program = parse(text)
    assert program.unknown_loops == []
    assert program.trips == {"w": times}
    assert sum(m.flops * m.times for m in matmuls(program)) == times * 2 * 8**3
    assert Worker(program).of_computation(program.entry).flops == times * 2 * 8**3


UNKNOWN = {
    "starts where an argument says": loop(start="  %first = s32[] copy(%s)"),
    "doubles": loop(step="  %next.1 = s32[] add(%i.1, %i.1)"),
    "multiplies": loop(step="  %one.1 = s32[] constant(2)\n  %next.1 = s32[] multiply(%i.1, %one.1)"),
    "moves away from its bound": loop(step=STEP.replace("constant(1)", "constant(-1)")),
    "two conditions": loop(
        test="  %c.2 = s32[] constant(12)\n  %l.2 = pred[] compare(%i.2, %c.2), direction=LT\n"
        "  %m.2 = pred[] compare(%i.2, %n.2), direction=LT\n  ROOT %less = pred[] and(%l.2, %m.2)"
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_loop_that_cannot_be_read_is_named_and_counts_once(name):
    program = parse(UNKNOWN[name])
    assert program.unknown_loops == ["w"]
    assert sum(m.flops * m.times for m in matmuls(program)) == 2 * 8**3


def test_a_bound_from_the_loop_around():
    """An inner loop whose start and bound the outer one carries along unchanged."""
    text = """HloModule m

%inner (p.1: (s32[], s32[], f32[8,8])) -> (s32[], s32[], f32[8,8]) {
  %p.1 = (s32[], s32[], f32[8,8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n.1 = s32[] get-tuple-element(%p.1), index=1
  %x.1 = f32[8,8] get-tuple-element(%p.1), index=2
  %two = s32[] constant(2)
  %next.1 = s32[] add(%i.1, %two)
  %d.1 = f32[8,8] dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t.1 = (s32[], s32[], f32[8,8]) tuple(%next.1, %n.1, %d.1)
}

%inner_condition (p.2: (s32[], s32[], f32[8,8])) -> pred[] {
  %p.2 = (s32[], s32[], f32[8,8]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] get-tuple-element(%p.2), index=1
  ROOT %c.2 = pred[] compare(%i.2, %n.2), direction=LT
}

%outer (p.3: (s32[], s32[], s32[], f32[8,8])) -> (s32[], s32[], s32[], f32[8,8]) {
  %p.3 = (s32[], s32[], s32[], f32[8,8]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %z.3 = s32[] get-tuple-element(%p.3), index=1
  %n.3 = s32[] get-tuple-element(%p.3), index=2
  %x.3 = f32[8,8] get-tuple-element(%p.3), index=3
  %t.3 = (s32[], s32[], f32[8,8]) tuple(%z.3, %n.3, %x.3)
  %w.3 = (s32[], s32[], f32[8,8]) while(%t.3), condition=%inner_condition, body=%inner
  %y.3 = f32[8,8] get-tuple-element(%w.3), index=2
  %one = s32[] constant(1)
  %next.3 = s32[] add(%i.3, %one)
  ROOT %u.3 = (s32[], s32[], s32[], f32[8,8]) tuple(%next.3, %z.3, %n.3, %y.3)
}

%outer_condition (p.4: (s32[], s32[], s32[], f32[8,8])) -> pred[] {
  %p.4 = (s32[], s32[], s32[], f32[8,8]) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  %three = s32[] constant(3)
  ROOT %c.4 = pred[] compare(%i.4, %three), direction=LT
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8] parameter(0)
  %zero = s32[] constant(0)
  %eight = s32[] constant(8)
  %t = (s32[], s32[], s32[], f32[8,8]) tuple(%zero, %zero, %eight, %x)
  %w = (s32[], s32[], s32[], f32[8,8]) while(%t), condition=%outer_condition, body=%outer
  ROOT %o = f32[8,8] get-tuple-element(%w), index=3
}
"""
    program = parse(text)
    assert program.trips == {"w": 3, "w.3": 4}
    assert sum(m.flops * m.times for m in matmuls(program)) == 12 * 2 * 8**3
