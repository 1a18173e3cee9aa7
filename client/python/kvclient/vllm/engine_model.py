"""The model that an engine runs now, as the scheduler's side knows it: its configuration and its loaded weights.

The weights are measured on all workers through the engine's executor: at the start, and again before the first step
after a call to the workers that may have changed them. That is every call that is not known to leave the weights
unchanged (``update_weights``, ``reload_weights``, ``wake_up``, ``collective_rpc``, …). All steps go through the same
executor in order, so no step runs with weights that were not measured.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kvclient._native import ModelSpec
from kvclient.errors import UnsupportedError
from kvclient.vllm.spec import with_weights
from kvclient.vllm.weights import Measured, gathered

_log = logging.getLogger(__name__)


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
                self.suspect = True
            return call(method, *arguments, **keywords)

        self._executor.collective_rpc = collective_rpc
        #: The executor's ``collective_rpc``, for calls that leave weights as they are.
        self.call: Callable[..., list[Any]] = call

    def settle(self) -> ModelSpec | None:
        """The whole spec of the loaded model; measures weights that may have changed. None: the engine sleeps.

        UnsupportedError: the weights can't be identified.
        """
        if not self.suspect and self._known is not None:
            return self._known
        if getattr(self._executor, "is_sleeping", False):
            return None
        self.suspect = False  # before measuring: a call from another thread sets it again
        ranks = list(self._measure(self.call))
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
