// The rows of the list: as they were traced, or as the rules lay them out on another mesh, with the cost model's figures.

const ATTENTION = ["scores", "context", "attention"];
const sameRow = (row) => (layout) => layout.name === row.name && layout.phase === row.phase && layout.what === row.what;

/** Sizes of dims by letter, also those that attention's rows alone have: keys, and queries of a key's head. */
function rowSizes(config, sizes) {
  const whole = letterSizes(config, sizes),
    { dims } = config.table,
    shared = headPairs(config.table).map(([q, k]) => Math.floor(dims[q].size / dims[k].size));
  return { G: product(shared), ...whole };
}

/** The row on any mesh and machine; where the rules have no layout for it, its traced one with the new sizes. */
function predictedRow(row, config, chip, sizes, machine) {
  const layout = passesOf(config, sizes).find(sameRow(row)),
    letters = rowSizes(config, sizes),
    head = layout && !layout.stacked,
    chunks = head && config.loss.chunk ? Math.max(1, config.data.seq_len / config.loss.chunk) : 1;
  letters.T /= chunks; // the loss takes the sequence in chunks, and sends before and after all of them
  const part = (key) => tensorOn(row[key], layout ? layout[key] : row[key], letters, sizes);
  const there = { ...row, x: part("x"), w: part("w"), out: part("out") };
  there.chunks = chunks;
  there.times = head ? config.step.microbatches * chunks : row.times;
  there.cases = casesOf(there);
  const sends = layout ? inOrder([...layout.sends, ...expertSends(row, config, sizes, chip)]) : row.sends;
  return { ...there, ...rowFigures(there, config, chip, sizes, sends, machine) };
}

function tensorOn(named, layout, letters, sizes) {
  const names = [...layout.letters],
    there = (axes) => live(axes, sizes);
  return {
    name: named.name,
    dtype: named.dtype,
    letters: names,
    sizes: names.map((c) => letters[c] ?? 1),
    stored: layout.stored.map(there),
    used: layout.used.map(there),
    unreduced: there(layout.unreduced || []),
  };
}

const localSizes = (tensor, layout, sizes) => tensor.sizes.map((n, i) => Math.floor(n / count(layout[i], sizes)));
const byLetter = (tensor, layout, sizes) =>
  Object.fromEntries(tensor.letters.map((c, i) => [c, localSizes(tensor, layout, sizes)[i]]));
const lettersOf = (row) => {
  const inside = (c, t) => t.letters.includes(c);
  const all = [...new Set([...row.x.letters, ...row.w.letters])];
  return {
    batch: all.filter((c) => inside(c, row.x) && inside(c, row.w) && inside(c, row.out)),
    m: row.x.letters.filter((c) => !inside(c, row.w)),
    n: row.w.letters.filter((c) => !inside(c, row.x)),
    k: row.x.letters.filter((c) => inside(c, row.w) && !inside(c, row.out)),
  };
};

/** Are these the heads of queries and of the keys that they read? Each device has both. */
const readBeside = (a, b) => headPairs(PAGE.config.table).some(([q, k]) => (a === q && b === k) || (a === k && b === q));

/** Mesh axis -> which of the scaling book's four cases it is, from where the operands are stored. */
function casesOf(row) {
  const where = (t) => Object.fromEntries(t.letters.flatMap((c, i) => t.stored[i].map((axis) => [axis, c])));
  const x = where(row.x),
    w = where(row.w),
    inner = lettersOf(row).k,
    found = {};
  for (const axis of new Set([...Object.keys(x), ...Object.keys(w)])) {
    if (readBeside(x[axis], w[axis])) {
      found[axis] = 1;
      continue;
    }
    const touched = inner.includes(x[axis]) || inner.includes(w[axis]);
    found[axis] = touched ? (x[axis] === w[axis] ? 3 : 2) : x[axis] && w[axis] && x[axis] !== w[axis] ? 4 : 1;
  }
  return found;
}

/** Shapes, FLOPs, bytes and seconds of a device and run. */
function rowFigures(row, config, chip, sizes, templates, machine) {
  const here = { ...byLetter(row.x, row.x.used, sizes), ...byLetter(row.w, row.w.used, sizes) },
    groups = lettersOf(row);
  const batch = product(groups.batch.map((c) => here[c])),
    [m, k, n] = ["m", "k", "n"].map((g) => product(groups[g].map((c) => here[c])));
  const width = widthOf(config),
    rates = ratesOf(config, chip);
  const held = (tensor, layout) => product(localSizes(tensor, layout, sizes)) * (PAGE.constants.bytes[tensor.dtype] || width);
  const flops = 2 * batch * m * k * n,
    moved = held(row.x, row.x.used) + held(row.w, row.w.used) + held(row.out, row.out.stored);
  if (ATTENTION.includes(row.name)) return attentionFigures(row, config, chip, sizes, rates);
  const sends = templates
    .map((s) => ({ ...s, axes: live(s.axes, sizes), compiled: "", note: "" }))
    .filter((s) => s.axes.length);
  const seconds = { compute: flops / rates.matmul_flops, HBM: moved / rates.memory };
  for (const s of sends) {
    if (!s.of) s.bytes = sendBytes(row, s, sizes) * sentWidth(row, config) * (row[s.operand].letters.includes("T") ? row.chunks : 1);
    s.times = row.times / row.chunks;
    const time = collectiveSeconds(s.kind, s.axes, s.bytes, machine.links, rates.network);
    Object.assign(s, time);
    const name = `${time.network} (${s.axes.join("+")})`;
    seconds[name] = (seconds[name] || 0) + (time.seconds * s.times) / row.times;
  }
  return { per_device: { m: batch * m, k, n }, flops, hbm_bytes: moved, intensity: flops / moved, sends, seconds, bound: longest(seconds) };
}

/** The matmuls of attention are one kernel, counted by formula: a query meets the keys that it can see, on average. */
function attentionFigures(row, config, chip, sizes, rates) {
  const cost = attentionCost(config, sizes),
    { attention, dims } = config.table,
    keys = visibleKeys(config),
    width = widthOf(config),
    { values, gathered } = ofValues(attention),
    [H, O] = [attention.q, gathered].map((letters) => dims[letters[letters.length - 1]].size),
    m = activationElements(config, sizes, attention.q) / H,
    held = (...each) => total(each.map((letters) => activationElements(config, sizes, letters))) * width,
    [keysHeld, valuesHeld] = [held(attention.q, attention.k), held(values, gathered)];
  const [k, n, flops, moved] = {
    scores: [H, keys, (cost.forward * H) / (H + O), keysHeld],
    context: [Math.round(keys), O, (cost.forward * O) / (H + O), valuesHeld],
    attention: [H, 5 * keys, cost.backward, 1.5 * (keysHeld + valuesHeld)],
  }[row.name];
  const seconds = { compute: flops / (rates.attention_flops * attentionShare(config, chip)), HBM: moved / rates.memory };
  return { per_device: { m, k, n }, flops, hbm_bytes: moved, intensity: flops / moved, sends: [], seconds, bound: longest(seconds) };
}

/** What is sent before a matmul, and after it. */
const inOrder = (sends) => ["x", "w", "out"].flatMap((operand) => sends.filter((s) => s.operand === operand));

/** Elements that a collective counts: the gathered operand; the whole partial sum; the shard that is left to be summed. */
function sendBytes(row, send, sizes) {
  const tensor = row[send.operand];
  return product(localSizes(tensor, sentLayout(tensor, send), sizes));
}

/** A traced row as the list wants it. */
function tracedRow(row) {
  const tensor = (t) => ({ ...t, letters: [...t.letters] });
  return { ...row, x: tensor(row.x), w: tensor(row.w), out: tensor(row.out) };
}

/** Seconds of a row: the longest of compute, HBM and each network, as if they ran beside each other. */
const rowSeconds = (row) => row.seconds[longest(row.seconds)];

const ownBytes = (row) => total(row.sends.filter((s) => !s.by).map((s) => s.bytes));

/** To each row, the collectives of other rows that serve it too: {...send, by: whose}. */
function withBorrowed(rows) {
  const borrowed = rows.map(() => []);
  for (const row of rows)
    for (const send of row.sends)
      for (const title of send.shared) {
        const i = rows.findIndex((r) => rowTitle(r) === title);
        const operand = i < 0 ? null : ["x", "w", "out"].find((key) => rows[i][key].name === row[send.operand].name);
        if (operand) borrowed[i].push({ ...send, operand, by: rowTitle(row) });
      }
  return rows.map((row, i) => ({ ...row, sends: [...row.sends, ...borrowed[i]] }));
}
