#include "client/client_impl.h"

#include <utility>

#include "client/connection/wait.h"
#include "client/region/adoption.h"
#include "client/region/make_region.h"
#include "client/region/region_options.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

// How long the previous registry stays in use after a reconnect: peers need a moment to reconnect
// and publish again. Generations are checked as always, so old entries can't give wrong bytes.
constexpr std::chrono::seconds kPreviousEpochGrace{10};

}  // namespace

Client::Impl::Impl(ClientOptions options_)
    : options(std::move(options_)),
      mapper(devices, peers, options.max_mapped_regions, [this] { link.mailbox()->Wake(); }),
      link(options, Link::Events{[this](const kvmwire::HelloReply& hello, Fds fds) { return OnConnected(hello, std::move(fds)); },
                                 [this](const kvmwire::ServerMessage& message, Result<Fds> fds) { OnAnnounced(message, std::move(fds)); },
                                 [this] { return mapper.TakesMore(); }, [this] { OnDisconnected(); }, [this] { OnTick(); }}),
      window([this](const kvmwire::ClientMessage& message) { return link.Post(message); }, options.max_queued_publishes) {}

Client::Impl::~Impl() { Stop(); }

void Client::Impl::Stop() {
  // A more precise reason than the end of the connection
  leases.EndAll(MakeError(Errc::kCancelled, "the lease's client is closed"));
  // What happened since the last tick, which for a process that ends soon is all. In front of the
  // regions' last messages, whose answers are waited for.
  ReportCounts();
  registrar.UnregisterAll();
  link.Stop();
  offloader.Stop();
  mapper.Stop();
  window.Wake();
}

void Client::Impl::Start() {
  registrar.Start(std::shared_ptr<RegionHost>(shared_from_this(), &registrar));
  marks.Start(std::shared_ptr<ComputingMarks>(shared_from_this(), &marks));
  leases.Start(std::shared_ptr<Leases>(shared_from_this(), &leases));
  link.Start();
}

Status Client::Impl::WaitConnected(Deadline deadline) {
  MutexLock lock(mutex_);
  if (WaitUntil(connected_changed_, lock, deadline, [this]() KVM_REQUIRES(mutex_) { return ready_; })) return {};
  return MakeError(Errc::kDeadlineExceeded, "not connected to kvmd in time");
}

std::string Client::Impl::Domain() const {
  MutexLock lock(mutex_);
  return domain_;
}

ClientStats Client::Impl::Stats() const {
  ClientStats out = Load(stats);
  out.mapped_regions = peers.mapped_regions();
  return out;
}

FindTarget Client::Impl::TargetOf(const FindOptions& find) const noexcept {
  FindTarget target;
  target.include_own = find.include_own;
  target.must_reach = find.destination != nullptr;
  target.device = target.must_reach ? find.destination->impl().device : std::min<std::size_t>(devices.size() - 1, 1);
  target.spread = link.client_id();
  return target;
}

void Client::Impl::NoteSample(std::span<const BlockKey> keys, Match::Impl& match) const {
  if (options.verify_one_in == 0) return;
  for (std::uint32_t i = 0; i < match.sources.size(); ++i) {
    if (InSample(keys[i], options.verify_one_in)) match.sampled.push_back(i);
  }
}

RegionOptions Client::Impl::WithSample(RegionOptions region) const {
  if (!region.checksums && options.verify_one_in != 0) {
    region.checksums = true;
    region.checksum_one_in = options.verify_one_in;
  }
  return region;
}

// ---- regions ------------------------------------------------------------------------------------

Result<std::shared_ptr<Region>> Client::Impl::AllocateRegion(const Model& model, RegionOptions region, Deadline deadline) {
  const Result<std::size_t> device = models.OpenDevice(region.device, deadline);
  if (!device) return device.error();
  region = WithSample(std::move(region));
  if (Status sound = Complete(region); !sound) return sound.error();
  Result<std::shared_ptr<Region::Impl>> made = AllocateInPlaceOfTheDead(link, model, region, devices, *device, deadline);
  if (!made) return made.error();
  KVM_FAULT_POINT(client_memory_made);
  return registrar.Add(std::move(*made), deadline);
}

Result<std::shared_ptr<Region>> Client::Impl::RegisterRegion(const Model& model, RegionOptions region,
                                                             std::span<const DeviceRange> segments, Deadline deadline) {
  if (segments.empty()) return MakeError(Errc::kInvalidArgument, "region: no segments given");
  if (region.device == kHostMemory) {
    const Result<DeviceUuid> device = DeviceOf(segments[0].data);
    if (!device) return device.error();
    region.device = *device;
  }
  const Result<std::size_t> device = models.OpenDevice(region.device, deadline);
  if (!device) return device.error();
  Result<std::shared_ptr<Region::Impl>> made =
      MakeRegistered(model, WithSample(region), devices, *device, segments, GrantUntil(link, region, deadline));
  if (!made) return made.error();
  return registrar.Add(std::move(*made), deadline);
}

Result<AdoptedRegion> Client::Impl::AdoptRegion(const Model& model, RegionOptions region, Deadline deadline) {
  const Result<std::size_t> device = models.OpenDevice(region.device, deadline);
  if (!device) return device.error();
  return kvm::AdoptRegion(link, registrar, devices, *device, model, WithSample(std::move(region)), deadline);
}

// ---- events, on the link's thread ---------------------------------------------------------------

Status Client::Impl::OnConnected(const kvmwire::HelloReply& hello, Fds fds) {
  if (fds.empty()) return MakeError(Errc::kProtocol, "kvmd sent no registry");
  Result<MappedMemory> memory = MappedMemory::Attach(fds[0].get(), layout::kHeaderBytes, HugePages::kTry);
  if (!memory) return memory.error();
  Result<RegistryView> registry = RegistryView::Open(std::move(*memory));
  if (!registry) return registry.error();
  connection_ = peers.StartConnection(std::move(*registry));
  previous_expires_ = After(kPreviousEpochGrace);
  {
    MutexLock lock(mutex_);
    if (connected_before_) stats.reconnects.fetch_add(1, std::memory_order_relaxed);
    connected_before_ = true;
    domain_ = hello.domain();
  }
  offloader.Connected(hello);
  models.DeclareAgain();
  registrar.Connected(connection_);
  MutexLock lock(mutex_);
  ready_ = true;
  connected_changed_.notify_all();
  return {};
}

void Client::Impl::OnDisconnected() {
  offloader.Disconnected();
  leases.EndAll(MakeError(Errc::kUnavailable, "the lease is over: the connection to kvmd has ended"));
  {
    MutexLock lock(mutex_);
    ready_ = false;
  }
  registrar.Disconnected();
}

void Client::Impl::OnAnnounced(const kvmwire::ServerMessage& message, Result<Fds> fds) {
  switch (message.body_case()) {
    case kvmwire::ServerMessage::kPublishAck: registrar.Answered(message.publish_ack()); return;
    case kvmwire::ServerMessage::kRegionAnnounce: mapper.Announce(connection_, message.region_announce(), std::move(fds)); return;
    case kvmwire::ServerMessage::kLeaseShrunk: leases.Cut(message.lease_shrunk()); return;
    case kvmwire::ServerMessage::kSlabGrant: offloader.Granted(message.slab_grant(), std::move(fds)); return;
    case kvmwire::ServerMessage::kRegionWithdraw: {
      const kvmwire::RegionWithdraw& withdraw = message.region_withdraw();
      std::function<void()> acknowledge;
      if (withdraw.wants_ack()) {
        acknowledge = [weak = weak_from_this(), row = withdraw.region(), region_epoch = withdraw.region_epoch()] {
          const std::shared_ptr<Impl> self = weak.lock();
          if (!self) return;
          KVM_FAULT_POINT(client_withdraw_unmapped);
          kvmwire::ClientMessage ack;
          ack.mutable_withdraw_ack()->set_region(row);
          ack.mutable_withdraw_ack()->set_region_epoch(region_epoch);
          self->link.Post(ack);
        };
      }
      // If this client writes the slab, its writable mapping is removed first.
      offloader.Withdraw({withdraw.region(), withdraw.region_epoch()},
                         [this, connection = connection_, row = withdraw.region(), region_epoch = withdraw.region_epoch(),
                          acknowledge = std::move(acknowledge)] { mapper.Withdraw(connection, row, region_epoch, acknowledge); });
      return;
    }
    default: return;  // a newer kvmd may send announcements that this library does not know
  }
}

void Client::Impl::OnTick() {
  if (std::chrono::steady_clock::now() >= previous_expires_) {
    previous_expires_ = Deadline::max();
    peers.DropPrevious();
  }
  if (mapper.TakeRetry()) models.DeclareAgain();
  registrar.Tick();
  ReportCounts();
}

void Client::Impl::ReportCounts() {
  // kvmd goes by the last report, so an older one must not follow a newer one.
  MutexLock lock(reporting_);
  const kvmwire::ClientMessage uses = host_cache_uses.Take();
  if (uses.host_cache_use().runs_size() > 0 || uses.host_cache_use().imports_size() > 0) link.Post(uses);
  kvmwire::StatsReport report = ReportOf(Stats());
  ReportTimes(stats, report);
  misses.Report(report);
  if (const std::vector<UnmappedRegion> unmapped = mapper.Unmapped(); !unmapped.empty()) {
    report.set_unmapped_regions(static_cast<std::uint32_t>(unmapped.size()));
    report.set_unmapped_reason(unmapped.front().name + ": " + unmapped.front().reason.ToString());
  }
  kvmwire::ClientMessage message;
  *message.mutable_stats_report() = std::move(report);
  link.Post(message);
}

}  // namespace kvm
