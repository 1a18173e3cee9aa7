"""vLLM without a fork: ``kv_connector_module_path: kvclient.vllm``, ``kv_connector: KvMarketConnector``.

Only the connector itself needs vLLM; the rest of the package can be imported, and tested, without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvclient.vllm.options import ConnectorOptions

if TYPE_CHECKING:
    from kvclient.vllm.connector import KvMarketConnector


def __getattr__(name: str) -> Any:
    if name == "KvMarketConnector":
        from kvclient.vllm.connector import KvMarketConnector

        return KvMarketConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ConnectorOptions", "KvMarketConnector"]
