"""Reading compiled programs, on small saved texts of each compiler, checked by hand.

Each is `x[B, T, D] @ w[D, D]` and a tanh, scanned over 3 layers with full recompute, forward, backward and an update,
on a mesh data=2, fsdp=2: B=8, T=256, D=512, w split over fsdp along its first dim, x over both axes.

By hand, a device: 512 tokens; one matmul is 2 * 512**3 FLOPs; 3 layers x (forward, forward again, two backward) = 12.
A layer's weight is gathered forward and backward, its gradient summed over both axes: 3 x 2 and 3 times D * D numbers.
"""

from pathlib import Path

import pytest

from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.instructions import Array, parse_instruction
from jaxscale.compiled.live import largest_buffers, peak
from jaxscale.compiled.memory_error import too_large_for_vmem
from jaxscale.compiled.work import Worker, attention_kernel, convolution_flops, kernels, matmuls

TEXTS = Path(__file__).parent / "texts"
MESH = {"data": 2, "fsdp": 2}
D, TOKENS = 512, 512
WIDTH = {"cpu": 4, "h100": 2, "v5e": 2, "v6e": 2}  # CPU's collectives are float32


def program(name: str):
    return parse((TEXTS / f"{name}.txt").read_text())


@pytest.mark.parametrize("name", WIDTH)
def test_matmul_flops_with_loops_multiplied_out(name):
    found = program(name)
    assert found.unknown_loops == []
    assert sum(m.flops * m.times for m in matmuls(found)) == 12 * 2 * TOKENS * D * D
    assert Worker(found).of_computation(found.entry).flops == 12 * 2 * TOKENS * D * D


@pytest.mark.parametrize("name", WIDTH)
def test_collectives_by_axis_and_bytes(name):
    found = collectives(program(name), MESH)
    large = [c for c in found if c.bytes > 4096]
    gathers = [c for c in large if c.kind == "all-gather"]
    sums = [c for c in large if c.kind != "all-gather"]
    assert {c.axes for c in gathers} == {("fsdp",)}
    assert {c.axes for c in sums} == {("data", "fsdp")}
    assert sum(c.times for c in gathers) == 6
    assert sum(c.times for c in sums) == 3
    bf16 = {c.wire: D * D * (2 if c.wire == "bf16" else 4) for c in large}
    assert {c.wire: c.bytes for c in large} == bf16
    if name != "h100":  # XLA's GPU compiler gathers one of the two before it is cast
        assert {c.wire for c in large} == {"f32" if WIDTH[name] == 4 else "bf16"}


def test_asynchronous_collectives_know_what_runs_meanwhile():
    """v6e's preset hands all-gathers to the SparseCore: start/done pairs round a call of another computation."""
    gathers = [c for c in collectives(program("v6e"), MESH) if c.kind == "all-gather" and c.bytes > 4096]
    assert all(c.asynchronous for c in gathers)
    gathers = [c for c in collectives(program("cpu"), MESH) if c.kind == "all-gather"]
    assert not any(c.asynchronous for c in gathers)


CHAIN = """HloModule m, is_scheduled=true

%start (a: bf16[64,8]) -> (bf16[64,8], bf16[128,8]) {
  %a = bf16[64,8]{1,0} parameter(0)
  %g = bf16[128,8]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1},{2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %c = (bf16[64,8]{1,0}, bf16[128,8]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%carry (a.1: bf16[64,8], x: bf16[16,32], w: bf16[32,8]) -> bf16[16,8] {
  %a.1 = bf16[64,8]{1,0} parameter(0)
  %x = bf16[16,32]{1,0} parameter(1)
  %w = bf16[32,8]{1,0} parameter(2)
  %g.1 = bf16[128,8]{1,0} all-gather(%a.1), channel_id=7, replica_groups={{0,1},{2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %d = bf16[16,8]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%done (a.2: bf16[64,8]) -> bf16[128,8] {
  %a.2 = bf16[64,8]{1,0} parameter(0)
  %g.2 = bf16[128,8]{1,0} all-gather(%a.2), channel_id=7, replica_groups={{0,1},{2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %c.1 = bf16[128,8]{1,0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[64,8], q: bf16[16,32], r: bf16[32,8]) -> bf16[128,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %q = bf16[16,32]{1,0} parameter(1)
  %r = bf16[32,8]{1,0} parameter(2)
  %s = (bf16[64,8]{1,0}, bf16[128,8]{1,0}) fusion(%p), kind=kCustom, calls=%start
  %m = bf16[16,8]{1,0} fusion(%p, %q, %r), kind=kOutput, calls=%carry
  ROOT %e = bf16[128,8]{1,0} fusion(%p), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_a_collective_spread_over_three_fusions_counts_once():
    """TPU v5e's form: the same all-gather stands in the start, in the matmul that runs meanwhile, and in the end."""
    (gather,) = collectives(parse(CHAIN), MESH)
    assert (gather.kind, gather.axes, gather.times, gather.bytes) == ("all-gather", ("fsdp",), 1, 128 * 8 * 2)
    assert gather.asynchronous
    assert gather.meanwhile.flops == 2 * 16 * 32 * 8


def test_an_all_reduce_that_is_only_sliced_is_a_reduce_scatter():
    text = """HloModule m

%ars (p.1: f32[8,4], i.1: s32[]) -> f32[4,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %r = f32[8,4]{1,0} all-reduce(%p.1), channel_id=1, replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %d = f32[4,4]{1,0} dynamic-slice(%r, %i.1), dynamic_slice_sizes={4,4}
}

ENTRY %main (p: f32[8,4], i: s32[]) -> f32[4,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[4,4]{1,0} fusion(%p, %i), kind=kCustom, calls=%ars
}
"""
    (found,) = collectives(parse(text), MESH)
    assert (found.kind, found.axes, found.bytes) == ("reduce-scatter", ("fsdp",), 8 * 4 * 4)


def instruction(text: str):
    found = parse_instruction(f"  {text}")
    assert found
    return found


def test_convolutions_that_are_matmuls_count_no_padding():
    """q's projection on TPU: [B, T, D] by [D, N, H] with the heads as a window of 2 over padding of 1."""
    i = instruction(
        "%c = bf16[4,1024,2,128]{3,1,2,0:T(8,128)(2,1)} convolution(%x, %w), "
        "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    )
    left, right = Array("bf16", (4, 1024, 512, 1)), Array("bf16", (512, 2, 128, 1))
    assert convolution_flops(i, left, right) == 2 * 4 * 1024 * 512 * 2 * 128
    i = instruction(
        "%c = bf16[512,768,1]{1,0,2} convolution(%x, %g), window={size=4}, dim_labels=0fb_0io->bf0"
    )  # a weight's gradient, batch as the window
    assert convolution_flops(i, Array("bf16", (4, 1024, 512)), Array("bf16", (4, 1024, 768))) == 2 * 4096 * 512 * 768


def test_a_line_with_layouts_tuples_and_comments():
    i = instruction(
        "ROOT %f.1 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[]{:T(128)}) fusion(%a, %b.2), kind=kLoop, "
        'calls=%body.3, metadata={op_name="jit(f)/x"}'
    )
    assert (i.name, i.opcode, i.operands, i.called, i.root) == ("f.1", "fusion", ("a", "b.2"), ("body.3",), True)
    assert [(a.dtype, a.dims, a.memory_space, a.bytes) for a in i.arrays] == [
        ("bf16", (4, 8), 1, 64),
        ("f32", (), 0, 4),
    ]
    assert i.source == "jit(f)/x"


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("nothing of the kind")


def test_attention_kernels_are_told_apart():
    call = '%{} = f32[1]{{0}} custom-call(%q), custom_call_target="{}"'
    kinds = {
        call.format("splash_mha_fwd_residuals.3", "tpu_custom_call"): "forward",
        call.format("splash_mha_dkv_no_residuals.1", "tpu_custom_call"): "backward",
        call.format("c.1", "__cudnn$fmhaSoftmax"): "forward",
        call.format("c.2", "__cudnn$fmhaSoftmaxBackward"): "backward",
        call.format("c.3", "Sharding"): None,
    }
    assert {text: attention_kernel(instruction(text)) for text in kinds} == kinds


def test_kernels_that_a_step_starts_loops_multiplied_out():
    """The entry starts two; the loop runs three times, each with one; scalars, copies and collectives are none."""
    text = """HloModule m, is_scheduled=true

%fused (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = f32[8]{0} sine(%a)
  ROOT %c = f32[8]{0} cosine(%s)
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %one = s32[] constant(1)
  %n = s32[] add(%i, %one)
  %g = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%sum
  %f = f32[8]{0} fusion(%g), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8]{0}) tuple(%n, %f)
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %three = s32[] constant(3)
  ROOT %l = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %h = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%p)
  %d = f32[8]{0:S(1)} copy-done(%h)
  %e = f32[8]{0} fusion(%d), kind=kLoop, calls=%fused
  %t = (s32[], f32[8]{0}) tuple(%zero, %e)
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%w), index=1
  ROOT %z = f32[8]{0} negate(%y)
}
"""
    assert kernels(parse(text)) == 2 + 3


def test_live_buffers_at_the_peak():
    """Two arrays of 400 bytes are alive when the third is made; the first ends before the last."""
    text = """HloModule m, is_scheduled=true

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %a = f32[100]{0} negate(%p), metadata={op_name="jit(f)/neg"}
  %b = f32[100]{0} sine(%a), metadata={op_name="jit(f)/sin"}
  %c = f32[100]{0} add(%a, %b), metadata={op_name="jit(f)/add"}
  ROOT %d = f32[100]{0} cosine(%c)
}
"""
    found = parse(text)
    assert peak(found, found.entry).bytes == 1200
    assert largest_buffers(text, 1) == [("f32[100] jit(f)/neg", 400)]


def test_what_is_sent_between_slices_is_a_collective_on_the_slow_axis():
    """libtpu compiles one slice's program: its groups number its own devices, and the rest goes to the runtime."""
    text = """HloModule m, is_scheduled=true

ENTRY %main (p: bf16[64,8], x: bf16[16,64]) -> bf16[64,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %x = bf16[16,64]{1,0} parameter(1)
  %g = bf16[128,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %t = token[] after-all()
  %s = (bf16[64,8]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, frontend_attributes={_xla_host_transfer_rendezvous="a",_xla_megascale_transfer_type="ALL_REDUCE"}
  %r = (bf16[64,8]{1,0}, u32[], token[]) recv(%t), channel_id=3, frontend_attributes={_xla_host_transfer_rendezvous="a",_xla_megascale_transfer_type="ALL_REDUCE"}
  %d = bf16[16,8]{1,0} dot(%x, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %e = (bf16[64,8]{1,0}, token[]) recv-done(%r), channel_id=3
  ROOT %o = bf16[64,8]{1,0} get-tuple-element(%e), index=0
}
"""  # noqa: E501
    gather, reduce = collectives(parse(text), {"data": 2, "fsdp": 2}, over={"data": 2})
    assert (gather.axes, gather.between_slices) == (("fsdp",), False)
    assert (reduce.kind, reduce.axes, reduce.bytes, reduce.between_slices) == ("all-reduce", ("data",), 1024, True)
    assert reduce.asynchronous
    assert reduce.meanwhile.flops == 2 * 16 * 64 * 8


def test_a_kernel_too_large_for_vmem_is_no_matter_of_hbm():
    error = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: Ran out of memory in memory space vmem while allocating "
        "on stack for %splash_mha_dkv.2 = (bf16[8,4]) custom-call. Scoped allocation with size 16.14M and limit 16.00M "
        "exceeded scoped vmem limit by 144.0K."
    )
    assert too_large_for_vmem(error) == "the kernel splash_mha_dkv.2 wants 16.14M of 16.00M VMEM (on-chip memory)"
    assert too_large_for_vmem("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 161G of 95G hbm") is None
