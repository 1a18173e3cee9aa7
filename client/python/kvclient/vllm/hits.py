"""How far a request's prefix is published, by the rule by which vLLM finds its own (HybridKVCacheCoordinator).

A hit of some length needs of each group the blocks that the group's layers need to go on after it: all blocks of a
group with full attention; of a sliding window the blocks that the window before the hit's end reaches into; of chunks
those of the chunk that it ends in. Of a group that looks ahead it needs the block after its end, too. Where blocks of
groups differ in size, a hit ends where blocks of all of them end. vLLM begins with the longest that the full groups
have and shortens it, group by group, until every group has what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvclient.vllm.groups import KvGroup, unit_of

# Each lookup of a window that is not there shortens the hit; two of them pass over as many blocks
# as a window has, and one over a block of states. vLLM keeps windows and states at few places of a
# prompt, so that most are looked for in vain. This many pass over 1,024 states, or over 65,000
# tokens where windows are of 128; then the request is computed, so that its cost has a bound.
_MOST_LOOKUPS = 1024


def longest_hit(
    groups: Sequence[KvGroup],
    first: int,
    last: int,
    block_tokens: int,
    run: Callable[[Sequence[int], int, int], int],
) -> int:
    """The largest ``end`` of at most ``last`` units such that a request with ``first`` units can go on after ``end``.

    A unit is ``unit_of`` the groups, each of ``block_tokens`` tokens: a block, unless blocks of groups differ in size.
    ``run(groups, begin, end)``: how many leading ones of the blocks [begin, end) are published for each of the groups,
    which are given by their numbers; of groups that look ahead, ``end`` may be the block after ``last``.
    """
    unit = unit_of(groups)
    alike: dict[KvGroup, list[int]] = {}
    for number, group in enumerate(groups):
        alike.setdefault(group, []).append(number)
    end = last
    for group in [each for each in alike if not each.partial]:
        # The block after the found ones is missing, so a hit that needs it ends a block earlier
        ahead, per = int(group.ahead), unit // group.scale
        found = run(alike.pop(group), first * per, end * per + ahead)
        end = max(first, min(end, (first * per + found - ahead) // per))
    shortened = bool(alike)
    lookups = 0
    while shortened and end > first:
        shortened = False
        for group, numbers in alike.items():
            ahead, chunk, reach = int(group.ahead), group.chunk, group.window - 1 + group.kept
            per, size = unit // group.scale, block_tokens * group.scale
            while end > first:
                # KvGroup.first_block
                tokens = end * unit * block_tokens
                begin = max(first * per, (tokens // chunk * chunk if chunk else tokens - reach) // size)
                found = run(numbers, begin, end * per + ahead)
                if begin + found == end * per + ahead:
                    break
                lookups += 1
                if lookups == _MOST_LOOKUPS:
                    return first
                end = (begin + found - ahead) // per
                shortened = len(alike) > 1
    return max(first, end)


__all__ = ["longest_hit"]
