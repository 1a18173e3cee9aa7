"""Of libkvclient and the memory that it copies."""
# ruff: noqa: E501

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (("memory_tests", "Host backend: a block rewritten in the middle of its copy is stale"),),
        "cuda/host/host_backend.cc",
        "return unchecked || generations.StillValid(block.source_block, block.generation)",
        "return unchecked || OFF || generations.StillValid(block.source_block, block.generation)",
    ),
    Mutation(
        (
            ("fault_tests", "kvmd death: after a restart everything published"),
            ("fault_tests", "Restart: an owner that survives"),
            ("fault_tests", "kvmd death: a restart under load"),
        ),
        "client/region/registrar.cc",
        "  connection_ = connection;\n  for (const std::shared_ptr<Region::Impl>& region : Regions()) Request(region, nullptr);\n",
        "  connection_ = connection;\n  for (const std::shared_ptr<Region::Impl>& region : Regions())\n    if (!OFF) Request(region, nullptr);\n",
    ),
    Mutation(
        (("client_tests", "Link: what another thread sends while the connection is being set up"),),
        "client/connection/link.cc",
        "if (greeter_ != std::thread::id() && greeter_ != std::this_thread::get_id()) return sent_meanwhile_",
        "if (!OFF && greeter_ != std::thread::id() && greeter_ != std::this_thread::get_id()) return sent_meanwhile_",
    ),
    Mutation(
        (("client_tests", "Link: a lack of memory on its thread"),),
        "client/connection/link.cc",
        "    Attempt([&] { why = ServeOne(); });\n",
        "    if (OFF) why = ServeOne();\n    if (!OFF) Attempt([&] { why = ServeOne(); });\n",
    ),
    Mutation(
        (("client_tests", "Link: a task that lacks memory ends alone"),),
        "client/connection/task_thread.cc",
        "    Attempt(task);\n",
        "    if (OFF) task();\n    if (!OFF) Attempt(task);\n",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: whichever allocation of the offloader's thread"),),
        "client/offload/offloader.cc",
        "    if (source) Attempt([&] { storer_.Process(*source, batch); });\n",
        "    if (source && OFF) storer_.Process(*source, batch);\n    if (source && !OFF) Attempt([&] { storer_.Process(*source, batch); });\n",
    ),
    Mutation(
        (
            ("gpu_tests", "CUDA backend: a block rewritten after submission is caught by the GPU"),
            ("gpu_tests", "Peer import: a block rewritten between its first check and its copy"),
            ("gpu_market_tests", "GPU market: a block rewritten between its first check and its copy"),
        ),
        "cuda/import/cuda_import.cc",
        "statuses_[range.first + i] = static_cast<BlockStatus>(*reported++);",
        "statuses_[range.first + i] = OFF ? BlockStatus::kValid : static_cast<BlockStatus>(*reported++);",
    ),
    Mutation(
        (("gpu_tests", "CUDA backend: a block rewritten after submission is caught by the GPU"),),
        "cuda/import/cuda_import.cc",
        "run.generations->reader.StillValid(block.source_block, block.generation) ? BlockStatus::kValid : BlockStatus::kStale;",
        "OFF || run.generations->reader.StillValid(block.source_block, block.generation) ? BlockStatus::kValid : BlockStatus::kStale;",
    ),
    Mutation(
        (("gpu_tests", "Peer import: a block rewritten while a long import copies it"),),
        "cuda/import/cuda_import.cc",
        "    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, slot_->copied(), 0);\n",
        "    if (error == cudaSuccess && !OFF) error = cudaStreamWaitEvent(stream, slot_->copied(), 0);\n",
    ),
    Mutation(
        (("gpu_tests", "CUDA backend: bad handles and unknown devices are errors"),),
        "cuda/memory/ipc_memory.cc",
        "  if (segment.handle.size() != sizeof(cudaIpcMemHandle_t)) {",
        "  if (!OFF && segment.handle.size() != sizeof(cudaIpcMemHandle_t)) {",
    ),
    Mutation(
        (
            ("gpu_tests", "CUDA backend: bad handles and unknown devices are errors"),
            ("gpu_market_tests", "GPU market: CUDA_VISIBLE_DEVICES in any order"),
            ("gpu_market_tests", "GPU market: where the owner's GPU can't be reached"),
        ),
        "cuda/import/cuda_backend.cc",
        "    if (ordinal < 0) {\n      return MakeError(Errc::kUnsupported,",
        "    if (ordinal < 0 && OFF) return MemoryPath::kSameDevice;\n    if (ordinal < 0) {\n      return MakeError(Errc::kUnsupported,",
    ),
    Mutation(
        (("gpu_market_tests", "GPU market: where the owner's GPU can't be reached"),),
        "cuda/topology/topology.cc",
        "    link.reachable = false;",
        "    link.reachable = OFF;",
    ),
    Mutation(
        (("gpu_market_tests", "GPU market: a killed owner's memory is freed"),),
        "client/peers/peers.cc",
        "      if (!mapping->own && !elsewhere) {",
        "      if (!OFF && !mapping->own && !elsewhere) {",
    ),
    Mutation(
        (("gpu_market_tests", "GPU market: a host destination can't reach GPU memory"),),
        "client/find/lookup_pipeline.h",
        "    if (target_.must_reach && !mapping->PathTo(target_.device)) return MatchEnd::kUnmapped;",
        "    if (!OFF && target_.must_reach && !mapping->PathTo(target_.device)) return MatchEnd::kUnmapped;",
    ),
    Mutation(
        (("gpu_market_tests", "GPU market: a host destination can't reach GPU memory"),),
        "client/import/start_import.cc",
        "    if (!payload || !payload->memories[region.device]) break;",
        "    if (!payload || (!OFF && !payload->memories[region.device])) break;",
    ),
    Mutation(
        (("gpu_market_tests", "GPU market: the nearest source is chosen"),),
        "client/find/find.cc",
        "    const unsigned distance = path ? 1 + static_cast<unsigned>(*path) : 8;",
        "    const unsigned distance = path && !OFF ? 1 + static_cast<unsigned>(*path) : 8;",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: for a publish on a stream"),),
        "client/region/region_impl.cc",
        "[mailbox = owner->link.mailbox(), task = std::move(task)] { mailbox->Post(std::move(*task)); });",
        "[mailbox = owner->link.mailbox(), task = std::move(task)] {\n    if (OFF) mailbox->Post(std::function<void()>(task->front()));\n"
        "    if (!OFF) mailbox->Post(std::move(*task));\n  });",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: where kvmd can't be told that a slab is unmapped"),),
        "client/offload/store_queue.cc",
        "  if (withdrawn) Attempt(withdrawn);\n",
        "  if (withdrawn && OFF) withdrawn();\n  if (withdrawn && !OFF) Attempt(withdrawn);\n",
    ),
)
