"""The model that an engine runs now, as the scheduler's side knows it: its configuration and its loaded weights.

The weights are measured on all workers: at the start, and again after a call to the workers that may have changed
them. That is every call that is not known to leave the weights unchanged (``update_weights``, ``reload_weights``,
``wake_up``, ``collective_rpc``, …). At the start the workers are asked through the engine's executor. Later they begin
with a step and report with one, so that neither the scheduler's thread nor a step waits; until all have reported, the
model is not known. Steps and calls go to the workers in order, so a measurement is of the weights of all steps since it
was asked for, unless another such call came: then its result is dropped and the next one counts. Before such a call,
measurements end, since it may unmap what they read.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kvclient._native import ModelSpec
from kvclient.errors import UnsupportedError
from kvclient.vllm.spec import with_weights
from kvclient.vllm.weights import Measured, gathered

_log = logging.getLogger(__name__)

# If workers have not reported by then, all are asked, and the scheduler's thread waits.
_LATE_S = 2.0


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Calls to workers that leave the weights unchanged. Adapters have keys of their own.
_HARMLESS = _names(
    "execute_model sample_tokens execute_dummy_batch take_draft_token_ids profile check_health shutdown "
    "add_lora remove_lora pin_lora list_loras reset_mm_cache reset_encoder_cache save_sharded_state "
    "save_tensorized_model get_kv_connector_handshake_metadata get_kv_cache_spec get_supported_tasks "
    "get_compilation_match_table get_encoder_timing_stats get_model_inspection annotate_profile "
    "determine_available_memory"
)


def executor_of(vllm_config: Any) -> Any:
    """The executor of the engine that is being built around the caller.

    UnsupportedError: this vLLM builds its engines in another way.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        executor = getattr(owner, "__dict__", {}).get("model_executor")
        if executor is not None and callable(getattr(executor, "collective_rpc", None)):
            return executor
        frame = frame.f_back  # type: ignore[assignment]
    raise UnsupportedError("this vLLM does not show the connector its workers: nothing tells what the weights are")


class EngineModel:
    """One for each engine. Called by the scheduler's thread only."""

    def __init__(
        self,
        executor: Any,
        measure: Callable[[Callable[..., list[Any]]], Sequence[Measured]],
        spec: ModelSpec,
        *,
        given: str = "",
        source: Callable[[], str],
        lengths: str,
        spread: bool = False,
    ) -> None:
        """``measure(call)`` asks all workers. ``spec``: without weights. ``given``: the user's ``weights_digest``.

        ``source()``: the weights' identity by their source, called if they can't be read. ``lengths``: longest prompts,
        which count if the model reads them. ``spread``: other engines hold parts of the same model's weights.
        """
        self._executor, self._measure = executor, measure
        self._spec, self._given, self._source, self._lengths, self._spread = spec, given, source, lengths, spread
        self._first: tuple[str, tuple[Any, ...]] | None = None
        self._base = ""
        self._known: ModelSpec | None = None
        self.suspect = True
        self.runner = ""
        #: How often weights may have changed since the start.
        self.doubts = 0
        #: Called before a call that may change weights, while they may be being measured.
        self.finish_measuring: Callable[[], object] = lambda: None
        self._since: float | None = None  # the measurement under way
        self._ranks: dict[tuple[int, int], Measured] = {}  # that have reported
        self._rank_count = 0
        #: Called with vLLM's request before workers load a LoRA adapter; the returned function is
        #: called afterwards.
        self.adapter_loading: Callable[[Any], Callable[[], None]] | None = None
        self._watch()

    def _watch(self) -> None:
        call = self._executor.collective_rpc

        def collective_rpc(method: Any, *arguments: Any, **keywords: Any) -> Any:
            if method == "add_lora" and self.adapter_loading is not None:
                # The positional argument after the timeout
                given = keywords.get("args") or arguments[1]
                done = self.adapter_loading(given[0])
                try:
                    return call(method, *arguments, **keywords)
                finally:
                    done()
            if not isinstance(method, str) or method not in _HARMLESS:
                self.suspect = True  # no step asks for a measurement from here on
                if self._since is not None:
                    self.finish_measuring()
            return call(method, *arguments, **keywords)

        self._executor.collective_rpc = collective_rpc
        #: The executor's ``collective_rpc``, for calls that leave weights as they are.
        self.call: Callable[..., list[Any]] = call

    def settle(self) -> ModelSpec | None:
        """The whole spec of the loaded model. None: the engine sleeps, or ``measuring``.

        UnsupportedError: the weights can't be identified.
        """
        if not self.suspect and self._since is None:
            return self._known
        if getattr(self._executor, "is_sleeping", False):
            return None
        now = time.monotonic()
        if self.suspect and self._known is not None:
            self.suspect = False  # a call from another thread sets it again
            self.doubts += 1
            self._since, self._ranks = now, {}
            return None
        if self._since is not None and now - self._since < _LATE_S:
            return None
        self.suspect = False
        return self._take(list(self._measure(self.call)))

    @property
    def measuring(self) -> int:
        """The number of the measurement that workers are to begin, and to report; 0: none is under way."""
        return self.doubts if self._since is not None and not self.suspect else 0

    def measured(self, number: int, rank: Measured | str) -> None:
        """A worker has reported. UnsupportedError: its weights can't be identified."""
        if number != self.measuring:
            return
        if isinstance(rank, str):
            raise UnsupportedError(f"a worker's weights: {rank}")
        self._ranks[rank.pp_rank, rank.tp_rank] = rank
        if len(self._ranks) == self._rank_count:
            self._take(list(self._ranks.values()))

    def _take(self, ranks: list[Measured]) -> ModelSpec:
        self._since, self._ranks, self._rank_count = None, {}, len(ranks)
        self.runner = "+".join(sorted({rank.runner for rank in ranks}))
        length = self._lengths if any(rank.reads_length for rank in ranks) else ""
        self._known = with_weights(self._spec, self._weights(ranks), length)
        return self._known

    def _weights(self, ranks: Sequence[Measured]) -> str:
        now = gathered(list(ranks))
        hidden = tuple(rank.unreadable for rank in sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank)))
        if self._first is None:
            self._first = (now, hidden)
            self._base = self._start(ranks, now)
        first, first_hidden = self._first
        if hidden != first_hidden:
            raise UnsupportedError(
                "weights that can't be read in memory have been replaced: nothing says what they are"
            )
        if now == first:
            return self._base
        # The user's digest and the source describe the weights at the start alone.
        return now if self._base == first else _digest(f"{self._base};now={now}")

    def _start(self, ranks: Sequence[Measured], now: str) -> str:
        if self._given:
            return _digest(f"given={self._given}")
        if self._spread:
            return _digest(self._source())
        hidden = [name for rank in ranks for name, _ in rank.unreadable]
        if not hidden:
            return now
        _log.info("kvclient: %d layers keep their weights where they can't be read, %s first", len(hidden), hidden[0])
        return _digest(f"{self._source()};readable={now}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


__all__ = ["EngineModel", "executor_of"]
