// What a step should cost: `analysis/costs.py` and `analysis/traffic.py`, line by line. A test holds that they agree.
// `sizes` are mesh axis -> size; figures "of a device" are of one JAX device and one step.

const size = (sizes, axis) => sizes[axis] || 1;
const count = (axes, sizes) => axes.reduce((shards, axis) => shards * size(sizes, axis), 1);
const product = (values) => values.reduce((a, b) => a * b, 1);
const total = (values) => values.reduce((a, b) => a + b, 0);

/** Every parameter of the decoder, in the order in which it is used: {name, dims, axes}. */
function weights(model) {
  const D = model.embed_dim,
    F = model.mlp_dim,
    N = model.num_heads,
    K = model.num_kv_heads,
    H = model.head_dim,
    V = model.padded_vocab_size;
  const found = [{ name: "embedding", dims: [V, D], axes: ["vocab", "embed"] }];
  if (model.position === "learned") found.push({ name: "position", dims: [model.max_seq_len, D], axes: ["positions", "embed"] });
  const layer = (name, dims, axes) => found.push({ name, dims: [model.num_layers, ...dims], axes: ["layers", ...axes] });
  const norm = (name, n, axis, kind) => {
    for (const end of kind === "layernorm" ? ["scale", "bias"] : ["scale"]) layer(`${name}_${end}`, [n], [axis]);
  };
  norm("attention_norm", D, "norm", model.norm);
  for (const [name, n, axis] of [
    ["q", N, "heads"],
    ["k", K, "kv_heads"],
    ["v", K, "kv_heads"],
  ]) {
    layer(name, [D, n, H], ["embed", axis, "head_dim"]);
    if (model.attention_bias) layer(`${name}_bias`, [n, H], [axis, "head_dim"]);
  }
  layer("out", [N, H, D], ["heads", "head_dim", "embed"]);
  if (model.attention_bias) layer("out_bias", [D], ["norm"]);
  if (model.qk_norm) {
    norm("q_norm", H, "head_dim", "rmsnorm");
    norm("k_norm", H, "head_dim", "rmsnorm");
  }
  norm("mlp_norm", D, "norm", model.norm);
  for (const name of model.mlp === "swiglu" ? ["gate", "up"] : ["up"]) {
    layer(name, [D, F], ["embed", "mlp"]);
    if (model.mlp_bias) layer(`${name}_bias`, [F], ["mlp"]);
  }
  layer("down", [F, D], ["mlp", "embed"]);
  if (model.mlp_bias) layer("down_bias", [D], ["norm"]);
  for (const end of model.norm === "layernorm" ? ["scale", "bias"] : ["scale"])
    found.push({ name: `final_norm_${end}`, dims: [D], axes: ["norm"] });
  if (!model.tie_embeddings) found.push({ name: "unembedding", dims: [D, V], axes: ["embed", "vocab"] });
  return found;
}

/** Elements of a parameter that one device holds. */
const shardOf = (weight, sizes, table) => product(weight.dims.map((n, i) => Math.floor(n / count(table[weight.axes[i]], sizes))));

/** Logical axis -> mesh axes of the parameters; few kv heads are kept whole. */
function parameterTable(config, sizes) {
  const table = { ...PAGE.constants.parameters };
  if (config.model.num_kv_heads < count(PAGE.constants.activations.kv_heads, sizes)) table.kv_heads = [];
  return table;
}

const microbatchRows = (config, sizes) =>
  Math.floor(Math.floor(config.data.batch_size / config.step.microbatches) / count(PAGE.constants.activations.batch, sizes));
const microbatchTokens = (config, sizes) => Math.floor((microbatchRows(config, sizes) * config.data.seq_len) / size(sizes, "context"));

function matmulParameters(model) {
  return (
    total(
      weights(model)
        .filter((w) => PAGE.constants.matrices.includes(w.name))
        .map((w) => product(w.dims)),
    ) +
    model.vocab_size * model.embed_dim
  );
}

function visibleKeys(model, length) {
  const window = Math.min(model.sliding_window || length, length);
  return window * (1 - window / (2 * length));
}

function trainFlopsPerToken(model, length, convention) {
  const keys = convention === "causal" ? visibleKeys(model, length) : length;
  return 6 * matmulParameters(model) + 12 * model.num_layers * model.num_heads * model.head_dim * keys;
}

/** Activation -> `save` or `offload`, of those that the backward pass finds; null: all are kept. */
function kept(step) {
  if (step.remat === "none") return null;
  if (step.remat === "full") return {};
  if (step.remat === "dots") return Object.fromEntries(PAGE.constants.kept_by_dots.map((name) => [name, "save"]));
  return Object.fromEntries(Object.entries(step.remat).filter(([, action]) => action !== "recompute"));
}

function recomputedMatmuls(step) {
  const names = kept(step);
  return new Set(
    names === null
      ? []
      : Object.entries(PAGE.constants.output_of)
          .filter(([, output]) => !(output in names))
          .map(([w]) => w),
  );
}

/** Every matmul of a device and step, attention apart: x[m, k] · w[k, n], and how often each pass runs it. */
function matmuls(config, sizes) {
  const { model, step } = config,
    tokens = microbatchTokens(config, sizes),
    tensor = size(sizes, "tensor");
  const D = model.embed_dim,
    F = Math.floor(model.mlp_dim / tensor),
    H = model.head_dim,
    V = Math.floor(model.padded_vocab_size / tensor);
  const N = Math.floor(model.num_heads / tensor),
    K = Math.floor(Math.max(model.num_kv_heads, tensor) / tensor);
  const shapes = { q: [D, N * H], k: [D, K * H], v: [D, K * H], out: [N * H, D], gate: [D, F], up: [D, F], down: [F, D] };
  if (model.mlp !== "swiglu") delete shapes.gate;
  const again = recomputedMatmuls(step),
    runs = model.num_layers * step.microbatches;
  const found = Object.entries(shapes).map(([name, [k, n]]) => ({
    name,
    m: tokens,
    k,
    n,
    forward: runs,
    backward: 2 * runs,
    recomputed: again.has(name) ? runs : 0,
  }));
  return [
    ...found,
    { name: "unembedding", m: tokens, k: D, n: V, forward: step.microbatches, backward: 2 * step.microbatches, recomputed: 0 },
  ];
}

const matmulFlops = (m) => 2 * m.m * m.k * m.n;
const matmulRuns = (m) => m.forward + m.backward + m.recomputed;

function attentionCost(config, sizes) {
  const { model, step } = config,
    heads = Math.floor(model.num_heads / size(sizes, "tensor"));
  const forward = 4 * microbatchTokens(config, sizes) * heads * model.head_dim * visibleKeys(model, config.data.seq_len);
  const names = kept(step),
    again = names !== null && !("attended" in names),
    runs = model.num_layers * step.microbatches;
  const calls = runs * (again ? 2 : 1);
  return { forward, backward: 2.5 * forward, calls, backwardCalls: runs, flops: forward * calls + 2.5 * forward * runs };
}

function activationBytes(config, sizes, name) {
  const model = config.model,
    tensor = size(sizes, "tensor"),
    F = model.mlp_dim / tensor;
  const heads = (model.num_heads * model.head_dim) / tensor,
    kv = (Math.max(model.num_kv_heads, tensor) * model.head_dim) / tensor,
    wide = model.embed_dim / tensor;
  const each = {
    layer_in: wide,
    q: heads,
    k: kv,
    v: kv,
    attended: heads,
    attention_out: wide,
    mlp_gate: F,
    mlp_up: F,
    mlp_out: wide,
  };
  return model.num_layers * microbatchTokens(config, sizes) * each[name] * PAGE.constants.bytes[config.step.compute_dtype];
}

// --- what is sent ---------------------------------------------------------------------------------------------------

/** Every collective of a step: {what, kind, axes, bytes (V of one run), times, phase, overlaps}. */
const traffic = (config, sizes) => [...weightTraffic(config, sizes), ...activationTraffic(config, sizes)].filter((t) => t.times && t.bytes);
const sent = (what, kind, axes, bytes, times, phase, overlaps, other = false) => ({
  what,
  kind,
  axes: [axes].flat(),
  bytes,
  times,
  phase,
  overlaps,
  other,
});

function weightTraffic(config, sizes) {
  const fsdp = size(sizes, "fsdp"),
    tensor = size(sizes, "tensor"),
    parts = config.step.microbatches,
    L = config.model.num_layers;
  const width = PAGE.constants.bytes[config.step.compute_dtype],
    table = parameterTable(config, sizes),
    sums = ["data", "expert", "context"].filter((axis) => size(sizes, axis) > 1),
    found = [];
  for (const weight of weights(config.model)) {
    const head = weight.name === "unembedding" || (weight.name === "embedding" && config.model.tie_embeddings);
    if (!PAGE.constants.matrices.includes(weight.name) && !head) continue;
    const times = parts * (head ? 1 : L),
      few = weight.axes.includes("kv_heads") && config.model.num_kv_heads < tensor,
      shard = Math.floor(shardOf(weight, sizes, table) / (head ? 1 : L) / (few ? config.model.num_kv_heads : 1)),
      whole = shard * fsdp * width;
    // few kv heads are kept whole over tensor, and each device takes the one that its queries read
    if (few) found.push(sent(`${weight.name} gradient`, "all-gather", "tensor", shard * tensor * width, times, "backward", true, true));
    if (fsdp > 1)
      found.push(
        sent(`${weight.name} weight`, "all-gather", "fsdp", whole, times * (head ? 1 : 2), "forward", !head),
        sent(`${weight.name} gradient`, "reduce-scatter", "fsdp", whole, times, "backward", true),
      );
    if (sums.length) found.push(sent(`${weight.name} gradient`, "all-reduce", sums, shard * width, times, "backward", true));
  }
  if (sums.length)
    found.push(
      sent("embedding gradient", "all-reduce", sums, shardOf(weights(config.model)[0], sizes, table) * 4, parts, "backward", true, true),
    );
  return found;
}

function activationTraffic(config, sizes) {
  const { model, step } = config,
    fsdp = size(sizes, "fsdp"),
    tensor = size(sizes, "tensor"),
    parts = step.microbatches;
  const tokens = microbatchTokens(config, sizes),
    runs = parts * model.num_layers,
    x = tokens * model.embed_dim * PAGE.constants.bytes[step.compute_dtype];
  const found = [],
    names = kept(step),
    again = names === null ? 0 : 1;
  if (fsdp > 1)
    found.push(
      sent("token ids", "all-gather", "fsdp", tokens * fsdp * 4, parts, "forward", false, true),
      sent("looked-up rows", "all-to-all", "fsdp", x / tensor, 2 * parts, "forward", false, true),
    );
  if (tensor > 1)
    found.push(
      sent("layer inputs", "all-gather", "tensor", x, 2 * runs + parts, "forward", false),
      sent("attention inputs, again", "all-gather", "tensor", x, again * runs, "backward", false),
      sent("mlp inputs, again", "all-gather", "tensor", x, again * runs, "backward", true),
      sent("layer outputs", "reduce-scatter", "tensor", x, 2 * runs, "forward", true),
      sent("layer outputs, again", "reduce-scatter", "tensor", x, ("attention_out" in (names || {}) ? 0 : again) * runs, "backward", true),
      sent("mlp outputs' gradients", "all-gather", "tensor", x, runs, "backward", false),
      sent("attention outputs' gradients", "all-gather", "tensor", x, runs, "backward", true),
      sent("inputs' gradients", "reduce-scatter", "tensor", x, 2 * runs + parts, "backward", true),
      sent("looked-up rows", "reduce-scatter", "tensor", x, parts, "forward", false, true),
      sent("rows' gradients", "all-gather", "tensor", x, parts, "backward", false, true),
      sent("losses", "all-reduce", "tensor", tokens * 4, 3 * parts, "forward", false, true),
    );
  return found;
}

/** Collectives that belong to no matmul: the lookup's and the loss's. */
const otherTraffic = (config, sizes) => traffic(config, sizes).filter((t) => t.other);
