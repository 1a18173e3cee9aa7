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

#: Changes that make LLAMA a Mistral: all layers have windows of 64 tokens.
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 64,
}


def write_model(folder: Path, changes: dict[str, Any], seed: int = 5) -> None:
    """Write configuration and weights of LLAMA with ``changes`` (GEMMA, MISTRAL, Phi-3); equal arguments, equal bytes.

    The weights are in a file because engines pack them when they load them: what a test writes to an engine's
    parameters afterwards reaches some of the layers only. Their deviation makes attention, and so each answer, depend
    on the whole prompt.
    """
    import torch
    from safetensors.torch import save_file

    config = {**LLAMA, **changes}
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in _shapes(config)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    if config["model_type"] == "phi3":
        layer = {"self_attn.qkv_proj": (heads + 2 * kv_heads, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
    else:
        rows = {"q": heads, "k": kv_heads, "v": kv_heads}
        layer = {f"self_attn.{name}_proj": (count, hidden) for name, count in rows.items()}
        layer |= {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    layer |= {"self_attn.o_proj": (hidden, heads), "mlp.down_proj": (hidden, inner)}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config["model_type"] == "gemma3_text":
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
        norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
    for index in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            yield f"model.layers.{index}.{name}.weight", shape
        for name, width in norms.items():
            yield f"model.layers.{index}.{name}.weight", (width,)
    yield "model.norm.weight", (hidden,)
    for name in ("model.embed_tokens",) if config["tie_word_embeddings"] else ("model.embed_tokens", "lm_head"):
        yield f"{name}.weight", (config["vocab_size"], hidden)
