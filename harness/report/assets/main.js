// Which view is shown: the part of the address after #, so that every view has a link and the way back works.

const MAIN = document.getElementById('main');
const PLACES = new Map(); // address -> how far down a reader was
let shownAddress = null;

function viewOf(hash) {
  const [kind, code] = hash.replace(/^#/, '').split('/');
  const id = code === undefined ? undefined : decoded(code);
  if (kind === 'board' && BOARDS.has(id)) return boardView(BOARDS.get(id));
  if (kind === 'row' && ROWS.has(id)) return rowView(ROWS.get(id));
  if (kind === 'run' && RUNS.has(id)) return runView(RUNS.get(id));
  if (kind === 'published' && (id === undefined || PUBLISHED.has(id))) return publishedView(id);
  return overviewView();
}

function decoded(code) {
  try {
    return decodeURIComponent(code);
  } catch {
    return code; // no address of ours: it leads to the overview
  }
}

function show() {
  if (shownAddress !== null) PLACES.set(shownAddress, scrollY);
  const moved = shownAddress !== null;
  forgetPlots();
  replace(MAIN, viewOf(location.hash));
  shownAddress = location.hash;
  const title = MAIN.querySelector('h1');
  document.title = title ? `${title.textContent} · ${REPORT.title}` : REPORT.title;
  drawNavigation();
  if (moved) title?.focus({ preventScroll: true });
  scrollTo(0, PLACES.get(shownAddress) ?? 0);
}

function drawNavigation() {
  const [kind, code] = location.hash.replace(/^#/, '').split('/');
  const here = BOARDS.get(code) || BOARD_OF.get(code) || BOARDS.get(RUNS.get(code)?.board);
  const current = (is) => (is ? 'page' : null);
  replace(
    document.getElementById('navigation'),
    link('overview', undefined, 'Overview', { 'aria-current': current(!here && kind !== 'published') }),
    REPORT.boards.length > 1 ? REPORT.boards.map((board) => link('board', board.id, board.name, { 'aria-current': current(board === here) })) : null,
    REPORT.published.length ? link('published', undefined, 'Published tables', { 'aria-current': current(kind === 'published') }) : null,
  );
}

function drawHeader() {
  const seeds = [...new Set(REPORT.runs.map((run) => run.seed))].sort((a, b) => a - b);
  const parts = [plural(REPORT.boards.length, 'board'), plural(REPORT.runs.length, 'run'), seeds.length ? seedsInWords(seeds) : ''];
  replace(
    document.getElementById('top'),
    make('div', {}, make('p', { class: 'title' }, REPORT.title), make('p', { class: 'shown' }, parts.filter(Boolean).join(' · '))),
    themeButton(),
  );
}

history.scrollRestoration = 'manual';
document.head.append(colourRules());
document.getElementById('skip').addEventListener('click', (event) => {
  event.preventDefault(); // the address says which view is shown
  MAIN.focus();
});
addEventListener('hashchange', show);
drawHeader();
show();
