// A source in this process, on a disk that answers when it is told to: what waits for the disk, and
// what does not.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <mutex>

#include "client/mesh/memory/checksum.h"
#include "client/mesh/node/serving/fetch_service.h"
#include "client/mesh/node/state/scanner.h"
#include "client/mesh/threads/keep_running.h"
#include "client/mesh/transfer/stream_channel.h"
#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/mesh/disk_blocks.h"
#include "tests/support/worker/worker.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using Local = asio::local::stream_protocol;

// Holds the threads that come through while it is closed.
class Gate {
 public:
  void Close() { Set(false); }
  void Open() { Set(true); }
  void Pass() {
    std::unique_lock lock(mutex_);
    ++held_;
    opened_.wait(lock, [this] { return open_; });
    --held_;
  }
  int held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  void Set(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    opened_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = true;
  int held_ = 0;
};

class GatedIo final : public BlockIo {
 public:
  GatedIo(Gate& gate, std::unique_ptr<BlockIo> io) : gate_(gate), io_(std::move(io)) {}
  std::string_view name() const noexcept override { return io_->name(); }
  void Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) override {
    gate_.Pass();
    io_->Run(requests, done);
  }

 private:
  Gate& gate_;
  std::unique_ptr<BlockIo> io_;
};

Time Soon() { return std::chrono::steady_clock::now() + 60s; }

// What a source has answered.
struct Answer {
  std::size_t messages = 0, blocks = 0, from_disk = 0;
  std::size_t wrong = 0;  // whose bytes do not have their checksum, or that are another block
  int end = -1;           // kvmmesh::FetchEnd::Reason; -1: none
};

// A connection to FetchService, which answers on `io`, too.
class Asker {
 public:
  explicit Asker(NodeState& node) {
    Local::socket near(node.io), far(node.io);
    asio::local::connect_pair(near, far);
    near_ = std::make_shared<StreamChannel<Local::socket>>(std::move(near));
    asio::co_spawn(node.io, Serve(node, std::make_shared<StreamChannel<Local::socket>>(std::move(far))), kAlone);
  }

  // `together`: blocks that one answer may have; 0: of that it says nothing.
  Awaitable<Status> Ask(std::span<const BlockKey> keys, BlockShape shape, std::chrono::milliseconds within, unsigned together = 0) {
    kvmmesh::PeerMessage message;
    message.mutable_fetch()->set_request(1);
    *message.mutable_fetch()->mutable_shape() = shape.ToMessage();
    message.mutable_fetch()->set_keys(EncodeKeys(keys));
    message.mutable_fetch()->set_within_ms(static_cast<std::uint32_t>(within.count()));
    message.mutable_fetch()->set_together(together);
    const std::string bytes = message.SerializeAsString();
    co_return co_await near_->Send(bytes, {}, Soon());
  }

  Awaitable<Answer> Take(std::span<const BlockKey> keys) {
    Answer out;
    for (;;) {
      Result<Received> received = co_await near_->Receive(Soon());
      kvmmesh::PeerMessage message;
      if (!received || !message.ParseFromString(received->message)) co_return out;
      if (message.has_end()) {
        out.end = message.end().reason();
        co_return out;
      }
      Result<std::string> bytes = co_await near_->TakePayload(Soon());
      if (!bytes || !message.has_blocks()) co_return out;
      ++out.messages;
      const kvmmesh::FetchedBlocks& blocks = message.blocks();
      const std::size_t count = static_cast<std::size_t>(blocks.checksums_size());
      const bool asked = blocks.index() == out.blocks && count > 0 && count <= keys.size() - out.blocks &&
                         blocks.keys() == EncodeKeys(keys.subspan(out.blocks, count)) && bytes->size() == count * blocks.bytes();
      out.wrong += asked ? 0 : 1;
      for (std::size_t i = 0; asked && i < count; ++i) {
        const auto block = std::as_bytes(std::span(*bytes)).subspan(i * blocks.bytes(), blocks.bytes());
        out.wrong += BlockChecksum(block) == blocks.checksums(static_cast<int>(i)) ? 0 : 1;
      }
      out.blocks += count;
      out.from_disk += blocks.from_disk() ? count : 0;
    }
  }

 private:
  static Awaitable<void> Serve(NodeState& node, std::shared_ptr<Channel> channel) {
    FetchService service(node, channel);
    co_await service.Serve();
  }

  std::shared_ptr<Channel> near_;
};

Awaitable<void> WaitUntil(asio::io_context& io, std::function<bool()> condition) {
  const Time by = Soon();
  asio::steady_timer pause(io);
  boost::system::error_code ignored;
  while (!condition() && std::chrono::steady_clock::now() < by) {
    pause.expires_after(1ms);
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

}  // namespace

// Copies of memory on the disk's thread, or a read on the io_context's, would wait for the gate.
TEST_CASE("Mesh serving: while a disk does not answer, memory is served, and no further read waits for the disk", "[integration]") {
  const test::TempDir dir;
  const test::KvmdProcess kvmd({"--orphan-ttl-s", "0"});
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker"});
  worker->Publish("p:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  const std::vector<BlockKey> memory = worker->Keys("p:8");
  const test::DiskBlocks disk(1, 8, 4096);

  Gate gate;
  Config config;
  config.node = "a";
  config.kvmd_socket = kvmd.socket();
  config.disk.path = dir / "disk";
  config.disk.limit_bytes = std::uint64_t{16} << 20;
  config.disk.write_bytes_per_s = 0;
  Result<std::shared_ptr<Client>> client = Client::Connect({.socket_path = kvmd.socket(), .name = "source"});
  KVM_REQUIRE_OK(client);
  NodeState node(config, *client);
  Result<std::unique_ptr<DiskCache>> cache = DiskCache::Open(config.disk, [&](IoKind kind) -> Result<std::unique_ptr<BlockIo>> {
    Result<std::unique_ptr<BlockIo>> io = MakeBlockIo(kind);
    if (!io) return io.error();
    return std::unique_ptr<BlockIo>(std::make_unique<GatedIo>(gate, std::move(*io)));
  });
  KVM_REQUIRE_OK(cache);
  KVM_REQUIRE_OK((*cache)->Recover(node.client->domain()));
  KVM_REQUIRE_OK((*cache)->Append(disk.blocks));
  node.disk = std::make_unique<NodeDisk>(std::move(*cache), node.io, node.work_failures);
  Scanner scanner(node);
  Asker first(node), second(node), third(node), fourth(node);
  Answer of_memory, together, of_disk, late, refused;
  int held = 0;
  bool ended = false;
  asio::co_spawn(
      node.io,
      [&]() -> Awaitable<void> {
        static_cast<void>(co_await scanner.Once());
        const BlockShape shape = node.shapes.empty() ? BlockShape() : *node.shapes.begin();
        gate.Close();
        static_cast<void>(co_await first.Ask(disk.keys, disk.shape, 60s));
        co_await WaitUntil(node.io, [&] { return gate.held() == 1; });
        static_cast<void>(co_await second.Ask(memory, shape, 60s));
        of_memory = co_await second.Take(memory);
        static_cast<void>(co_await second.Ask(memory, shape, 60s, 5));
        together = co_await second.Take(memory);
        held = gate.held();
        // A read that is too late, and one more, which is not begun.
        static_cast<void>(co_await third.Ask(disk.keys, disk.shape, 50ms));
        late = co_await third.Take(disk.keys);
        static_cast<void>(co_await fourth.Ask(disk.keys, disk.shape, 60s));
        refused = co_await fourth.Take(disk.keys);
        gate.Open();
        of_disk = co_await first.Take(disk.keys);
        // The late one ends, too, and then the disk serves again.
        co_await WaitUntil(node.io, [&] { return node.disk->overdue_for_peers() == 0; });
        static_cast<void>(co_await fourth.Ask(disk.keys, disk.shape, 60s));
        const Answer again = co_await fourth.Take(disk.keys);
        ended = again.blocks == 8;
      },
      [&](const std::exception_ptr&) { node.io.stop(); });
  KeepRunning::RunAll(node.io);
  gate.Open();
  CHECK(of_memory.blocks == 8);
  CHECK(of_memory.from_disk == 0);
  CHECK(of_memory.wrong == 0);
  CHECK(of_memory.end == kvmmesh::FetchEnd::COMPLETE);
  // A peer that does not say that it takes several gets one at a time.
  CHECK(of_memory.messages == 8);
  CHECK(together.messages == 2);
  CHECK(together.blocks == 8);
  CHECK(together.wrong == 0);
  CHECK(together.end == kvmmesh::FetchEnd::COMPLETE);
  CHECK(held == 1);
  CHECK(late.end == kvmmesh::FetchEnd::LATE);
  CHECK(late.blocks == 0);
  CHECK(refused.end == kvmmesh::FetchEnd::NOT_HERE);
  CHECK(of_disk.blocks == 8);
  CHECK(of_disk.from_disk == 8);
  CHECK(of_disk.wrong == 0);
  CHECK(of_disk.end == kvmmesh::FetchEnd::COMPLETE);
  CHECK(ended);
  CHECK(node.counters.served_from_disk == 16);
  node.copy_threads.join();
  node.control_threads.join();
  node.disk->Stop();
  node.io.shutdown();
}

}  // namespace kvm::mesh
