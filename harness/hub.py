"""What goes wrong when models and data sets are fetched from the model hub, as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from harness.errors import UserError

HTTP_ERROR = HfHubHTTPError.__bases__[0]
"""What the hub client's HTTP library raises by itself; which library that is depends on the client's version."""


@contextlib.contextmanager
def hub_errors(subject: str, kind: str, instead: str) -> Iterator[None]:
    """Turns what the hub's client raises into a sentence.

    Args:
        subject: what the sentence is about, such as ``--model someone/model``.
        kind: what is fetched, such as ``model``.
        instead: what to do without the hub.

    Raises:
        UserError: the hub gives no files.
    """
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{subject}: the hub gives it only to users who were granted access; {instead}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{subject}: the model hub has no such {kind}; {instead}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{subject}: the model hub cannot be reached and the {kind} is not in its cache; {instead}"
        ) from error
    except (HTTP_ERROR, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{subject}: the model hub, or what stands between, gives no usable answer ({reason}); {instead}"
        ) from error
