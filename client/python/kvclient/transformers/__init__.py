"""Prefix sharing for Hugging Face Transformers.

    model = AutoModelForCausalLM.from_pretrained(...)
    market = kvclient.transformers.Marketplace(model)
    output = market.generate(input_ids, max_new_tokens=64)     # as model.generate

Blocks of ``block_tokens`` tokens in host memory; a DynamicCache goes in and comes out. Works for models whose
layers are full or sliding-window attention: GPT-2, Llama, Mistral, Qwen 2 and 3 are tested.
"""

from kvclient.transformers.marketplace import Marketplace, MarketplaceStats, Prefix
from kvclient.transformers.spec import digest_tokenizer, digest_weights, rope_of, spec_of

__all__ = [
    "Marketplace",
    "MarketplaceStats",
    "Prefix",
    "digest_tokenizer",
    "digest_weights",
    "rope_of",
    "spec_of",
]
