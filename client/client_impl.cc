#include "client/client_impl.h"

#include <algorithm>
#include <utility>

#include "client/connection/wait.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

// How long the registry of the epoch before stays in use after a reconnect: peers need a moment to
// come back and publish anew, and generations keep what the old one says honest.
constexpr std::chrono::seconds kPreviousEpochGrace{10};

}  // namespace

Client::Impl::Impl(ClientOptions options_)
    : options(std::move(options_)),
      mapper(devices, peers, options.max_mapped_regions, [this] { link.mailbox()->Wake(); }),
      link(options, Link::Events{[this](const kvmwire::HelloReply& hello, Fds fds) { return OnConnected(hello, std::move(fds)); },
                                 [this](const kvmwire::ServerMessage& message, Result<Fds> fds) { OnAnnounced(message, std::move(fds)); },
                                 [this] { return mapper.TakesMore(); }, [this] { OnDisconnected(); }, [this] { OnTick(); }}) {}

Client::Impl::~Impl() { Stop(); }

void Client::Impl::Stop() {
  leases.EndAll(MakeError(Errc::kCancelled, "the lease's client is closed"));  // the connection's end says so less well
  UnregisterAll();
  link.Stop();
  offloader.Stop();
  mapper.Stop();
  publish_answered_.notify_all();
}

void Client::Impl::Start() { link.Start(); }

Status Client::Impl::WaitConnected(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (WaitUntil(connected_changed_, lock, deadline, [this] { return ready_; })) return {};
  return MakeError(Errc::kDeadlineExceeded, "not connected to kvmd in time");
}

std::string Client::Impl::Domain() const {
  std::lock_guard lock(mutex_);
  return domain_;
}

std::vector<Model> Client::Impl::Models() const {
  std::lock_guard lock(mutex_);
  return models_;
}

std::vector<std::shared_ptr<Region::Impl>> Client::Impl::Regions() const {
  std::vector<std::shared_ptr<Region::Impl>> out;
  std::lock_guard lock(mutex_);
  for (const auto& weak : regions_) {
    if (auto region = weak.lock()) out.push_back(std::move(region));
  }
  return out;
}

// ---- events, on the link's thread ---------------------------------------------------------------

Status Client::Impl::OnConnected(const kvmwire::HelloReply& hello, Fds fds) {
  if (fds.empty()) return MakeError(Errc::kProtocol, "kvmd sent no registry");
  Result<MappedMemory> memory = MappedMemory::Attach(fds[0].get(), layout::kHeaderBytes, HugePages::kTry);
  if (!memory) return memory.error();
  Result<RegistryView> registry = RegistryView::Open(std::move(*memory));
  if (!registry) return registry.error();
  connection_ = peers.StartConnection(std::move(*registry));
  {
    std::lock_guard lock(mutex_);
    stats.connections.fetch_add(1, std::memory_order_relaxed);
    previous_expires_ = After(kPreviousEpochGrace);
    epoch_ = hello.epoch();
    domain_ = hello.domain();
  }
  offloader.Connected(hello);
  Redeclare();
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    RequestRegistration(region, nullptr);
  }
  std::lock_guard lock(mutex_);
  ready_ = true;
  connected_changed_.notify_all();
  return {};
}

void Client::Impl::OnDisconnected() {
  offloader.Disconnected();
  leases.EndAll(MakeError(Errc::kUnavailable, "the lease is over: the connection to kvmd has ended"));
  {
    std::lock_guard lock(mutex_);
    ready_ = false;
  }
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    std::lock_guard lock(region->mutex);
    region->registered = false;
    region->republish_from = 0;
    region->republish_again = false;
  }
  std::lock_guard lock(publish_mutex_);
  unanswered_.clear();
  unanswered_records_ = 0;
  answered_sequence_ = last_sequence_;
  publish_answered_.notify_all();
}

void Client::Impl::OnAnnounced(const kvmwire::ServerMessage& message, Result<Fds> fds) {
  switch (message.body_case()) {
    case kvmwire::ServerMessage::kPublishAck: OnAck(message.publish_ack()); return;
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
      // If it is a slab that this client writes, that mapping goes first.
      offloader.Withdraw(withdraw.region(), withdraw.region_epoch(),
                         [this, connection = connection_, row = withdraw.region(), region_epoch = withdraw.region_epoch(),
                          acknowledge = std::move(acknowledge)] { mapper.Withdraw(connection, row, region_epoch, acknowledge); });
      return;
    }
    default: return;  // a newer kvmd may announce what this library does not know
  }
}

void Client::Impl::OnTick() {
  bool drop_previous = false;
  {
    std::lock_guard lock(mutex_);
    if (std::chrono::steady_clock::now() >= previous_expires_) {
      previous_expires_ = Deadline::max();
      drop_previous = true;
    }
    std::erase_if(regions_, [](const std::weak_ptr<Region::Impl>& region) { return region.expired(); });
  }
  if (drop_previous) peers.DropPrevious();
  if (mapper.TakeRetry()) Redeclare();
  RegisterRefused();
  Pump();
  if (const kvmwire::ClientMessage uses = host_cache_uses.Take(); uses.host_cache_use().runs_size() > 0) link.Post(uses);
  const ClientStats now = Stats();
  kvmwire::StatsReport report;
  report.set_finds(now.finds);
  report.set_keys_looked_up(now.keys_looked_up);
  report.set_keys_matched(now.keys_matched);
  report.set_imports(now.imports);
  report.set_blocks_imported(now.blocks_imported);
  report.set_blocks_failed(now.blocks_failed);
  report.set_bytes_imported(now.bytes_imported);
  report.set_blocks_published(now.blocks_published);
  report.set_publishes_deferred(now.publishes_deferred);
  report.set_reconnects(now.reconnects);
  report.set_blocks_offloaded(now.blocks_offloaded);
  report.set_offloads_dropped(now.offloads_dropped);
  report.set_blocks_from_host_cache(now.blocks_from_host_cache);
  if (const std::vector<UnmappedRegion> unmapped = mapper.Unmapped(); !unmapped.empty()) {
    report.set_unmapped_regions(static_cast<std::uint32_t>(unmapped.size()));
    report.set_unmapped_reason(unmapped.front().name + ": " + unmapped.front().reason.ToString());
  }
  kvmwire::ClientMessage message;
  *message.mutable_stats_report() = std::move(report);
  link.Post(message);
}

// ---- counters -----------------------------------------------------------------------------------

ClientStats Client::Impl::Stats() const {
  const auto load = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  ClientStats out;
  out.finds = load(stats.finds);
  out.keys_looked_up = load(stats.keys_looked_up);
  out.keys_matched = load(stats.keys_matched);
  out.imports = load(stats.imports);
  out.blocks_imported = load(stats.blocks_imported);
  out.blocks_failed = load(stats.blocks_failed);
  out.bytes_imported = load(stats.bytes_imported);
  out.blocks_published = load(stats.blocks_published);
  out.publishes_deferred = load(stats.publishes_deferred);
  out.publishes_refused = load(stats.publishes_refused);
  out.blocks_offloaded = load(stats.blocks_offloaded);
  out.offloads_dropped = load(stats.offloads_dropped);
  out.offloads_refused = load(stats.offloads_refused);
  out.blocks_from_host_cache = load(stats.blocks_from_host_cache);
  const std::uint64_t connections = load(stats.connections);
  out.reconnects = connections > 0 ? connections - 1 : 0;
  out.mapped_regions = peers.mapped_regions();
  return out;
}

}  // namespace kvm
