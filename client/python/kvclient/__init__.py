"""Share KV cache blocks between the inference processes of one node.

    client = kvclient.Client(name="worker-0")
    model = client.declare_model(kvclient.ModelSpec(model_id=..., ...))
    region = client.allocate_region(model, kvclient.Geometry.contiguous(blocks, block_bytes), name="pool")

    chain = kvclient.KeyChain(model)
    root, keys = chain.parent, chain.extend(token_ids)
    match = client.find(keys)                                          # shared memory, microseconds
    result = client.import_blocks(match, region, free_blocks).wait()   # result.valid leading blocks
    writes = region.begin_writes(blocks)                               # before the first byte changes
    region.publish_run(keys, root, 0, writes)                          # after the last

Thread-safe; the GIL is released in everything that waits or copies. Errors are ``kvclient.errors``.

``kvclient.errors``        one exception class for each error code, all of them ``KvError``
``kvclient.torch``         torch tensors as regions, tensors over a region's memory, memory pools that can be shared
``kvclient.vllm``          the connector for vLLM, ``KvMarketConnector``
``kvclient.transformers``  prefix sharing for Hugging Face's ``generate()``
``kvclient.host_store``    blocks in a host region of the process, by key, for engines whose memory can't be shared
``kvclient.weights``       digests of a model's weights as they are loaded
``kvclient.mesh``          where this node's kvmd-mesh is
``kvclient.daemon``        a private kvmd, for tests and examples
"""

from importlib.metadata import version as _version

from kvclient._native import (
    AdoptedBlock,
    BeingComputed,
    BlockKey,
    BlockKeys,
    BlockSource,
    BlockWrite,
    BlockWrites,
    Client,
    ClientStats,
    ComputingMark,
    ConnectionState,
    DescribeOutcome,
    DeviceInfo,
    DeviceSegment,
    ExtraKey,
    FailedBlock,
    Fingerprint,
    Geometry,
    GeometryPart,
    ImportFailure,
    ImportResult,
    ImportTicket,
    JoinOutcome,
    KeyChain,
    Lease,
    Match,
    MatchEnd,
    MemoryKind,
    Model,
    ModelFieldDifference,
    ModelSpec,
    NearMiss,
    OffloadMode,
    PublishOutcome,
    PublishRequest,
    PublishRequests,
    ReclaimedMemory,
    Region,
    Shard,
    ShardKeys,
    UnmappedRegion,
    cuda_toolkit_version,
    device_at,
    device_of,
    exportable_in_use,
    list_devices,
)
from kvclient.errors import KvError

__version__ = _version("kvclient")

__all__ = [
    "AdoptedBlock",
    "BeingComputed",
    "BlockKey",
    "BlockKeys",
    "BlockSource",
    "BlockWrite",
    "BlockWrites",
    "Client",
    "ClientStats",
    "ComputingMark",
    "ConnectionState",
    "DescribeOutcome",
    "DeviceInfo",
    "DeviceSegment",
    "ExtraKey",
    "FailedBlock",
    "Fingerprint",
    "Geometry",
    "GeometryPart",
    "ImportFailure",
    "ImportResult",
    "ImportTicket",
    "JoinOutcome",
    "KeyChain",
    "KvError",
    "Lease",
    "Match",
    "MatchEnd",
    "MemoryKind",
    "Model",
    "ModelFieldDifference",
    "ModelSpec",
    "NearMiss",
    "PublishOutcome",
    "PublishRequest",
    "PublishRequests",
    "ReclaimedMemory",
    "Region",
    "Shard",
    "ShardKeys",
    "OffloadMode",
    "UnmappedRegion",
    "__version__",
    "cuda_toolkit_version",
    "device_at",
    "device_of",
    "exportable_in_use",
    "list_devices",
]
