// From work to seconds: `predict/timing.py`, `predict/forecast.py` and the time of a link (`hardware/topology.py`), line by line.

const ORDER = ["NVLink", "xGMI", "PCIe", "network", "DCN"];

/** The machine of a chip and mesh, as `machines.py` found it: {name, chips, slices, ratio, why, links}, or {reason}. */
function machineOf(chip, sizes) {
  const { own, cells, links, topologies, reasons } = PAGE.machines,
    axes = live(PAGE.constants.ready, sizes),
    text = (sizes, axes) => axes.map((axis) => `${axis}=${sizes[axis]}`).join();
  const explained = chip === own.chip && text(sizes, axes) === text(own.mesh, Object.keys(own.mesh)),
    cell = explained ? own.cell : cells[chip][axes.map((axis) => sizes[axis]).join("x")];
  if (cell === undefined) return { reason: "no such mesh is kept in this page" };
  if (!Array.isArray(cell)) return { reason: reasons[-1 - cell] };
  const [name, chips, slices, ratio, why] = topologies[cell[0]];
  const found = axes.map((axis, i) => [axis, links[cell[i + 1]].map(stage)]);
  return { name, chips, slices, ratio, why, links: Object.fromEntries(found) };
}

function stage([kind, size, bandwidth, hops, hop, exchange, latency, whole]) {
  return { kind, size, bandwidth, hops, hop, exchange: exchange === null ? Infinity : exchange, latency, whole };
}

/** Several axes as one: their ICI bandwidths add up, other networks are passed one after another. */
function combined(links, axes) {
  const stages = axes.flatMap((axis) => links[axis] || []),
    ici = stages.filter((s) => s.kind === "ICI");
  const rest = stages.filter((s) => s.kind !== "ICI").sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind));
  if (!ici.length) return rest;
  const sum = (key) => total(ici.map((s) => s[key]));
  const one = {
    kind: "ICI",
    size: product(ici.map((s) => s.size)),
    bandwidth: sum("bandwidth"),
    hops: sum("hops"),
    hop: 1e-6,
    exchange: Math.min(...ici.map((s) => s.exchange)),
    latency: sum("latency"),
  };
  return [one, ...rest];
}

/** Seconds of one run of a collective, the network on which most of them go, and each network's. */
function collectiveSeconds(kind, axes, bytes, links, reached) {
  const parts = {};
  let left = bytes;
  for (const s of combined(links, axes)) {
    if (s.size === 1) continue;
    const share = (s.size - 1) / s.size;
    let seconds =
      kind === "collective-permute" ? left / s.bandwidth : kind.endsWith("all-to-all") ? (left * (s.kind === "ICI" ? 1 : share)) / s.exchange : (left * share) / s.bandwidth;
    seconds = (Math.max(seconds, s.hops * s.hop) + s.latency) * ((kind === "all-reduce" ? 2 : 1) / reached);
    parts[s.kind] = (parts[s.kind] || 0) + seconds;
    if (!kind.endsWith("all-to-all") && !kind.endsWith("permute")) left /= s.size;
  }
  return { seconds: total(Object.values(parts)), network: longest(parts) || "none" };
}

/** The first key with the greatest value. */
function longest(values) {
  let best = null;
  for (const key of Object.keys(values)) if (best === null || values[key] > values[best]) best = key;
  return best;
}

const rooflineSeconds = (rates, flops, moved) => Math.max(flops / rates.matmul_flops, moved / rates.memory);
const ratesOf = (config, chip) => PAGE.machines.chips[chip].rates[config.step.compute_dtype];

/** What attention reaches of its rate with heads of 128 and long rows. */
function attentionShare(config, chip) {
  const { softmax, block } = PAGE.machines.chips[chip],
    { lanes } = PAGE.constants,
    { attention, dims } = config.table;
  if (!attention) return 1;
  const head = dims[attention.q[attention.q.length - 1]].size,
    length = config.data.seq_len,
    keys = visibleKeys(config);
  const ofHead = softmax === null ? head / (Math.ceil(head / lanes) * lanes) : ((head / (head + softmax)) * (128 + softmax)) / 128;
  return (ofHead * keys) / Math.min(keys + block / 2, length);
}

/** V of the weights that are gathered in a step, and of their gradients that are scattered. */
const weightBytes = (config, sizes, chip) =>
  total(
    traffic(config, sizes, chip)
      .filter((t) => t.weight && t.kind !== "all-reduce")
      .map((t) => t.bytes * t.times),
  );

/** Seconds of a device by part, one after another. */
function computeSeconds(config, chip, sizes, rates) {
  const width = PAGE.constants.bytes[config.step.compute_dtype];
  let busy = 0;
  for (const m of matmuls(config, sizes))
    busy += rooflineSeconds(rates, matmulFlops(m), matmulElements(m) * width) * matmulRuns(m) * tilesOf(m, config, sizes, chip);
  const parts = {
    matmuls: busy,
    attention: attentionCost(config, sizes).flops / (rates.attention_flops * attentionShare(config, chip)),
    elementwise: elementwiseBytes(config, sizes, rates.elementwise) / rates.memory,
    optimizer: optimizerBytes(config, sizes) / rates.memory,
    weights: (PAGE.constants.weight_passes * weightBytes(config, sizes, chip)) / rates.memory,
  };
  if (config.table.routed) parts["rows of experts"] = movedRows(config, sizes) / rates.memory;
  const offloaded = offloadedBytes(config, sizes);
  if (offloaded)
    parts["host offload, not hidden"] = Math.max(0, offloaded / (PAGE.machines.chips[chip].host_bandwidth * PAGE.constants.host) - total(Object.values(parts)));
  return parts;
}

/** Kernels that a device runs in a step, collectives apart. */
function kernels(config, chip) {
  const platform = PAGE.machines.chips[chip].node ? "gpu" : "tpu",
    { layer, others, chunk } = PAGE.constants.kernels,
    recomputed = recomputes(config) ? 1 : 0,
    chunks = config.loss.chunk ? Math.floor(config.data.seq_len / config.loss.chunk) : 1;
  return config.step.microbatches * (config.table.layers * layer[platform][recomputed] + others + (chunks - 1) * chunk[platform]);
}

/** The parts of the compute with what it costs to start its kernels (`timing.with_launches`). */
function withLaunches(compute, sent, count, rates) {
  const parts = { ...compute, "kernel starts": count * rates.gap },
    launches = (count + total(sent.map((s) => s.times))) * rates.launch,
    waited = launches - total(Object.values(parts)) - total(sent.map((s) => s.seconds - s.hidden));
  return waited > 0 ? { ...parts, "launches, not hidden": waited } : parts;
}

const recomputes = (config) => config.table.layouts.some((row) => row.phase === "recomputed");

function elementwiseBytes(config, sizes, factor) {
  const { elementwise, activations, logits } = config.table,
    passes = 3 + (recomputes(config) ? 1 : 0),
    each = Object.entries(elementwise).map(([name, number]) => {
      const [letters, at, only] = activations[name];
      return number * layersOf(config.table, only) * activationElements(config, sizes, letters, at);
    }),
    ofLogits = logits ? 4 * activationElements(config, sizes, logits) * config.step.microbatches : 0;
  return total(each) * config.step.microbatches * passes * factor * widthOf(config) + ofLogits * 4;
}

/** What the optimizer keeps for a weight: `optimizers.Rule.kept`. */
function slotsOf(weight, rule) {
  const { dims, axes } = weight,
    single = { dims: [], axes: [] };
  if (!rule.factored) return Array(rule.whole).fill(weight);
  const order = dims.map((_, i) => i).sort((a, b) => dims[a] - dims[b]),
    [second, largest] = order.slice(-2);
  if (dims.length < 2 || dims[second] < rule.factored) return [weight, single, single];
  const without = (place) => ({ dims: dims.filter((_, i) => i !== place), axes: axes.filter((_, i) => i !== place) });
  return [without(largest), without(second), single];
}

function optimizerBytes(config, sizes) {
  const { table, optimizer } = config,
    trained = table.weights.filter((w) => w.trained !== false),
    own = total(trained.map((w) => shardOf(w, config, sizes))),
    whole = trained.map((w) => ({ ...w, dims: shapeOf(w, table) })),
    slots = whole.flatMap((w) => slotsOf(w, optimizer.rules[w.name])),
    kept = total(slots.map((slot) => shardOfDims(slot.dims, slot.axes, config, sizes)));
  return own * PAGE.constants.bytes[config.step.param_dtype] * (2 * config.step.microbatches + 2) + 2 * 4 * kept;
}

function offloadedBytes(config, sizes) {
  const names = Object.entries(config.table.kept || {}).filter(([, action]) => action === "offload");
  return total(names.map(([name]) => activationBytes(config, sizes, name))) * config.step.microbatches;
}

/** What may overlap does, on each network, up to a share of the compute and of itself. */
function hide(sent, compute, rates) {
  const totals = {};
  for (const s of sent) if (s.overlaps) totals[s.network] = (totals[s.network] || 0) + s.seconds;
  return sent.map((s) => ({ ...s, hidden: s.overlaps ? rates.overlap * Math.min(1, compute / totals[s.network]) * s.seconds : 0 }));
}

const WHOLE = {
  matmuls: "compute",
  attention: "compute",
  elementwise: "HBM",
  optimizer: "HBM",
  weights: "HBM",
  "rows of experts": "HBM",
  "kernel starts": "launches",
  "launches, not hidden": "launches",
};

/** Predicted figures of one step on a machine that `machineOf` gave. */
function forecast(config, chip, sizes, machine) {
  const rates = ratesOf(config, chip),
    work = computeSeconds(config, chip, sizes, rates);
  const timed = traffic(config, sizes, chip).map((t) => {
    const once = collectiveSeconds(t.kind, t.axes, t.bytes, machine.links, rates.network);
    const whole = t.axes.every((axis) => (machine.links[axis] || []).every((s) => s.whole)),
      overlaps = t.overlaps && !(PAGE.machines.chips[chip].node && !t.weight) && (whole || t.axes.length === 1);
    return { ...t, overlaps, seconds: once.seconds * t.times, network: once.network };
  });
  const sent = hide(timed, total(Object.values(work)), rates),
    compute = withLaunches(work, sent, kernels(config, chip), rates),
    busy = total(Object.values(compute)),
    parts = { ...compute },
    networks = {};
  for (const s of sent) {
    const name = `${s.network} (${s.axes.join("+") || "all"})`;
    parts[name] = (parts[name] || 0) + s.seconds;
    networks[s.network] = (networks[s.network] || 0) + s.seconds;
  }
  const exposed = total(sent.map((s) => s.seconds - s.hidden)),
    lower = Math.max(busy, ...Object.values(networks));
  const early = Math.max(lower, busy + exposed),
    wait = PAGE.constants.slice_wait * Math.log2(machine.slices) * early,
    best = early + wait,
    sums = {};
  if (machine.slices > 1) parts["waiting for the slowest slice"] = wait;
  for (const [name, seconds] of Object.entries(parts)) sums[WHOLE[name] || name] = (sums[WHOLE[name] || name] || 0) + seconds;
  const tokens = config.data.batch_size * config.data.seq_len,
    attention = attentionCost(config, sizes);
  const modelFlops = trainFlopsPerToken(config) * tokens;
  const flops = total(matmuls(config, sizes).map((m) => matmulFlops(m) * matmulRuns(m))) + attention.flops;
  const mfu = modelFlops / best / (PAGE.machines.chips[chip].flops * machine.chips);
  return {
    overlapped: lower + wait,
    apart: busy + total(Object.values(networks)) + wait,
    best,
    exposed,
    parts,
    sums,
    binds: longest(sums),
    sent,
    flops,
    modelFlops,
    tokens,
    mfu,
    perChip: tokens / best / machine.chips,
  };
}

const axesText = (axes, sizes) =>
  live(axes, sizes)
    .map((a) => `${a}=${sizes[a]}`)
    .join("*") || "not split";

/** The rule that a mesh breaks, in one line (`blueprint.rules.check_divides`), or null. */
function brokenRule(config, sizes) {
  const { data, step, table } = config,
    { activations } = config.rules;
  const where = (axes) => axesText(axes, sizes),
    rows = Math.floor(data.batch_size / step.microbatches),
    divisors = (n) => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0),
    heads = Object.values(table.dims).find((dim) => dim.axis === "heads"),
    dims = {};
  const problem = rowProblem(config, sizes);
  if (problem) return problem;
  for (const dim of Object.values(table.dims).filter((dim) => dim.label)) {
    const shards = dim.repeats ? count(activations[dim.axis], sizes) : 1,
      broken = dim.repeats && dim.size % shards && (dim.size > shards || shards % dim.size);
    if (broken)
      return `${dim.label} ${dim.size} neither divides nor is divided by the ${shards} shards of ${dim.axis} (${where(activations[dim.axis])}); make ${activations[dim.axis].join("*")} one of [${divisors(dim.size).join(", ")}] or a multiple of ${dim.size} that divides ${heads.size}`;
    dims[dim.axis] = [...(dims[dim.axis] || []), [dim.label, Math.max(dim.size, shards)]];
  }
  Object.assign(dims, {
    batch: [["rows of a microbatch (data.batch_size / step.microbatches)", rows]],
    sequence: [["data.seq_len", data.seq_len]],
    residual_sequence: [["data.seq_len", data.seq_len]],
  });
  for (const [kind, axesOf] of Object.entries(rulesOn(config, sizes)))
    for (const [name, axes, label, n] of Object.entries(axesOf).flatMap(([name, axes]) => (dims[name] || []).map((dim) => [name, axes, ...dim]))) {
      const parts = count(axes, sizes),
        lower = n - (n % parts);
      if (n % parts)
        return `${label} ${n} is not divisible by ${parts} (${where(axes)}, sharding.${kind}.${name}); try ${lower ? `${lower} or ${lower + parts}` : parts}, or another mesh`;
    }
  return expertProblem(config, sizes) || residualProblem(config, sizes);
}

/** Tokens of a row, and of a chunk of the loss, over the devices that share a row. */
function rowProblem({ data, loss, rules, reading_order, table }, sizes) {
  const axes = live(rules.activations.sequence, sizes),
    parts = count(axes, sizes),
    wanted = reading_order || parts === 1 ? parts : 2 * parts,
    near = (n, parts) => (n - (n % parts) ? `${n - (n % parts)} or ${n - (n % parts) + parts}` : parts);
  const what = wanted === parts ? parts : `2 * ${parts}: each device of a split sequence holds two chunks`;
  if (data.seq_len % wanted) return `data.seq_len ${data.seq_len} is not divisible by ${what}; try ${near(data.seq_len, wanted)}, or another mesh`;
  if (loss.chunk && loss.chunk % parts)
    return `loss.chunk ${loss.chunk} is not divisible by ${parts} (${axes.map((a) => `${a}=${sizes[a]}`).join("*")}, sharding.activations.sequence); try ${near(loss.chunk, parts)}, or another mesh`;
  return null;
}

/** Between the matmuls a row is split as in attention, or further. */
function residualProblem({ rules, table }, sizes) {
  const [sequence, residual] = ["sequence", "residual_sequence"].map((name) => live(rules.activations[name], sizes));
  if (table.attention && residual.slice(0, sequence.length).join() !== sequence.join())
    return `sharding.activations.residual_sequence: it must begin with ${sequence.join(" and ")}, which split the sequences in attention; remove it`;
  return null;
}
