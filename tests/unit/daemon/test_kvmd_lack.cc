// What kvmd does when memory is short: one allocation of its thread fails, wherever it is made, and
// kvmd serves or has ended, so that the next one takes over. It never lives without serving.
#include <vector>

#include "daemon/server/server.h"
#include "proto/shm/layout.h"
#include "tests/catch.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/failing_allocation.h"
#include "tests/support/process/lacking_process.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

constexpr long kAllocations = 240;  // of kvmd's first steps, and of those that take connections

// A connection whose hello is answered, and the heartbeat that goes on: both loops of kvmd run.
bool Serves(const std::string& socket) {
  Result<WireClient> client = WireClient::Connect(socket);
  if (!client) return false;
  const Result<Received> hello = client->Hello();
  if (!hello || hello->fds.size() != 1) return false;
  const Result<MappedMemory> registry = MappedMemory::Attach(hello->fds[0].get());
  if (!registry) return false;
  const auto& header = *reinterpret_cast<const layout::RegistryHeader*>(registry->data());
  const std::uint64_t before = header.heartbeat_ns.load();
  return Eventually([&] { return header.heartbeat_ns.load() != before; });
}

}  // namespace

// Where the end of Server's loops is not noticed (asio::detached instead of EndWithLoop), kvmd
// lives on without accepting.
TEST_CASE("kvmd lack of memory: whichever allocation fails, it serves or has ended", "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  int failures = 0, ended = 0;
  for (long at = 0; at < kAllocations; ++at) {
    INFO("allocation " << at);
    const TempDir directory;
    daemon::Config config;
    config.socket_path = directory / "kvmd.sock";
    config.max_entries = 1000;
    config.log_level = daemon::LogLevel::kError;
    LackingProcess kvmd([&](bool* failed) {
      const auto server = daemon::Server::Create(config);
      if (!server) return;
      FailAllocation(at, failed);
      static_cast<void>((*server)->Run());
    });
    REQUIRE(Eventually([&] { return kvmd.Ended() || WireClient::Connect(config.socket_path).has_value(); }));
    std::vector<Result<WireClient>> silent;
    for (int i = 0; i < 8; ++i) silent.push_back(WireClient::Connect(config.socket_path));
    REQUIRE(Eventually([&] { return kvmd.Ended() || Serves(config.socket_path); }));
    failures += kvmd.failed();
    ended += kvmd.Ended();
  }
  // Or the case shows nothing
  CHECK(failures > kAllocations / 2);
  CHECK(ended > 0);
}

}  // namespace kvm::test
