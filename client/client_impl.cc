#include "client/client_impl.h"

#include <algorithm>
#include <array>
#include <utility>

#include "proto/protocol_limits.h"

namespace kvm {
namespace {

// How long the registry of the epoch before stays in use after a reconnect: peers need a moment to
// come back and publish anew, and generations keep what the old one says honest.
constexpr std::chrono::seconds kPreviousEpochGrace{10};
// Deferred records never take more than this much of the window of unanswered ones: new ones come first.
constexpr std::size_t kRepublishWindow = 64 * 1024;

Geometry ParseGeometry(const kvmwire::RegionDescriptor& wire) {
  Geometry geometry;
  geometry.block_count = wire.block_count();
  for (const kvmwire::GeometryPart& part : wire.parts()) {
    geometry.parts.push_back({part.segment(), part.offset(), part.chunk_bytes(), part.block_stride(), part.count(), part.repeat_stride()});
  }
  return geometry;
}

}  // namespace

Client::Impl::Impl(ClientOptions options_)
    : options(std::move(options_)),
      link(options, Link::Events{[this](const kvmwire::HelloReply& hello, Fds fds) { return OnConnected(hello, std::move(fds)); },
                                 [this](const kvmwire::ServerMessage& message, Fds fds) { OnAnnounced(message, std::move(fds)); },
                                 [this] { OnDisconnected(); }, [this] { OnTick(); }}),
      host_backend_(MakeHostBackend()) {}

Client::Impl::~Impl() { Stop(); }

void Client::Impl::Stop() {
  link.Stop();
  publish_answered_.notify_all();
}

void Client::Impl::Start() { link.Start(); }

Status Client::Impl::WaitConnected(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (connected_changed_.wait_until(lock, deadline, [this] { return ready_; })) return {};
  return MakeError(Errc::kDeadlineExceeded, "not connected to kvmd in time");
}

std::string Client::Impl::Domain() const {
  std::lock_guard lock(mutex_);
  return domain_;
}

std::shared_ptr<MemoryBackend> Client::Impl::BackendFor(layout::HandleKind kind) const {
  return kind == host_backend_->kind() ? host_backend_ : nullptr;
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
  peers.StartEpoch(std::move(*registry));
  std::vector<Model> models;
  {
    std::lock_guard lock(mutex_);
    stats.connections.fetch_add(1, std::memory_order_relaxed);
    previous_expires_ = After(kPreviousEpochGrace);
    epoch_ = hello.epoch();
    domain_ = hello.domain();
    models = models_;
  }
  for (const Model& model : models) {
    kvmwire::ClientMessage message;
    message.mutable_declare_model()->set_spec(model.spec.Canonical());
    link.Request(std::move(message), {}, [](const Result<kvmwire::ServerMessage>&) {});
  }
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    RequestRegistration(region, nullptr);
  }
  std::lock_guard lock(mutex_);
  ready_ = true;
  connected_changed_.notify_all();
  return {};
}

void Client::Impl::OnDisconnected() {
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

void Client::Impl::OnAnnounced(const kvmwire::ServerMessage& message, Fds fds) {
  switch (message.body_case()) {
    case kvmwire::ServerMessage::kPublishAck: OnAck(message.publish_ack()); return;
    case kvmwire::ServerMessage::kRegionAnnounce:
      // A region that can't be mapped is one whose blocks are not found; the reason is kept in the row.
      static_cast<void>(MapPeer(message.region_announce(), std::move(fds)));
      return;
    case kvmwire::ServerMessage::kRegionWithdraw: {
      const kvmwire::RegionWithdraw& withdraw = message.region_withdraw();
      std::function<void()> acknowledge;
      if (withdraw.wants_ack()) {
        acknowledge = [weak = weak_from_this(), row = withdraw.region(), region_epoch = withdraw.region_epoch()] {
          const std::shared_ptr<Impl> self = weak.lock();
          if (!self) return;
          kvmwire::ClientMessage ack;
          ack.mutable_withdraw_ack()->set_region(row);
          ack.mutable_withdraw_ack()->set_region_epoch(region_epoch);
          self->link.Post(ack);
        };
      }
      peers.Remove(withdraw.region(), withdraw.region_epoch(), std::move(acknowledge));
      return;
    }
    default: return;  // a newer kvmd may announce what this library does not know
  }
}

Status Client::Impl::MapPeer(const kvmwire::RegionAnnounce& announce, Fds fds) {
  if (fds.empty()) return MakeError(Errc::kProtocol, "region announced without its generation table");
  const std::uint64_t identity = InodeOf(fds[0].get());
  if (std::shared_ptr<PeerMapping> known = peers.FindByIdentity(identity); known && (known->memory || !announce.has_payload())) {
    peers.Add(announce.region(), announce.region_epoch(), std::move(known));
    return {};
  }
  const kvmwire::RegionDescriptor& wire = announce.descriptor_();
  Geometry geometry = ParseGeometry(wire);
  std::vector<std::uint64_t> segment_bytes;
  for (const kvmwire::Segment& segment : wire.segments()) segment_bytes.push_back(segment.size_bytes());
  if (Status valid = geometry.Validate(segment_bytes); !valid) return valid;

  PeerGenerations generations;
  Result<MappedMemory> table = MappedMemory::Attach(fds[0].get(), GenerationTableBytes(geometry.block_count), HugePages::kTry);
  if (!table) return table.error();
  generations.memory = std::move(*table);
  Result<GenerationReader> reader = GenerationReader::Open({generations.memory.data(), generations.memory.size()}, geometry.block_count);
  if (!reader) return reader.error();
  generations.reader = *reader;

  std::shared_ptr<MemoryBackend> backend = BackendFor(static_cast<layout::HandleKind>(wire.handle_kind()));
  std::shared_ptr<PeerMemory> memory;
  if (backend && announce.has_payload()) {
    std::vector<SegmentHandle> segments;
    for (int i = 0; i < wire.segments_size(); ++i) {
      SegmentHandle handle;
      handle.size_bytes = wire.segments(i).size_bytes();
      handle.handle = wire.segments(i).handle();
      handle.handle_offset = wire.segments(i).handle_offset();
      handle.allocation = wire.segments(i).allocation();
      if (handle.handle.empty()) {
        if (static_cast<std::size_t>(i) + 1 >= fds.size()) return MakeError(Errc::kProtocol, "region announced without its segments");
        handle.fd = std::move(fds[static_cast<std::size_t>(i) + 1]);
      }
      segments.push_back(std::move(handle));
    }
    Result<std::unique_ptr<PeerMemory>> mapped = backend->Map(std::move(segments));
    if (!mapped) return mapped.error();
    memory = std::move(*mapped);
  }
  peers.Add(
      announce.region(), announce.region_epoch(),
      std::make_shared<PeerMapping>(std::move(geometry), std::move(generations), std::move(backend), std::move(memory), identity, false));
  return {};
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
  Pump();
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
  kvmwire::ClientMessage message;
  *message.mutable_stats_report() = report;
  link.Post(message);
}

// ---- models and regions -------------------------------------------------------------------------

Result<Model> Client::Impl::DeclareModel(const ModelSpec& spec, Deadline deadline) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  const Model model{spec, spec.ComputeFingerprint()};
  const auto same = [&](const Model& other) { return other.fingerprint == model.fingerprint; };
  {
    std::lock_guard lock(mutex_);
    if (std::none_of(models_.begin(), models_.end(), same)) models_.push_back(model);
  }
  if (!link.connected()) return model;  // declared on connecting
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec.Canonical());
  Result<kvmwire::ServerMessage> reply = link.Call(std::move(message), {}, deadline);
  if (!reply && reply.error().code != Errc::kUnavailable) {
    if (reply.error().code != Errc::kDeadlineExceeded) {
      std::lock_guard lock(mutex_);
      std::erase_if(models_, same);
    }
    return reply.error();
  }
  return model;
}

Result<std::shared_ptr<Region>> Client::Impl::AddRegion(std::shared_ptr<Region::Impl> region, Deadline deadline) {
  region->client = weak_from_this();
  {
    std::lock_guard lock(mutex_);
    regions_.push_back(region);
  }
  struct Waiting {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<Status> status;
  };
  if (link.connected()) {
    auto waiting = std::make_shared<Waiting>();
    RequestRegistration(region, [waiting](const Result<kvmwire::ServerMessage>& reply) {
      std::lock_guard lock(waiting->mutex);
      waiting->status = reply ? Status() : Status(reply.error());
      waiting->done.notify_all();
    });
    std::unique_lock lock(waiting->mutex);
    Status status = MakeError(Errc::kDeadlineExceeded, "kvmd did not register region " + region->options.name + " in time");
    if (waiting->done.wait_until(lock, deadline, [&] { return waiting->status.has_value(); })) status = *waiting->status;
    lock.unlock();
    // A lost connection is not an error: the region is registered on reconnecting.
    if (!status && status.error().code != Errc::kUnavailable) {
      static_cast<void>(Unregister(*region, After(std::chrono::milliseconds(0))));
      return status.error();
    }
  }
  return std::make_shared<Region>(std::move(region));
}

// Asked for by AllocateRegion and by every new connection; when both come together, one request serves both.
void Client::Impl::RequestRegistration(const std::shared_ptr<Region::Impl>& region, const Reply& done) {
  bool registered = false;
  {
    std::lock_guard lock(region->mutex);
    registered = region->registered;
    if (!registered) {
      if (done) region->registration_waiters.push_back(done);
      if (std::exchange(region->registering, true)) return;
    }
  }
  if (registered) {
    if (done) done(kvmwire::ServerMessage());
    return;
  }
  kvmwire::ClientMessage message;
  *message.mutable_register_region()->mutable_region() = region->Descriptor();
  std::vector<int> fds{region->generation_memory.fd()};
  for (const SegmentHandle& handle : region->memory->handles()) {
    if (handle.fd) fds.push_back(handle.fd.get());
  }
  link.Request(std::move(message), fds, [this, region](const Result<kvmwire::ServerMessage>& reply) {
    OnRegistered(region, reply);
    std::vector<Reply> waiters;
    {
      std::lock_guard lock(region->mutex);
      region->registering = false;
      waiters.swap(region->registration_waiters);
    }
    for (const Reply& waiter : waiters) waiter(reply);
  });
}

void Client::Impl::OnRegistered(const std::shared_ptr<Region::Impl>& region, const Result<kvmwire::ServerMessage>& reply) {
  if (!reply) {
    std::lock_guard lock(region->mutex);
    region->refusal = reply.error();
    return;
  }
  const kvmwire::RegisterRegionReply& registered = reply->register_region_reply();
  // This process's own view of the region, so that it finds and imports its own blocks like any other.
  PeerGenerations generations;
  Result<MappedMemory> table = MappedMemory::Attach(region->generation_memory.fd());
  if (table) {
    generations.memory = std::move(*table);
    if (auto reader =
            GenerationReader::Open({generations.memory.data(), generations.memory.size()}, region->options.geometry.block_count)) {
      generations.reader = *reader;
    }
    if (auto view = region->backend->View(*region->memory)) {
      // The view must not outlive the memory: both go with the mapping.
      std::shared_ptr<PeerMemory> memory(view->release(), [keep = region->memory](PeerMemory* peer) { delete peer; });
      peers.Add(registered.region(), registered.region_epoch(),
                std::make_shared<PeerMapping>(region->options.geometry, std::move(generations), region->backend, std::move(memory),
                                              region->Identity(), true));
    }
  }
  bool closed = false;
  {
    std::lock_guard lock(region->mutex);
    region->row = registered.region();
    region->region_epoch = registered.region_epoch();
    region->registered = true;
    region->republish_from = 0;  // what was published while it was not
    region->refusal = Error{};
    closed = region->closed;
    if (!closed) region->PumpLocked(*this);
  }
  if (closed) static_cast<void>(Unregister(*region, After(std::chrono::milliseconds(0))));
}

Status Client::Impl::Unregister(Region::Impl& region, Deadline deadline) {
  kvmwire::ClientMessage message;
  {
    std::lock_guard lock(region.mutex);
    region.closed = true;
    if (!region.registered) return {};
    region.registered = false;
    kvmwire::UnregisterRegion& request = *message.mutable_unregister_region();
    request.set_region(region.row);
    request.set_region_epoch(region.region_epoch);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    // A little less than the caller waits, so that kvmd is the one to say what is missing.
    request.set_ack_timeout_ms(static_cast<std::uint32_t>(std::clamp<std::int64_t>(left - left / 10, 1, 60'000)));
  }
  peers.RemoveByIdentity(region.Identity());
  {
    std::lock_guard lock(mutex_);
    std::erase_if(regions_, [&](const std::weak_ptr<Region::Impl>& other) { return other.lock().get() == &region; });
  }
  Result<kvmwire::ServerMessage> reply = link.Call(std::move(message), {}, deadline);
  if (!reply && reply.error().code != Errc::kUnavailable) return reply.error();
  return {};
}

// ---- publishing ---------------------------------------------------------------------------------

std::size_t Client::Impl::SendRecords(Region::Impl& region, std::span<const PublishRecord> records, bool deferred) {
  const std::size_t window = deferred ? std::min(kRepublishWindow, options.max_queued_publishes) : options.max_queued_publishes;
  std::size_t sent = 0;
  while (sent < records.size()) {
    const std::span<const PublishRecord> batch = records.subspan(sent, std::min(records.size() - sent, kMaxPublishBatch));
    kvmwire::ClientMessage message;
    kvmwire::Publish& publish = *message.mutable_publish();
    publish.set_region(region.row);
    publish.set_region_epoch(region.region_epoch);
    publish.set_records(batch.data(), batch.size_bytes());
    // Held while sending, so that sequences reach kvmd in order.
    std::lock_guard lock(publish_mutex_);
    if (unanswered_records_ > 0 && unanswered_records_ + batch.size() > window) break;
    publish.set_sequence(last_sequence_ + 1);
    if (!link.Post(message)) break;
    ++last_sequence_;
    unanswered_records_ += batch.size();
    unanswered_.emplace_back(last_sequence_, batch.size());
    sent += batch.size();
  }
  return sent;
}

void Client::Impl::OnAck(const kvmwire::PublishAck& ack) {
  bool pump = false;
  {
    std::lock_guard lock(publish_mutex_);
    std::size_t answered = 0;
    while (answered < unanswered_.size() && unanswered_[answered].first <= ack.sequence())
      unanswered_records_ -= unanswered_[answered++].second;
    unanswered_.erase(unanswered_.begin(), unanswered_.begin() + static_cast<std::ptrdiff_t>(answered));
    answered_sequence_ = std::max(answered_sequence_, ack.sequence());
    pump = unanswered_records_ < kRepublishWindow / 2;
  }
  stats.publishes_refused.fetch_add(ack.refused_full() + ack.refused_replicas() + ack.refused_stale() + ack.refused_invalid(),
                                    std::memory_order_relaxed);
  if (pump) Pump();
  publish_answered_.notify_all();
}

void Client::Impl::Pump() {
  for (const std::shared_ptr<Region::Impl>& region : Regions()) {
    std::lock_guard lock(region->mutex);
    if (region->registered && region->republish_from < region->records.size()) region->PumpLocked(*this);
  }
}

Status Client::Impl::Flush(Region::Impl& region, Deadline deadline) {
  while (std::chrono::steady_clock::now() < deadline) {
    bool all_sent = false;
    {
      std::lock_guard lock(region.mutex);
      if (!region.registered) {
        if (!region.refusal.message.empty() && region.refusal.code != Errc::kUnavailable) return region.refusal;
        return MakeError(Errc::kUnavailable, "region " + region.options.name + " is not registered with kvmd now");
      }
      all_sent = region.PumpLocked(*this);
    }
    std::unique_lock lock(publish_mutex_);
    const std::uint64_t target = last_sequence_;
    const auto answered = [&] { return answered_sequence_ >= target; };
    if (!publish_answered_.wait_until(lock, deadline, answered)) break;
    if (all_sent && link.connected()) return {};
  }
  return MakeError(Errc::kDeadlineExceeded, "kvmd has not answered all publishes in time");
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
  const std::uint64_t connections = load(stats.connections);
  out.reconnects = connections > 0 ? connections - 1 : 0;
  out.mapped_regions = peers.mapped_regions();
  return out;
}

}  // namespace kvm
