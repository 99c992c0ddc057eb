"""For all tests of the repository."""

import gc

LONGEST = ("tests/test_end_to_end.py", "tests/benchmarks/e2e/scoring/")


def pytest_collection_modifyitems(items):
    # What takes longest starts first, so that no worker is left alone with it.
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish():
    # A run of the harness collects garbage twice, as Accelerate does when it lets go of a model. Over all modules that
    # tests import, which live to the end anyway, that would take longer than the run.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()
