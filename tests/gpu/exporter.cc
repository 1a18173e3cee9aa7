// The exporter process itself.
#include "tests/gpu/exporter.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>

#include "cuda/devices.h"
#include "tests/gpu/exporter_wire.h"
#include "tests/gpu/gemm.h"
#include "tests/gpu/pattern.h"
#include "tests/support/data/random.h"

namespace kvm::test {
namespace {

// The region that the exporter process owns.
class Owned {
 public:
  Result<std::string> Open(const ExportOptions& options, std::vector<int>& fds) {
    MustSucceed(cudaSetDevice(options.ordinal), "cudaSetDevice");
    const Result<std::vector<DeviceInfo>> devices = ListDevices();
    if (!devices) return devices.error();
    Result<std::shared_ptr<MemoryBackend>> backend = MakeCudaBackend(devices->at(static_cast<std::size_t>(options.ordinal)).uuid);
    if (!backend) return backend.error();
    backend_ = *backend;
    options_ = options;
    Result<std::unique_ptr<LocalMemory>> memory = Make();
    if (!memory) return memory.error();
    memory_ = std::move(*memory);
    const std::uint32_t blocks = options.geometry.block_count;
    Result<OwnedMemory> generations = OwnedMemory::Create("test:generations", GenerationTableBytes(blocks));
    if (!generations) return generations.error();
    generation_memory_ = std::move(*generations);
    generations_ = GenerationWriter::Format({generation_memory_.data(), generation_memory_.size()}, blocks);
    MakePattern();
    RewriteAll(options.fill);

    Writer reply;
    reply.Put(backend_->device_uuid()).Put(memory_->kind()).Put(static_cast<std::uint64_t>(memory_->handles().size()));
    fds.push_back(generation_memory_.fd());
    for (const SegmentHandle& handle : memory_->handles()) {
      reply.Put(handle.size_bytes).Put(handle.handle_offset).Put(handle.allocation).Put(handle.allocation_bytes).PutText(handle.handle);
      if (handle.fd) fds.push_back(handle.fd.get());
    }
    return reply.bytes();
  }

  void Rewrite(const std::vector<std::uint32_t>& blocks, bool fill = true) {
    std::vector<PatternBlock> pattern;
    for (const std::uint32_t block : blocks) pattern.push_back({block, block, generations_.BeginWrite(block) + 1});
    if (fill) pattern_->Fill(pattern);
    for (const PatternBlock& block : pattern) static_cast<void>(generations_.FinishWrite(block.block, block.generation - 1));
  }

  void Start() {
    stop_ = false;
    rewritten_ = 0;
    thread_ = std::thread([this] {
      MustSucceed(cudaSetDevice(options_.ordinal), "cudaSetDevice");
      Random random(7);
      std::vector<std::uint32_t> batch;
      while (!stop_) {
        const std::uint32_t blocks = options_.geometry.block_count;
        const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, random.Between(1, 64)));
        const auto first = static_cast<std::uint32_t>(random.Below(blocks - count + 1));
        batch.clear();
        for (std::uint32_t i = 0; i < count; ++i) batch.push_back(first + i);
        Rewrite(batch);
        rewritten_ += count;
        // Some quiet, or nothing would ever be valid.
        if (random.OneIn(4)) std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    });
  }
  std::uint64_t Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return rewritten_;
  }

  // Its contents say generation 4.
  Result<std::string> Reallocate(std::uint64_t& allocation) {
    memory_.reset();
    pattern_.reset();
    Free();
    Result<std::unique_ptr<LocalMemory>> memory = Make();
    if (!memory) return memory.error();
    memory_ = std::move(*memory);
    MakePattern();
    RewriteAll(true);
    allocation = memory_->handles()[0].allocation;
    return memory_->handles()[0].handle;
  }

  int ordinal() const { return options_.ordinal; }
  ~Owned() {
    Stop();
    memory_.reset();
    Free();
  }

 private:
  void MakePattern() {
    std::vector<std::byte*> bases;
    for (std::size_t i = 0; i < memory_->handles().size(); ++i) bases.push_back(memory_->SegmentData(i));
    pattern_ = std::make_unique<Pattern>(options_.geometry, bases);
  }
  void RewriteAll(bool fill) {
    std::vector<std::uint32_t> all(options_.geometry.block_count);
    std::iota(all.begin(), all.end(), 0u);
    Rewrite(all, fill);
  }

  // cuda_ipc: as an engine would have allocated it; odd offsets inside one allocation if asked for.
  Result<std::unique_ptr<LocalMemory>> Make() {
    if (options_.kind == layout::HandleKind::kCudaVmmFd) return backend_->Allocate("test", options_.segment_bytes);
    constexpr std::uint64_t kLead = 4096, kAlign = 256;
    std::vector<DeviceRange> ranges;
    std::uint64_t total = kLead;
    for (const std::uint64_t bytes : options_.segment_bytes) total += (bytes + kAlign - 1) / kAlign * kAlign;
    std::byte* at = nullptr;
    if (options_.one_allocation) {
      MustSucceed(cudaMalloc(reinterpret_cast<void**>(&at), total), "cudaMalloc");
      allocations_.push_back(at);
      at += kLead;
    }
    for (const std::uint64_t bytes : options_.segment_bytes) {
      if (!options_.one_allocation) {
        MustSucceed(cudaMalloc(reinterpret_cast<void**>(&at), bytes), "cudaMalloc");
        allocations_.push_back(at);
      }
      ranges.push_back({at, bytes});
      if (options_.one_allocation) at += (bytes + kAlign - 1) / kAlign * kAlign;
    }
    return backend_->Register(ranges);
  }
  void Free() {
    for (std::byte* allocation : allocations_) static_cast<void>(cudaFree(allocation));
    allocations_.clear();
  }

  std::shared_ptr<MemoryBackend> backend_;
  ExportOptions options_;
  std::vector<std::byte*> allocations_;
  std::unique_ptr<LocalMemory> memory_;
  OwnedMemory generation_memory_;
  GenerationWriter generations_;
  std::unique_ptr<Pattern> pattern_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> rewritten_{0};
};

ExportOptions TakeOptions(Reader& reader) {
  ExportOptions options;
  options.ordinal = reader.Take<int>();
  options.kind = reader.Take<layout::HandleKind>();
  options.one_allocation = reader.Take<bool>();
  options.fill = reader.Take<bool>();
  options.geometry.block_count = reader.Take<std::uint32_t>();
  for (auto left = reader.Take<std::uint64_t>(); left > 0; --left) options.geometry.parts.push_back(reader.Take<GeometryPart>());
  for (auto left = reader.Take<std::uint64_t>(); left > 0; --left) options.segment_bytes.push_back(reader.Take<std::uint64_t>());
  return options;
}

// Replies begin with an empty text, or with an error's.
std::string Answer(Owned& owned, const std::string& command, std::vector<int>& fds) {
  Reader reader(command);
  const auto op = reader.Take<Op>();
  Writer reply;
  const auto put = [&reply](const Result<std::string>& outcome) {
    if (outcome) {
      reply.PutText("").PutText(*outcome);
    } else {
      reply.PutText(outcome.error().ToString());
    }
  };
  switch (op) {
    case Op::kOpen: put(owned.Open(TakeOptions(reader), fds)); break;
    case Op::kStart:
      owned.Start();
      reply.PutText("");
      break;
    case Op::kStop: reply.PutText("").Put(owned.Stop()); break;
    case Op::kRewrite: {
      std::vector<std::uint32_t> blocks;
      for (auto left = reader.Take<std::uint64_t>(); left > 0; --left) blocks.push_back(reader.Take<std::uint32_t>());
      owned.Rewrite(blocks);
      reply.PutText("");
      break;
    }
    case Op::kReallocate: {
      std::uint64_t allocation = 0;
      put(owned.Reallocate(allocation));
      reply.Put(allocation);
      break;
    }
    case Op::kGemm: reply.PutText("").Put(GemmTeraflops(owned.ordinal(), reader.Take<double>())); break;
  }
  return reply.bytes();
}

}  // namespace

int RunExporter(int socket) {
  Owned owned;
  FrameReader reader;
  while (std::optional<Frame> frame = Receive(socket, reader)) {
    std::vector<int> fds;
    const std::string reply = Answer(owned, frame->payload, fds);
    if (!Send(socket, reply, fds)) return 1;
  }
  return 0;
}

}  // namespace kvm::test
