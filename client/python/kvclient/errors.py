"""Errors of libkvclient and kvmd as exceptions: one class for each code, all of them ``KvError``."""

from __future__ import annotations

import os
from typing import ClassVar


class KvError(Exception):
    """Something that libkvclient or kvmd refused or could not do.

    ``code``: stable lower-case name, as kvctl and the logs print it. ``message``: for people.
    ``sys_errno``: errno of the failed system call, 0 if none.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "", sys_errno: int = 0) -> None:
        super().__init__(message, sys_errno)
        self.message = message
        self.sys_errno = sys_errno

    def __str__(self) -> str:
        return f"{self.message} ({os.strerror(self.sys_errno)})" if self.sys_errno else self.message


class InvalidArgumentError(KvError):
    """Arguments contradict each other or exceed a documented limit."""

    code = "invalid_argument"


class UnavailableError(KvError):
    """kvmd is not reachable: not running, restarting, socket missing."""

    code = "unavailable"


class DeadlineExceededError(KvError):
    """The caller's timeout passed first."""

    code = "deadline_exceeded"


class ProtocolError(KvError):
    """The peer sent bytes that break the protocol."""

    code = "protocol"


class VersionMismatchError(KvError):
    """Protocol or layout version differs."""

    code = "version_mismatch"


class PermissionDeniedError(KvError):
    """The process's credentials do not allow it."""

    code = "permission_denied"


class NotFoundError(KvError):
    """No such model, region, block or file."""

    code = "not_found"


class AlreadyExistsError(KvError):
    """The name is taken by a live owner."""

    code = "already_exists"


class ResourceExhaustedError(KvError):
    """A table, quota, queue or memory is full."""

    code = "resource_exhausted"


class ModelMismatchError(KvError):
    """Two model specs differ; the message names the first differing field."""

    code = "model_mismatch"


class BadGeometryError(KvError):
    """A region's geometry overflows, overlaps or leaves its segments."""

    code = "bad_geometry"


class StaleError(KvError):
    """A generation check failed: the block was rewritten meanwhile."""

    code = "stale"


class UnsupportedError(KvError):
    """The build, machine or model can't do it; the message says what could."""

    code = "unsupported"


class SystemCallError(KvError):
    """A system call failed; ``sys_errno`` says how."""

    code = "system"


class CancelledError(KvError):
    """The object was closed before or during the operation."""

    code = "cancelled"


_CLASSES: dict[str, type[KvError]] = {cls.code: cls for cls in KvError.__subclasses__()}


def from_code(code: str, message: str, sys_errno: int = 0) -> KvError:
    """Make the exception for ``code``; a code that this version does not know becomes a plain ``KvError``."""
    return _CLASSES.get(code, KvError)(message, sys_errno)


__all__ = ["KvError", *sorted(cls.__name__ for cls in _CLASSES.values()), "from_code"]  # pyright: ignore
