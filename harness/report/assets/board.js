// A board: one task and base model, whose rows compare.

function boardView(board) {
  const state = stateOf(board);
  const counted = make('output', { class: 'counted' });
  const table = sortable(`Rows of ${board.name}`, state.sort);
  const plots = board.rows.length ? [paretoSection(board), barsSection(board), curvesSection(board)].filter(Boolean) : [];

  function update() {
    const rows = shownRows(board);
    counted.textContent = `${count(rows.length)} of ${plural(board.rows.length, 'row')}`;
    table.update(
      boardColumns(board),
      rows,
      `${board.task} (version ${board.version}), ${board.model}: ${madeFrom(board, state.which)}. ` +
        'Mean ± standard deviation (n − 1) over seeds; [low, high] is the 95 % bootstrap interval of the mean.',
    );
    plots.forEach((each) => each.update());
  }

  const [pareto, bars, drawn] = plots.map((each) => each.element);
  update();
  return [
    make('h1', { tabindex: '-1' }, board.name),
    make(
      'p',
      { class: 'lead' },
      board.metric ? make('b', {}, board.metric) : 'no metric but losses',
      `, more is better; ${board.split} split, ${plural(board.examples, 'example')}; ${seedsInWords(board.seeds)}; ` +
        `${plural(board.rows.length, 'row')}, ${plural(board.rows.reduce((sum, row) => sum + row.runs.length, 0), 'run')}`,
    ),
    board.notes.length ? make('ul', { class: 'notes' }, board.notes.map((note) => make('li', {}, note))) : null,
    boardControls(board, counted, update),
    pareto,
    section('All rows', table.element, howToRead(board)),
    printedSection(board),
    bars,
    drawn,
    section(
      'What is compared',
      facts([
        ['Setting', board.setting],
        ["Base model's sha256", board.weights],
        ...Object.entries(board.selections).map(([which, words]) => [`Parameters ${wayName(which)}`, `selected by ${words}`]),
      ]),
    ),
  ];
}

function howToRead(board) {
  const reference = ROWS.get(board.reference);
  return make(
    'p',
    { class: 'remark' },
    'Press a number for the runs that it comes from. ',
    reference && `Differences are to ${reference.label}, paired over the seeds in common, with the 95 % interval of Student's t, not corrected for the number of rows; within noise means that the interval holds 0. `,
    'Bootstrap intervals are too short at 3 to 5 seeds.',
  );
}

function boardControls(board, counted, update) {
  const state = stateOf(board);
  const set = (name) => (value) => {
    state[name] = value;
    update();
  };
  const filter = make('input', { type: 'search', value: state.text, placeholder: 'part of a name', oninput: () => set('text')(filter.value) });
  const most = Math.max(1, ...board.rows.map((row) => row.runs.length));
  const least = make('input', {
    type: 'number',
    min: 1,
    max: most,
    value: state.leastSeeds,
    oninput: () => set('leastSeeds')(Number(least.value) || 1),
  });
  const ways = Object.keys(board.selections);
  return make(
    'form',
    { class: 'panel', 'aria-label': 'What is shown', onsubmit: (event) => event.preventDefault() },
    make(
      'div',
      { class: 'controls' },
      ways.length > 1 && choice('Parameters selected', ways.map((which) => [which, wayName(which)]), state.which, set('which')),
      board.metrics.length > 1 && choice('Metric', board.metrics.map((name) => [name, name]), state.metric, set('metric')),
      field('Filter rows', filter),
      most > 1 && field('Least seeds', least),
      counted,
    ),
    methodBoxes(board, update),
  );
}

/** The legend of all plots on the board, which is a filter, too. */
function methodBoxes(board, update) {
  const state = stateOf(board);
  const methods = [...new Set(board.rows.map((row) => row.method))].sort();
  if (methods.length < 2) return null;
  const boxes = make('div', { class: 'checks' });
  function drawBoxes() {
    replace(
      boxes,
      methods.map((method) =>
        checkbox([swatch(styleOfMethod(method)), method], !state.hidden.has(method), (on) => {
          state.hidden[on ? 'delete' : 'add'](method);
          update();
        }),
      ),
    );
  }
  const all = (hidden) => () => {
    state.hidden = new Set(hidden);
    drawBoxes();
    update();
  };
  drawBoxes();
  return make(
    'fieldset',
    {},
    make('legend', {}, 'Methods'),
    boxes,
    make('div', { class: 'buttons' }, make('button', { type: 'button', onclick: all([]) }, 'All'), make('button', { type: 'button', onclick: all(methods) }, 'None')),
  );
}

/** The columns that hold something for at least one row. */
function boardColumns(board) {
  const state = stateOf(board);
  const found = (row) => quality(row, state.which, state.metric);
  const number = (key, head, value, write, title) => ({
    key,
    head,
    title,
    value: (row) => (isNumber(value(row)) ? value(row) : null),
    cell: (row) => (isNumber(value(row)) ? link('row', row.id, write(value(row), row)) : NOTHING),
  });
  const others = board.metrics.filter((name) => name !== state.metric);
  const columns = [
    {
      key: 'label',
      head: 'Row',
      text: true,
      header: true,
      value: (row) => row.label.toLowerCase(),
      cell: (row) =>
        make(
          'span',
          { class: 'name' },
          swatch(styleOfRow(board, row)),
          link('row', row.id, row.label),
          row.id === board.reference && make('span', { class: 'tag' }, 'reference'),
        ),
    },
    number('quality', state.metric, (row) => found(row)?.mean, (_, row) => spread(found(row)), 'mean ± standard deviation over seeds'),
    number('interval', '95 % interval', (row) => found(row)?.low, (_, row) => interval(found(row)), 'bootstrap, of the mean; sorts by its lower end'),
    differenceColumn(board),
    number('seeds', 'Seeds', (row) => row.runs.length, count, 'runs of the row'),
    number('parameters', 'Adapter + norm', (row) => row.parameters.adapter + row.parameters.norm, count, 'trained parameters without the head'),
    number('head', 'Head', (row) => row.parameters.head, count, 'trained parameters of the head'),
    number('step', 'Step / floor', (row) => row.costs.step?.median, times, 'time of a training step over that of the frozen model'),
    number('memory', 'Step memory', (row) => row.costs.step_memory_bytes, bytes, 'peak above the loaded model'),
    number('checkpoint', 'Checkpoint', (row) => row.costs.checkpoint_bytes, bytes, 'saved after training'),
    number('counted', 'FLOPs counted', (row) => row.costs.flops_counted, short, 'of the matrix products of a training step'),
    number('formula', 'FLOPs by formula', (row) => row.costs.flops_formula, short, "of a forward of all adapted matrices, by the paper's formula"),
    number('merged', 'Merged / base', (row) => row.costs.merged_forward?.median, times, 'time of a merged forward over that of the base model'),
    ...others.map((name) =>
      number(`metric ${name}`, name, (row) => quality(row, state.which, name)?.mean, (_, row) => spread(quality(row, state.which, name)), 'mean ± standard deviation over seeds'),
    ),
    number('loss', 'Held-out loss', (row) => row.held_out_loss?.mean, (_, row) => spread(row.held_out_loss), 'the lowest in the last stage'),
    number('rate', 'Learning rate', (row) => row.learning_rate, (value) => String(value), 'of the last stage'),
    number('steps', 'Steps × batch', (row) => row.steps, (value, row) => `${count(value)} × ${count(row.batch_size)}`, 'optimiser steps over all stages'),
    number('tuning', 'Tuning trials', (row) => row.tuning?.trials, count, 'spent to find the settings'),
  ];
  return columns.filter((column) => column && board.rows.some((row) => column.value(row) !== null));
}

function differenceOf(board, row, which) {
  return board.differences.find((each) => each.row === row.id && each.which === which);
}

function differenceColumn(board) {
  const state = stateOf(board);
  if (state.metric !== board.metric) return null;
  const found = new Map(board.differences.filter((each) => each.which === state.which).map((each) => [each.row, each]));
  return {
    key: 'difference',
    head: 'To reference',
    title: 'row minus reference, with its interval',
    value: (row) => found.get(row.id)?.mean ?? null,
    cell: (row) =>
      row.id === board.reference ? 'reference' : differenceInWords(found.get(row.id), (text) => link('row', row.id, text)),
  };
}

/** A difference with its interval, and what follows from it; `wrap` makes a link of the numbers. */
function differenceInWords(difference, wrap = (text) => text) {
  if (!difference) return NOTHING;
  if (!isNumber(difference.mean)) return wrap('no seed in common');
  const verdict = !isNumber(difference.low)
    ? 'no interval: one seed in common'
    : difference.within_noise
      ? 'within noise'
      : difference.mean > 0
        ? 'better'
        : 'worse';
  const ends = interval(difference, signed).replace(NOTHING, '');
  return [wrap(`${signed(difference.mean)} ${ends}`.trim()), make('span', { class: `verdict ${verdict.split(' ')[0]}` }, verdict)];
}
