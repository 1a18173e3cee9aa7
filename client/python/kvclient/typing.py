"""Types of the arguments that kvclient takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SupportsDLPack(Protocol):
    """A one-dimensional integer array on the CPU: numpy, torch, ...."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a DLPack capsule of the array."""
        ...


#: Token ids of a prompt, each in [0, 2**32): ``[tokens]``. Copied.
TokenIds = Sequence[int] | SupportsDLPack

__all__ = ["SupportsDLPack", "TokenIds"]
