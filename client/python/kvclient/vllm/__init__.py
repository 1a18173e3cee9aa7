"""vLLM without a fork: ``kv_connector_module_path: kvclient.vllm``, ``kv_connector: KvMarketConnector``."""

from kvclient.vllm.connector import KvMarketConnector
from kvclient.vllm.options import ConnectorOptions

__all__ = ["ConnectorOptions", "KvMarketConnector"]
