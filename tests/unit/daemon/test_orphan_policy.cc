// OrphanPolicy: which orphans a request to reclaim selects. It has no effects itself.
#include <chrono>
#include <cstring>
#include <memory>
#include <string>

#include "daemon/broker/services/orphan_policy.h"
#include "tests/catch.h"

namespace kvm::daemon {
namespace {

using Claim = OrphanPolicy::Claim;
using std::chrono::seconds;

constexpr std::uint32_t kOwner = 1000, kOther = 1001;
const SteadyTime kNow{seconds(1000)};

// An orphan of user kOwner's, 60 s old, on a device of sixteen 'd'.
Region Pool() {
  Region region;
  region.descriptor.set_name("pool");
  region.info.owner_uid = kOwner;
  std::memset(region.info.device_uuid, 'd', sizeof(region.info.device_uuid));
  region.orphan = Orphan{kNow - seconds(60), std::make_shared<WatchedProcess>(UniqueFd(), true)};
  return region;
}

kvmwire::Reclaim Request(const std::string& name = "", const std::string& device = "") {
  kvmwire::Reclaim request;
  request.set_name(name);
  request.set_device_uuid(device);
  return request;
}

const std::string kDevice(16, 'd'), kOtherDevice(16, 'e');
const OrphanPolicy::Claimant kOwnTool{kOwner, false, false, 60}, kOtherTool{kOther, false, false, 60},
    kOtherWorker{kOther, false, true, 60}, kRoot{0, true, false, 60};

}  // namespace

TEST_CASE("Orphans: a reclaim selects regions of its own user, by name, device and age", "[unit]") {
  const Region pool = Pool();
  CHECK(OrphanPolicy::Claims(Request(), kOwnTool, pool, kNow) == Claim::kYes);
  CHECK(OrphanPolicy::Claims(Request("pool", kDevice), kOwnTool, pool, kNow) == Claim::kYes);
  CHECK(OrphanPolicy::Claims(Request("another"), kOwnTool, pool, kNow) == Claim::kNo);
  CHECK(OrphanPolicy::Claims(Request("", kOtherDevice), kOwnTool, pool, kNow) == Claim::kNo);
  kvmwire::Reclaim old = Request();
  old.set_min_age_s(60);
  CHECK(OrphanPolicy::Claims(old, kOwnTool, pool, kNow) == Claim::kYes);
  old.set_min_age_s(61);
  CHECK(OrphanPolicy::Claims(old, kOwnTool, pool, kNow) == Claim::kNo);
}

TEST_CASE("Orphans: another user's are freed only for a worker that needs the device's memory, and for root", "[unit]") {
  const Region pool = Pool();
  CHECK(OrphanPolicy::Claims(Request(), kOtherTool, pool, kNow) == Claim::kNo);
  CHECK(OrphanPolicy::Claims(Request("", kDevice), kOtherTool, pool, kNow) == Claim::kNo);
  CHECK(OrphanPolicy::Claims(Request(), kOtherWorker, pool, kNow) == Claim::kNo);
  CHECK(OrphanPolicy::Claims(Request("", kDevice), kOtherWorker, pool, kNow) == Claim::kYes);
  CHECK(OrphanPolicy::Claims(Request(), kRoot, pool, kNow) == Claim::kYes);
  // Its own user may come first (--reclaim-others-after-s).
  CHECK(OrphanPolicy::Claims(Request("", kDevice), kOtherWorker, pool, kNow - seconds(1)) == Claim::kNo);
  CHECK(OrphanPolicy::Claims(Request("", kDevice), kOwnTool, pool, kNow - seconds(1)) == Claim::kYes);
}

TEST_CASE("Orphans: a leased one stays, unless its own user or root reclaims it by force", "[unit]") {
  Region pool = Pool();
  pool.pinned[3] = 1;
  kvmwire::Reclaim forced = Request("", kDevice);
  CHECK(OrphanPolicy::Claims(forced, kOwnTool, pool, kNow) == Claim::kLeased);
  CHECK(OrphanPolicy::Claims(forced, kRoot, pool, kNow) == Claim::kLeased);
  forced.set_force(true);
  CHECK(OrphanPolicy::Claims(forced, kOwnTool, pool, kNow) == Claim::kYes);
  CHECK(OrphanPolicy::Claims(forced, kRoot, pool, kNow) == Claim::kYes);
  CHECK(OrphanPolicy::Claims(forced, kOtherWorker, pool, kNow) == Claim::kLeased);
}

}  // namespace kvm::daemon
