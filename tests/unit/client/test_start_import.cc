// Imports that can't be planned: what is the caller's error, and what is a miss.
#include "client/import/start_import.h"

#include <chrono>
#include <memory>
#include <string>

#include "client/find/match_impl.h"
#include "client/region/make_region.h"
#include "proto/wire/region_descriptor.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using std::chrono::seconds;

constexpr std::uint32_t kBlocks = 4;
constexpr std::uint64_t kBlockBytes = 64;

class FakeMemory final : public PeerMemory {
 public:
  MemoryPath path() const noexcept override { return MemoryPath::kHost; }
  bool read_only() const noexcept override { return true; }
  const std::string& detail() const noexcept override { return detail_; }

 private:
  const std::string detail_;
};

// A region to import into, and a match of one block of another region, whose blocks have twice the
// size.
struct LargerBlocks {
  explicit LargerBlocks(bool same_content) {
    RegionOptions options;
    options.name = "destination";
    options.geometry = Geometry::Contiguous(kBlocks, kBlockBytes);
    Result<std::shared_ptr<Region::Impl>> made =
        MakeAllocated(Model{}, options, devices, DeviceSet::kHost, [](std::span<const std::uint64_t>) { return Fds(); });
    KVM_REQUIRE_OK(made);
    PeerMapping::Parts parts;
    parts.geometry = Geometry::Contiguous(kBlocks, 2 * kBlockBytes);
    parts.content = same_content ? ContentOf((*made)->Descriptor()) : "of another model";
    parts.payload = std::make_shared<PeerPayload>();
    parts.payload->memories[DeviceSet::kHost] = std::make_shared<FakeMemory>();
    parts.devices = 1;
    mapping = std::make_shared<PeerMapping>(std::move(parts));
    destination = std::make_shared<Region>(std::move(*made));
    auto impl = std::make_shared<Match::Impl>();
    impl->sources.resize(1);
    impl->sources[0].generation = 2;
    impl->mapping_of = {0};
    impl->mappings = {mapping};
    match = Match(impl, 0, 1);
  }
  Result<ImportTicket> Import() {
    const std::uint32_t blocks[] = {0};
    const ImportServices services{std::make_shared<AtomicStats>(), std::make_shared<HostCacheUses>(), seconds(1)};
    return StartImport(services, match, *destination, blocks, {});
  }

  DeviceSet devices;
  std::shared_ptr<PeerMapping> mapping;
  std::shared_ptr<Region> destination;
  Match match;
};

}  // namespace

TEST_CASE("Import: another worker's blocks of another size, of the same model and shard, are a miss", "[unit]") {
  LargerBlocks source(true);
  REQUIRE(source.mapping->PathTo(DeviceSet::kHost).has_value());
  Result<ImportTicket> ticket = source.Import();
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(std::chrono::steady_clock::now() + seconds(10)));
  CHECK(ticket->result().valid == 0);
  REQUIRE(ticket->result().failed.size() == 1);
  CHECK(ticket->result().failed[0].reason == ImportFailure::kUnmapped);
  // So that the next find does not match it again.
  CHECK_FALSE(source.mapping->PathTo(DeviceSet::kHost).has_value());
}

TEST_CASE("Import: a region for blocks of another model is the caller's error", "[unit]") {
  LargerBlocks source(false);
  KVM_CHECK_ERROR(source.Import(), Errc::kInvalidArgument, "import");
  CHECK(source.mapping->PathTo(DeviceSet::kHost).has_value());
}

TEST_CASE("Import: every destination is withdrawn, also behind a block that can't be reached", "[unit]") {
  LargerBlocks source(true);
  auto impl = std::make_shared<Match::Impl>(*source.match.impl());
  impl->sources.resize(3);
  impl->mapping_of = {0, 0, 0};
  const std::uint32_t blocks[] = {3, 0, 2};
  const ImportServices services{std::make_shared<AtomicStats>(), std::make_shared<HostCacheUses>(), seconds(1)};
  Result<ImportTicket> ticket = StartImport(services, Match(impl, 0, 3), *source.destination, blocks, {});
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(std::chrono::steady_clock::now() + seconds(10)));
  REQUIRE(ticket->result().writes.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(ticket->result().writes[i].block == blocks[i]);
    CHECK(ticket->result().writes[i].generation % 2 == 1);
  }
}
