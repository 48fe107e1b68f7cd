"""The timeline of a pipeline that `explain` prints."""

from jaxscale.blueprint.stages import Schedule


def test_each_microbatch_passes_each_stage_once_forward_and_once_backward():
    schedule = Schedule(4, 6)
    for s in range(4):
        for at in (schedule.forward, schedule.backward):
            done = [at(s, t) for t in range(schedule.ticks + schedule.ramp)]
            assert [m for m in done if m is not None] == list(range(6))
    for m in range(6):
        down = [t for s in range(4) for t in range(20) if schedule.forward(s, t) == m]
        up = [t for s in reversed(range(4)) for t in range(20) if schedule.backward(s, t) == m]
        assert down == list(range(m, m + 4))  # a stage a tick, and back from the last stage in the same tick
        assert up == list(range(m + 3, m + 7))


def test_explain_prints_the_timeline_of_a_pipeline(jaxscale_here):
    changes = ["data.kind=synthetic", "data.path=null", "step.remat=full", "model.num_layers=4", "step.microbatches=4"]
    explain = ["explain", "quickstart", *changes]
    out = jaxscale_here(*explain, "--mesh", "pipeline=4,fsdp=2").stdout
    assert "4 layers in 4 stages (pipeline=4, fsdp=2)" in out
    assert "bubble (S-1)/(M+S-1) = 42.9% of the time" in out
    assert "collective-permute over pipeline: " in out
    assert "--mesh fsdp=2" in out
    refused = jaxscale_here(*explain, "--mesh", "pipeline=3,fsdp=2")
    assert refused.returncode == 2
    assert "num_layers" in refused.stderr
    assert "tables of matmuls know no stages" in jaxscale_here(*explain, "--mesh", "pipeline=4,fsdp=2", "--json").stderr
