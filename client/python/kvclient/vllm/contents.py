"""Digests of files' contents: container images normalise times, and fine-tunes have equal names and sizes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

# A file that changed this recently may change again under the same times: file systems count them
# in up to 2 s.
_GRANULARITY_NS = 2_000_000_000
_CHUNK = 1 << 24

_Signature = tuple[int, int, int, int, int]


class Contents:
    """Digests of files, each read again only if it may have changed. Not thread-safe."""

    def __init__(self) -> None:
        """No file has been read."""
        self._known: dict[str, tuple[_Signature, bytes]] = {}

    def digest(self, folder: str, patterns: Sequence[str]) -> str:
        """SHA-256 over names and bytes of the files in ``folder`` that match; 32 hex digits, "" if none does.

        OSError: a file can't be read, or changes while it is.
        """
        found = sorted({path for pattern in patterns for path in Path(folder).glob(pattern) if path.is_file()})
        digest = hashlib.sha256()
        for path in found:
            digest.update(f"{len(path.name)}:{path.name}:".encode() + self._of(path))
        return digest.hexdigest()[:32] if found else ""

    def _of(self, path: Path) -> bytes:
        key = str(path.resolve())
        signature, changed_ns = _look(key)
        known = self._known.get(key)
        if known is not None and known[0] == signature:
            return known[1]
        began_ns = time.time_ns()
        content = _read(key)
        if _look(key)[0] != signature:
            raise OSError(f"{path} changes while it is read")
        if began_ns - changed_ns > _GRANULARITY_NS:
            self._known[key] = (signature, content)
        else:
            self._known.pop(key, None)
        return content


def _look(path: str) -> tuple[_Signature, int]:
    status = os.stat(path)
    signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return signature, max(status.st_mtime_ns, status.st_ctime_ns)


def _read(path: str) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


__all__ = ["Contents"]
