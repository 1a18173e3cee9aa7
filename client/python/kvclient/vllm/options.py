"""The options in ``kv_connector_extra_config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from kvclient.daemon import default_socket
from kvclient.errors import InvalidArgumentError


@dataclass(frozen=True)
class ConnectorOptions:
    """Options of ``KvMarketConnector``; every one may be left out."""

    #: kvmd's socket; default ``$KVMD_SOCKET``, else /run/kvmd/kvmd.sock.
    socket: str = ""
    #: Shorter matches are computed.
    min_prefix_tokens: int = 64
    #: False: import only.
    publish: bool = True
    #: Multiprocessors of the GPU that a copy may occupy; 0: no limit.
    max_sms: int = 16
    #: ``async``: other requests go on while blocks are copied; ``sync``: the step waits for them.
    load: Literal["async", "sync"] = "async"
    #: Record checksums of published blocks, and compare imported blocks with them.
    verify: bool = False
    #: The same for one in so many blocks, which their keys choose; 0: none. Alike in all engines.
    verify_one_in: int = 0
    #: Blocks not copied by then are computed.
    import_timeout_s: float = 5.0
    #: A request that a prefill engine has just computed waits so long until its blocks are found.
    prefill_wait_s: float = 1.0
    #: Mark prompts that this engine is about to compute, and have a request wait so long for blocks
    #: that another engine is computing; 0: neither.
    wait_for_computing_s: float = 0.0
    #: A request of which other nodes may have more waits so long for kvmd-mesh; 0: it is not asked.
    mesh_wait_s: float = 0.5
    #: kvmd-mesh's socket; default /run/kvmd-mesh/UID/mesh.sock. Where there is none, it is not
    #: asked.
    mesh_socket: str = ""
    #: How fast this engine computes prompts: kvmd-mesh then fetches only what comes sooner. 0:
    #: unknown.
    prefill_tokens_per_s: float = 0.0
    #: Identity of the weights when the engine starts, as text; used instead of their digest.
    weights_digest: str = ""
    #: The model's name in listings; the same in every engine. Default: its architecture.
    model_id: str = ""
    #: Share with engines of other releases of vLLM and PyTorch, whose kernels may round
    #: differently.
    share_across_versions: bool = False
    #: Share with engines of other tensor-parallel sizes that have as many KV shards; needs
    #: ``weights_digest``.
    share_across_tp_sizes: bool = False
    #: ``auto``: from vLLM's own block hashes where these are the same in every process;
    #: ``tokens``: always from tokens.
    keys: Literal["auto", "tokens"] = "auto"
    #: Of engines on a GPU. ``engine``: vLLM's own memory, which peers map read-write;
    #: ``exportable``: a pool that they map read-only.
    kv_pool: Literal["engine", "exportable"] = "engine"
    #: Host memory for shared blocks of engines on a CPU, whose KV memory can't be shared in place.
    host_cache_bytes: int = 1 << 30

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> ConnectorOptions:
        """Check ``kv_connector_extra_config``. InvalidArgumentError, the option named."""
        given = dict(config or {})
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InvalidArgumentError(
                f"kv_connector_extra_config: no option {unknown[0]!r}; there are {sorted(known)}"
            )
        if "publish" in given and isinstance(given["publish"], str):
            switches = {"on": True, "off": False, "true": True, "false": False}
            given["publish"] = switches.get(given["publish"].lower(), given["publish"])
        for name, value in given.items():
            wanted = type(known[name].default)
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                given[name] = float(value)
            elif type(value) is not wanted:
                raise InvalidArgumentError(f"kv_connector_extra_config: {name} is {value!r}, not a {wanted.__name__}")
        options = cls(**given)
        if options.load not in ("async", "sync"):
            raise InvalidArgumentError(f"kv_connector_extra_config: load is {options.load!r}, not async or sync")
        if options.keys not in ("auto", "tokens"):
            raise InvalidArgumentError(f"kv_connector_extra_config: keys is {options.keys!r}, not auto or tokens")
        if options.kv_pool not in ("engine", "exportable"):
            raise InvalidArgumentError(
                f"kv_connector_extra_config: kv_pool is {options.kv_pool!r}, not engine or exportable"
            )
        if options.share_across_tp_sizes and not options.weights_digest:
            raise InvalidArgumentError(
                "kv_connector_extra_config: share_across_tp_sizes needs weights_digest, the same text in every engine: "
                "ranks of different sizes hold different parts of the weights"
            )
        for name, field in known.items():
            if isinstance(field.default, int | float) and getattr(options, name) < 0:
                raise InvalidArgumentError(f"kv_connector_extra_config: {name} is negative")
        return options if options.socket else cls(**{**given, "socket": default_socket()})


__all__ = ["ConnectorOptions"]
