"""Between DynamicCache and blocks: [blocks, layers, 2, kv_heads, block_tokens, head_size]."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class RecordingSlidingLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A sliding-window layer that also keeps the states that leave the window, from ``first_token`` on, for publishing.

    The model sees what the plain layer would show it. The record holds tensors that the layer was given
    (no copy) and grows with the sequence.
    """

    def __init__(self, sliding_window: int, first_token: int = 0) -> None:
        """``first_token``: number of the first tokens, whose states the cache does not keep."""
        super().__init__(sliding_window=sliding_window)
        self.first_token = first_token
        self._record: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keep the new states, then update as the plain layer does."""
        self._record.append((key_states, value_states))
        return super().update(key_states, value_states, *args, **kwargs)

    def fill(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the states of tokens [0, first_token) without keeping them."""
        super().update(key_states, value_states)

    def recorded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of tokens [first_token, length): [1, kv_heads, tokens, head_size]."""
        if len(self._record) > 1:
            keys, values = zip(*self._record, strict=True)
            self._record = [(torch.cat(keys, dim=-2), torch.cat(values, dim=-2))]
        return self._record[0]


def cache_argument(model: Any) -> str:
    """The name by which a model takes its cache: ``past_key_values``, since Transformers 5.24 ``cache``."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"


def empty_cache(config: Any, first_token: int = 0) -> DynamicCache:
    """A cache like that of ``generate()``, with sliding-window layers that keep the states that leave the window."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, DynamicSlidingWindowLayer):
            cache.layers[index] = RecordingSlidingLayer(layer.sliding_window, first_token)
    return cache


def cache_from_blocks(config: Any, pool: torch.Tensor, blocks: Sequence[int], device: torch.device) -> DynamicCache:
    """A cache that holds the tokens of ``blocks``, in that order. ``pool``: all blocks; copied from."""
    _, layers, _, heads, block_tokens, head_size = pool.shape
    tokens = len(blocks) * block_tokens
    cache = empty_cache(config, first_token=tokens)
    if not blocks:
        return cache
    index = torch.tensor(blocks)
    for number in range(layers):
        # [blocks, 2, heads, block_tokens, size] → [2, 1, heads, blocks · block_tokens, size]
        states = pool[index, number].permute(1, 2, 0, 3, 4).reshape(2, 1, heads, tokens, head_size).to(device)
        layer = cache.layers[number]
        fill = layer.fill if isinstance(layer, RecordingSlidingLayer) else layer.update
        fill(states[0], states[1])
    return cache


def first_token_held(cache: DynamicCache) -> int:
    """First token from which on every layer still has its states; earlier states have left a sliding window."""
    first = 0
    for layer in cache.layers:
        if isinstance(layer, RecordingSlidingLayer):
            first = max(first, layer.first_token)
        elif isinstance(layer, DynamicSlidingWindowLayer):
            first = max(first, layer.cumulative_length - layer.keys.shape[-2])
    return first


def layer_states(layer: DynamicLayer, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of tokens [first, last) of one layer: [1, kv_heads, last - first, head_size], views.

    Precondition: ``first`` is not before ``first_token_held``, ``last`` not behind the cache's length.
    """
    if isinstance(layer, RecordingSlidingLayer):
        keys, values = layer.recorded()
        origin = layer.first_token
    else:
        keys, values = layer.keys, layer.values
        origin = layer.get_seq_length() - keys.shape[-2]
    return keys[:, :, first - origin : last - origin], values[:, :, first - origin : last - origin]


def blocks_from_cache(cache: DynamicCache, first_block: int, pool: torch.Tensor, blocks: Sequence[int]) -> None:
    """Copy the cache's blocks [first_block, first_block + len(blocks)) to ``blocks`` of ``pool``."""
    _, _, _, heads, block_tokens, head_size = pool.shape
    index = torch.tensor(blocks)
    first = first_block * block_tokens
    for number, layer in enumerate(cache.layers):
        for half, states in enumerate(layer_states(layer, first, first + len(blocks) * block_tokens)):
            shaped = states[0].reshape(heads, len(blocks), block_tokens, head_size).permute(1, 0, 2, 3)
            pool[index, number, half] = shaped.to(pool.device)


__all__ = [
    "RecordingSlidingLayer",
    "blocks_from_cache",
    "cache_argument",
    "cache_from_blocks",
    "empty_cache",
    "first_token_held",
    "layer_states",
]
