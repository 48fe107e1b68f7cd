"""What the page of `explain` computes is what `costs`, `traffic` and `forecast` do, and what was traced."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from browser import in_browser

from jaxscale import config as cfg
from jaxscale.blueprint.rules import check_divides, make_rules
from jaxscale.explain.machines import MOST, Explained, machine, machines, read_topology
from jaxscale.explain.page import finite, needed, write_page
from jaxscale.explain.story import as_json, explain, with_mesh
from jaxscale.hardware.chips import CHIPS
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.forecast import forecast
from jaxscale.predict.traffic import traffic

from .conftest import EXPERTS, Page

MODELS = (
    "gpt2-124m", "llama3.1-405b", "llama3.1-70b", "llama3.1-8b", "llama3.2-1b", "mistral-7b", "qwen3-8b", "gemma-3-27b",
    "gemma-3-1b",
)  # fmt: skip
REMATS = ["none", "full", "dots", {"q": "save", "k": "save", "v": "save", "attended": "save"},
          dict.fromkeys(("layer_in", "q", "k", "v", "attention_out"), "offload"),
          {"mlp_up": "save", "attention_out": "save", "layer_in": "recompute"}]  # fmt: skip

OVERRIDES = (
    {"activations": {"residual_sequence": None}}, {"activations": {"vocab": None}},
    {"parameters": {"embed": ["data", "fsdp"]}}, {"parameters": {"embed": "data"}},
    {"parameters": {"embed": None, "vocab": ["tensor", "fsdp"]}}, {"activations": {"batch": ["fsdp", "data"]}},
)  # fmt: skip


def random_cases(seed: int, number: int) -> list[tuple[cfg.Config, dict[str, int], str]]:
    """Random (config, mesh, chip) for which there is a machine; some meshes break a rule."""
    rng, found = random.Random(seed), []
    explained = explained_of(cfg.load_config("quickstart"))
    while len(found) < number:
        base = cfg.load_config(rng.choice([*MODELS, "quickstart"])).model_dump(mode="json")
        parts = rng.choice([1, 1, 2, 4, 8])
        if rng.random() < 0.3:  # odd shapes: what divides nothing must be refused in both
            base["model"] |= {"num_heads": 12, "num_kv_heads": rng.choice([1, 2, 3, 4, 12]), "head_dim": 32}
            base["model"] |= {"mlp_dim": rng.choice([96, 200, 1023]), "vocab_multiple": rng.choice([1, 128])}
        base["data"] |= {
            "batch_size": parts * rng.choice([1, 6, 16, 64, 256, 1024]),
            "seq_len": rng.choice([128, 1000, 4096]),
        }
        base["model"]["max_seq_len"] = max(base["model"]["max_seq_len"], base["data"]["seq_len"])
        base["loss"] = {}
        base["step"] |= {
            "microbatches": parts, "remat": rng.choice(REMATS), "compute_dtype": rng.choice(["bfloat16", "float32"]),
            "param_dtype": rng.choice(["bfloat16", "float32"]),
        }  # fmt: skip
        base["optimizer"]["name"] = rng.choice(["adamw", "lion", "adafactor", "muon"])
        base["sharding"] = rng.choice([{}, {}, {}, {}, *OVERRIDES])
        base["metrics"] = {"mfu": rng.choice(["causal", "palm"])}
        config = cfg.validate(base, source="random")
        sizes = {a: 2 ** rng.choice([0, 1, 2, 3, 4, most]) for a, most in (("data", 6), ("fsdp", 9), ("tensor", 5))}
        if rng.random() < 0.4:  # three axes are what the page has machines for
            sizes |= {rng.choice(list(sizes)): 1, "context": rng.choice([2, 4, 8])}
            base["step"]["context_attention"] = rng.choice(["auto", "gather", "ring"])
            config = cfg.validate(base, source="random")
        if math.prod(sizes.values()) > MOST:
            continue
        chip = rng.choice(CHIPS)
        try:
            machine(chip, sizes, explained)
        except ValueError:
            continue
        found.append((config, {a: sizes[a] for a in cfg.AXES if sizes.get(a, 1) > 1} or {"data": 1}, chip.name))
    return found


MIXTURES = (
    {"num_experts": 8, "top_k": 2, "mlp_dim": 192},
    {"num_experts": 16, "top_k": 4, "mlp_dim": 96, "shared_mlp_dim": 64},
    {"num_experts": 32, "top_k": 3, "mlp_dim": 64, "dense_layers": 1, "bias": True, "score": "sigmoid"},
    {"num_experts": 6, "top_k": 2, "mlp_dim": 200, "dense_layers": 2, "shared_mlp_dim": 96},
    {"num_experts": 8, "top_k": 2, "mlp_dim": 128, "dense_layers": 1},
)  # fmt: skip
PATTERN_OF_EXPERTS = [{"experts": False, "sliding_window": 64}, {"experts": True}]
FOLDED = {"experts": ["expert", "tensor"], "expert_mlp": None}
EXPERT_OVERRIDES = (
    {"parameters": FOLDED, "activations": FOLDED}, {"parameters": FOLDED},
    {"activations": {"residual_sequence": None}}, {"parameters": {"expert_embed": None}},
    {name: {"experts": "data"} for name in ("parameters", "activations")},
    {name: {"experts": "tensor", "expert_mlp": None} for name in ("parameters", "activations")}
    | {"activations": {"experts": "tensor", "expert_mlp": None, "residual_sequence": None}},
)  # fmt: skip
EXPERT_REMATS = [*REMATS[:4], {"expert_in": "save", "attended": "save"}, {"expert_up": "save", "expert_gate": "save"},
                 {"expert_up": "save", "layer_in": "offload"}, {"expert_in": "offload"}]  # fmt: skip


def expert_cases(seed: int, number: int) -> list[tuple[cfg.Config, dict[str, int], str]]:
    """The same of models with experts."""
    rng, found = random.Random(seed), []
    explained = explained_of(cfg.load_config("quickstart"))
    while len(found) < number:
        base = cfg.load_config(rng.choice(["quickstart", "qwen3-8b", "qwen3-30b-a3b"])).model_dump(mode="json")
        base["model"]["moe"] = base["model"]["moe"] or rng.choice(MIXTURES)
        base["model"]["pattern"] = rng.choice([(), (), PATTERN_OF_EXPERTS])
        sizes = {"data": 1, "fsdp": 2 ** rng.choice([0, 1, 3]), "expert": 2 ** rng.choice([0, 1, 1, 2, 3])}
        sizes |= {rng.choice(["data", "context", "tensor"]): 2 ** rng.choice([0, 1, 2])}
        tokens = {"batch_size": rng.choice([64, 256, 48]), "seq_len": rng.choice([128, 4096])}
        base["data"] |= tokens
        base["model"]["max_seq_len"] = max(base["model"]["max_seq_len"], tokens["seq_len"])
        base["loss"] = {}
        base["step"] |= {
            "microbatches": rng.choice([1, 1, 2]), "remat": rng.choice(EXPERT_REMATS),
            "expert_exchange": rng.choice(["auto", "gather", "all_to_all"]),
            "compute_dtype": rng.choice(["bfloat16", "float32"]),
        }  # fmt: skip
        base["optimizer"]["name"] = rng.choice(["adamw", "adafactor", "muon"])
        base["sharding"] = rng.choice([{}, {}, {}, *EXPERT_OVERRIDES])
        config, chip = cfg.validate(base, source="random"), rng.choice(CHIPS)
        try:
            machine(chip, sizes, explained)
        except ValueError:
            continue
        found.append((config, {a: sizes[a] for a in cfg.AXES if sizes.get(a, 1) > 1} or {"data": 1}, chip.name))
    return found


def explained_of(config: cfg.Config) -> Explained:
    return Explained(read_topology("v5p:2x2x2"), config.mesh.sizes(None), config.mesh.over_slices)


def by_python(config: cfg.Config, sizes: dict[str, int], chip_name: str) -> dict:
    chip = next(c for c in CHIPS if c.name == chip_name)
    topology, over = machine(chip, {a: sizes.get(a, 1) for a in cfg.AXES}, explained_of(cfg.load_config("quickstart")))
    found, attention = forecast(config, topology, sizes, over), attention_cost(config, sizes)
    try:
        check_divides(make_rules(config.sharding), sizes, config)
        rule = None
    except ValueError as error:
        rule = str(error)
    return {
        "rule": rule,
        "matmuls": [[m.name, m.m, m.k, m.n, m.forward, m.backward, m.recomputed] for m in costs.matmuls(config, sizes)],
        "attention": [attention.forward_flops, attention.backward_flops, attention.forward_calls],
        "traffic": [
            [t.what, t.kind, *t.axes, t.bytes, t.times, t.overlaps]
            for t in traffic(config, sizes, platform=chip.platform)
        ],
        "sent": [[s.network, s.seconds, s.hidden] for s in found.sent],
        "parts": found.time.parts, "sums": found.time.sums, "binds": found.time.binds,
        "times": [found.time.best, found.time.overlapped, found.time.nothing_overlapped, found.time.exposed],
        "whole": [found.flops, found.model_flops, found.mfu, found.tokens_per_second_per_chip],
        "machine": topology.name,
    }  # fmt: skip


def as_text(values) -> str:
    """As the page has it: a driver sorts the keys of what it hands on, and the first broken rule is the one told."""
    return json.dumps(finite(values))


BY_PAGE = """((cases) => cases.map(([config, sizes, chip]) => {
    const machine = machineOf(chip, sizes), f = forecast(config, chip, sizes, machine);
    const a = attentionCost(config, sizes);
    return {
        rule: brokenRule(config, sizes),
        matmuls: matmuls(config, sizes).map(m => [m.name, m.m, m.k, m.n, m.forward, m.backward, m.recomputed]),
        attention: [a.forward, a.backward, a.calls],
        traffic: traffic(config, sizes, chip).map(t => [t.what, t.kind, ...t.axes, t.bytes, t.times, t.overlaps]),
        sent: f.sent.map(s => [s.network, s.seconds, s.hidden]), parts: f.parts, sums: f.sums, binds: f.binds,
        times: [f.best, f.overlapped, f.apart, f.exposed], whole: [f.flops, f.modelFlops, f.mfu, f.perChip],
        machine: machine.name,
    };
}))(JSON.parse(arguments[0]))"""


def same(a, b, where: str) -> list[str]:
    """Differences of two JSON values, numbers to 1e-9."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in same(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in same(x, y, f"{where}[{i}]")]
    if type(a) in (int, float) and type(b) in (int, float):
        return [] if math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-30) else [f"{where}: {a} and {b}"]
    return [] if a == b else [f"{where}: {a} and {b}"]


@in_browser
def test_the_arithmetic_is_pythons_on_200_random_configs(page):
    cases = random_cases(0, 200)
    wanted = [by_python(*case) for case in cases]
    assert len({w["binds"] for w in wanted}) >= 5, "compute, HBM and several networks bind"
    assert 20 < sum(w["rule"] is None for w in wanted) < 190, "some meshes break a rule, some none"
    got = page.ask(BY_PAGE, as_text([[needed(config), sizes, chip] for config, sizes, chip in cases]))
    assert [d for i, (a, b) in enumerate(zip(got, wanted, strict=True)) for d in same(a, b, f"case {i}")] == []


@pytest.fixture
def page_of_experts(driver, file_of_experts) -> Page:
    return Page(driver, file_of_experts)


@in_browser
def test_the_arithmetic_of_experts_is_pythons(page_of_experts):
    """With dense layers before them, shared experts, both exchanges, and experts folded over other axes."""
    cases = expert_cases(0, 120)
    wanted = [by_python(*case) for case in cases]
    kinds = {t[1] for w in wanted if w["rule"] is None for t in w["traffic"]}
    assert {"ragged-all-to-all", "all-gather", "reduce-scatter", "all-reduce"} <= kinds
    rules = " ".join(w["rule"] for w in wanted if w["rule"])
    assert "experts stay where they are kept" in rules
    assert "splits no tokens" in rules
    assert "moe.num_experts 6 is not divisible by 4" in rules
    assert sum(w["rule"] is None for w in wanted) > 40
    got = page_of_experts.ask(BY_PAGE, as_text([[needed(config), sizes, chip] for config, sizes, chip in cases]))
    assert [d for i, (a, b) in enumerate(zip(got, wanted, strict=True)) for d in same(a, b, f"case {i}")] == []


LATENT = {"kv_rank": 64, "q_rank": 96, "nope_head_dim": 32, "rope_head_dim": 16, "value_head_dim": 24}
WITH_LATENTS = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 48, "qk_norm": False}


def latent_cases(seed: int, number: int) -> list[tuple[cfg.Config, dict[str, int], str]]:
    """The same models with latent attention, with and without the queries' own."""
    found = []
    for i, (config, sizes, chip) in enumerate(expert_cases(seed, number)):
        values = config.model_dump(mode="json")
        if isinstance(remat := values["step"]["remat"], dict):
            values["step"]["remat"] = {n: a for n, a in remat.items() if n not in ("k", "v")} | {"kv_latent": "save"}
        values["model"] |= WITH_LATENTS | {"latent": LATENT | {"q_rank": (96, None)[i % 2]}}
        found.append((cfg.validate(values, source="random"), sizes, chip))
    return found


@in_browser
def test_the_arithmetic_of_latents_is_pythons(page_of_experts):
    cases = latent_cases(2, 60)
    wanted = [by_python(*case) for case in cases]
    assert sum("shared keys" in {t[0] for t in w["traffic"]} for w in wanted if w["rule"] is None) > 3
    got = page_of_experts.ask(BY_PAGE, as_text([[needed(config), sizes, chip] for config, sizes, chip in cases]))
    assert [d for i, (a, b) in enumerate(zip(got, wanted, strict=True)) for d in same(a, b, f"case {i}")] == []
    check_rows(page_of_experts, [case for case, w in zip(cases, wanted, strict=True) if w["rule"] is None])


BY_ROWS = """((cases) => cases.map(([config, sizes, chip]) => {
    const machine = machineOf(chip, sizes);
    const rows = passesOf(config, sizes).map(l =>
        predictedRow({...l, times: runsOf(l, config)}, config, chip, sizes, machine));
    const sent = {};
    const add = (t) => { const key = `${t.kind} ${t.axes.join()}`; sent[key] = (sent[key] || 0) + t.bytes * t.times; };
    for (const row of rows) row.sends.forEach(add);
    otherTraffic(config, sizes, chip).forEach(add);
    const flops = {};
    for (const row of rows) flops[row.name] = (flops[row.name] || 0) + row.flops * row.times;
    return {sent, flops};
}))(JSON.parse(arguments[0]))"""


@in_browser
def test_rows_and_the_rest_send_what_the_cost_model_says(page):
    """Each collective belongs to one row, or to none of them; FLOPs of the passes add up to the cost model's."""
    cases = [case for case in random_cases(1, 160) if by_python(*case)["rule"] is None]
    check_rows(page, cases)
    assert len(cases) > 20
    assert sum("tensor" in sizes and c.model.kv_heads < sizes["tensor"] for c, sizes, _ in cases) > 2, "repeated heads"


@in_browser
def test_rows_of_experts_send_what_the_cost_model_says(page_of_experts):
    check_rows(page_of_experts, [case for case in expert_cases(1, 50) if by_python(*case)["rule"] is None])


def check_rows(page: Page, cases: list) -> None:
    got = page.ask(BY_ROWS, as_text([[needed(c), sizes, chip] for c, sizes, chip in cases]))
    platforms = {c.name: c.platform for c in CHIPS}
    for (config, sizes, chip), found in zip(cases, got, strict=True):
        sent: dict[str, float] = {}
        for t in traffic(config, sizes, platform=platforms[chip]):
            sent[f"{t.kind} {','.join(t.axes)}"] = sent.get(f"{t.kind} {','.join(t.axes)}", 0.0) + t.step_bytes
        assert same(found["sent"], sent, f"{config.name} {config.step.remat} on {sizes}") == []
        flops = {m.name: m.step_flops for m in costs.matmuls(config, sizes)}
        assert same(dict(sorted(found["flops"].items())), dict(sorted(flops.items())), str(sizes)) == []


def test_the_explained_machine_is_its_own_and_others_are_the_most_even():
    own = read_topology("v6e:16x16 x 2 slices")
    assert (own.name, own.slices) == ("v6e:16x16 x 2 slices", 2)
    explained = Explained(own, {"data": 2, "fsdp": 256}, {"data": 2})
    found = machines(explained)

    def at(chip, **sizes):
        sizes = {a: sizes[a] for a in cfg.AXES if a in sizes}
        own = chip == found["own"]["chip"] and sizes == found["own"]["mesh"]
        where = found["own"]["cell"] if own else found["cells"][chip]["x".join(map(str, sizes.values()))]
        return found["reasons"][-1 - where] if isinstance(where, int) else [
            found["topologies"][where[0]][0], *([s[0] for s in found["links"][i]] for i in where[1:])
        ]  # fmt: skip

    assert at("v6e", data=2, fsdp=256) == ["v6e:16x16 x 2 slices", ["DCN"], ["ICI"]]
    assert at("v6e", fsdp=256) == ["v6e:16x16", ["ICI"]]
    assert at("v5p", fsdp=32, tensor=4) == ["v5p:4x4x8", ["ICI"], ["ICI"]]
    assert at("h100", fsdp=16, tensor=2) == ["h100:4x8", ["NVLink", "network"], ["NVLink"]]
    assert at("tpu7x") == "a tpu7x chip is 2 devices, so 1 are no whole chips; take an even number"
    assert at("v5e", data=512) == "there is no v5e slice of 512 chips; the nearest have 256"


def test_a_stated_network_is_that_of_every_machine_of_the_chip():
    """And of no other chip."""
    own = replace(read_topology("h100:2x8"), network=12.5e9)
    found = machines(Explained(own, {"fsdp": 16}, {}))
    networks = {stage[2] for link in found["links"] for stage in link if stage[0] == "network"}
    assert 12.5e9 in networks
    explained, larger, other = (
        machine(chip, {"data": 1, "fsdp": n, "tensor": 1}, Explained(own, {"fsdp": 16}, {}))[0]
        for chip, n in ((own.chip, 16), (own.chip, 32), (read_topology("h200:8").chip, 16))
    )
    assert [explained.network_bandwidth, larger.network_bandwidth, other.network_bandwidth] == [12.5e9, 12.5e9, 50e9]


# --- the real thing -------------------------------------------------------------------------------------------

AT_REST = """(() => {
    const {config, chip, sizes, machine} = now, tensor = (t) => [t.name, t.letters, t.sizes, t.stored, t.used];
    const send = (s) => [s.operand, s.kind, s.axes, s.bytes, s.shared.slice().sort(), s.seconds.toPrecision(9),
        s.of || "", s.sent || ""];
    const told = (row) => ({
        x: tensor(row.x), w: tensor(row.w), out: tensor(row.out), unreduced: row.out.unreduced.slice().sort(),
        cases: row.cases, shape: row.per_device, flops: row.flops, hbm: row.hbm_bytes, intensity: row.intensity,
        seconds: row.seconds, bound: row.bound, times: row.times,
        sends: row.note && row.note.startsWith("C: ") ? row.sends.map(send).map(s => JSON.stringify(s)).sort()
            : row.sends.map(send),
    });
    const pairs = PAGE.explained.rows.map(tracedRow).map(row => [row, predictedRow(row, config, chip, sizes, machine)]);
    return pairs.map(([a, b]) => [rowTitle(a), told(a), told(b)]);
})()"""


LATENT_MODEL = "model.num_kv_heads=null model.head_dim=null " + " ".join(
    f"model.latent.{name}={size}" for name, size in LATENT.items()
)
TRACED = {
    "step.remat=none": "data=2,fsdp=2,tensor=2",
    "step.remat=full loss.chunk=32 step.compute_dtype=bfloat16": "data=2,fsdp=2,tensor=2",
    f"{EXPERTS} model.moe.shared_mlp_dim=64 model.moe.dense_layers=1": "fsdp=2,expert=2,tensor=2",
    f"{EXPERTS} step.remat=full step.expert_exchange=gather": "fsdp=2,expert=4",
    f"step.remat=full {LATENT_MODEL}": "data=2,fsdp=2,tensor=2",
}


@pytest.fixture(scope="module", params=list(TRACED))
def traced(request, tmp_path_factory) -> Path:
    config = with_mesh(cfg.load_config("quickstart", request.param.split()), TRACED[request.param])
    found = explain(config, read_topology("v5p:2x2x2"), compiler="none")
    return write_page(as_json(found), tmp_path_factory.mktemp("traced") / "explain.html")


@in_browser
@pytest.mark.slow
def test_the_rules_layouts_are_the_traced_programs(driver, traced):
    """On the traced mesh, what the rules and the cost model say of each row is what was traced, to the last send."""
    page = Page(driver, traced)
    pairs = page.ask(AT_REST)
    assert len(pairs) >= 27
    assert [d for title, a, b in pairs for d in same(a, b, title)] == []
    page.click("[data-phase=all]")
    assert len(page.texts("#list tbody tr")) == len(pairs)
    assert "undefined" not in page.text("body main")
    assert page.messages() == []
