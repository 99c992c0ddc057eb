// The report, and ways to find things in it.

const REPORT = JSON.parse(document.getElementById('report').textContent);
const BOARDS = new Map(REPORT.boards.map((board) => [board.id, board]));
const ROWS = new Map(REPORT.boards.flatMap((board) => board.rows.map((row) => [row.id, row])));
const BOARD_OF = new Map(REPORT.boards.flatMap((board) => board.rows.map((row) => [row.id, board])));
const RUNS = new Map(REPORT.runs.map((run) => [run.id, run]));
const PUBLISHED = new Map(REPORT.published.map((table) => [table.id, table]));

function pooled(place) {
  return REPORT.pool[place] || {};
}

function own(object, name) {
  return object && Object.hasOwn(object, name) ? object[name] : undefined;
}

/** A row's number over seeds. */
function quality(row, which, metric) {
  return own(own(row.quality, which), metric) || null;
}

function runsOf(row) {
  return row.runs.map((id) => RUNS.get(id)).filter(Boolean);
}

function runOfSeed(row, seed) {
  return runsOf(row).find((run) => String(run.seed) === String(seed));
}

/** What `which` is called: held-out, as published. */
function wayName(which) {
  return own(REPORT.ways, which) || spaced(which);
}

/** Losses are better when they are lower; all else is better when it is higher. */
function lessIsBetter(metric) {
  return metric.startsWith('loss');
}

function seedsInWords(seeds) {
  const inRow = seeds.length > 3 && seeds.at(-1) - seeds[0] === seeds.length - 1;
  return `${seeds.length === 1 ? 'seed' : 'seeds'} ${inRow ? `${seeds[0]} to ${seeds.at(-1)}` : seeds.join(', ')}`;
}

/** Split, seeds and selection: what every table of numbers has to say. */
function madeFrom(board, which) {
  return (
    `${board.split} split, ${plural(board.examples, 'example')}; ${seedsInWords(board.seeds)}; ` +
    `parameters ${wayName(which)}: selected by ${own(board.selections, which)}`
  );
}

/** Columns of published tables that have numbers of a task, each with its table. */
function publishedColumns(task, metric) {
  return REPORT.published.flatMap((table) =>
    table.columns
      .filter((column) => column.task === task && (metric === undefined || column.metric === metric))
      .map((column) => ({ table, column })),
  );
}

function publishedCell(row, column) {
  const cell = own(row.cells, column.name);
  return cell && isNumber(cell.value) ? cell : null;
}
