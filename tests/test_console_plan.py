"""`plan` and `chips` as they are typed and printed, in this process: no compiler, no jax."""

import json
import re

import pytest

from jaxscale.cli.app import app
from jaxscale.hardware.chips import CHIPS

RUN = ["plan", "llama3.1-8b", "data.kind=synthetic", "data.path=null"]


@pytest.fixture
def typed(capsys, monkeypatch):
    """stdout, stderr and exit code of a command on a terminal of so many columns."""

    def call(*words: str, columns: int = 160) -> tuple[str, str, int]:
        monkeypatch.setenv("COLUMNS", str(columns))
        code = app(list(words), standalone_mode=False)
        out = capsys.readouterr()
        return out.out, out.err, code or 0

    return call


def rows(text: str) -> list[str]:
    """Of the first table, those that begin with a number."""
    table = text.partition("Left out")[0]
    return [line for line in table.splitlines() if re.match(r"[│ ]+\d+ ", line)]


def test_row_0_is_the_config_as_it_is(typed):
    out, err, code = typed(*RUN, "--topology", "v5p:4x4x4", "--rows", "2")
    assert [re.sub("[│ ]+", " ", row).split()[0] for row in rows(out)] == ["0", "1", "2"]
    assert "fsdp=64" in rows(out)[0]
    assert "0, the config as it is, fits" in out
    assert (err, code) == ("", 0)


def test_row_0_says_by_how_much_it_does_not_fit(typed):
    out, _, code = typed(*RUN, "--topology", "v6e:4x4", "--rows", "1")
    assert "DOES NOT FIT" in rows(out)[0]
    assert re.search(r"0, the config as it is, DOES NOT FIT: [\d.]+ GiB too much memory \([\d.]+ GiB of 31.24 GiB", out)
    assert code == 0  # others do
    found = json.loads(typed(*RUN, "--topology", "v6e:4x4", "--rows", "1", "--json")[0])
    assert not found["own"]["fits"]
    assert found["own"]["short_bytes"]["memory"] > 0
    assert found["choices"][0]["fits"]


def test_row_0_says_why_it_cannot_run(typed):
    out, _, code = typed(*RUN, "mesh.fsdp=6", "--topology", "h100:3x8", "data.batch_size=16")
    assert "cannot run" in rows(out)[0]
    assert "0, the config as it is, cannot run on h100:3x8: " in out
    assert "take more chips" not in out
    assert "memory is not the reason" in out
    assert "what would do: no mesh.* given, and data.batch_size=15 or 18 in place of 16; " in out
    assert code == 1
    found = json.loads(typed(*RUN, "mesh.fsdp=6", "--topology", "h100:3x8", "data.batch_size=16", "--json")[0])
    assert "is not divisible by 6" in found["own"]["cannot_run"]
    assert found["what_would_do"]


def test_what_is_given_is_held_and_said(typed):
    out, _, _ = typed(*RUN, "--topology", "v5p:4x4x4", "mesh.tensor=2", "step.remat=full", "--json", "--rows", "100")
    found = json.loads(out)
    assert found["held"] == ["mesh.tensor", "step.remat"]
    assert len(found["choices"]) > 10
    assert all(c["mesh"]["tensor"] == 2 and c["remat"] == "full" for c in found["choices"])
    out, _, _ = typed(*RUN, "--topology", "v5p:4x4x4", "mesh.tensor=2")
    assert "held as given: mesh.tensor" in out


def test_batch_tokens_leave_the_microbatches(typed):
    out, _, _ = typed(
        *RUN, "--topology", "v5p:4x4x4", "step.microbatches=4", "--batch-tokens", str(512 * 8192), "--json"
    )
    assert {c["microbatches"] for c in json.loads(out)["choices"]} == {4}


def test_one_line_says_how_a_name_was_read(typed):
    out, err, _ = typed(*RUN, "--topology", "v5p-128", "--rows", "1")
    assert err == "topology v5p-128: v5p:4x4x4, 64 chips: v5p-N counts TensorCores, 2 a chip\n"
    assert out.startswith("llama3.1-8b on v5p:4x4x4: ")


def test_a_stated_network_slows_the_plan(typed):
    command = [*RUN, "--topology", "h100:16x8", "mesh.fsdp=128", "--json", "--rows", "1"]
    fast, slow = (json.loads(typed(*command, *more)[0]) for more in ([], ["--network", "100Gb/s"]))
    assert slow["network_bandwidth"] == 100e9 / 8 / 8
    assert slow["choices"][0]["step_seconds"] > 2 * fast["choices"][0]["step_seconds"]
    _, err, _ = typed(*RUN, "--topology", "h100:16x8", "--network", "100Gb/s", "--rows", "1")
    assert err == "stated: network 1.562 GB/s a GPU, 100 Gb/s a node\n"


def test_a_stated_host_memory_decides_what_is_offloaded(typed):
    command = [*RUN, "--topology", "v6e:8x8", "data.batch_size=320", "--json", "--rows", "1000"]
    table, small = (json.loads(typed(*command, *more)[0]) for more in ([], ["--host-memory", "16GB"]))
    assert any(c["host_bytes_a_host"] > 16e9 for c in table["choices"])
    assert all(c["host_bytes_a_host"] <= 16e9 for c in small["choices"])
    assert any("host memory is short" in left["why"] for left in small["left_out"])


@pytest.mark.parametrize("columns", [80, 100, 160])
@pytest.mark.parametrize("command", [["chips"], [*RUN, "--topology", "v6e:8x8", "data.batch_size=64"],
                                     [*RUN, "--topology", "h100:3x8", "data.batch_size=16"]])  # fmt: skip
def test_tables_are_not_torn(typed, columns, command):
    """A row of a table, which begins with a rule or a space, is no wider than the terminal."""
    out, _, _ = typed(*command, columns=columns)
    drawn = [line.rstrip() for line in out.splitlines() if line[:1] in (" ", "│", "┃", "┏", "└", "━")]
    assert len(drawn) > 5
    assert max(map(len, drawn)) <= columns
    assert not any("…" in line for line in drawn if "rtx-pro" not in line)


def test_chips_are_shown_by_name(typed):
    out, _, _ = typed("chips", "t4", "gb200")
    assert "65*" in out
    assert "NVLink of 72" in out
    assert "h100" not in out
    assert all(c.name in typed("chips")[0] for c in CHIPS)
    with pytest.raises(ValueError, match=r"no chip nope; there are v2, .*rtx5090"):
        typed("chips", "nope")


def test_a_chip_without_bf16_says_what_that_means(typed):
    out, _, _ = typed("plan", "gpt2-124m", "data.kind=synthetic", "data.path=null", "data.validation_path=null",
                      "data.batch_size=8", "--topology", "t4:1", "--rows", "1")  # fmt: skip
    assert "t4 has neither bf16 nor a fused attention kernel" in out
    assert "fp16; it has no bf16" in out.replace("float16", "fp16")


# --- runs that train on samples -------------------------------------------------------------------------------

SAMPLES = ["objective.kind=grpo", "objective.reward=a:b", "objective.max_new=512", "init.from=runs/base"]
SAMPLED = [*RUN, *SAMPLES, "objective.kl=0.1", "data.batch_size=512", "data.seq_len=1024", "--topology", "v5p:4x4x4"]


def test_sampling_stands_beside_training(typed):
    out, _, code = typed(*SAMPLED, "--rows", "2", columns=200)
    assert code == 0
    assert "sampling, s" in out
    assert re.search(r"samples of a step, predicted: at least [\d.]+ s \(prompts [\d.]+, decoding [\d.]+", out)
    assert "prompts padded to 512 (data.seq_len - objective.max_new, as the data is not here)" in out
    assert "weights are gathered once a round" in out
    plain, _, _ = typed(*RUN, "--topology", "v5p:4x4x4", "--rows", "2", columns=200)
    assert "sampl" not in plain


def test_sampling_in_values(typed):
    out, _, _ = typed(*SAMPLED, "--rows", "1", "--json")
    for choice in (found := json.loads(out))["choices"] + [found["own"]]:
        sampling = choice["sampling"]
        parts = sum(sampling[name] for name in ("prefill", "decode", "reference", "gather"))
        assert sampling["seconds"] == pytest.approx(parts)
        assert sampling["share_of_decode"] == pytest.approx(sampling["decode"] / choice["step_seconds"])
        assert sampling["need"]["cache"] > 0
    out, _, _ = typed(*RUN, "--topology", "v5p:4x4x4", "--rows", "1", "--json")
    assert json.loads(out)["own"]["sampling"] is None


def test_a_reward_model_is_said_not_to_be_counted(typed):
    words = [word if word != "objective.reward=a:b" else "objective.reward=runs/rm" for word in SAMPLED]
    out, _, _ = typed(*words, "--rows", "1", columns=200)
    assert "not counted: runs/rm, the reward model" in out
