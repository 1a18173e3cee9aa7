"""vLLM's own block hashes as names of blocks, where they are the same in every process and collision-resistant.

vLLM hashes a request's blocks when the request arrives, beside the forward pass; taking these hashes costs the
scheduler's thread a twentieth of hashing the tokens again. They cover the tokens, the salt, images and embeddings, but
not the model, and an adapter by its name alone: those are added when keys are derived from them (keys.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvclient.errors import UnsupportedError

_log = logging.getLogger(__name__)

# xxhash is not among them: who may send requests can make two prompts with one hash.
_COLLISION_RESISTANT = ("sha256", "sha256_cbor")


@dataclass(frozen=True)
class EngineHashes:
    """How an engine hashes blocks; the same ``text`` in two engines means the same hash of the same content."""

    #: For ModelSpec.tokenizer_digest: algorithm, and a hash of fixed content, which holds seed and
    #: encoding.
    text: str
    #: Whether a streaming session that drops a token drops the hash of its block, too.
    follow_sessions: bool
    #: The hash of the first block by its tokens, for a request without anything else.
    of_first_block: Callable[[Sequence[int]], bytes]

    def check(self, request: Any, block_tokens: int) -> bool:
        """Compare the hash that the engine has given the request's first block; False: it has none that can be.

        UnsupportedError: it is another one.
        """
        others = (request.lora_request, request.cache_salt, request.prompt_embeds)
        if any(each is not None for each in others) or request.mm_features or not request.block_hashes:
            return False
        if self.of_first_block(request.all_token_ids[:block_tokens]) != request.block_hashes[0]:
            raise UnsupportedError("vLLM's block hashes are not those that its configuration gives: set keys=tokens")
        return True


def engine_hashes(vllm_config: Any, pool: Any, block_tokens: int) -> EngineHashes | None:
    """How the engine hashes; None: keys must be derived from the tokens. ``pool``: vLLM's BlockPool."""
    try:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils
        from vllm.v1.core.sched.scheduler import Scheduler

        name = vllm_config.cache_config.prefix_caching_hash_algo
        if name not in _COLLISION_RESISTANT:
            return None
        if getattr(vllm_config, "num_hash_lookahead_tokens", 0) or pool.hash_block_size != block_tokens:
            return None
        function = get_hash_fn_by_name(name)
        # Before 0.29, a seed that is not set is drawn by each process.
        resolve = getattr(kv_cache_utils, "resolve_none_hash_seed", lambda _: os.getenv("PYTHONHASHSEED"))
        seed = resolve(function)
        if seed is None:
            return None
        root, of_block = function(seed), kv_cache_utils.hash_block_tokens
        content = of_block(function, root, (1, 2, 3), ("adapter", ("image", 4), "salt", b"embeddings"))
        dropped = "block_hashes" in Scheduler._update_request_as_session.__code__.co_names
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        _log.info("kvclient: keys are derived from tokens, this vLLM's block hashes are not known: %s", error)
        return None
    return EngineHashes(
        text=f"keys=vllm:{name}:{hashlib.sha256(content).hexdigest()[:16]}",
        follow_sessions=dropped,
        of_first_block=lambda tokens: bytes(of_block(function, root, tuple(tokens), None)),
    )


__all__ = ["EngineHashes", "engine_hashes"]
