"""Identity of a request's LoRA adapter: the content of its files, as long as the engine has loaded that content.

vLLM loads an adapter when it is first used, keeps it, drops it when others need the room and loads it again, and does
not tell connectors. So an adapter is unknown once its files have changed while it is loaded, unless the request asks
for loading in place. vLLM's own prefix cache knows adapters by name alone: it may hold blocks that an adapter computed
before it was replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvclient.vllm.contents import Contents

_log = logging.getLogger(__name__)
_FILES = ("*.safetensors", "*.bin", "*.pt", "*.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter as one request uses it."""

    #: The text that goes into keys.
    identity: str
    #: The engine's prefix cache may hold blocks under this name that another adapter computed.
    replaced: bool


@dataclass
class _Loaded:
    identity: str
    unknown: bool = False


class Adapters:
    """The adapters of one engine. Not thread-safe."""

    def __init__(self) -> None:
        """No adapter has been seen."""
        self._contents = Contents()
        self._loaded: dict[tuple[str, int], _Loaded] = {}
        # Names with several contents since the prefix cache was empty
        self._replaced: set[str] = set()

    def of(self, lora: Any) -> Adapter | None:
        """The adapter of ``lora``, vLLM's LoRARequest. None: it is not known what the engine has loaded."""
        identity = self._read(lora)
        name, key = lora.lora_name, (lora.lora_name, lora.lora_int_id)
        loaded = self._loaded.get(key)
        if loaded is None:
            if any(other[0] == name and each.identity != identity for other, each in self._loaded.items()):
                self._replaced.add(name)
            loaded = self._loaded[key] = _Loaded(identity)
        elif getattr(lora, "load_inplace", False):
            if loaded.identity != identity or loaded.unknown:
                self._replaced.add(name)
            loaded.identity, loaded.unknown = identity, False
        elif loaded.identity != identity and not loaded.unknown:
            loaded.unknown = True
            _log.warning(
                "kvclient: the files of LoRA adapter %s have changed since the engine loaded it: its requests are not "
                "shared until it is loaded again, in place or under another number",
                name,
            )
        if loaded.unknown or not identity:
            return None
        return Adapter(f"{name}:{identity}", name in self._replaced)

    def loading(self, lora: Any) -> Callable[[], None]:
        """The engine is about to load the adapter for the first time; call the result once it has been loaded."""
        self.of(lora)
        loaded = self._loaded[(lora.lora_name, lora.lora_int_id)]
        identity = loaded.identity

        def done() -> None:
            if self._read(lora) != identity:  # the engine may have read either content
                loaded.unknown = True

        return done

    def forget_cached(self) -> None:
        """The engine's prefix cache is empty: it holds no block of a replaced adapter any more."""
        self._replaced.clear()

    def _read(self, lora: Any) -> str:
        path = os.path.expanduser(lora.lora_path or "")
        try:
            content = self._contents.digest(path, _FILES) if os.path.isdir(path) else ""
        except OSError as error:
            _log.warning("kvclient: LoRA adapter %s: %s", lora.lora_name, error)
            return ""
        layout = "3d" if getattr(lora, "is_3d_lora_weight", False) else ""
        return content and f"{content}{layout}"


__all__ = ["Adapter", "Adapters"]
