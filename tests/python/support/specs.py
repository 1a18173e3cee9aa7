"""ModelSpecs for tests that need one and don't care which."""

from __future__ import annotations

import kvclient


def small_spec(**fields: object) -> kvclient.ModelSpec:
    """One layer with one KV head of eight float32 values, four tokens a block; ``fields`` replace any of it."""
    base: dict[str, object] = {
        "model_id": "m",
        "revision": "r",
        "kv_dtype": "float32",
        "layout": "x",
        "num_layers": 1,
        "num_kv_heads": 1,
        "head_size": 8,
        "block_tokens": 4,
    }
    return kvclient.ModelSpec(**{**base, **fields})
