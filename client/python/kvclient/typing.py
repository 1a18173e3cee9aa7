"""Types of the arguments that kvclient takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SupportsDLPack(Protocol):
    """A one-dimensional integer array on the CPU: numpy, torch, ...."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a DLPack capsule of the array."""
        ...


#: Numbers of blocks, generations, ...: ``[n]``, none negative. Copied; an array costs no Python
#: object for each.
Integers = Sequence[int] | SupportsDLPack
#: Token ids of a prompt, each in [0, 2**32): ``[tokens]``. Copied.
TokenIds = Integers
#: A GPU, the same in every process: ``"GPU-<uuid>"`` (or ``"MIG-<uuid>"``), or the UUID's 16 bytes.
DeviceId = str | bytes

__all__ = ["DeviceId", "Integers", "SupportsDLPack", "TokenIds"]
