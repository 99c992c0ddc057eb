"""For all tests of the repository."""

import gc


def pytest_collection_finish():
    # A run of the harness collects garbage twice, as Accelerate does when it lets go of a model. Over all modules that
    # tests import, which live to the end anyway, that would take longer than the run.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()
