"""Small models of real architectures with random weights that give logits with a spread.

Configurations as transformers has them, only small. Weights are drawn with a deviation that makes attention
and logits depend on the whole prompt: with the default 0.02 every prompt would give nearly the same.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 499
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def config_of(name: str) -> Any:
    if name == "gpt2":
        return GPT2Config(vocab_size=VOCABULARY, n_positions=1024, n_embd=64, n_layer=3, n_head=4)
    if name == "llama":
        return LlamaConfig(**_SMALL)
    if name == "llama3-rope":
        return LlamaConfig(**_SMALL, rope_parameters=_LLAMA3_ROPE)
    if name == "mistral":
        return MistralConfig(**_SMALL, sliding_window=None)
    if name == "mistral-sliding":
        return MistralConfig(**_SMALL, sliding_window=48)
    if name == "qwen2":
        return Qwen2Config(**_SMALL)
    if name == "qwen2-sliding":  # some layers slide, some don't
        return Qwen2Config(**_SMALL, use_sliding_window=True, sliding_window=40, max_window_layers=1)
    if name == "qwen3":
        return Qwen3Config(**_SMALL, head_dim=32)
    raise ValueError(name)


ALL = ("gpt2", "llama", "llama3-rope", "mistral", "mistral-sliding", "qwen2", "qwen2-sliding", "qwen3")


def make_model(name: str, dtype: str = "float32", seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    torch.set_num_threads(1)
    config = config_of(name)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                deviation = 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            elif parameter.abs().sum() == 0:  # biases
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.to(getattr(torch, dtype)).eval()


def prompt(tokens: int, seed: int = 0) -> torch.Tensor:
    """[1, tokens], int64."""
    return torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))
