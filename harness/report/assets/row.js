// A row: one configuration, and the runs that each of its numbers comes from.

function rowView(row) {
  const board = BOARD_OF.get(row.id);
  const runs = runsOf(row);
  return [
    trail(board),
    make('h1', { tabindex: '-1' }, swatch(styleOfRow(board, row)), row.label),
    make('p', { class: 'lead' }, `${row.method} on ${board.name}; ${plural(row.runs.length, 'run')}`),
    section('Seeds and runs', ...Object.keys(board.selections).map((which) => seedsTable(board, row, which))),
    differenceSection(board, row),
    section('Settings', facts([
      ...Object.entries(row.settings),
      ['Learning rate of the last stage', String(row.learning_rate)],
      ['Optimiser steps, all stages', count(row.steps)],
      ['Batch size of the last stage', count(row.batch_size)],
    ])),
    parametersSection(row.parameters),
    costSection(row.costs),
    tuningSection(row.tuning),
    runs.length ? runCurves(runs.map((run) => ({ run, label: row.label })), board, row) : null,
  ];
}

/** Links to what this is part of. */
function trail(board, row) {
  return make(
    'p',
    { class: 'trail' },
    link('board', board.id, board.name),
    row && [' › ', link('row', row.id, row.label)],
  );
}

/** Values seed by seed with what they come to. */
function seedsTable(board, row, which) {
  const found = own(row.quality, which) || {};
  const names = [board.metric, ...board.metrics].filter((name, at, all) => Object.hasOwn(found, name) && all.indexOf(name) === at);
  const loss = row.held_out_loss;
  const heads = ['Seed', ...names, ...(loss ? ['Held-out loss'] : [])];
  const statistics = [...names.map((name) => found[name]), ...(loss ? [loss] : [])];
  const rows = runsOf(row).map((run) => [
    link('run', run.id, `seed ${run.seed}`),
    ...statistics.map((each) => (isNumber(own(each.values, run.seed)) ? link('run', run.id, score(each.values[run.seed])) : NOTHING)),
  ]);
  const summary = [
    ['mean', (each) => score(each.mean)],
    ['standard deviation (n − 1)', (each) => score(each.std)],
    ['median', (each) => score(each.median)],
    ['95 % bootstrap interval', (each) => interval(each)],
  ].map(([name, write]) => [name, ...statistics.map(write)]);
  return fixed(`${madeFrom({ ...board, seeds: runsOf(row).map((run) => run.seed) }, which)}.`, heads, [...rows, ...summary]);
}

function differenceSection(board, row) {
  const found = Object.keys(board.selections)
    .map((which) => [which, differenceOf(board, row, which)])
    .filter(([, difference]) => difference);
  if (!found.length) return null;
  const reference = ROWS.get(board.reference);
  return section(
    'Difference to the reference',
    fixed(
      `${row.label} minus ${reference.label} in ${board.metric}; ${board.split} split; 95 % interval of Student's t, paired over seeds.`,
      ['Parameters', 'Seeds in common', 'Difference'],
      found.map(([which, difference]) => [wayName(which), difference.seeds.join(', ') || NOTHING, make('span', {}, differenceInWords(difference))]),
    ),
    make('p', { class: 'remark' }, 'The reference: ', link('row', reference.id, reference.label)),
  );
}

function parametersSection(parameters) {
  return section('Parameters', facts(Object.entries(parameters).map(([name, value]) => [name, count(value)])));
}

function costSection(costs) {
  const ratio = (found) => (found ? `${times(found.median)} ${interval(found, times).replace(NOTHING, '')}` : null);
  const known = facts([
    ['Saved after training', isNumber(costs.checkpoint_bytes) ? `${bytes(costs.checkpoint_bytes)} (${count(costs.checkpoint_bytes)} bytes)` : null],
    ['Training step over the frozen model', ratio(costs.step)],
    ['Memory of a training step', bytes(costs.step_memory_bytes)],
    ['FLOPs of a training step, counted', count(costs.flops_counted)],
    ['FLOPs of a forward, by formula', count(costs.flops_formula)],
    ['Merged forward over the base model', ratio(costs.merged_forward)],
    ['Measured on', costs.conditions || null],
    ['Read from', costs.source || null],
  ]);
  return known.children.length ? section('Costs', known, make('p', { class: 'remark' }, 'Ratios are medians with 95 % intervals.')) : null;
}

function tuningSection(tuning) {
  if (!tuning) return null;
  return section('Tuning', facts([
    ['Trials', `${count(tuning.trials)}, ${count(tuning.failed)} of them diverged or failed`],
    ['Optimiser steps, all trials', count(tuning.steps)],
    ['Searched', tuning.searched],
    ['Sampler', tuning.sampler],
    ['Judged by', tuning.metric],
    ['Best value', score(tuning.value)],
  ]));
}

/** Curves of a few runs, with a choice of what was measured. */
function runCurves(entries, board, row) {
  const names = seriesOf(entries.map(({ run }) => run));
  let chosen = usualSeries(names, board.metric);
  const style = styleOfRow(board, row);
  const figures = curves(() => entries.map((entry, at) => ({ ...entry, style: { ...style, dash: at % DASHES.length } })), () => chosen);
  const choose = (name) => {
    chosen = name;
    figures.update();
  };
  return section(
    'Learning curves',
    names.length > 1 ? make('div', { class: 'controls' }, choice('Measured', names.map((name) => [name, name.replace('.', ', ')]), chosen, choose)) : null,
    figures.element,
  );
}
