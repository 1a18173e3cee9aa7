"""What a request asks for itself: ``kv_transfer_params: {"kvmarket": {"publish": false, "import": false}}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)
_NAME = "kvmarket"
_WISHES = ("publish", "import")


def wishes_of(request: Any) -> tuple[bool, bool]:
    """Whether blocks that the request computes may be published, and whether blocks may be imported for it.

    Both unless it says otherwise; ``"kvmarket": false`` is neither. What can't be understood counts as neither.
    """
    params = getattr(request, "kv_transfer_params", None)
    given = params.get(_NAME, True) if isinstance(params, Mapping) else True
    if isinstance(given, bool):
        return given, given
    if isinstance(given, Mapping) and all(name in _WISHES and isinstance(value, bool) for name, value in given.items()):
        return given.get("publish", True), given.get("import", True)
    _log.warning(
        "kvclient: request %s: kv_transfer_params[%r] is %r: it shares nothing", request.request_id, _NAME, given
    )
    return False, False


__all__ = ["wishes_of"]
