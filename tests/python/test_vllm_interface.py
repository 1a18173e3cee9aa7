"""Everything of vLLM that the connector overrides, calls or reads is there, by the release's source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kvclient.vllm.fields import NOT_COUNTED
from support.engine_fields_page import read_page
from support.vllm_source import Class, Source, read_class, releases

CONNECTOR = Path(__file__).resolve().parents[2] / "client" / "python" / "kvclient" / "vllm" / "connector.py"
BASE = "distributed/kv_transfer/kv_connector/v1/base.py"
METRICS = "distributed/kv_transfer/kv_connector/v1/metrics.py"
RELEASES = releases()
pytestmark = pytest.mark.skipif(not RELEASES, reason="vLLM is not installed (scripts/python_env.sh --vllm)")

# File below vllm/ -> class -> names that kvclient.vllm reads or calls; "name?": not in every
# release, and it can do without.
READ: dict[str, dict[str, str]] = {
    "v1/core/block_pool.py": {
        "BlockPool": "blocks cached_block_hash_to_block num_gpu_blocks enable_caching get_num_free_blocks "
        "get_cached_block hash_block_size"
    },
    "v1/core/kv_cache_utils.py": {"KVCacheBlock": "block_hash"},
    "v1/core/kv_cache_manager.py": {"KVCacheBlocks": "get_block_ids"},
    "v1/core/sched/output.py": {
        "SchedulerOutput": "scheduled_new_reqs scheduled_cached_reqs new_block_ids_to_zero? kv_cache_block_copies?",
        "NewRequestData": "req_id block_ids",
        "CachedRequestData": "req_ids new_block_ids resumed_req_ids",
    },
    "v1/request.py": {
        "Request": "request_id num_tokens num_computed_tokens num_output_placeholders num_in_flight_tokens? "
        "prompt_token_ids all_token_ids prompt_embeds mm_features cache_salt lora_request skip_reading_prefix_cache "
        "block_hashes"
    },
    "v1/outputs.py": {
        "KVConnectorOutput": "finished_recving invalid_block_ids kv_connector_worker_meta failed_recving?"
    },
    "v1/kv_cache_interface.py": {
        "KVCacheConfig": "num_blocks kv_cache_groups",
        "KVCacheGroupSpec": "kv_cache_spec layer_names is_eagle_group?",
        "KVCacheSpec": "block_size",
        "AttentionSpec": "num_kv_heads head_size dtype",
        "SlidingWindowSpec": "sliding_window extra_retained_tokens?",
        "ChunkedLocalAttentionSpec": "attention_chunk_size",
        "UniformTypeKVCacheSpecs": "kv_cache_specs",
    },
    "v1/executor/abstract.py": {"Executor": "collective_rpc is_sleeping"},
    "v1/engine/core.py": {"EngineCore": "model_executor"},
    "v1/worker/gpu_model_runner.py": {"GPUModelRunner": "get_model"},
    "v1/worker/gpu/model_runner.py": {"GPUModelRunner": "get_model"},
    "lora/request.py": {"LoRARequest": "lora_name lora_int_id lora_path load_inplace? is_3d_lora_weight?"},
    "multimodal/inputs.py": {"MultiModalFeatureSpec": "identifier mm_position", "PlaceholderRange": "offset length"},
    "config/kv_transfer.py": {"KVTransferConfig": "kv_load_failure_policy kv_connector_extra_config engine_id"},
    "config/vllm.py": {
        "VllmConfig": "model_config cache_config parallel_config load_config kv_transfer_config speculative_config "
        "offload_config use_v2_model_runner kv_events_config"
    },
    "config/kv_events.py": {"KVEventsConfig": "enable_kv_cache_events"},
    "distributed/kv_events.py": {
        "BlockStored": "block_hashes parent_block_hash token_ids block_size lora_id medium lora_name extra_keys "
        "group_idx kv_cache_spec_kind kv_cache_spec_sliding_window",
        "BlockRemoved": "block_hashes medium group_idx",
    },
    "config/cache.py": {"CacheConfig": "cache_dtype calculate_kv_scales?"},
    "config/model.py": {
        "ModelConfig": "model hf_config hf_text_config quantization max_model_len seed architectures "
        "get_total_num_kv_heads"
    },
    "config/load.py": {"LoadConfig": "load_format"},
    "config/parallel.py": {
        "ParallelConfig": "tensor_parallel_size pipeline_parallel_size data_parallel_size enable_expert_parallel "
        "decode_context_parallel_size prefill_context_parallel_size"
    },
    "config/speculative.py": {"SpeculativeConfig": "draft_model_config method use_eagle use_eagle_block_drop?"},
    "model_executor/layers/attention_layer_base.py": {"AttentionLayerBase": "get_attn_backend"},
    "model_executor/layers/linear.py": {"QKVParallelLinear": "num_kv_head_replicas total_num_kv_heads"},
    "model_executor/layers/attention/attention.py": {"Attention": "layer_name"},
    "distributed/parallel_state.py": {"GroupCoordinator": "rank_in_group"},
    METRICS: {
        "KVConnectorStats": "data reset aggregate reduce is_empty",
        "KVConnectorPromMetrics": "per_engine_labelvalues observe",
    },
}
FUNCTIONS = {
    "config/vllm.py": "get_layers_from_vllm_config",
    "distributed/parallel_state.py": "get_pp_group get_tp_group",
    "v1/core/kv_cache_utils.py": "maybe_convert_block_hash",
    "v1/kv_cache_interface.py": "get_kv_cache_spec_kind get_kv_cache_spec_sliding_window",
}
CONFIGURATION = "vllm cache model parallel scheduler lora speculative attention compilation kernel multimodal"

#: Hooks that the connector can't work without, as groups of which one has to be called by vllm/v1.
CALLED = (
    "register_kv_caches",
    "get_handshake_metadata",
    "set_xfer_handshake_metadata_pp_aware",
    "handle_preemptions",
    "bind_connector_metadata",
    "start_load_kv",
    "get_finished get_transfer_results",
    "get_block_ids_with_load_errors",
    "build_connector_worker_meta",
    "bind_gpu_block_pool bind_kv_cache_manager",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished_all_groups",
    "reset_cache",
)

# Public names of our own, and the base's of some releases only -> what stands in where they are
# missing.
OURS = {
    "describe": "called by the scheduler's side through the executor",
    "registration": "called by the scheduler's side through the executor",
    "watch_steps": "called by the scheduler's side through the executor",
    "measure": "called by the scheduler's side through the executor",
    "finish_measuring": "called by the scheduler's side through the executor",
    "register_under": "called by the scheduler's side through the executor",
    "totals": "for tests and demos",
    "requires_kv_delivery": "before 0.27 vLLM never computes a preempted request again because of a hand-over",
    "unregister_kv_caches": "before 0.33 the memory of an engine that can sleep is refused when it is registered",
    "restore_kv_caches": "as unregister_kv_caches",
    "get_mem_pool_context": "before 0.31 an engine with kv_pool=exportable does not start",
    "get_transfer_results": "before 0.30 several KV-cache groups are refused, and blocks that fail are reported",
}


@pytest.fixture(params=sorted(RELEASES))
def release(request: pytest.FixtureRequest) -> Source:
    return RELEASES[request.param]


def ours() -> Class:
    tree = ast.parse(CONNECTOR.read_text(encoding="utf-8"))
    return next(
        read_class(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "KvMarketConnector"
    )


def parameters(method: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [each.arg for each in (*method.args.posonlyargs, *method.args.args) if each.arg not in ("self", "cls")]


def test_every_abstract_hook_is_overridden(release: Source) -> None:
    classes = release.classes(BASE)
    assert not (classes["KVConnectorBase_V1"].abstract | classes["SupportsHMA"].abstract) - set(ours().methods)
    assert classes["KVConnectorWorkerMetadata"].abstract == {"aggregate"}
    assert not classes["KVConnectorMetadata"].abstract | classes["KVConnectorHandshakeMetadata"].abstract


def test_every_hook_takes_what_vllm_passes_it(release: Source) -> None:
    classes = release.classes(BASE)
    theirs = {**classes["KVConnectorBase_V1"].methods, **classes["SupportsHMA"].methods}
    public = {name: method for name, method in ours().methods.items() if not name.startswith("_")}
    for name, method in public.items():
        if name not in theirs:
            assert name in OURS, f"the base class has no {name}"
            continue
        base = theirs[name]
        assert parameters(method) == parameters(base), name
        assert (method.args.kwarg is None) == (base.args.kwarg is None), name
        assert not method.args.kwonlyargs, name
        kinds = [{ast.unparse(d) for d in each.decorator_list} & {"property", "classmethod"} for each in (method, base)]
        assert kinds[0] == kinds[1], name


def test_every_hook_that_the_connector_needs_is_called(release: Source) -> None:
    called = release.called("v1")
    for group in CALLED:
        assert called.intersection(group.split()), group


def test_a_release_that_asks_for_a_pool_allocates_kv_caches_under_it(release: Source) -> None:
    if "get_mem_pool_context" in release.classes(BASE)["KVConnectorBase_V1"].methods:
        assert "get_mem_pool_context" in release.called("v1/worker")


def test_a_release_that_binds_the_cache_manager_binds_the_pool_with_it(release: Source) -> None:
    binds = release.classes(BASE)["KVConnectorBase_V1"].methods.get("bind_kv_cache_manager")
    if binds is None:
        assert "bind_gpu_block_pool" in release.called("v1/core")
    else:
        assert "self.bind_gpu_block_pool(kv_cache_manager.block_pool)" in ast.unparse(binds)


def test_transfer_results_are_those_of_the_older_hook(release: Source) -> None:
    results = release.classes(BASE)["KVConnectorBase_V1"].methods.get("get_transfer_results")
    assert results is None or "self.get_finished(finished_req_ids)" in ast.unparse(results)


def test_a_request_whose_load_failed_loses_all_of_its_blocks(release: Source) -> None:
    """Where vLLM can be told so: then several KV-cache groups are shared."""
    results = release.classes(BASE).get("KVConnectorTransferResults")
    if results is None or "failed_recving" not in results.names:
        return
    handles = release.classes("v1/core/sched/scheduler.py")["Scheduler"].methods
    assert "request.num_computed_tokens = 0" in ast.unparse(handles["_handle_failed_recving"])
    assert "self.kv_cache_manager.free(request)" in ast.unparse(handles["_update_waiting_for_remote_kv"])
    assert "failed_recving" in release.classes("v1/outputs.py")["KVConnectorOutput"].names


def test_every_attribute_that_is_read_exists(release: Source) -> None:
    lacking = []
    for path, classes in READ.items():
        found = release.classes(path)
        for name, wanted in classes.items():
            names = set(found[name].names)
            for base in found[name].bases:  # of the same file
                names |= found[base].names if base in found else set()
            lacking += [f"{name}.{each}" for each in wanted.split() if not each.endswith("?") and each not in names]
    assert not lacking


def test_every_function_that_is_called_exists(release: Source) -> None:
    for path, names in FUNCTIONS.items():
        assert set(names.split()) <= release.functions(path), path


def test_layers_tensors_count_blocks_first_where_no_backend_says_which_dimension_does(release: Source) -> None:
    backend = release.classes("v1/attention/backend.py")["AttentionBackend"]
    if "get_kv_cache_block_dim" in backend.names:
        return
    views = next(
        node
        for node in ast.walk(release.tree("v1/worker/utils.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "allocate_kv_cache"
    )
    assert "``[B, H, N, C]`` per layer" in " ".join((ast.get_docstring(views) or "").split())


def test_ranks_with_the_same_kv_head_are_neighbours(release: Source) -> None:
    projection = release.classes("model_executor/layers/linear.py")["QKVParallelLinear"].methods
    assert "self.tp_rank // self.num_kv_head_replicas" in ast.unparse(projection["weight_loader"])
    assert "divide(tp_size, self.total_num_kv_heads)" in ast.unparse(projection["__init__"])


def test_the_kind_of_a_hit_exists_where_vllm_counts_them(release: Source) -> None:
    path = "v1/metrics/cache_hit_source.py"
    base = release.classes(BASE)["KVConnectorBase_V1"]
    assert release.has(path) == ("_cache_hit_source" in base.names)
    if release.has(path):
        assert "P2P" in release.classes(path)["CacheHitSource"].names


def test_docs_engine_fields_has_every_field_of_the_configuration(release: Source) -> None:
    tables = read_page()
    lacking = {
        f"{name}.{field}"
        for path in CONFIGURATION.split()
        for name, found in release.classes(f"config/{path}.py").items()
        if name in NOT_COUNTED
        for field in found.fields
        if field not in tables[name]
    }
    assert not lacking, f"docs/ENGINE_FIELDS.md and kvclient/vllm/fields.py must say what these do: {sorted(lacking)}"
