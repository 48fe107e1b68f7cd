"""SparseCore collectives as libtpu 0.0.52 writes them: room made by a start, begun by an update, axes named or cut."""

from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.groups import SubAxis
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import Worker

TEXT = """HloModule m, is_scheduled=true

%called_computation.45 (param_0.1: bf16[4,8]) -> bf16[32,8] {
  %param_0.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %tuple.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%param_0.1)
  %get-tuple-element.1 = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%tuple.1), index=0
  ROOT %all-gather.1 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%get-tuple-element.1), channel_id=49, replica_groups=mesh['axis_0'=64] {'axis_0':(8)8}, dimensions={0}, use_global_device_ids=true
}, execution_thread="sparsecore"

%called_computation.43 (param_0.2: bf16[64,8]) -> bf16[1,8] {
  %param_0.2 = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %reduce-scatter.1 = bf16[1,8]{1,0:T(8,128)(2,1)} reduce-scatter(%param_0.2), channel_id=50, replica_groups=mesh['fsdp'=64] {'fsdp'}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (p: bf16[4,8], q: bf16[64,8], x: bf16[16,64]) -> (bf16[32,8], bf16[1,8]) {
  %p = bf16[4,8]{1,0} parameter(0)
  %q = bf16[64,8]{1,0} parameter(1)
  %x = bf16[16,64]{1,0} parameter(2)
  %all-gather.1.call-start = ((), (), (s32[8192]{0:T(1024)}, s32[0]{0:T(1)S(12)}, /*index=5*/s32[128]{0:T(1)L(128)S(4)})) custom-call-start(), async_execution_thread="sparsecore", custom_call_target="TODO(b/522284627)", called_computations={%called_computation.45}, frontend_attributes={is_spmd_generated="true"}
  %before = bf16[16,8]{1,0} dot(%x, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-gather.1.call-update = ((bf16[4,8]{1,0}), bf16[32,8]{1,0}, (s32[8192]{0:T(1024)})) custom-call-update(%all-gather.1.call-start, %p), output_to_operand_aliasing={{2,0}: (0, {2,0})}
  %reduce-scatter.1.call-start = ((), (), (s32[8192]{0:T(1024)})) custom-call-start(), async_execution_thread="sparsecore", custom_call_target="TODO(b/522284627)", called_computations={%called_computation.43}
  %reduce-scatter.1.call-update = ((bf16[64,8]{1,0}), bf16[1,8]{1,0}, (s32[8192]{0:T(1024)})) custom-call-update(%reduce-scatter.1.call-start, %q), output_to_operand_aliasing={{2,0}: (0, {2,0})}
  %meanwhile = bf16[16,8]{1,0} dot(%x, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-gather.1.call-done = bf16[32,8]{1,0} custom-call-done(%all-gather.1.call-update)
  %reduce-scatter.1.call-done = bf16[1,8]{1,0} custom-call-done(%reduce-scatter.1.call-update)
  ROOT %o = (bf16[32,8]{1,0}, bf16[1,8]{1,0}) tuple(%all-gather.1.call-done, %reduce-scatter.1.call-done)
}
"""  # noqa: E501


def test_collectives_of_another_thread_are_read_with_their_axes_and_bytes():
    found = {c.kind: c for c in collectives(parse(TEXT), {"fsdp": 64})}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.axes, gather.groups, gather.parts) == (("fsdp",), 8, (SubAxis("fsdp", 8, 8),))
    assert (gather.bytes, gather.times, gather.asynchronous) == (32 * 8 * 2, 1, True)
    assert (scatter.axes, scatter.groups, scatter.parts) == (("fsdp",), 64, ())
    assert (scatter.bytes, scatter.times, scatter.asynchronous) == (64 * 8 * 2, 1, True)


def test_work_before_the_array_is_given_does_not_run_meanwhile():
    program = parse(TEXT)
    dot = 2 * 16 * 64 * 8
    assert Worker(program).of_computation(program.entry).flops == 2 * dot
    assert {c.kind: c.meanwhile.flops for c in collectives(program, {"fsdp": 64})} == {
        "all-gather": dot,
        "reduce-scatter": dot,
    }
