"""What a request's ``kv_transfer_params`` say: ``{"kvmarket": {"publish": false, "import": false}}``, prefill, sources.

Proxies for prefill/decode disaggregation ask a prefill engine with ``do_remote_decode``, and hand what it answers in
``kv_transfer_params`` to the decode engine. There the blocks are found by content, so all that the answer says is how
many tokens are about to be found: the prefill engine publishes them in the step after it has answered.

Routers that know which node has a prefix name it: llm-d by ``{"remote_kv_source": {"remote_host": …}}``, others by an
action ``kv.fetch`` of vLLM's ``kv_hints`` with a ``source_control_endpoint``. kvmd-mesh then asks that node first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)
_NAME = "kvmarket"
_WISHES = ("publish", "import")
_PREFILLED = "kvmarket_prefilled"


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


def answer_of_prefill(request: Any, tokens: int) -> dict[str, Any] | None:
    """What the answer says, of whose leading ``tokens`` the blocks are published; None: the request is no prefill."""
    params = getattr(request, "kv_transfer_params", None)
    asked = isinstance(params, Mapping) and params.get("do_remote_decode") is True
    return {_PREFILLED: tokens} if asked and tokens > 0 else None


def prefilled_of(request: Any) -> int:
    """Leading tokens that a prefill engine says it has published for the request."""
    params = getattr(request, "kv_transfer_params", None)
    tokens = params.get(_PREFILLED, 0) if isinstance(params, Mapping) else 0
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else 0


def source_hint_of(request: Any) -> str:
    """The host that a router names as one that has the request's prefix; empty: it names none."""
    params = getattr(request, "kv_transfer_params", None)
    source = params.get("remote_kv_source") if isinstance(params, Mapping) else None
    host = source.get("remote_host") if isinstance(source, Mapping) else None
    if isinstance(host, str) and host:
        return host.strip("[]")
    for action in getattr(getattr(request, "kv_hints", None), "actions", ()):
        payload = getattr(action, "payload", None)
        if getattr(action, "action_type", "") == "kv.fetch" and isinstance(payload, Mapping):
            endpoint = payload.get("source_control_endpoint")
            if isinstance(endpoint, str):
                return endpoint.rpartition("://")[2].rpartition(":")[0].strip("[]")
    return ""


__all__ = ["answer_of_prefill", "prefilled_of", "source_hint_of", "wishes_of"]
