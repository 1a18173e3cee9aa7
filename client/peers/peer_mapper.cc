#include "client/peers/peer_mapper.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/peers/segment_handles.h"
#include "proto/base/fault_point.h"
#include "proto/wire/region_descriptor.h"

namespace kvm {
namespace {

// How many descriptors may wait to be mapped; an eighth of this process's limit if that is less.
constexpr std::size_t kMaxWaitingFds = 512;
constexpr std::chrono::milliseconds kFirstLackPause{1000}, kLongestLackPause{60'000};

std::size_t MaxWaitingFds() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kMaxWaitingFds;
  return std::clamp<std::size_t>(limit.rlim_cur / 8, 1, kMaxWaitingFds);
}

// Gives all failures for lack of descriptors the same reason.
Error ReasonOf(const Error& error) { return IsOutOfDescriptors(error) ? OutOfDescriptors(error.sys_errno) : error; }

bool ForWantOfDescriptors(const std::vector<UnmappedRegion>& problems) {
  return std::any_of(problems.begin(), problems.end(), [](const UnmappedRegion& one) { return IsOutOfDescriptors(one.reason); });
}

}  // namespace

PeerMapper::PeerMapper(DeviceSet& devices, PeerTable& peers, std::size_t max_regions, std::function<void()> takes_more_again)
    : devices_(devices),
      peers_(peers),
      max_regions_(max_regions),
      max_waiting_fds_(MaxWaitingFds()),
      takes_more_again_(std::move(takes_more_again)) {}

void PeerMapper::Announce(std::uint64_t connection, kvmwire::RegionAnnounce announce, Result<Fds> fds) {
  const std::size_t count = fds ? fds->size() : 0;
  waiting_fds_.fetch_add(count, std::memory_order_acq_rel);
  // Shared, since std::function requires a copyable function object.
  auto shared_fds = std::make_shared<Result<Fds>>(std::move(fds));
  thread_.Post([this, connection, count, announce = std::move(announce), fds = std::move(shared_fds)] {
    const RowKey key{announce.region(), announce.region_epoch()};
    std::vector<UnmappedRegion> problems;
    Result<std::shared_ptr<PeerMapping>> mapping =
        *fds ? Map(announce, **fds, problems) : Result<std::shared_ptr<PeerMapping>>(fds->error());
    if (*fds) (*fds)->clear();
    if (waiting_fds_.fetch_sub(count, std::memory_order_acq_rel) >= max_waiting_fds_) takes_more_again_();
    if (!mapping && IsOutOfDescriptors(mapping.error()) && peers_.Knows(connection, key.first, key.second)) {
      // If the descriptors of a later announcement are lost, the mapping that exists stays.
      MutexLock lock(mutex_);
      if (const auto before = unmapped_.find(key); before != unmapped_.end()) problems = before->second;
    } else if (!mapping) {
      problems.push_back({announce.descriptor_().name(), {}, ReasonOf(mapping.error())});
    }
    Note(key, std::move(problems));
    if (mapping) peers_.Add(connection, announce.region(), announce.region_epoch(), *mapping);
  });
}

void PeerMapper::Note(const RowKey& key, std::vector<UnmappedRegion> problems) {
  for (const UnmappedRegion& problem : problems) {
    if (problem.reason.code == Errc::kUnavailable) retry_.store(true);
  }
  MutexLock lock(mutex_);
  const bool lack = ForWantOfDescriptors(problems);
  if (problems.empty()) {
    unmapped_.erase(key);
  } else {
    unmapped_[key] = std::move(problems);
  }
  if (lack && lack_over_at_ == SteadyTime::max()) {
    lack_pause_ = std::clamp(2 * lack_pause_, kFirstLackPause, kLongestLackPause);
    const auto jittered = std::uniform_int_distribution<std::int64_t>(lack_pause_.count() / 2, lack_pause_.count())(random_);
    lack_over_at_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(jittered);
  } else if (!lack && std::none_of(unmapped_.begin(), unmapped_.end(), [](const auto& row) { return ForWantOfDescriptors(row.second); })) {
    lack_pause_ = std::chrono::milliseconds(0);
    lack_over_at_ = SteadyTime::max();
  }
}

bool PeerMapper::TakeRetry() {
  bool retry = retry_.exchange(false);
  MutexLock lock(mutex_);
  if (std::chrono::steady_clock::now() >= lack_over_at_) {
    lack_over_at_ = SteadyTime::max();
    retry = true;
  }
  return retry;
}

void PeerMapper::Withdraw(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released) {
  thread_.Post([this, connection, row, region_epoch, released = std::move(released)]() mutable {
    {
      MutexLock lock(mutex_);
      unmapped_.erase({row, region_epoch});
    }
    peers_.Remove(connection, row, region_epoch, std::move(released));
  });
}

std::vector<UnmappedRegion> PeerMapper::Unmapped() const {
  std::vector<UnmappedRegion> out;
  MutexLock lock(mutex_);
  for (const auto& [row, problems] : unmapped_) out.insert(out.end(), problems.begin(), problems.end());
  return out;
}

Result<std::shared_ptr<PeerMapping>> PeerMapper::Map(const kvmwire::RegionAnnounce& announce, Fds& fds,
                                                     std::vector<UnmappedRegion>& problems) {
  if (fds.empty()) return MakeError(Errc::kProtocol, "region announced without its generation table");
  const std::size_t devices = devices_.size();
  PeerMapping::Parts parts;
  parts.name = announce.descriptor_().name();
  parts.identity = FileIdOf(fds[0].get());
  if (auto known = peers_.FindAgain(announce.region(), announce.region_epoch(), parts.name, parts.identity);
      known && (known->own || !announce.has_payload() || (known->devices == devices && known->payload()))) {
    return known;
  }
  if (peers_.mapped_regions() >= max_regions_) {
    return MakeError(Errc::kResourceExhausted,
                     std::to_string(max_regions_) + " regions are mapped already (ClientOptions::max_mapped_regions)");
  }
  const kvmwire::RegionDescriptor& wire = announce.descriptor_();
  parts.kept = announce.host_cache();
  if (wire.device_uuid().size() == parts.device_uuid.size())
    std::copy(wire.device_uuid().begin(), wire.device_uuid().end(), parts.device_uuid.begin());
  parts.geometry = GeometryOf(wire);
  parts.content = ContentOf(wire);
  std::vector<std::uint64_t> segment_bytes;
  for (const kvmwire::Segment& segment : wire.segments()) segment_bytes.push_back(segment.size_bytes());
  if (Status valid = parts.geometry.Validate(segment_bytes); !valid) return valid.error();

  Result<PeerGenerations> generations = MapGenerations(fds[0].get(), parts.geometry.block_count, HugePages::kTry);
  if (!generations) return generations.error();
  parts.generations = std::move(*generations);

  if (announce.has_payload()) {
    Result<std::shared_ptr<PeerPayload>> payload = MapPayload(wire, fds, devices, problems);
    if (!payload) return payload.error();
    parts.payload = std::move(*payload);
  }
  // If a device has to be tried again, no device counts as considered, so that the next
  // announcement maps the region again.
  const bool again = ForWantOfDescriptors(problems) ||
                     std::any_of(problems.begin(), problems.end(), [](const auto& one) { return one.reason.code == Errc::kUnavailable; });
  parts.devices = again ? 0 : devices;
  // One registration serves all GPUs; if it fails, the CPU validates.
  for (std::size_t device = 1; device < devices && !parts.generations.attachment; ++device) {
    static_cast<void>(devices_[device].AttachGenerations(parts.generations));
  }
  KVM_FAULT_POINT(client_peer_mapped);
  return std::make_shared<PeerMapping>(std::move(parts));
}

Result<std::shared_ptr<PeerPayload>> PeerMapper::MapPayload(const kvmwire::RegionDescriptor& wire, Fds& fds, std::size_t devices,
                                                            std::vector<UnmappedRegion>& problems) {
  const PeerOrigin origin = OriginOf(wire);
  auto payload = std::make_shared<PeerPayload>();
  std::size_t last = 0;
  for (std::size_t device = 0; device < devices; ++device) last = devices_[device].Maps(origin.kind) ? device : last;
  for (std::size_t device = 0; device < devices; ++device) {
    MemoryBackend& backend = devices_[device];
    if (!backend.Maps(origin.kind)) {
      // A process without a GPU has no use for GPU memory; one with a GPU doesn't import to the
      // host.
      if (device != DeviceSet::kHost || devices == 1) {
        problems.push_back({wire.name(), backend.device_uuid(), MakeError(Errc::kUnsupported, "GPU memory, and this process uses no GPU")});
      }
      continue;
    }
    // The last device takes the descriptors themselves instead of duplicates, since a process may
    // have few left.
    Result<std::vector<SegmentHandle>> segments = device == last ? TakeHandles(wire, fds) : HandlesOf(wire, fds);
    if (!segments) return segments.error();
    Result<std::unique_ptr<PeerMemory>> mapped = backend.Map(std::move(*segments), origin);
    if (mapped) {
      payload->memories[device] = std::move(*mapped);
    } else {
      problems.push_back({wire.name(), backend.device_uuid(), ReasonOf(mapped.error())});
    }
  }
  return payload;
}

}  // namespace kvm
