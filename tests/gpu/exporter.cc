#include "tests/gpu/exporter.h"

#include <cuda_runtime_api.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <thread>

#include "cuda/devices.h"
#include "proto/frame.h"
#include "tests/gpu/gemm.h"
#include "tests/gpu/pattern.h"
#include "tests/support/random.h"

extern char** environ;

namespace kvm::test {
namespace {

enum class Op : std::uint32_t { kOpen, kStart, kStop, kRewrite, kReallocate, kGemm };

// Appends and takes plain data; a short message ends the test.
class Writer {
 public:
  template <class T>
  Writer& Put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Writer& PutText(const std::string& text) {
    Put(static_cast<std::uint64_t>(text.size()));
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <class T>
  T Take() {
    T value;
    Need(sizeof(T));
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string TakeText() {
    const auto size = Take<std::uint64_t>();
    Need(size);
    std::string text = bytes_.substr(at_, size);
    at_ += size;
    return text;
  }

 private:
  void Need(std::size_t bytes) const {
    if (bytes_.size() - at_ >= bytes) return;
    std::cerr << "exporter: a message is too short" << std::endl;
    std::abort();
  }
  const std::string& bytes_;
  std::size_t at_ = 0;
};

bool Send(int socket, const std::string& payload, const std::vector<int>& fds) {
  FrameWriter writer;
  if (!writer.Append(payload, fds)) return false;
  for (;;) {
    const Result<bool> done = writer.Drain(socket);
    if (!done) return false;
    if (*done) return true;
    pollfd wait{socket, POLLOUT, 0};
    ::poll(&wait, 1, -1);
  }
}

std::optional<Frame> Receive(int socket, FrameReader& reader) {
  for (;;) {
    Result<std::optional<Frame>> frame = reader.Next();
    if (!frame) return std::nullopt;
    if (*frame) return std::move(**frame);
    pollfd wait{socket, POLLIN, 0};
    ::poll(&wait, 1, -1);
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    if (!outcome || *outcome == ReadOutcome::kEnd) return std::nullopt;
  }
}

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
      reply.Put(handle.size_bytes).Put(handle.handle_offset).Put(handle.allocation).PutText(handle.handle);
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

ExporterProcess::ExporterProcess() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  socket_.Reset(ends[0]);
  // dup2 onto a fixed number drops close-on-exec.
  constexpr int kChildEnd = 100;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], kChildEnd);
  const std::string number = std::to_string(kChildEnd);
  const char* arguments[] = {"gpu_exporter", "--child", "gpu_exporter", number.c_str(), nullptr};
  const int failed = ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, const_cast<char**>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (failed != 0) std::abort();
}

ExporterProcess::~ExporterProcess() {
  socket_.Reset();
  int status = 0;
  if (pid_ > 0) ::waitpid(pid_, &status, 0);
}

void ExporterProcess::Kill() {
  int status = 0;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
}

std::vector<UniqueFd> ExporterProcess::Call(const std::string& command, std::string& reply) {
  FrameReader reader;
  std::optional<Frame> frame;
  if (Send(socket_.get(), command, {})) frame = Receive(socket_.get(), reader);
  if (!frame) {
    reply = Writer().PutText("the exporter process has ended").bytes();
    return {};
  }
  reply = std::move(frame->payload);
  return std::move(frame->fds);
}

Result<ExportedRegion> ExporterProcess::Open(const ExportOptions& options) {
  Writer command;
  command.Put(Op::kOpen)
      .Put(options.ordinal)
      .Put(options.kind)
      .Put(options.one_allocation)
      .Put(options.fill)
      .Put(options.geometry.block_count);
  command.Put(static_cast<std::uint64_t>(options.geometry.parts.size()));
  for (const GeometryPart& part : options.geometry.parts) command.Put(part);
  command.Put(static_cast<std::uint64_t>(options.segment_bytes.size()));
  for (const std::uint64_t bytes : options.segment_bytes) command.Put(bytes);
  std::string reply;
  std::vector<UniqueFd> fds = Call(command.bytes(), reply);
  Reader outer(reply);
  if (const std::string error = outer.TakeText(); !error.empty()) return MakeError(Errc::kSystem, "exporter: " + error);
  const std::string body = outer.TakeText();
  Reader reader(body);
  ExportedRegion region;
  region.origin.device = reader.Take<DeviceUuid>();
  region.origin.kind = reader.Take<layout::HandleKind>();
  const auto segments = reader.Take<std::uint64_t>();
  for (std::uint64_t i = 0; i < segments; ++i) {
    SegmentHandle handle;
    handle.size_bytes = reader.Take<std::uint64_t>();
    handle.handle_offset = reader.Take<std::uint64_t>();
    handle.allocation = reader.Take<std::uint64_t>();
    handle.handle = reader.TakeText();
    if (fds.size() > i + 1) handle.fd = std::move(fds[i + 1]);
    region.segments.push_back(std::move(handle));
  }
  Result<MappedMemory> mapped = MappedMemory::Attach(fds.at(0).get());
  if (!mapped) return mapped.error();
  region.generations.memory = std::move(*mapped);
  Result<GenerationReader> generations =
      GenerationReader::Open({region.generations.memory.data(), region.generations.memory.size()}, options.geometry.block_count);
  if (!generations) return generations.error();
  region.generations.reader = *generations;
  region.generation_fd = std::move(fds[0]);
  return region;
}

void ExporterProcess::StartRewriting() {
  std::string reply;
  Call(Writer().Put(Op::kStart).bytes(), reply);
}

std::uint64_t ExporterProcess::StopRewriting() {
  std::string reply;
  Call(Writer().Put(Op::kStop).bytes(), reply);
  Reader reader(reply);
  return reader.TakeText().empty() ? reader.Take<std::uint64_t>() : 0;
}

void ExporterProcess::Rewrite(const std::vector<std::uint32_t>& blocks) {
  Writer command;
  command.Put(Op::kRewrite).Put(static_cast<std::uint64_t>(blocks.size()));
  for (const std::uint32_t block : blocks) command.Put(block);
  std::string reply;
  Call(command.bytes(), reply);
}

Result<std::string> ExporterProcess::Reallocate(std::uint64_t& allocation) {
  std::string reply;
  Call(Writer().Put(Op::kReallocate).bytes(), reply);
  Reader reader(reply);
  if (const std::string error = reader.TakeText(); !error.empty()) return MakeError(Errc::kSystem, "exporter: " + error);
  std::string handle = reader.TakeText();
  allocation = reader.Take<std::uint64_t>();
  return handle;
}

double ExporterProcess::Gemm(double seconds) {
  std::string reply;
  Call(Writer().Put(Op::kGemm).Put(seconds).bytes(), reply);
  Reader reader(reply);
  return reader.TakeText().empty() ? reader.Take<double>() : 0.0;
}

int UsableGpus(std::string& why) {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (!devices) {
    why = devices.error().message;
    return 0;
  }
  int usable = 0;
  for (const DeviceInfo& device : *devices) usable += device.unusable.empty();
  if (usable == 0) why = "no GPU of compute capability 8.0 or more";
  return usable;
}

}  // namespace kvm::test
