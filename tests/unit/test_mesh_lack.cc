// What goes on in a mesh process when memory is short: one allocation fails, wherever it is made,
// and every coroutine that is to run for ever goes on.
#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdlib>
#include <new>

#include "client/mesh/threads/keep_running.h"
#include "client/mesh/transfer/stream_channel.h"
#include "tests/catch.h"
#include "tests/support/process/sanitized.h"

namespace {

// Of the allocations that follow, this one fails; negative: none.
thread_local long g_until_failure = -1;
thread_local bool g_failed = false;

bool FailsNow() noexcept {
  if (g_until_failure < 0 || g_until_failure-- > 0) return false;
  g_failed = true;
  return true;
}

}  // namespace

// Asio takes memory here.
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  void* out = nullptr;
  return FailsNow() || ::posix_memalign(&out, alignment, size) != 0 ? nullptr : out;
}
void* operator new(std::size_t size) {
  void* const out = FailsNow() ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (out == nullptr) throw std::bad_alloc();
  return out;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using Local = asio::local::stream_protocol;
using namespace std::chrono_literals;

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
    g_until_failure = failing;
    KeepRunning::RunAll(io);
    g_until_failure = -1;
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

}  // namespace kvm::mesh
