"""One row of the tables."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One defence: which tests fail when `old` of `file` is replaced by `new`."""

    tests: tuple[tuple[str, str], ...]
    file: str
    old: str
    new: str
