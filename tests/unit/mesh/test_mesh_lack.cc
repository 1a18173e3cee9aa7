// What goes on in a mesh process when memory is short: one allocation fails, wherever it is made;
// every coroutine that is to run for ever goes on, work on threads ends as an error of its caller,
// and the disk cache serves what is right.
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <new>
#include <optional>
#include <string>

#include <atomic>

#include "client/mesh/threads/keep_running.h"
#include "client/mesh/threads/work_threads.h"
#include "client/mesh/transfer/stream_channel.h"
#include "tests/catch.h"
#include "tests/support/mesh/disk_blocks.h"
#include "tests/support/process/failing_allocation.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using test::FailAllocation;
using Local = asio::local::stream_protocol;
using namespace std::chrono_literals;

// Whether an allocation of this thread has failed since this was last false.
thread_local bool g_failed = false;

// A message and its echo over a socket, and a pause, again and again.
struct Echo {
  Awaitable<void> Run() {
    Local::socket near(io), far(io);
    boost::system::error_code error;
    asio::local::connect_pair(near, far, error);
    StreamChannel<Local::socket> one(std::move(near)), other(std::move(far));
    for (;;) {
      Status sent = co_await one.Send("question", {}, std::chrono::steady_clock::now() + 10s);
      Result<Received> received = co_await other.Receive(std::chrono::steady_clock::now() + 10s);
      if (!sent || !received) throw std::bad_alloc();
      asio::steady_timer pause(io, 100us);
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      if (++rounds == goal) io.stop();
    }
  }

  // False: they did not come. `failing`: the allocation that fails; negative: none.
  bool Rounds(int more, long failing = -1) {
    goal = rounds + more;
    io.restart();
    asio::steady_timer limit(io, 60s);
    limit.async_wait([this](const boost::system::error_code& stopped) {
      if (!stopped) io.stop();
    });
    FailAllocation(failing, &g_failed);
    KeepRunning::RunAll(io);
    FailAllocation(-1, &g_failed);
    return rounds >= goal;
  }

  asio::io_context io;
  int rounds = 0, goal = 0;
};

}  // namespace

// Without RestartLost in KeepRunning::RunAll the coroutine is gone for good after some of them:
// seen.
TEST_CASE("Mesh lack of memory: whichever allocation fails, what is to run for ever goes on", "[unit]") {
  if (test::kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  long failures = 0;
  for (long at = 0;; ++at) {
    INFO("allocation " << at);
    Echo echo;
    KeepRunning::Start(echo.io, [&] { return echo.Run(); });
    REQUIRE(echo.Rounds(3));
    g_failed = false;
    REQUIRE(echo.Rounds(20, at));
    REQUIRE(echo.Rounds(3));
    if (!g_failed) break;
    ++failures;
  }
  CHECK(failures > 3);  // or the case shows nothing
}

namespace {

// Runs `call` on `threads`, again and again until it has run without a lack, with one allocation
// more each time before the one that fails. All of them are made on the thread: those of `call`,
// and those of what comes after it.
long FailEach(asio::io_context& io, WorkThreads& threads, const std::function<int()>& call) {
  for (long at = 0;; ++at) {
    INFO("allocation " << at);
    std::atomic<bool> failed = false;
    std::optional<Result<int>> result;
    const std::function<int()> work = [&, at] {
      g_failed = false;
      FailAllocation(at, &g_failed);
      const int out = call();
      failed = g_failed;
      return out;
    };
    asio::co_spawn(
        io, [&]() -> Awaitable<void> { result = co_await threads.Run("a call", work); },
        [&](const std::exception_ptr& thrown) {
          REQUIRE(!thrown);
          io.stop();
        });
    io.restart();
    KeepRunning::RunAll(io);
    REQUIRE(result);
    if (*result && !failed) return at;
  }
}

}  // namespace

// A plain post back to the io_context takes memory on the thread, and an exception there ends the
// process.
TEST_CASE("Mesh lack of memory: whichever allocation fails on a thread, its caller is told, and it is counted", "[unit]") {
  if (test::kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  asio::io_context io;
  WorkFailures failures;
  WorkThreads threads(io, failures, 1);
  const long allocations = FailEach(io, threads, [] {
    const auto one = std::make_unique<std::string>(std::size_t{100}, 'a');
    return static_cast<int>(std::make_unique<std::string>(*one)->size());
  });
  CHECK(allocations >= 4);
  CHECK(failures.count() == static_cast<std::uint64_t>(allocations));
  CHECK(failures.last() == "a call: std::bad_alloc");
  // Others than std::exception end only their own call, too.
  std::optional<Result<int>> result;
  asio::co_spawn(
      io, [&]() -> Awaitable<void> { result = co_await threads.Run<int>("an odd call", []() -> int { throw 7; }); },
      [&](const std::exception_ptr&) { io.stop(); });
  io.restart();
  KeepRunning::RunAll(io);
  REQUIRE(result);
  CHECK(result->error().code == Errc::kResourceExhausted);
  CHECK(failures.last() == "an odd call: an exception of unknown kind");
  threads.join();
}

namespace {

struct Disk {
  explicit Disk(policy::PolicyKind policy, IoKind io) {
    options.path = dir / "disk";
    options.limit_bytes = std::uint64_t{1} << 20;
    options.write_bytes_per_s = 0;
    options.policy = policy;
    options.io = io;
    cache = test::OpenDisk(options);
  }

  // Its blocks are right, its counts agree, and its files are within the bound.
  void Check() const {
    std::uint64_t good = 0;
    for (std::uint64_t prompt = 0; prompt < kPrompts; ++prompt) {
      const test::DiskReadCheck read = test::ReadDisk(*cache, test::DiskBlocks(prompt, kBlocks, kBlockBytes).keys, kBlockBytes);
      CHECK(read.wrong == 0);
      CHECK(read.bad == 0);
      CHECK(read.failed == 0);
      good += read.good;
    }
    const DiskFigures figures = cache->table().figures();
    CHECK(figures.blocks == good);
    CHECK(figures.bytes == good * RecordBytes(kBlockBytes));
    CHECK(figures.file_bytes <= options.limit_bytes);
    // No file is left that the table does not count. (Without Unfinished in segment_file.cc, many.)
    std::uint64_t files = 0;
    for (const auto& file : std::filesystem::directory_iterator(options.path))
      if (file.path().filename().string().starts_with("segment-")) files += file.file_size();
    CHECK(files <= figures.file_bytes);
  }

  static constexpr std::uint64_t kPrompts = 24;
  static constexpr std::uint32_t kBlocks = 8;
  static constexpr std::uint64_t kBlockBytes = 5000;

  const test::TempDir dir;
  DiskOptions options;
  std::unique_ptr<DiskCache> cache;
};

}  // namespace

TEST_CASE("Mesh lack of memory: whichever allocation of the disk cache fails, what it serves is right and within its bound", "[unit]") {
  if (test::kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  for (const IoKind io : test::IoKinds()) {
    for (const auto policy : {policy::PolicyKind::kLru, policy::PolicyKind::kHitDensity}) {
      const Disk disk(policy, io);
      std::uint64_t prompt = 0;
      long failures = 0;
      // Appends of new blocks, for which others leave, and reads of all sorts; an allocation more
      // before the one that fails, until several rounds have had none.
      for (long at = 0, without = 0; without < 6; ++at) {
        INFO("allocation " << at << ", " << policy::PolicyName(policy));
        const test::DiskBlocks blocks(prompt++ % Disk::kPrompts, Disk::kBlocks, Disk::kBlockBytes);
        const AlignedBuffer memory(WholePages(Disk::kBlockBytes) * Disk::kBlocks);
        std::vector<DiskRead> reads;
        for (std::size_t i = 0; i < blocks.keys.size(); ++i)
          reads.push_back({blocks.keys[i], memory.data() + WholePages(Disk::kBlockBytes) * i});
        g_failed = false;
        FailAllocation(at, &g_failed);
        try {
          static_cast<void>(disk.cache->Append(blocks.blocks));
          disk.cache->table().Use(blocks.keys);
          disk.cache->Read(blocks.shape, reads);
        } catch (const std::bad_alloc&) {
        }
        FailAllocation(-1, &g_failed);
        failures += g_failed ? 1 : 0;
        without = g_failed ? 0 : without + 1;
        disk.Check();
      }
      CHECK(failures > 30);
      CHECK(disk.cache->table().figures().blocks > 40);
    }
  }
}

}  // namespace kvm::mesh
