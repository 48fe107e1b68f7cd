// What goes to experts on other devices and comes back: `predict/experts.py` and `predict/traffic.py`, line by line. Rows of matmuls
// have it as their sends, named by the scope of the program: rows are dispatched to experts, and what comes back is combined.

/** Of one layer, microbatch and device; `rows`: of its tokens, one for each of their experts. */
function exchange(config, sizes) {
  const { routed, dims } = config.table,
    { data, step, rules } = config;
  const [axes, split] = [routed.experts, routed.mlp].map((c) => live(rules.activations[dims[c].axis], sizes)),
    [batch, sequence] = routed.tokens.map((axes) => count(axes, sizes)),
    shards = count(axes, sizes),
    tokens = Math.floor(Math.floor(data.batch_size / step.microbatches) / batch) * Math.floor(data.seq_len / sequence);
  const chosen = step.expert_exchange === "auto" ? (shards <= routed.top_k ? "gather" : "all_to_all") : step.expert_exchange;
  return { how: shards === 1 ? "none" : chosen, axes, split, shards, tokens, rows: tokens * routed.top_k };
}

const platformOf = (chip) => (PAGE.machines.chips[chip].node ? "gpu" : "tpu");

/** How often rows go to their experts in one microbatch: where the backward pass makes them again, once more. */
const timesThere = ({ kept, routed }) => (kept !== null && !(routed.arrived in kept) ? 3 : 2);

/** Rows that a matmul of experts multiplies over rows that there are: a tile in which one expert's rows end is not full. */
function tilesOf(m, config, sizes, chip) {
  const { routed, dims } = config.table;
  if (!routed || !routed.ops.includes(m.name)) return 1;
  const { rows, large } = PAGE.constants.tiles,
    at = exchange(config, sizes),
    local = Math.floor(dims[routed.experts].size / at.shards),
    tile = rows[platformOf(chip)][at.rows >= large * local ? 1 : 0];
  return at.rows ? 1 + (platformOf(chip) === "tpu" ? tile * (local - 1) : (tile / 2) * local) / at.rows : 1;
}

/** HBM bytes of a step that sorting rows reads and writes. */
function movedRows(config, sizes) {
  const { routed, dims, kinds } = config.table,
    at = exchange(config, sizes),
    [there, back, sort] = [timesThere(config.table), 2, at.how === "all_to_all" ? 4 : 2],
    elements = at.rows * (there * sort + back * (sort + 1)) + back * at.tokens;
  return dims[routed.stream.at(-1)].size * elements * config.step.microbatches * kinds[routed.layers] * widthOf(config);
}

/** Every collective of it; `places`: the moments of a layer's step that send it; `routing`: it is no row, but says where rows go. */
function expertTraffic(config, sizes, chip) {
  const { routed, dims, kept, kinds } = config.table;
  if (!routed) return [];
  const at = exchange(config, sizes),
    runs = config.step.microbatches * kinds[routed.layers],
    wide = widthOf(config) * dims[routed.stream.at(-1)].size;
  const again = kept === null ? [] : ["again"],
    there = ["arrive", "gradients arrive", ...(timesThere(config.table) > 2 ? again : [])],
    twice = ["arrive", "arrive", ...again, ...again],
    found = [];
  const add = (what, kind, axes, bytes, places, phase = "forward", routing = false) =>
    found.push({ ...sent(what, kind, axes, bytes, places.length * runs, phase, false), places, routing });
  const gathered = (axes, shards) => {
    add("tokens for experts", "all-gather", axes, shards * at.tokens * wide, there);
    return () => {
      add("weights and numbers of experts", "all-gather", axes, shards * at.rows * 4, twice, "forward", true);
      add("gradients of experts' weights", "reduce-scatter", axes, shards * at.rows * 4, ["gradients leave"], "backward", true);
    };
  };
  const summed = (kind, axes, shards) => {
    add("experts' partial sums", kind, axes, shards * at.tokens * wide, ["leave"]);
    add("experts' partial sums", kind, axes, shards * at.tokens * wide, ["gradients leave"], "backward");
  };
  const residual = config.rules.activations.residual_sequence,
    [scattered, reduced] = [true, false].map((inside) => at.split.filter((a) => residual.includes(a) === inside));
  if (scattered.length) {
    gathered(scattered, 1)();
    summed("reduce-scatter", scattered, 1);
  }
  if (reduced.length) summed("all-reduce", reduced, 1);
  if (at.how === "gather") {
    const numbers = gathered(at.axes, at.shards);
    summed("reduce-scatter", at.axes, at.shards);
    numbers();
  }
  if (at.how === "all_to_all") {
    const kind = "ragged-all-to-all";
    add("rows to experts", kind, at.axes, at.rows * wide, there);
    add("rows from experts", kind, at.axes, at.rows * wide, ["leave", "gradients leave"]);
    const padded = platformOf(chip) === "tpu" ? PAGE.constants.lanes : 1; // a TPU's arrays have whole lanes
    add("rows' weights", kind, at.axes, at.rows * 4 * padded, ["arrive", "gradients leave", ...again], "forward", true);
    add("experts' counts", "all-gather", at.axes, at.shards * dims[routed.experts].size * 4, ["arrive", ...again], "forward", true);
  }
  return found;
}

/** The matmul that a moment of a layer's step belongs to: [name, phase, which gradient, operand, scope]. */
function expertPlaces({ routed, layouts }) {
  const [first, last] = [routed.ops[0], routed.ops.at(-1)],
    again = layouts.find((row) => row.phase === "recomputed" && routed.ops.includes(row.name));
  return {
    arrive: [first, "forward", "", "x", "dispatch"],
    again: again ? [again.name, "recomputed", "", "x", "dispatch"] : [first, "backward", "gradient of w", "x", "dispatch"],
    leave: [last, "forward", "", "out", "combine"],
    "gradients arrive": [last, "backward", "gradient of x", "x", "combine"],
    "gradients leave": [first, "backward", "gradient of x", "out", "dispatch"],
  };
}

/** The arrays of a row, by what they are: rows that have one in common are served by one collective. */
const arraysOf = ({ name, what, x, out }) =>
  ({
    "": { x: `x ${x.letters}`, w: `w ${name}`, out: `y ${name}` },
    "gradient of x": { x: `dy ${name}`, w: `w ${name}`, out: `dx ${out.letters}` },
    "gradient of w": { x: `x ${x.letters}`, w: `dy ${name}`, out: `dw ${name}` },
  })[what];

/** Titles of the other matmuls of experts that have the same array, in the same pass. */
function alsoFor(row, operand, { routed, layouts }) {
  const own = layouts.find(sameRow(row)),
    array = arraysOf(own)[operand],
    forward = (one) => one.phase === "forward";
  return layouts
    .filter((one) => one !== own && routed.ops.includes(one.name) && forward(one) === forward(own) && Object.values(arraysOf(one)).includes(array))
    .map(rowTitle);
}

/** Of these, what a row of the list has. */
function expertSends(row, config, sizes, chip) {
  const { routed } = config.table;
  if (!routed || !routed.ops.includes(row.name)) return [];
  const places = expertPlaces(config.table);
  return expertTraffic(config, sizes, chip).flatMap((t) =>
    t.places
      .map((place) => places[place])
      .filter(([name, phase, what]) => name === row.name && phase === row.phase && what === row.what)
      .map(([, , , operand, of]) => {
        const shared = t.routing ? [] : alsoFor(row, operand, config.table);
        return { operand, kind: t.kind, axes: t.axes, bytes: t.bytes, shared, of, sent: t.routing ? "routing" : "" };
      }),
  );
}

/** Experts stay where they are kept, and tokens go over axes that split them (`blueprint.rules.check_experts`). */
function expertProblem({ rules, table }, sizes) {
  if (!table.routed) return null;
  const { parameters, activations } = rules,
    experts = live(activations.experts, sizes),
    outside = experts.filter((a) => ![...activations.batch, ...activations.residual_sequence].includes(a));
  for (const name of ["experts", "expert_mlp"])
    if (live(parameters[name], sizes).join() !== live(activations[name], sizes).join())
      return `sharding.parameters.${name} (${axesText(parameters[name], sizes)}) and sharding.activations.${name} (${axesText(activations[name], sizes)}) must be the same: experts stay where they are kept`;
  if (outside.length)
    return `sharding.activations.experts: ${outside.join(" and ")} splits no tokens, and tokens are exchanged over the axes that split the experts; remove it`;
  return null;
}
