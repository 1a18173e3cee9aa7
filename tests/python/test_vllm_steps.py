"""What one step costs the scheduler's thread, counted in work: it does not grow with the requests that run."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import kvclient
from kvclient._native import contents_of, note_given
from kvclient.daemon import PrivateDaemon
from kvclient.vllm import ConnectorOptions, publishing, turns
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import BLOCK_TOKENS, Block, Pool
from support.paged_step import Cached, NewRequest, Output, Request
from support.paged_traffic import RandomTraffic
from support.specs import small_spec

SPEC = small_spec()


class Running:
    """Requests of ten tokens that have been computed, each with three blocks, the last of which has room for two."""

    def __init__(self, socket: str, count: int) -> None:
        self.pool = Pool(8 * count + 1)
        self.side = SchedulerSide(ConnectorOptions(socket=socket, min_prefix_tokens=4))
        self.side.attach(kvclient.Client(socket, name="s"), SPEC, [kvclient.Shard()])
        self.side.bind_pool(self.pool)
        self.requests = [Request(f"r{number}", list(range(number, number + 10)), 100) for number in range(count)]
        for request in self.requests:
            self.side.matched_tokens(request, 0)
            request.blocks = self.pool.take(3)
            self.cache(request)
        self.side.plan(
            Output(
                scheduled_new_reqs=[
                    NewRequest(each.request_id, ([block.block_id for block in each.blocks],)) for each in self.requests
                ]
            )
        )
        for request in self.requests:
            request.num_computed_tokens = 10
        self.visited: list[str] = []
        self.publishing = self.side.publishing
        runs = self.publishing.runs

        def counted(tracked: Any, unsure: Any, *, hashed: bool) -> Any:
            self.visited.append(tracked.request.request_id)
            return runs(tracked, unsure, hashed=hashed)

        self.publishing.runs = counted  # type: ignore[method-assign]

    def cache(self, request: Request) -> None:
        for index in range(request.num_tokens // BLOCK_TOKENS):
            if request.blocks[index].block_hash is None:
                self.pool.cache(request.blocks[index], request.content(index))

    def step(self, given: dict[int, list[int]] | None = None) -> Any:
        """Plan a step of all requests; ``given``: new blocks by the number of the request."""
        given = given or {}
        self.visited.clear()
        new: list[tuple[list[int], ...] | None] = [
            (given[number],) if number in given else None for number in range(len(self.requests))
        ]
        return self.side.plan(
            Output(scheduled_cached_reqs=Cached([each.request_id for each in self.requests], set(), new))
        )

    def grow(self, number: int, tokens: int) -> list[int]:
        """The request gets ``tokens``, computed, and another block if it needs one; the ids of its new blocks."""
        request = self.requests[number]
        request.all_token_ids += range(tokens)
        request.num_computed_tokens += tokens
        new = self.pool.take(-(-request.num_tokens // BLOCK_TOKENS) - len(request.blocks))
        request.blocks += new
        return [block.block_id for block in new]


@pytest.fixture
def running(kvmd: PrivateDaemon) -> Running:
    made = Running(kvmd.socket, 64)
    assert len(made.step().publish) == 64
    return made


def test_a_step_looks_at_no_request_without_a_new_block(running: Running) -> None:
    for _ in range(3):
        assert running.step().publish == []
        assert running.visited == []


def test_a_request_that_is_given_a_block_has_the_one_before_published(running: Running) -> None:
    new = running.grow(5, 3)
    running.cache(running.requests[5])
    [run] = running.step({5: new}).publish
    assert (run.blocks, run.depth) == ([running.requests[5].blocks[2].block_id], 2)
    assert running.visited == ["r5"]
    running.step()
    assert running.visited == []


def test_a_block_that_vllm_has_not_cached_yet_is_looked_at_until_it_is(running: Running) -> None:
    new = running.grow(5, 3)
    assert running.step({5: new}).publish == []
    assert running.step().publish == []
    assert running.visited == ["r5"]
    running.cache(running.requests[5])
    assert len(running.step().publish) == 1
    running.step()
    assert running.visited == []


def test_a_block_taken_for_tokens_that_were_rejected_does_not_hide_the_one_before(running: Running) -> None:
    """Speculation: the block after the one being filled is taken early: no notice comes when that one is full."""
    request = running.requests[5]
    new = running.grow(5, 4)
    del request.all_token_ids[11:]
    request.num_computed_tokens = 11
    assert running.step({5: new}).publish == []
    running.grow(5, 2)
    running.cache(request)
    [run] = running.step().publish
    assert run.depth == 2


def test_a_request_whose_load_has_ended_is_looked_at(running: Running) -> None:
    tracked = running.side._requests.by_id["r5"]
    tracked.loading, tracked.tables[0].next_block = True, 0
    running.publishing.withdrawn()
    running.side.loaded({"r5"}, ())
    running.step()
    assert running.visited == ["r5"]


def test_a_request_that_has_ended_is_forgotten(running: Running) -> None:
    new = running.grow(5, 3)
    running.step({5: new})
    running.side.finished(running.requests[5])
    assert not running.publishing.is_considered("r5")
    running.requests.pop(5)
    running.step()
    assert running.visited == []


def fill(running: Running, *numbers: int) -> dict[int, list[int]]:
    """Have these requests fill the block that they are at; what the step gives them."""
    given = {number: running.grow(number, 3) for number in numbers}
    for number in numbers:
        running.cache(running.requests[number])
    return given


def test_a_step_looks_at_one_of_the_requests_that_decode(running: Running) -> None:
    given = fill(running, 5, 6, 7)
    published, visited = running.step(given).publish, [*running.visited]
    for _ in range(2):
        published += running.step().publish
        visited += running.visited
    assert visited == ["r5", "r6", "r7"]
    assert [run.blocks for run in published] == [[running.requests[number].blocks[2].block_id] for number in (5, 6, 7)]
    running.step()
    assert running.visited == []


def test_a_turn_publishes_all_that_a_request_has_filled(running: Running) -> None:
    running.step(fill(running, 1, 2, 3, 4, 5))
    request = running.requests[5]
    published = []
    for _ in range(3):
        new = running.grow(5, 4)
        running.cache(request)
        published += running.step({5: new}).publish
    assert [run.blocks[0] for run in published] == [running.requests[number].blocks[2].block_id for number in (2, 3, 4)]
    [run] = running.step().publish
    assert (run.depth, run.blocks) == (2, [block.block_id for block in request.blocks[2:6]])


def test_what_a_request_filled_is_published_if_it_ends_before_its_turn(running: Running) -> None:
    running.step(fill(running, 1, 2, 3, 4, 5))
    request = running.requests[5]
    running.side.finished(request)
    running.requests.pop(5)
    published = running.step().publish
    assert [block.block_id for block in request.blocks[2:3]] in [run.blocks for run in published]


def test_a_request_that_begins_anew_before_its_turn_has_its_new_blocks_alone(running: Running) -> None:
    running.step(fill(running, 1, 2, 3, 4, 5))
    request = running.requests[5]
    tracked = running.side._requests.by_id["r5"]
    running.pool.give_back(request.blocks)
    request.blocks = running.pool.take(4)
    blocks = [block.block_id for block in request.blocks]
    request.num_computed_tokens = 0
    running.side.plan(
        Output(scheduled_cached_reqs=Cached([request.request_id], {request.request_id}, [(list(blocks),)]))
    )
    assert tracked.tables[0].blocks == blocks
    for _ in range(6):
        running.step()
    assert tracked.tables[0].blocks == blocks


def test_a_request_that_loads_before_its_turn_has_the_blocks_of_the_load_alone(running: Running) -> None:
    running.step(fill(running, 1, 2, 3, 4, 5))
    request = running.requests[5]
    running.pool.give_back(request.blocks)
    request.blocks = running.pool.take(4)
    request.num_computed_tokens = 0
    blocks = [block.block_id for block in request.blocks]
    tracked = running.side._requests.by_id["r5"]
    tracked.local_blocks = 0
    running.side.allocated(request, [blocks], 3 * BLOCK_TOKENS)
    for _ in range(6):
        running.step()
    assert tracked.tables[0].blocks == blocks
    assert not running.publishing.is_considered("r5")


def test_a_failed_load_concerns_blocks_of_requests_whose_turn_has_not_come(running: Running) -> None:
    running.step(fill(running, 1, 2, 3, 4, 5))
    request = running.requests[5]
    assert len(running.side._requests.by_id["r5"].tables[0].blocks) == 3 + 1
    new = running.grow(5, 4)
    running.step({5: new})
    running.side.failed({new[0]})
    assert new[0] in running.publishing.unsure()
    for _ in range(6):
        for run in running.step().publish:
            assert new[0] not in run.blocks
    assert request.blocks[-1].block_id == new[0]


def given_plainly(
    request_ids: list[str],
    given: list[tuple[list[int], ...] | None],
    waiting: dict[str, tuple[list[int], ...]],
    not_waiting: set[str],
    blocks: set[int],
) -> tuple[list[str], list[tuple[list[int], ...]]]:
    """What ``note_given`` says that it does."""
    names, tables = [], []
    for request_id, tables_of_one in zip(request_ids, given, strict=True):
        if not tables_of_one:
            continue
        blocks.update(*tables_of_one)
        if request_id in waiting and request_id not in not_waiting:
            for noted, table in zip(waiting[request_id], tables_of_one, strict=True):
                noted.extend(table)
        else:
            names.append(request_id)
            tables.append(tables_of_one)
    return names, tables


@pytest.mark.parametrize("windows", [(0,), (0, 9)])
def test_what_steps_give_is_read_as_the_plain_interpreter_reads_it(
    kvmd: PrivateDaemon, monkeypatch: pytest.MonkeyPatch, windows: tuple[int, ...]
) -> None:
    """Over random histories with preempted and resumed requests, prompts in chunks, and loads: the same plans."""
    compared = {"noted": 0, "others": 0, "resumed": 0, "contents": 0}

    def give(ids: Any, given: Any, waiting: Any, not_waiting: Any, blocks: Any) -> Any:
        plain = copy.deepcopy(dict(waiting)), set(blocks)
        names = given_plainly(ids, given, plain[0], not_waiting, plain[1])
        result = note_given(ids, given, waiting, not_waiting, blocks)
        assert (result, dict(waiting), blocks) == (names, *plain)
        assert all(ours is theirs for ours, theirs in zip(result[1], names[1], strict=True))
        compared["others"] += len(names[0])
        compared["resumed"] += len(not_waiting)
        compared["noted"] += sum(1 for each in given if each) - len(names[0])
        return result

    def contents(pool: Any, blocks: list[int]) -> list[Any]:
        result = contents_of(pool, blocks)
        plain = [content for block in blocks if (content := pool[block].block_hash) is not None]
        assert len(result) == len(plain)
        assert all(ours is theirs for ours, theirs in zip(result, plain, strict=True))
        compared["contents"] += len(plain)
        return result

    monkeypatch.setattr(turns, "note_given", give)
    monkeypatch.setattr(publishing, "contents_of", contents)
    engines = [
        RandomTraffic(kvmd.socket, f"engine-{seed}", seed, 1, "async", 150, "v1", False, windows) for seed in range(2)
    ]
    for engine in engines:
        engine.engine._batch = 16  # so many that some are given blocks before it is their turn
    for _ in range(20):
        for engine in engines:
            assert engine.run(20)["wrong"] == 0
    assert min(compared.values()) > 20, compared


def test_lists_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="as many requests"):
        note_given(["a"], [], {}, set(), set())
    with pytest.raises(ValueError, match="a list for each group"):
        note_given(["a"], [([1],)], {"a": ([], [])}, set(), set())
    with pytest.raises(TypeError):
        note_given(["a"], [[1]], {}, set(), set())  # type: ignore[list-item]
    with pytest.raises(TypeError):
        note_given(["a"], [(1,)], {}, set(), set())  # type: ignore[list-item]
    with pytest.raises(IndexError):
        contents_of([], [0])
    with pytest.raises(TypeError):
        contents_of([Block(0)], [None])  # type: ignore[list-item]
