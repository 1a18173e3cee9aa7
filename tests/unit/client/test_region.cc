// A region of a client without kvmd: how it stands with it, and what its publishes need of its
// client.
#include <chrono>
#include <memory>
#include <optional>

#include "client/region/make_region.h"
#include "client/region/region_host.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using Ask = Region::Impl::Ask;

constexpr std::uint32_t kBlocks = 4;

struct Services {
  explicit Services(PublishWindow::Post post) : its_window(std::move(post), 100) {}
  Link its_link{ClientOptions{}, Link::Events{}};
  AtomicStats its_stats;
  Offloader its_offloader{its_link, its_stats, 10};
  PublishWindow its_window;
};

// A client that closes its region when it ends, as Client does.
class Host final : Services, public RegionHost {
 public:
  explicit Host(PublishWindow::Post post) : Services(std::move(post)), RegionHost(its_link, its_window, its_offloader, its_stats, 100ms) {}
  ~Host() {
    if (region) region->Close(After(0ms));
  }
  Status Unregister(Region::Impl&, Deadline) override { return {}; }

  std::shared_ptr<Region::Impl> region;
};

struct Made {
  Made() {
    RegionOptions options;
    options.name = "made";
    options.geometry = Geometry::Contiguous(kBlocks, 64);
    Result<std::shared_ptr<Region::Impl>> made =
        MakeAllocated(Model{}, options, devices, DeviceSet::kHost, [](std::span<const std::uint64_t>) { return Fds(); });
    KVM_REQUIRE_OK(made);
    region = *made;
  }
  PublishRequest Written(std::uint32_t block) {
    PublishRequest request;
    request.write = {block, region->generations.BeginWrite(block)};
    return request;
  }

  DeviceSet devices;
  std::shared_ptr<Region::Impl> region;
};

}  // namespace

TEST_CASE("Region: one request serves all who ask for its registration meanwhile", "[unit]") {
  Made made;
  const Reply waiter = [](const Result<Answer>&) {};
  CHECK(made.region->BeginRegistration(waiter) == Ask::kSend);
  CHECK(made.region->BeginRegistration(waiter) == Ask::kWait);
  made.region->Refused(MakeError(Errc::kUnavailable, "kvmd is away"));
  CHECK(made.region->TakeWaiters().size() == 2);
  CHECK(made.region->BeginRegistration(nullptr) == Ask::kSend);
}

TEST_CASE("Region: closed during its registration, it is unregistered when kvmd accepts it", "[unit]") {
  Made made;
  auto host = std::make_shared<Host>([](const kvmwire::ClientMessage&) { return true; });
  REQUIRE(made.region->BeginRegistration(nullptr) == Ask::kSend);
  made.region->Close(After(0ms));
  CHECK_FALSE(made.region->TakeRow().has_value());
  CHECK_FALSE(made.region->Accepted(*host, {3, 5}));
  const std::optional<RegionRow> row = made.region->TakeRow();
  REQUIRE(row.has_value());
  CHECK((row->row == 3 && row->region_epoch == 5));
  CHECK_FALSE(made.region->TakeRow().has_value());
}

TEST_CASE("Region: closed during its registration, it is never asked for again", "[unit]") {
  Made made;
  REQUIRE(made.region->BeginRegistration(nullptr) == Ask::kSend);
  made.region->Close(After(0ms));
  made.region->Refused(MakeError(Errc::kResourceExhausted, "no row is free"));
  CHECK_FALSE(made.region->IsWorthAsking());
  CHECK(made.region->BeginRegistration(nullptr) == Ask::kClosed);
}

TEST_CASE("Region: records that were published before its registration are sent after it", "[unit]") {
  Made made;
  std::size_t messages = 0;
  auto host = std::make_shared<Host>([&](const kvmwire::ClientMessage&) { return ++messages > 0; });
  made.region->host = host;
  const PublishRequest request = made.Written(2);
  CHECK(made.region->Publish({&request, 1}).deferred == 1);
  CHECK(messages == 0);
  REQUIRE(made.region->BeginRegistration(nullptr) == Ask::kSend);
  CHECK(made.region->Accepted(*host, {3, 5}));
  CHECK(messages == 1);
}

TEST_CASE("Region: a publish may have the last reference to its client, whose destructor closes the region", "[unit]") {
  Made made;
  std::shared_ptr<Host> host;
  host = std::make_shared<Host>([&](const kvmwire::ClientMessage&) {
    host.reset();  // from now on the publish alone keeps it
    return true;
  });
  host->region = made.region;
  made.region->host = host;
  made.region->TakeOver({3, 5}, {});
  const PublishRequest request = made.Written(2);
  CHECK(made.region->Publish({&request, 1}).readable == 1);
  CHECK(made.region->closed());
}
