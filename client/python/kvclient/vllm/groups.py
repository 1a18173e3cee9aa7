"""The KV-cache groups of an engine: layers that have one block table, over a pool that all groups share.

How vLLM lays them out (0.32, v1/core/kv_cache_utils.py ``get_kv_cache_config_from_groups``, v1/worker/utils.py
``allocate_kv_cache``): all layers of all groups are views of one buffer. Layer ``l`` of a group has block ``b`` at
``offset + l * layer_stride + b * block_stride``, and every group begins at offset 0, so that the groups overlay each
other: block 7 is the same bytes whichever group has it, seen by one group as pages of its layers and by another as
pages of other layers. vLLM gives a block to one group at a time. So a block has one generation, and one geometry, which
is everything that any group may write (layout.py); what a block holds is told by its key alone, which names the group.
A group with fewer layers than the others leaves the rest of its blocks as it was, and these bytes are copied as well.

A group of states (Mamba, linear attention, short convolutions) has at place ``p`` of its table the state after
``(p + 1) * block_tokens`` tokens, or no block. vLLM ("align", v1/core/single_type_kv_cache_manager.py ``MambaManager``)
hashes such a block once the step is scheduled that reaches that token; until then it is the running state, which each
step overwrites. The step after goes on in another block, to which the runner copies the state first, so that a hashed
block is never written again. Of a prefix, all that is needed is the state at its end: the rule of a window of two.

Layers that attend within chunks (Llama 4) need of a prefix the tokens of the chunk that it ends in, and nothing of a
prefix that ends with a chunk (``ChunkedLocalAttentionManager``).

vLLM gives the layers of a model whose KV of a token differs in size (Gemma 4, a draft with other heads) pages of one
size, and so blocks of different numbers of tokens, in groups of their own. A name is given to each ``block_tokens``
tokens (ModelSpec), the greatest number of which every group's block is a multiple, as vLLM's hashes are. A name tells
all tokens before it, so a group's block has the last name in it. A hit ends where blocks of all groups end: after a
multiple of the ``unit_of`` these names. vLLM gives no block beyond the last such place a hash of its own.

A draft model that reads the model's hidden states (EAGLE, MTP) writes at each position what depends on the next token
as well, so that the last position of a block is not told by the block's key. vLLM takes a block of such a group only
if it has the block after it, too, and leaves that one out (v1/core/kv_cache_coordinator.py, ``eagle_group_ids``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Specs of vLLM whose layers need the KV of all tokens before.
_FULL = ("FullAttentionSpec", "MLAAttentionSpec")
#: Specs whose layers need the last ``sliding_window`` tokens.
_SLIDING = ("SlidingWindowSpec",)
#: Specs whose layers need the tokens of the chunk of ``attention_chunk_size`` that they are in.
_CHUNKED = ("ChunkedLocalAttentionSpec",)
#: Specs whose layers need a state that all tokens before have made.
_STATE = ("MambaSpec",)


@dataclass(frozen=True)
class KvGroup:
    """What a group's layers need of the tokens before; without arguments: all of them."""

    #: Tokens that attention reaches, the token itself included; 0: all.
    window: int = 0
    #: Further tokens before the window whose blocks the engine keeps.
    kept: int = 0
    #: A block holds a state instead of the KV of its tokens; the window is then 2.
    state: bool = False
    #: Tokens of a chunk, where attention reaches no token of the chunks before; 0: there are none.
    chunk: int = 0
    #: A block's last position depends on the token after it: a prefix is found if the block after
    #: it is, too.
    ahead: bool = False
    #: Names in a block, each of ``block_tokens`` tokens.
    scale: int = 1

    @property
    def partial(self) -> bool:
        """Whether some of a prefix's blocks suffice."""
        return self.window > 0 or self.chunk > 0

    def first_block(self, tokens: int, block_tokens: int) -> int:
        """The first block that is needed to go on after ``tokens`` tokens; a request has none of those before it.

        ``block_tokens``: of a name (ModelSpec); the answer counts the group's own blocks.
        """
        size = block_tokens * self.scale
        if self.chunk:
            return tokens // self.chunk * self.chunk // size
        return max(0, tokens - self.window + 1 - self.kept) // size if self.window else 0


def unit_of(groups: Sequence[KvGroup]) -> int:
    """Names between places where blocks of all groups end; 1: all groups have blocks of one size."""
    return math.lcm(*(group.scale for group in groups))


def named_tokens(kv_cache_config: Any) -> int:
    """Tokens of a name: every group's blocks have a multiple of them."""
    return math.gcd(*(int(group.kv_cache_spec.block_size) for group in kv_cache_config.kv_cache_groups))


def of_group(number: int, shard_count: int) -> range:
    """The places of a group's shards, where there is something for each group and shard."""
    return range(number * shard_count, (number + 1) * shard_count)


def layer_specs(spec: Any) -> list[Any]:
    """The specs of a group's layers, all equal unless their KV differs in size."""
    return list(getattr(spec, "kv_cache_specs", {}).values()) or [spec]


def kinds_of(spec: Any) -> list[str]:
    """Names of the specs of a group's layers."""
    return sorted({type(each).__name__ for each in layer_specs(spec)})


def attends(spec: Any) -> bool:
    """Whether a group's layers keep the KV of tokens alone, and need all tokens, those of one window or of a chunk."""
    kinds = kinds_of(spec)
    return all(kind in _FULL for kind in kinds) or kinds in (list(_SLIDING), list(_CHUNKED))


def keeps_state(spec: Any) -> bool:
    """Whether a group's layers keep a state in place of the KV of tokens."""
    return kinds_of(spec) == list(_STATE)


def attention_spec(kv_cache_config: Any) -> Any:
    """The spec of a layer that keeps the KV of tokens: the first group's that has any."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    return layer_specs(next((spec for spec in specs if not keeps_state(spec)), specs[0]))[0]


def groups_of(kv_cache_config: Any, *, drafts_ahead: bool = False) -> list[KvGroup]:
    """The groups of an engine that ``refusal`` (refusals.py) lets share, in vLLM's order.

    ``drafts_ahead``: see ``drafts_ahead`` (releases.py). vLLM says in which groups the draft's layers are, or takes all
    for such; groups with equal specs are found together.
    """
    groups = kv_cache_config.kv_cache_groups
    said = [group.kv_cache_spec for group in groups if getattr(group, "is_eagle_group", False)]
    ahead = (said or [group.kv_cache_spec for group in groups]) if drafts_ahead else []
    named = named_tokens(kv_cache_config)
    specs = [group.kv_cache_spec for group in groups]
    return [_group(layer_specs(spec)[0], spec in ahead, spec.block_size // named) for spec in specs]


def _group(spec: Any, ahead: bool, scale: int) -> KvGroup:
    if keeps_state(spec):
        return KvGroup(2, state=True, scale=scale)
    kinds = [kind.__name__ for kind in type(spec).__mro__]
    if any(kind in _CHUNKED for kind in kinds):
        return KvGroup(chunk=int(spec.attention_chunk_size), ahead=ahead, scale=scale)
    if not any(kind in _SLIDING for kind in kinds):
        # Of a window that a full group's spec names, vLLM keeps all blocks
        return KvGroup(ahead=ahead, scale=scale)
    return KvGroup(int(spec.sliding_window), int(getattr(spec, "extra_retained_tokens", 0)), ahead=ahead, scale=scale)


def describe(kv_cache_config: Any, layers: Sequence[str]) -> str:
    """The groups as text: two engines with the same text have the same layers in each. "": there is one.

    ``layers``: those of one worker. They are numbered in the model's order, from 0 in each worker, so that all stages
    of a pipeline have one text.
    """
    groups = kv_cache_config.kv_cache_groups
    if len(groups) == 1:
        return ""
    place = {name: str(index) for index, name in enumerate(sorted(layers, key=_by_number))}
    texts, described = [], groups_of(kv_cache_config)
    several_sizes = unit_of(described) > 1
    for group, needs in zip(groups, described, strict=True):
        kind = f"sliding{needs.window}" if needs.window else f"chunk{needs.chunk}" if needs.chunk else "full"
        if needs.state:
            kind = f"state{'+'.join(sorted({_of_state(spec) for spec in layer_specs(group.kv_cache_spec)}))}"
        if several_sizes:
            kind += f"@{group.kv_cache_spec.block_size}"
        texts.append(f"{kind}:{','.join(place[name] for name in group.layer_names if name in place)}")
    return ";".join(texts)


def _of_state(spec: Any) -> str:
    """``3x288float32,8x32x16float32``: vLLM shows a state's tensors as bytes, which tell less than these."""
    tensors = zip(spec.shapes, spec.dtypes, strict=True)
    return ",".join("x".join(map(str, shape)) + str(dtype).removeprefix("torch.") for shape, dtype in tensors)


def _by_number(layer: str) -> list[Any]:
    """``model.layers.10`` comes after ``model.layers.9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]


__all__ = [
    "KvGroup",
    "attends",
    "attention_spec",
    "describe",
    "groups_of",
    "keeps_state",
    "kinds_of",
    "layer_specs",
    "named_tokens",
    "of_group",
    "unit_of",
]
