"""How far a request's prefix is published, by the rule by which vLLM finds its own (HybridKVCacheCoordinator).

A hit of some length needs of each group the blocks that the group's layers need to go on after it: all blocks of a
group with full attention; of a sliding window the blocks that the window before the hit's end reaches into. vLLM begins
with the longest that the full groups have and shortens it, group by group, until every group has what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvclient.vllm.groups import KvGroup

# Each lookup of a window that is not there shortens the hit. Where windows are missing in so many
# places, the request is computed, so that a request's cost has a bound.
_MOST_LOOKUPS = 64


def longest_hit(
    groups: Sequence[KvGroup],
    first: int,
    last: int,
    block_tokens: int,
    run: Callable[[Sequence[int], int, int], int],
) -> int:
    """The largest ``end`` of at most ``last`` blocks such that a request with ``first`` blocks can go on after ``end``.

    ``run(groups, begin, end)``: how many leading ones of the blocks [begin, end) are published for each of the groups,
    which are given by their numbers.
    """
    alike: dict[KvGroup, list[int]] = {}
    for number, group in enumerate(groups):
        alike.setdefault(group, []).append(number)
    end = last
    if KvGroup() in alike:
        end = first + run(alike.pop(KvGroup()), first, end)
    shortened = bool(alike)
    lookups = 0
    while shortened and end > first:
        shortened = False
        for group, numbers in alike.items():
            reach = group.window - 1 + group.kept
            while end > first:
                # KvGroup.first_block
                begin = max(first, (end * block_tokens - reach) // block_tokens)
                found = run(numbers, begin, end)
                if begin + found == end:
                    break
                lookups += 1
                if lookups == _MOST_LOOKUPS:
                    return first
                # The block after the found ones is missing, so the hit ends before it
                end = begin + found
                shortened = len(alike) > 1
    return end


__all__ = ["longest_hit"]
