// What libkvclient does where memory is short: one allocation fails, wherever it is made, and the
// caller's process goes on.
#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "client/connection/link.h"
#include "client/offload/offloader.h"
#include "client/region/region_impl.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/host_region.h"
#include "tests/support/kvmd/storing_server.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/failing_allocation.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/socket_pair.h"

namespace kvm::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kBlocks = 4;

// A region whose blocks the offloader's thread copies. That thread's allocations are counted from
// where it takes up a batch.
class LackingSource final : public OffloadSource {
 public:
  LackingSource() : region_(EngineLayouts(kBlocks)[0]), backend_(MakeHostBackend()) {
    PeerMapping::Parts parts;
    parts.geometry = region_.geometry;
    Result<PeerGenerations> generations = MapGenerations(region_.generation_memory.fd(), kBlocks);
    KVM_REQUIRE_OK(generations);
    parts.generations = std::move(*generations);
    parts.payload = std::make_shared<PeerPayload>();
    parts.payload->memories[0] = std::move(region_.peer);
    mapping_ = std::make_unique<PeerMapping>(std::move(parts));
    for (std::uint32_t block = 0; block < kBlocks; ++block) {
      PublishRecord record;
      record.key = {block + 1, 1};
      record.block = block;
      record.generation = region_.Publish(block, block);
      records_.push_back(record);
    }
  }

  const std::vector<PublishRecord>& records() const { return records_; }
  std::uint64_t BlockBytes() const noexcept override { return region_.geometry.BlockBytes(); }
  std::size_t Device() const noexcept override { return 0; }
  MemoryBackend& Backend() const noexcept override { return *backend_; }
  const PeerMapping& Mapping() const noexcept override { return *mapping_; }
  std::optional<RegionRow> OpenRow() const override {
    FailAllocation(failing, &failed);
    return RegionRow{1, 1};
  }

  std::atomic<long> failing{-1};  // the allocation that fails
  mutable bool failed = false;    // written by the thread

 private:
  HostRegion region_;
  std::shared_ptr<MemoryBackend> backend_;
  std::unique_ptr<PeerMapping> mapping_;
  std::vector<PublishRecord> records_;
};

// An offloader, its connection, and the server behind it.
struct Offloading {
  Offloading() {
    link.Start();
    REQUIRE(Eventually([&] { return granted.load(); }, 60s));
  }
  ~Offloading() {
    offloader.Stop();
    link.Stop();
  }

  // How many of the region's blocks were stored; all of them have ended.
  std::size_t Store() {
    const auto wait = std::make_shared<OffloadWait>();
    offloader.Offer(source, source->records(), true, wait);
    const Result<std::size_t> stored = wait->Wait(std::chrono::steady_clock::now() + 60s);
    KVM_REQUIRE_OK(stored);
    return *stored;
  }

  std::shared_ptr<LackingSource> source = std::make_shared<LackingSource>();
  StoringServer server{kBlocks, source->BlockBytes()};
  std::atomic<bool> granted = false;
  AtomicStats stats;
  Link link{server.Options(),
            {
                .connected = [this](const kvmwire::HelloReply& hello, Fds) -> Status {
                  offloader.Connected(hello);
                  return {};
                },
                .announced =
                    [this](const kvmwire::ServerMessage& message, Result<Fds> fds) {
                      offloader.Granted(message.slab_grant(), std::move(fds));
                      granted = true;
                    },
                .takes_more = [] { return true; },
                .disconnected = [this] { offloader.Disconnected(); },
                .tick = [] {},
            }};
  Offloader offloader{link, stats, 100};
};

// A backend for publishes: a stream gets where it is to run something when the test says so.
class StreamBackend final : public MemoryBackend {
 public:
  std::function<void()> action;

  layout::HandleKind kind() const noexcept override { return layout::HandleKind::kHostMemfd; }
  DeviceUuid device_uuid() const noexcept override { return {}; }
  bool Maps(layout::HandleKind) const noexcept override { return false; }
  Result<std::unique_ptr<LocalMemory>> Allocate(const std::string&, std::span<const std::uint64_t>) override { return Nothing(); }
  Result<std::unique_ptr<LocalMemory>> Register(std::span<const DeviceRange>) override { return Nothing(); }
  Result<std::unique_ptr<LocalMemory>> Take(std::vector<SegmentHandle>) override { return Nothing(); }
  Result<std::unique_ptr<PeerMemory>> Map(std::vector<SegmentHandle>, const PeerOrigin&) override { return Nothing(); }
  Result<std::unique_ptr<LocalMemory>> MapGranted(SegmentHandle) override { return Nothing(); }
  Result<std::unique_ptr<PeerMemory>> View(const LocalMemory&) override { return Nothing(); }
  Status AttachGenerations(PeerGenerations&) override { return Nothing(); }
  std::unique_ptr<ImportJob> Import(ImportRequest) override { return nullptr; }
  Status RunAfter(StreamHandle, std::function<void()> its_action) override {
    action = std::move(its_action);
    return {};
  }
  Result<std::vector<std::uint64_t>> Checksum(const LocalMemory&, const Geometry&, std::span<const std::uint32_t>) override {
    return Nothing();
  }
  Status WriteBytes(const LocalMemory&, std::size_t, std::uint64_t, std::span<const std::byte>) override { return Nothing(); }
  Status ReadBytes(const LocalMemory&, std::size_t, std::uint64_t, std::span<std::byte>) override { return Nothing(); }

 private:
  static Error Nothing() { return MakeError(Errc::kUnsupported, "only publishes"); }
};

// A region on a device with such a backend, and a client without kvmd.
struct Publishing {
  struct Services {
    Link its_link{ClientOptions{}, Link::Events{}};
    AtomicStats its_stats;
    Offloader its_offloader{its_link, its_stats, 10};
    PublishWindow its_window{[](const kvmwire::ClientMessage&) { return true; }, 100};
  };
  struct Host final : Services, RegionHost {
    Host() : RegionHost(its_link, its_window, its_offloader, its_stats, 1ms) {}
    Status Unregister(Region::Impl&, Deadline) override { return {}; }
  };

  Publishing() {
    Result<OwnedMemory> table = OwnedMemory::Create("kvm:test:generations", GenerationTableBytes(kBlocks));
    KVM_REQUIRE_OK(table);
    Region::Impl::Parts parts;
    parts.options.name = "on a device";
    parts.options.geometry = Geometry::Contiguous(kBlocks, 64);
    parts.device = 1;
    parts.backend = backend;
    parts.generations = GenerationWriter::Format({table->data(), table->size()}, kBlocks);
    parts.generation_memory = std::move(*table);
    region = std::make_shared<Region::Impl>(std::move(parts));
    region->host = host;
  }

  std::shared_ptr<StreamBackend> backend = std::make_shared<StreamBackend>();
  std::shared_ptr<Host> host = std::make_shared<Host>();
  std::shared_ptr<Region::Impl> region;
};

// Reads all frames that are there.
std::vector<Frame> FramesOf(FrameReader& reader, int socket) {
  std::vector<Frame> frames;
  for (;;) {
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    KVM_REQUIRE_OK(outcome);
    for (;;) {
      Result<std::optional<Frame>> frame = reader.Next();
      KVM_REQUIRE_OK(frame);
      if (!*frame) break;
      frames.push_back(std::move(**frame));
    }
    if (*outcome != ReadOutcome::kProgress) return frames;
  }
}

ino_t InodeOf(int fd) {
  struct stat info {};
  REQUIRE(::fstat(fd, &info) == 0);
  return info.st_ino;
}

}  // namespace

// Without Attempt in Offloader::Run the process ends: seen. Where Run does not drop what its batch
// has left, their callers wait for ever: seen.
TEST_CASE("Client lack of memory: whichever allocation of the offloader's thread fails, callers are told, and later blocks are stored",
          "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  Offloading worker;
  REQUIRE(worker.Store() == kBlocks);
  long failures = 0;
  for (long at = 0;; ++at) {
    INFO("allocation " << at);
    worker.source->failed = false;
    worker.source->failing = at;
    worker.Store();
    worker.source->failing = -1;
    worker.Store();
    REQUIRE(Eventually([&] { return worker.Store() == kBlocks; }, 60s));
    if (!worker.source->failed) break;
    ++failures;
  }
  CHECK(failures > 20);  // or the case shows nothing
  CHECK(worker.stats.offloads_dropped > 0);
}

// Where Link::HandleFrame takes the request out before it has made the answer, that request's
// caller waits for ever: seen.
TEST_CASE("Client lack of memory: whichever allocation of the link's thread fails, each call ends", "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  Offloading worker;
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec("any");
  long failures = 0;
  for (long at = 0;; ++at) {
    INFO("allocation " << at);
    std::atomic<bool> armed = false;
    bool failed = false;
    worker.link.mailbox()->Post([&] {
      FailAllocation(at, &failed);
      armed = true;
    });
    REQUIRE(Eventually([&] { return armed.load(); }, 60s));
    const Result<Answer> answer = worker.link.Call(message, {}, std::chrono::steady_clock::now() + 60s);
    REQUIRE_FALSE(answer);
    CHECK(answer.error().code != Errc::kDeadlineExceeded);
    armed = false;
    // The link's own thread is the one that writes `failed`.
    worker.link.mailbox()->Post([&] {
      FailAllocation(-1);
      armed = true;
    });
    REQUIRE(Eventually([&] { return armed.load() && worker.link.connected(); }, 60s));
    if (!failed) break;
    ++failures;
  }
  CHECK(failures > 3);  // or the case shows nothing
}

// An exception in that thread ends the process. What makes its task there does: seen.
TEST_CASE("Client lack of memory: for a publish on a stream, the thread that CUDA calls takes none", "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  Publishing client;
  PublishRequest request;
  request.write = {2, client.region->generations.BeginWrite(2)};
  KVM_REQUIRE_OK(client.region->PublishOnStream({&request, 1}, StreamHandle{}));
  REQUIRE(client.backend->action);
  bool failed = false;
  std::thread([&] {
    FailAllocation(0, &failed);
    client.backend->action();
    client.backend->action = nullptr;
    FailAllocation(-1);
  }).join();
  CHECK_FALSE(failed);
  CHECK(client.region->generations.Current(2) == request.write.generation);
  client.host->link.mailbox()->RunAll();
  CHECK(client.region->generations.Current(2) == request.write.generation + 1);
}

// Without Attempt in ~GrantedSlab the process ends.
TEST_CASE("Client lack of memory: where kvmd can't be told that a slab is unmapped, the thread goes on", "[unit]") {
  int told = 0;
  {
    GrantedSlab slab;
    slab.withdrawn = [&] {
      ++told;
      throw std::bad_alloc();
    };
  }
  CHECK(told == 1);
}

// With a FrameWriter::Push that queues the piece before it has room for its bytes, what is behind
// the one that failed is not sent: seen.
TEST_CASE("Client lack of memory: a message whose allocation fails leaves nothing of itself in the connection", "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  const UniqueFd lost(::open("/dev/null", O_RDONLY | O_CLOEXEC)), sent(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const std::string large(100'000, 'x'), payload(100, 'y');
  for (const bool full : {false, true}) {
    long failures = 0;
    for (long at = 0;; ++at) {
      INFO((full ? "a full socket, allocation " : "allocation ") << at);
      SocketPair sockets(4096);
      FrameWriter writer;
      if (full) KVM_REQUIRE_OK(writer.Send(sockets.ours.get(), large, {}));
      const std::vector<int> lost_fds{lost.get()}, sent_fds{sent.get()};
      bool failed = false;
      FailAllocation(at, &failed);
      try {
        static_cast<void>(writer.Send(sockets.ours.get(), payload, lost_fds));
      } catch (const std::bad_alloc&) {
      }
      FailAllocation(-1);
      if (!failed) break;
      ++failures;
      KVM_REQUIRE_OK(writer.Send(sockets.ours.get(), "next", sent_fds));
      FrameReader reader;
      std::vector<Frame> frames;
      for (bool done = false; !done;) {
        const Result<bool> drained = writer.Drain(sockets.ours.get());
        KVM_REQUIRE_OK(drained);
        done = *drained;
        for (Frame& frame : FramesOf(reader, sockets.theirs.get())) frames.push_back(std::move(frame));
      }
      REQUIRE(frames.size() == (full ? 2 : 1));
      CHECK(frames.back().payload == "next");
      REQUIRE(frames.back().fds.size() == 1);
      CHECK(InodeOf(frames.back().fds[0].get()) == InodeOf(sent.get()));
      CHECK(writer.queued_bytes() == 0);
      CHECK(writer.queued_fds() == 0);
    }
    CHECK(failures > 0);
  }
}

}  // namespace kvm::test
