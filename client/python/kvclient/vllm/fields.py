"""Which fields of vLLM's configuration may change the bytes of a KV block. docs/ENGINE_FIELDS.md gives the reasons.

A field that is not named here counts, so that a release with a new one shares no block by mistake. The suite fails if
the page and this file differ, or if the installed release has a field that neither knows.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Class of vLLM's configuration -> fields that do not change the bytes of a block.
NOT_COUNTED: dict[str, frozenset[str]] = {
    "VllmConfig": _names(
        "aux_output_config device_config ec_manager_config ec_transfer_config instance_id kv_events_config "
        "kv_transfer_config load_config logging_config observability_config offload_config optimization_level "
        "performance_mode profiler_config quant_config reasoning_config shutdown_timeout "
        "structured_outputs_config watchdog_config watermark_config weight_transfer_config"
    ),
    "ModelConfig": _names(
        "allow_deprecated_quantization allowed_local_media_path allowed_media_domains code_revision config_format "
        "enable_cumem_allocator enable_nccl_comm_suspend enable_return_routed_experts enable_sleep_mode "
        "enable_trace_replay enforce_eager generation_config hf_config_path hf_overrides hf_token "
        "io_processor_plugin is_submodel_config logits_processors logprobs_mode max_logprobs model model_weights "
        "override_generation_config pooler_config renderer_num_workers return_sampling_mask revision seed "
        "served_model_name skip_tokenizer_init sleep_mode_backend sleep_mode_offload_cudagraph "
        "sleep_preserve_parameter_names spec_target_max_model_len tokenizer tokenizer_mode tokenizer_revision "
        "trust_remote_code use_fp64_gumbel word_embeddings_untied_by_checkpoint"
    ),
    "CacheConfig": _names(
        "_block_size_resolved cache_hit_alignment_tokens effective_attention_block_size "
        "enable_mamba_fine_grained_prefix_cache enable_mamba_shared_prefix_checkpoint enable_prefix_caching "
        "gpu_memory_utilization hash_block_size "
        "is_attention_free kv_cache_max_concurrency kv_cache_memory_bytes kv_cache_size_tokens "
        "kv_offloading_backend kv_offloading_size mamba_block_size num_cpu_blocks num_gpu_blocks "
        "num_gpu_blocks_override prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit "
        "simple_cpu_offload_num_blocks user_specified_block_size user_specified_mamba_block_size"
    ),
    "ParallelConfig": _names(
        "_allow_auto_resolve_cp_interleave_size _api_process_count _api_process_rank _coord_store_port "
        "_data_parallel_master_port_list assigned_physical_gpu_ids cpu_distributed_timeout_seconds "
        "data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb data_parallel_index "
        "data_parallel_master_ip data_parallel_master_port data_parallel_rank data_parallel_rank_local "
        "data_parallel_rpc_port data_parallel_size_local disable_nccl_for_dp_synchronization "
        "distributed_executor_backend distributed_timeout_seconds dp_sync_interval enable_batch_sharded_sampling "
        "enable_ep_weight_filter enable_fault_tolerance enable_shm_tensor_arena fault_tolerance_config "
        "master_addr master_port max_parallel_loading_workers nnodes node_rank numa_bind numa_bind_cpus "
        "numa_bind_nodes placement_group rank ray_runtime_env ray_workers_use_nsight sd_worker_cls "
        "worker_extension_cls world_size"
    ),
    "SchedulerConfig": _names(
        "async_scheduling disable_chunked_mm_input enable_chunked_prefill encoder_cache_size is_multimodal_model "
        "long_prefill_token_threshold long_prefill_token_threshold_adaptive max_long_partial_prefills "
        "max_num_active_seqs max_num_batched_tokens max_num_encoder_input_tokens max_num_partial_prefills "
        "max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens max_num_seqs policy "
        "prefill_schedule_interval runner_type scheduler_cls scheduler_reserve_full_isl stream_interval watermark"
    ),
    "LoRAConfig": _names("default_mm_loras max_cpu_loras max_lora_cls_labels max_loras"),
    "SpeculativeConfig": _names(
        "code_revision disable_padded_drafter_batch draft_lm_head_quantization draft_load_config "
        "draft_sample_method dspark_draft_topk enable_adaptive_verification enforce_eager fly_entropy_threshold "
        "fly_entropy_top_k fly_window_size max_model_len model num_speculative_tokens_per_batch_size "
        "prompt_lookup_max prompt_lookup_min rejection_sample_method revision suffix_decoding_max_cached_requests "
        "suffix_decoding_max_spec_factor suffix_decoding_max_tree_depth suffix_decoding_min_token_prob "
        "synthetic_acceptance_length synthetic_acceptance_rates target_model_config target_parallel_config "
        "tensor_parallel_size use_local_argmax_reduction xpress_topc"
    ),
    "AttentionConfig": _names("backend"),
    "CompilationConfig": _names(
        "cache_dir compilation_time compile_cache_save_format compile_ranges_endpoints cudagraph_capture_sizes "
        "cudagraph_copy_inputs cudagraph_mm_encoder cudagraph_num_of_warmups cudagraph_specialize_lora "
        "debug_dump_path decoder_replay_cudagraph_capture_sizes disabled_custom_ops enabled_custom_ops "
        "encoder_compilation_time encoder_cudagraph_max_frames_per_batch "
        "encoder_cudagraph_max_vision_items_per_batch encoder_cudagraph_token_budgets fast_moe_cold_start "
        "local_cache_dir max_cudagraph_capture_size static_all_moe_layers static_forward_context traced_files"
    ),
    "KernelConfig": _names("enable_cutedsl_warmup enable_jit_warmup"),
    "MultiModalConfig": _names(
        "allow_missing_mm_embeddings enable_mm_embeds interleave_mm_strings limit_per_prompt "
        "mm_encoder_fp8_scale_save_path mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb "
        "mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling"
    ),
}

#: Fields that ModelSpec has, or that count under another condition.
OWN_FIELDS: dict[str, frozenset[str]] = {
    "CacheConfig": frozenset(("block_size", "cache_dtype", "kv_cache_layout", "sliding_window")),
    "ParallelConfig": frozenset(("pipeline_parallel_size", "tensor_parallel_size")),
    "ModelConfig": frozenset(("max_model_len", "quantization")),
}

# Fields of any Hugging Face configuration that do not change the computation.
_HF_NOT_COUNTED = _names(
    "_name_or_path name_or_path transformers_version use_cache return_dict output_attentions "
    "output_hidden_states bos_token_id eos_token_id pad_token_id sep_token_id id2label label2id "
    "problem_type _commit_hash tokenizer_class task_specific_params initializer_range _output_attentions "
    "_post_init_done"
)
# These methods propose tokens without a model, so they add no layer and no state.
_NO_DRAFT = ("ngram", "ngram_gpu", "suffix")


def counted(vllm_config: Any) -> dict[str, Any]:
    """Everything of an engine's configuration that may change the bytes of a block, as plain data for JSON."""
    settings: dict[str, Any] = _plain(vllm_config, 0)
    speculative = getattr(vllm_config, "speculative_config", None)
    if speculative is not None and getattr(speculative, "method", None) in _NO_DRAFT:
        settings["speculative_config"] = None  # as that of an engine that does not speculate
    parallel = settings.get("parallel_config")
    if isinstance(parallel, dict) and parallel.get("is_moe_model") is False:
        parallel.pop("data_parallel_size", None)
    return settings


def counted_fields(config: Any) -> list[str]:
    """Names of the fields of one configuration object that may change the bytes of a block."""
    name = _known_as(type(config))
    left_out = NOT_COUNTED.get(name, frozenset()) | OWN_FIELDS.get(name, frozenset())
    if dataclasses.is_dataclass(config):
        names = [field.name for field in dataclasses.fields(config)]
    else:
        names = list(vars(config))
    return [each for each in names if each not in left_out]


def hugging_face(config: Any) -> dict[str, Any]:
    """The settings of a model's configuration, nested ones included, that may change the bytes of a block."""
    return _hf_plain(config.to_dict())


def _hf_plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): _hf_plain(value) if isinstance(value, Mapping) else _plain(value, 1)
        for name, value in settings.items()
        if name not in _HF_NOT_COUNTED
    }


def _known_as(kind: type) -> str:
    return next((each.__name__ for each in kind.__mro__ if each.__name__ in NOT_COUNTED), kind.__name__)


def _plain(value: Any, depth: int) -> Any:
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (torch.dtype, torch.device, PurePath)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(each, depth + 1) for each in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(each, depth + 1) for name, each in value.items()}
    if callable(getattr(value, "to_dict", None)):
        return hugging_face(value)
    if (dataclasses.is_dataclass(value) or _known_as(type(value)) in NOT_COUNTED or depth == 0) and depth < 8:
        return {name: _plain(getattr(value, name, None), depth + 1) for name in counted_fields(value)}
    # No other property is the same in every process
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


__all__ = ["NOT_COUNTED", "OWN_FIELDS", "counted", "counted_fields", "hugging_face"]
