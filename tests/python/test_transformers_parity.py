"""What the marketplace must not change: bytes, logits, tokens. Real architectures, random weights.

How far two runs agree depends on what is compared. Imported bytes are those published: always. Tokens are those
of a run that starts from the same prefix computed here: always, whatever the dtype. Against a run that
computes the whole prompt in one piece, matrix products of another shape round differently, in fp32 far
below the distance of any two logits here, in bf16 sometimes not: there, tokens must agree wherever the
distance is above what the rounding can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from kvclient.daemon import PrivateDaemon
from kvclient.transformers import Marketplace
from support.models import ALL, make_model, prompt

SHARED_TOKENS = 96  # six blocks, twice the sliding windows
NEW_TOKENS = 256
LOGIT_TOLERANCE = {"float32": 2e-4, "bfloat16": 0.25}  # logits have a deviation of 1.5

pytestmark = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@lru_cache(maxsize=1)
def model_of(name: str, dtype: str) -> Any:
    return make_model(name, dtype)


@pytest.fixture
def shared(daemon: PrivateDaemon, name: str, dtype: str) -> Iterator[tuple[Any, DynamicCache, Marketplace]]:
    """The model, the cache that one side computed and published, the other side's marketplace."""
    model = model_of(name, dtype)
    options: dict[str, Any] = {"socket_path": daemon.socket, "model_id": f"{name}-{dtype}", "revision": "r1"}
    with Marketplace(model, **options) as owner, Marketplace(model, publish=False, **options) as importer:
        prefix = prompt(SHARED_TOKENS)
        cache = owner.new_cache()
        with torch.no_grad():
            model(prefix, past_key_values=cache)
        assert owner.publish(prefix, cache) == SHARED_TOKENS // 16
        owner.region.flush(5.0)
        yield model, cache, importer


def full_prompt() -> torch.Tensor:
    """The shared prefix and 23 tokens of its own: ends inside a block."""
    return torch.cat([prompt(SHARED_TOKENS), prompt(23, seed=7)], dim=1)


@pytest.mark.parametrize("name", ALL)
def test_bytes_logits_and_tokens_are_those_without_the_marketplace(
    shared: tuple[Any, DynamicCache, Marketplace], name: str, dtype: str
) -> None:
    model, published, importer = shared
    ids = full_prompt()
    prefix = importer.fetch(ids)
    assert prefix.tokens == SHARED_TOKENS
    assert importer.stats.blocks_imported == SHARED_TOKENS // 16
    for ours, theirs in zip(prefix.cache.layers, published.layers, strict=True):
        for which in ("keys", "values"):
            one, other = getattr(ours, which), getattr(theirs, which)
            assert one.shape == other.shape
            assert one.dtype == getattr(torch, dtype)
            assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), "bit for bit"

    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    without = model.generate(ids, **greedy)
    assert without.shape[1] == ids.shape[1] + NEW_TOKENS
    assert without[0, -NEW_TOKENS:].unique().numel() > 4, "degenerate logits would prove nothing"

    # The same 256 tokens fed to both: the logits of every step.
    with torch.no_grad():
        one_piece = model(without[:, :-1]).logits[0, ids.shape[1] - 1 :].float()
        imported = model(without[:, SHARED_TOKENS:-1], past_key_values=prefix.cache).logits[0, 22:].float()
    tolerance = LOGIT_TOLERANCE[dtype]
    assert (imported - one_piece).abs().max() <= tolerance
    best = one_piece.topk(2).values
    decided = best[:, 0] - best[:, 1] > 2 * tolerance
    assert decided.sum() >= NEW_TOKENS / 4, "too few steps in which the choice is clear"
    assert torch.equal(imported.argmax(-1)[decided], one_piece.argmax(-1)[decided])

    with_marketplace = importer.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert importer.stats.reused_tokens == 2 * SHARED_TOKENS
    if dtype == "float32":
        assert torch.equal(with_marketplace, without)
    local = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :SHARED_TOKENS], past_key_values=local)
    assert torch.equal(with_marketplace, model.generate(ids, past_key_values=local, **greedy))


@pytest.mark.parametrize("name", ["llama"])
def test_a_wrong_byte_would_show(shared: tuple[Any, DynamicCache, Marketplace], name: str, dtype: str) -> None:
    """The test above can fail: one block instead of another changes the logits by more than the tolerance.

    (Two blocks that changed places would not: attention does not see the order of what it has cached. Only
    the comparison of bytes does.)
    """
    model, _, importer = shared
    ids = full_prompt()
    right, wrong = importer.fetch(ids).cache, importer.fetch(ids).cache
    for layer in wrong.layers:
        layer.keys[:, :, 16:32] = layer.keys[:, :, :16]
        layer.values[:, :, 16:32] = layer.values[:, :, :16]
    with torch.no_grad():
        one = model(ids[:, SHARED_TOKENS:], past_key_values=right).logits.float()
        other = model(ids[:, SHARED_TOKENS:], past_key_values=wrong).logits.float()
    assert (one - other).abs().max() > LOGIT_TOLERANCE[dtype]
