"""Models of known shapes with random weights, for the demonstrations: nothing is downloaded."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's configuration, as Transformers names it, and what its KV cache takes."""

    config: dict[str, Any]
    #: bytes of KV for each token that a later token may need, however far behind it is
    token_bytes: int
    #: tokens of a block, where the attention kernel takes no other number; 0: as asked
    block_tokens: int = 0


def _llama(hidden: int, feed_forward: int, layers: int, heads: int, kv_heads: int, head_dim: int, words: int) -> Shape:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": words,
    }
    return Shape(config, 2 * 2 * kv_heads * head_dim * layers)


def _gpt_oss(hidden: int, layers: int, heads: int, kv_heads: int, experts: int, words: int) -> Shape:
    """Every second layer has a window of 128 tokens, the others full attention."""
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)],
        "swiglu_limit": 7.0,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "max_position_embeddings": 131072,
        "vocab_size": words,
    }
    return Shape(config, 2 * 2 * kv_heads * 64 * (layers // 2))


def _deepseek_v2_lite() -> Shape:
    """Latent attention: 576 values a token and layer, whatever the number of heads."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "vocab_size": 102400,
    }
    return Shape(config, 2 * (512 + 64) * 27, block_tokens=64)


SHAPES = {
    "8b": _llama(4096, 14336, 32, 32, 8, 128, 128256),
    "1b": _llama(2048, 8192, 16, 32, 8, 64, 128256),
    "tiny": _llama(256, 512, 4, 4, 2, 64, 2048),
    "gpt-oss-20b": _gpt_oss(2880, 24, 64, 8, 32, 201088),
    "deepseek-v2-lite": _deepseek_v2_lite(),
}


def model_folder(shape: str, max_tokens: int) -> str:
    """A folder with the configuration of a model of that shape, the same path for the same configuration."""
    folder = Path(tempfile.gettempdir()) / f"kvclient-demo-{shape}-{max_tokens}"
    folder.mkdir(exist_ok=True)
    config = {"max_position_embeddings": max_tokens, **SHAPES[shape].config}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def prompt_of(seed: int, tokens: int, vocabulary: int) -> list[int]:
    """A prompt that no other process has."""
    dice = random.Random(seed)
    return [dice.randrange(10, vocabulary) for _ in range(tokens)]


def spread(model: Any) -> None:
    """Weights with which logits depend on the whole prompt; vLLM's dummy ones are within 0.001 of zero."""
    import torch

    for _, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            generator = torch.Generator(weight.device).manual_seed(5)
            weight.data.normal_(0, 0.02, generator=generator)
