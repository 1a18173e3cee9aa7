"""kvclient.vllm without vLLM: which engines are refused and why, and what differs between releases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import UnsupportedError
from kvclient.vllm.layout import read_layout
from kvclient.vllm.near_misses import NearMissLog
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.refusals import refusal
from kvclient.vllm.releases import block_dimension
from kvclient.vllm.spec import of_all_stages, spec_of
from support.specs import small_spec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ENGINES.md"


def kv_spec(kind: str, **fields: Any) -> Any:
    return type(kind, (), fields)()


ATTENTION = {"head_size": 128, "block_size": 16}
FULL, SLIDING = kv_spec("FullAttentionSpec", **ATTENTION), kv_spec("SlidingWindowSpec", **ATTENTION)
MLA, CHUNKED = kv_spec("MLAAttentionSpec", **ATTENTION), kv_spec("ChunkedLocalAttentionSpec", **ATTENTION)
WIDE = kv_spec("SlidingWindowSpec", head_size=64, block_size=32)
STATE = {"block_size": 16, "shapes": ((3, 8),), "dtypes": ("torch.float32",)}
MAMBA = kv_spec("MambaSpec", **STATE, mamba_cache_mode="align", num_speculative_blocks=0)
UNCACHED = kv_spec("MambaSpec", **STATE, mamba_cache_mode="none", num_speculative_blocks=0)
DRAFTED = kv_spec("MambaSpec", **STATE, mamba_cache_mode="align", num_speculative_blocks=3)
INDEXER = kv_spec("UniformTypeKVCacheSpecs", block_size=16, kv_cache_specs={"a": MLA, "indexer": MLA})
MIXED = kv_spec("UniformTypeKVCacheSpecs", block_size=16, kv_cache_specs={"a": FULL, "b": CHUNKED})
COMPRESSED = kv_spec("SlidingWindowMLASpec", **ATTENTION)
DRAFT = object()


def why(
    *specs: Any,
    by_request: bool = True,
    load: str = "async",
    unit: int | None = None,
    speculation: object = None,
    v2: bool = False,
    **parallel: Any,
) -> str:
    groups = [
        SimpleNamespace(
            kv_cache_spec=FULL if spec is DRAFT else spec,
            is_eagle_group=spec is DRAFT,
            layer_names=["draft_model.layers.0" if spec is DRAFT else "model.layers.0"],
        )
        for spec in specs
    ]
    return refusal(
        SimpleNamespace(
            parallel_config=SimpleNamespace(**parallel),
            cache_config=SimpleNamespace(prefix_match_unit=unit),
            speculative_config=speculation,
            use_v2_model_runner=v2,
        ),
        SimpleNamespace(kv_cache_groups=groups),
        by_request=by_request,
        load=load,
    )


def test_one_group_of_attention_layers_is_shared() -> None:
    for spec in (FULL, SLIDING, MLA, INDEXER):
        assert why(spec) == ""
        assert why(spec, by_request=False, load="sync") == ""
    assert why(FULL, decode_context_parallel_size=1) == ""


def test_groups_of_full_attention_and_sliding_windows_are_shared() -> None:
    assert why(FULL, SLIDING, SLIDING) == ""
    assert why(SLIDING, MLA) == ""


def test_groups_of_states_are_shared_beside_attention() -> None:
    assert why(MAMBA, FULL, MAMBA) == ""
    assert why(MAMBA, MLA) == ""
    assert why(FULL, SLIDING, MAMBA) == ""
    assert why(FULL, MAMBA, unit=16) == ""


def test_drafts_are_refused_beside_states_also_where_states_have_no_blocks_for_them() -> None:
    assert "start without speculative_config" in why(FULL, MAMBA, speculation="mtp")
    assert why(FULL, SLIDING, speculation="mtp") == ""


DISABLE = "--disable-hybrid-kv-cache-manager"
#: What is refused -> the reason's words, which docs/ENGINES.md has too.
REFUSED = {
    "groups, failures by block": (why(FULL, SLIDING, by_request=False), "a failed load of one group only", DISABLE),
    "chunks beside other blocks": (why(CHUNKED, WIDE), "finds no prefix beside attention in chunks", DISABLE),
    "states beside other blocks": (why(MAMBA, FULL, WIDE), "parts of whose blocks vLLM then finds", ""),
    "windows that are compressed": (
        why(FULL, COMPRESSED),
        "not all of them are full attention, windows, chunks or states",
        DISABLE,
    ),
    "groups, one of a model as draft": (
        why(SLIDING, DRAFT, speculation=SimpleNamespace(method="draft_model")),
        "write to blocks of the first one",
        "speculative_config",
    ),
    "groups, waiting": (why(FULL, SLIDING, load="sync"), "can load in the background only", "load=async"),
    "states that are not kept": (why(FULL, UNCACHED), "does not keep at block boundaries", "--mamba-cache-mode align"),
    "states and drafts": (
        why(FULL, DRAFTED),
        "moves one between blocks after it has verified drafts",
        "speculative_config",
    ),
    "states within blocks": (why(FULL, MAMBA, unit=8), "keeps within blocks as well", "prefix_match_unit"),
    "states in all groups": (why(MAMBA, MAMBA), "none of attention", ""),
    "states alone": (why(MAMBA), "a state instead of the KV of each token", ""),
    "sizes and kinds": (why(MIXED), "KV of different sizes in one block", ""),
    "encoders": (why(), "no KV cache", "without the connector"),
    "context parallelism": (why(FULL, decode_context_parallel_size=2), "spreads a block's tokens over ranks", "to 1"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_refusal_says_why_and_what_to_do_and_the_page_says_the_same(case: str) -> None:
    reason, words, remedy = REFUSED[case]
    assert words in reason
    assert remedy in reason
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|") and words in line]
    assert len(rows) == 1
    assert "refused" in rows[0]
    assert remedy in rows[0] or remedy == ""


def test_groups_whose_blocks_differ_in_size_are_shared() -> None:
    assert why(FULL, WIDE) == why(WIDE, FULL, MLA) == ""
    assert why(FULL, WIDE, unit=8) == ""
    assert "hold different numbers of tokens (16 and 32)" in why(FULL, CHUNKED, WIDE)


def test_scales_that_change_while_the_engine_runs_are_refused() -> None:
    config = SimpleNamespace(
        model_config=None, cache_config=SimpleNamespace(calculate_kv_scales=True), parallel_config=None
    )
    with pytest.raises(UnsupportedError, match="the scale of a block depends on what ran before it"):
        spec_of(config, FULL, layout="", backend="", options=ConnectorOptions(socket="/s"))


def test_groups_with_chunks_and_with_drafts_are_shared() -> None:
    assert why(FULL, CHUNKED, CHUNKED) == ""
    assert why(FULL, CHUNKED, SLIDING) == ""
    for method in ("eagle", "eagle3", "mtp", "ngram"):
        assert why(SLIDING, DRAFT, speculation=SimpleNamespace(method=method)) == ""


def test_a_model_as_draft_is_refused_only_where_it_gets_blocks_of_another_group() -> None:
    model, other = SimpleNamespace(method="draft_model"), SimpleNamespace(method="custom_class")
    assert why(DRAFT, SLIDING, speculation=model) == ""
    assert why(DRAFT, speculation=model) == ""
    assert why(SLIDING, DRAFT, speculation=model, v2=True) == ""
    assert "write to blocks" in why(SLIDING, FULL, speculation=other)


def test_a_remedy_is_only_given_where_it_helps() -> None:
    assert DISABLE not in why(FULL, DRAFTED)
    assert DISABLE not in why(FULL, COMPRESSED, MAMBA)
    assert DISABLE not in why(FULL, SLIDING, load="sync")


# ---- engines that do not share ----


@pytest.mark.parametrize(
    "fields",
    [
        {"block_tokens": 8, "layout": "2*float32x8"},
        {"kv_dtype": "float16", "layout": "2*float16x4", "weights_digest": "other"},
        {"layout": "2*float32x4@10"},
    ],
)
def test_an_engine_of_the_same_model_with_other_blocks_is_one_line_in_the_log(
    kvmd: PrivateDaemon, caplog: pytest.LogCaptureFixture, fields: dict[str, object]
) -> None:
    ours, theirs = (kvclient.Client(kvmd.socket, name=name) for name in ("ours", "theirs"))
    model = ours.declare_model(small_spec())
    theirs.declare_model(small_spec(**fields))
    log = NearMissLog()
    log.look(ours, model)
    log.look(ours, model)
    [line] = [record.getMessage() for record in caplog.records if "shares nothing" in record.getMessage()]
    for name in fields:
        assert name in line


# ---- releases ----


class OlderBackend:
    @staticmethod
    def get_kv_cache_block_dim(block_size: int, heads: int, size: int, cache_dtype_str: str = "auto") -> int:
        return 1


def test_a_backend_that_says_which_dimension_counts_blocks_is_asked() -> None:
    tensor = torch.zeros(4, 4, 16, 2, 8)
    assert block_dimension(OlderBackend, FULL, "auto", tensor, 4) == 1


def test_without_one_the_first_dimension_counts_them_even_if_another_one_could() -> None:
    """As vLLM has them from 0.29 on: four blocks of four heads fit in several dimensions."""
    tensor = torch.arange(4 * 4 * 32 * 16, dtype=torch.float32).reshape(4, 4, 32, 16)
    with pytest.raises(UnsupportedError, match="4 dimensions can count"):
        read_layout({"a": tensor}, 4)
    read = read_layout({"a": tensor}, 4, lambda _: block_dimension(object, FULL, "auto", tensor, 4))
    assert torch.equal(read.tensors[0][3].reshape(-1).sort().values, tensor[3].reshape(-1).sort().values)
    halves = tensor.reshape(8, 2, 32, 16)  # a kernel with blocks of half the size
    assert block_dimension(object, FULL, "auto", halves, 4) == 0


def test_a_tensor_whose_first_dimension_cannot_count_them_is_left_to_its_shape() -> None:
    assert block_dimension(object, FULL, "auto", torch.zeros(2, 5, 16, 2, 8), 5) is None
    assert block_dimension(object, FULL, "auto", torch.zeros(20), 5) is None  # bytes, not blocks


def stages(*layouts: str, tensor_ranks: int = 2) -> list[tuple[int, str]]:
    return [
        (stage, small_spec(layout=layout, pp_size=len(layouts), tp_size=tensor_ranks).canonical())
        for stage, layout in enumerate(layouts)
        for _ in range(tensor_ranks)
    ]


def test_stages_of_a_pipeline_that_hold_different_layers_have_one_spec_that_tells_them_apart() -> None:
    whole = of_all_stages(stages("2*x", "1*x"))
    whole.validate()
    assert whole.fingerprint() == of_all_stages(stages("2*x", "1*x")).fingerprint()
    for others in (("1*x", "2*x"), ("2*x", "2*x"), ("1*x", "1*x"), ("2*x", "1*y")):
        assert whole.fingerprint() != of_all_stages(stages(*others)).fingerprint()


def test_stages_that_hold_the_same_are_described_as_before() -> None:
    assert of_all_stages(stages("2*x", "2*x")).layout == "2*x"


def test_long_layouts_of_stages_fit_a_spec() -> None:
    of_all_stages(stages(*(f"{i}*" + "x" * 190 for i in range(8)))).validate()


def test_workers_that_differ_in_more_than_their_stages_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="ranks of one stage"):
        of_all_stages([stages("a")[0], stages("b")[0]])
    wide = small_spec(layout="b", head_size=16, pp_size=2, tp_size=2)
    with pytest.raises(UnsupportedError, match="differ in more than the layers"):
        of_all_stages([stages("a", "b")[0], (1, wide.canonical())])
