"""The one kind of error that a user can cause: a code, the facts, and a sentence made of both."""

from __future__ import annotations

# One sentence each: what is wrong, and what to do. The Slicer module translates them by their code.
MESSAGES = {
    "file_missing": "{path} does not exist: check the path.",
}


class FusionError(Exception):
    """Something that the user can mend.

    `code` is a key of `MESSAGES`, `facts` are the values of its sentence; `str()` gives the English sentence, and a
    translated one is `translation[error.code].format(**error.facts)`.
    """

    def __init__(self, code: str, **facts: object) -> None:
        self.code = code
        self.facts = facts
        super().__init__(MESSAGES[code].format(**facts))


class Cancelled(Exception):  # noqa: N818 - not an error: the caller asked for it
    """The caller's `cancelled()` said so; nothing was written."""
