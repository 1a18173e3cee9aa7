"""The connector's counters as vLLM's connector statistics: its log line and its Prometheus endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvclient.vllm.stats import COUNTERS, TIMERS

_BUCKETS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0)


@dataclass
class MarketStats(KVConnectorStats):
    """``data``: the counts that ``Counters.take`` returns."""

    def reset(self) -> None:
        """Drop all counts."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Add ``other``."""
        for name, value in other.data.items():
            self.data[name] = self.data[name] + value if name in self.data else value
        return self

    def reduce(self) -> dict[str, int | float]:
        """For the log: sums, mean times in milliseconds, GB/s."""
        reduced: dict[str, int | float] = {name: self.data[name] for name in COUNTERS if name in self.data}
        for name in TIMERS:
            times = self.data.get(f"{name}_seconds")
            if times:
                reduced[f"mean_{name}_ms"] = round(1e3 * sum(times) / len(times), 3)
        spent = sum(self.data.get("import_seconds", ()))
        if spent and self.data.get("imported_bytes"):
            reduced["import_GB_per_s"] = round(self.data["imported_bytes"] / spent / 1e9, 2)
        return reduced

    def is_empty(self) -> bool:
        """Whether there are no counts."""
        return not self.data


class MarketPromMetrics(KVConnectorPromMetrics):
    """``vllm:kvmarket_…``: a counter for each of COUNTERS, a histogram for each of TIMERS."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        """As vLLM calls it."""
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._metrics: dict[str, dict[int, Any]] = {}
        for name, text in COUNTERS.items():
            metric = metric_types[Counter](name=f"vllm:kvmarket_{name}", documentation=text, labelnames=labelnames)
            self._metrics[name] = self._per_engine(metric)
        for name, text in TIMERS.items():
            metric = metric_types[Histogram](
                name=f"vllm:kvmarket_{name}_seconds", documentation=text, buckets=_BUCKETS, labelnames=labelnames
            )
            self._metrics[f"{name}_seconds"] = self._per_engine(metric)

    def _per_engine(self, metric: Any) -> dict[int, Any]:
        return {engine: metric.labels(*values) for engine, values in self.per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add the counts that ``Counters.take`` returned."""
        for name, value in transfer_stats_data.items():
            metric = self._metrics.get(name, {}).get(engine_idx)
            if metric is None:
                continue
            if isinstance(value, list):
                for each in value:
                    metric.observe(each)
            else:
                metric.inc(value)


__all__ = ["MarketPromMetrics", "MarketStats"]
