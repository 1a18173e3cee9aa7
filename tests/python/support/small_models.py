"""Folders with small models of random weights, which engines load as they load any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: Changes that make LLAMA a Gemma 3 with windows of 64 tokens: layers 1 and 4 attend to all
#: tokens, the others to a window, so that vLLM has three KV-cache groups, the last of them with a
#: layer less than the others.
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 5,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
    "sliding_window": 64,
    "query_pre_attn_scalar": 32,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}

#: Changes that make LLAMA a Gemma 4 with windows of 64 tokens: layers 1 and 4 attend to all tokens,
#: with heads twice as large as the others', so that blocks of the windows have twice as many
#: tokens.
GEMMA4: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "num_hidden_layers": 5,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
    "sliding_window": 64,
    "global_head_dim": 64,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
        f"{kind}_attention": {"rope_type": "default", "rope_theta": theta}
        for kind, theta in (("full", 1000000.0), ("sliding", 10000.0))
    },
    "tie_word_embeddings": True,
}

#: Changes that make LLAMA a Gemma 4 whose layers that attend to all tokens have fewer heads: their
#: KV of a token is a quarter of the others', which have windows of 80 tokens, and their blocks have
#: four times as many tokens.
GEMMA4_FEW: dict[str, Any] = {
    **GEMMA4,
    "sliding_window": 80,
    "num_key_value_heads": 4,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}

#: Changes that make LLAMA a Mistral: all layers have windows of 64 tokens.
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 64,
}

#: Changes that make LLAMA a Llama 4 with chunks of 96 tokens, without experts: layer 1 attends to
#: all tokens, the others within their chunk, so that vLLM has four KV-cache groups.
LLAMA4: dict[str, Any] = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "no_rope_layers": [1, 0, 1, 1],
    "layer_types": [f"{kind}_attention" for kind in ("chunked", "full", "chunked", "chunked")],
    "attention_chunk_size": 96,
    "intermediate_size_mlp": 256,
    "interleave_moe_layer_step": 100,
    "moe_layers": [],
    "num_local_experts": 1,
    "num_experts_per_tok": 1,
    "use_qk_norm": False,
    "attn_temperature_tuning": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

#: Changes that make LLAMA the head of an EAGLE for a model as wide as it: one layer, that reads the
#: model's hidden states.
EAGLE: dict[str, Any] = {"architectures": ["EagleLlamaForCausalLM"], "num_hidden_layers": 1}

#: Changes that make LLAMA a K-EXAONE without experts: layer 2 attends to all tokens, the others to
#: windows of 64, and a further layer with a window predicts tokens ahead (MTP), so that vLLM knows
#: which one of two KV-cache groups has it.
EXAONE: dict[str, Any] = {
    "architectures": ["ExaoneMoEForCausalLM"],
    "model_type": "exaone_moe",
    "num_hidden_layers": 3,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full")],
    "mlp_layer_types": ["dense"] * 3,
    "sliding_window": 64,
    "sliding_window_pattern": "LLG",
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

#: Changes that make LLAMA a Qwen3-Next: layers 0 and 2 are gated delta nets, with a state of 66 KiB
#: that every token before has changed. Attention's KV of 64 tokens has as much room, and makes a
#: block.
QWEN_NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "torch_dtype": "bfloat16",
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 1,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0, 1, 2],
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}

#: Of a gated delta net: its state loses little with each token.
_DECAY = -5.0
#: Of a Gemma 4: what layers add outweighs the token itself, which the tied embeddings would make
#: the answer; and attention, which nothing scales, is not to one token alone.
_GAIN, _SHARPNESS = 4.0, 0.5


def write_model(folder: Path, changes: dict[str, Any], seed: int = 5) -> None:
    """Write configuration and weights of LLAMA with ``changes`` (as those above); equal arguments, equal bytes.

    The weights are in a file because engines pack them when they load them: what a test writes to an engine's
    parameters afterwards reaches some of the layers only. Their deviation makes attention, and so each answer, depend
    on the whole prompt.
    """
    import torch
    from safetensors.torch import save_file

    config = {**LLAMA, **changes}
    shapes = _qwen_next if config["model_type"] == "qwen3_next" else _shapes
    if config["architectures"] == EAGLE["architectures"]:
        shapes = _eagle
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5
        if len(shape) > 1
        else torch.full(shape, _vector(name, config))
        for name, shape in shapes(config)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def _vector(name: str, config: dict[str, Any]) -> float:
    """What fills a weight of one dimension."""
    if config["model_type"] == "gemma4_text":
        return _GAIN if ".post_" in name else _SHARPNESS if ".q_norm" in name else 1.0
    return _DECAY if name.endswith("A_log") else 1.0


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    layers = {f"model.layers.{index}": _heads(config, index) for index in range(config["num_hidden_layers"])}
    if config.get("num_nextn_predict_layers"):
        layers["mtp.layers.0"] = _heads(config, 0)
        yield "mtp.fc.weight", (hidden, 2 * hidden)
        for name in ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding"):
            yield f"mtp.{name}.weight", (hidden,)
    for prefix, heads in layers.items():
        for name, shape in _layer(config, *heads):
            yield f"{prefix}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    for name in ("model.embed_tokens",) if config["tie_word_embeddings"] else ("model.embed_tokens", "lm_head"):
        yield f"{name}.weight", (config["vocab_size"], hidden)


def _heads(config: dict[str, Any], layer: int) -> tuple[int, int, bool]:
    """How many KV heads a layer has, their size, and whether K is V."""
    heads, size = config["num_key_value_heads"], config["head_dim"]
    if config["model_type"] == "gemma4_text" and config["layer_types"][layer] == "full_attention":
        return config.get("num_global_key_value_heads", heads), config["global_head_dim"], config["attention_k_eq_v"]
    return heads, size, False


def _layer(config: dict[str, Any], kv_heads: int, size: int, k_is_v: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    rows, kv_rows = config["num_attention_heads"] * size, kv_heads * size
    if config["model_type"] == "phi3":
        layer = {"self_attn.qkv_proj": (rows + 2 * kv_rows, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
    else:
        counts = {"q": rows, "k": kv_rows} if k_is_v else {"q": rows, "k": kv_rows, "v": kv_rows}
        layer = {f"self_attn.{name}_proj": (count, hidden) for name, count in counts.items()}
        layer |= {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    layer |= {"self_attn.o_proj": (hidden, rows), "mlp.down_proj": (hidden, inner)}
    if config["model_type"] == "llama4_text":
        layer = {name.replace("mlp.", "feed_forward."): shape for name, shape in layer.items()}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config["model_type"] in ("exaone_moe", "gemma3_text", "gemma4_text"):
        norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
    if config["model_type"] in ("gemma3_text", "gemma4_text"):
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    yield from layer.items()
    for name, width in norms.items():
        yield name, (width,)


def _eagle(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The model's embeddings and output are its own, too, and so is the norm before its first layer."""
    yield "fc.weight", (config["hidden_size"], 2 * config["hidden_size"])
    for name, shape in _shapes(config):
        if name.startswith("model.layers.") and not name.endswith("0.input_layernorm.weight"):
            yield name.removeprefix("model."), shape


def _attention(layer: str, config: dict[str, Any], per_query: int = 1) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, size = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    for name, rows in (("q", per_query * heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)


def _qwen_next(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, size, values = config["hidden_size"], config["head_dim"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    rows = values * config["linear_value_head_dim"]
    for index, kind in enumerate(config["layer_types"]):
        layer = f"model.layers.{index}"
        if kind == "linear_attention":
            net = f"{layer}.linear_attn"
            yield f"{net}.in_proj_qkvz.weight", (2 * keys + 2 * rows, hidden)
            yield f"{net}.in_proj_ba.weight", (2 * values, hidden)
            yield f"{net}.conv1d.weight", (2 * keys + rows, 1, config["linear_conv_kernel_dim"])
            yield f"{net}.dt_bias", (values,)
            yield f"{net}.A_log", (values,)
            yield f"{net}.norm.weight", (config["linear_value_head_dim"],)
            yield f"{net}.out_proj.weight", (hidden, rows)
        else:
            yield from _attention(layer, config, per_query=2)  # with a gate for each
            yield f"{layer}.self_attn.o_proj.weight", (hidden, config["num_attention_heads"] * size)
            for name in ("q", "k"):
                yield f"{layer}.self_attn.{name}_norm.weight", (size,)
        mlps = {f"{layer}.mlp": config["intermediate_size"]}
        if index not in config["mlp_only_layers"]:
            yield f"{layer}.mlp.gate.weight", (config["num_experts"], hidden)
            yield f"{layer}.mlp.shared_expert_gate.weight", (1, hidden)
            experts = [f"experts.{each}" for each in range(config["num_experts"])]
            mlps = {f"{layer}.mlp.{each}": config["moe_intermediate_size"] for each in (*experts, "shared_expert")}
        for mlp, inner in mlps.items():
            for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                yield f"{mlp}.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (hidden,)
    for name in ("model.embed_tokens", "lm_head"):
        yield f"{name}.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
