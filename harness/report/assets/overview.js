// The first view: what there is, averages over tasks, and the first board.

function overviewView() {
  const [first] = REPORT.boards;
  if (!first) return [make('h1', { tabindex: '-1' }, 'Nothing to show'), make('p', {}, 'No file that was named is a result.'), skippedSection()];
  const board = REPORT.boards.length > 1 ? [averageSections(), boardsSection()] : [averageSections()];
  const [title, ...rest] = boardView(first);
  if (REPORT.boards.length === 1) return [title, ...rest, skippedSection()];
  return [make('h1', { tabindex: '-1' }, 'Overview'), ...board.flat(), make('h2', { class: 'chapter' }, title.textContent), ...rest, skippedSection()];
}

function averageSections() {
  const groups = new Map();
  for (const average of REPORT.averages) {
    const key = JSON.stringify([average.which, average.boards]);
    groups.set(key, [...(groups.get(key) || []), average]);
  }
  return [...groups.values()].map((group) => averageSection(group));
}

const AVERAGE_SORTS = new Map();

function averageSection(group) {
  const { which, model, boards } = group[0];
  const key = JSON.stringify([which, boards]);
  if (!AVERAGE_SORTS.has(key)) AVERAGE_SORTS.set(key, { key: 'mean', down: true });
  const table = sortable(`Averages, ${model}`, AVERAGE_SORTS.get(key));
  const taskOf = (id, at) => ({
    key: id,
    head: `${BOARDS.get(id).task}`,
    title: BOARDS.get(id).metric,
    value: (average) => found(average, at)?.mean ?? null,
    cell: (average) => (found(average, at) ? link('row', average.rows[at], score(found(average, at).mean)) : NOTHING),
  });
  const found = (average, at) => quality(ROWS.get(average.rows[at]), which, BOARDS.get(boards[at]).metric);
  const over = boards.map((id) => `${BOARDS.get(id).task} (${BOARDS.get(id).metric}, ${BOARDS.get(id).split} split)`).join(', ');
  const seeds = [...new Set(group.flatMap((average) => Object.keys(average.quality.values).map(Number)))].sort((a, b) => a - b);
  table.update(
    [
      {
        key: 'label',
        head: 'Row',
        text: true,
        header: true,
        value: (average) => average.label.toLowerCase(),
        cell: (average) => make('span', { class: 'name' }, swatch(styleOfMethod(ROWS.get(average.rows[0]).method)), average.label),
      },
      { key: 'mean', head: 'Mean over tasks', value: (average) => average.quality.mean, cell: (average) => averageCell(average) },
      { key: 'interval', head: '95 % interval', value: (average) => average.quality.low, cell: (average) => interval(average.quality) },
      ...boards.map(taskOf),
    ],
    group,
    `Mean over ${over}, of the seeds that a row has on all of them; ${seedsInWords(seeds)}; parameters ${wayName(which)}. Mean ± standard deviation (n − 1) over seeds.`,
  );
  return section(`Averages, ${model}, ${wayName(which)}`, table.element);
}

/** The mean of a row over tasks opens what it was made from: the runs, task by task and seed by seed. */
function averageCell(average) {
  const seeds = Object.keys(average.quality.values);
  return make(
    'details',
    { class: 'from' },
    make('summary', {}, spread(average.quality)),
    make(
      'ul',
      {},
      seeds.map((seed) =>
        make(
          'li',
          {},
          `seed ${seed}: ${score(average.quality.values[seed])} from `,
          average.rows.flatMap((id, at) => {
            const run = runOfSeed(ROWS.get(id), seed);
            const name = BOARDS.get(average.boards[at]).task;
            return [at ? ', ' : '', run ? link('run', run.id, name) : name];
          }),
        ),
      ),
    ),
  );
}

function boardsSection() {
  const rows = REPORT.boards.map((board) => {
    const [which] = Object.keys(board.selections);
    const best = board.rows.find((row) => quality(row, which, board.metric));
    return [
      link('board', board.id, board.name),
      best ? link('row', best.id, best.label) : NOTHING,
      best ? link('row', best.id, `${spread(quality(best, which, board.metric))}`) : NOTHING,
      board.metric,
      `${board.split}, ${plural(board.examples, 'example')}`,
      board.seeds.join(', '),
      wayName(which),
      count(board.rows.length),
    ];
  });
  return section(
    'Boards',
    fixed(
      'The best row of each board by its mean in the way of selection that is named. Numbers compare on a board, and not between boards.',
      ['Board', 'Best row', 'Mean ± std', 'Metric', 'Split', 'Seeds', 'Parameters', 'Rows'],
      rows,
      [1, 3, 4, 6],
    ),
  );
}

function skippedSection() {
  if (!REPORT.skipped.length) return null;
  return make(
    'section',
    {},
    make(
      'details',
      {},
      make('summary', {}, `${plural(REPORT.skipped.length, 'file was', 'files were')} left out`),
      make('ul', {}, REPORT.skipped.map(({ file, reason }) => make('li', {}, make('code', {}, file), `: ${reason}`))),
    ),
  );
}
