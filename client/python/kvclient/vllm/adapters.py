"""What a request's LoRA adapter is: by the content of its files, as far as that says what the engine has loaded.

vLLM loads an adapter when it is first used, keeps it, drops it when others need the room and loads it again, without a
word to connectors. So files that change under an adapter that is loaded make it unknown, unless the request asks for
loading in place. vLLM's own prefix cache knows adapters by name alone: of one that has been replaced it may hold old
blocks.
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

    #: For keys.
    identity: str
    #: The engine's prefix cache may hold blocks of this name that another adapter made.
    replaced: bool


@dataclass
class _Loaded:
    identity: str
    unknown: bool = False


class Adapters:
    """Of one engine. Not thread-safe."""

    def __init__(self) -> None:
        """None has been seen."""
        self._contents = Contents()
        self._loaded: dict[tuple[str, int], _Loaded] = {}
        self._replaced: set[str] = set()  # names with several contents since the prefix cache was empty

    def of(self, lora: Any) -> Adapter | None:
        """``lora``: vLLM's LoRARequest. None: nothing says what the engine has loaded."""
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
        """The engine is about to load the adapter, before any request with it; call the result once it has."""
        self.of(lora)
        loaded = self._loaded[(lora.lora_name, lora.lora_int_id)]
        identity = loaded.identity

        def done() -> None:
            if self._read(lora) != identity:  # what was read in between nobody knows
                loaded.unknown = True

        return done

    def forget_cached(self) -> None:
        """The engine's prefix cache is empty: no block of an adapter that was replaced is left."""
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
