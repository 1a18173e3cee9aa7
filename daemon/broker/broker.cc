#include "daemon/broker/broker.h"

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "daemon/broker/clients/client_totals.h"
#include "daemon/broker/status/status.h"
#include "daemon/system/log.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// Of a client's text, which is kept for operators
constexpr std::size_t kMaxUnmappedReasonBytes = 200;
constexpr std::size_t kMaxWaitingReplies = 16;
constexpr std::size_t kLookedAtOnce = 128;  // files of granted memory, in a tick

void Ping(const Client& client, const kvmwire::ClientMessage& message) { client.ReplyEmpty(message.request_id()); }

Status NoteStats(Client& client, kvmwire::ClientMessage message) {
  kvmwire::StatsReport& report = *message.mutable_stats_report();
  for (const kvmwire::Durations* times : {&report.lookup_times(), &report.import_times()}) {
    if (times->counts_size() > static_cast<int>(kDurationBuckets)) return MakeError(Errc::kProtocol, "stats report: too many durations");
  }
  if (report.recent_misses_size() > static_cast<int>(kMaxRecentMisses)) return MakeError(Errc::kProtocol, "stats report: too many misses");
  for (const kvmwire::RecentMiss& miss : report.recent_misses()) {
    if (!miss.key().empty() && miss.key().size() != sizeof(BlockKey))
      return MakeError(Errc::kProtocol, "stats report: a key is not 16 bytes");
  }
  if (report.traffic_size() > static_cast<int>(kMaxTrafficPairs))
    return MakeError(Errc::kProtocol, "stats report: too many pairs of devices");
  for (const kvmwire::DeviceTraffic& pair : report.traffic()) {
    for (const std::string* device : {&pair.from_device(), &pair.to_device()}) {
      if (!device->empty() && device->size() != sizeof(layout::RegionInfo::device_uuid))
        return MakeError(Errc::kProtocol, "stats report: a device's name is not 16 bytes");
    }
  }
  report.set_unmapped_reason(report.unmapped_reason().substr(0, kMaxUnmappedReasonBytes));
  const kvmwire::StatsReport* const before = client.has_reported ? &client.stats : nullptr;
  AddReport(client.domain->client_totals, before, report);
  ModelTable& models = client.domain->models();
  Spend(models.live() / 8);
  if (const std::optional<std::uint32_t> model = models.OnlyModelOf(client.id)) AddCounters(models.totals(*model), before, report);
  client.has_reported = true;
  client.stats = std::move(report);
  return {};
}

// Handlers of messages: a function or a service's method that takes the message, or a method that
// takes its body. Handlers that return nothing have answered all errors; others may return that the
// client broke the protocol.
template <class Call>
Status StatusOf(Call&& call) {
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    return {};
  } else {
    return call();
  }
}
template <class Function>
auto To(Function function) {
  return [function](Client& client, Request& request) { return StatusOf([&] { return function(client, std::move(request.message)); }); };
}
template <class Service, class Method>
auto To(Service& service, Method method) {
  return [&service, method](Client& client, Request& request) {
    return StatusOf([&] { return (service.*method)(client, std::move(request.message)); });
  };
}
template <class Service, class Method, class Body>
auto To(Service& service, Method method, Body body) {
  return [&service, method, body](Client& client, Request& request) {
    return StatusOf([&] { return (service.*method)(client, (request.message.*body)()); });
  };
}

// Entries of regions that leave
constexpr std::uint32_t kReapedAtOnce = 4096;

std::string DomainName(const Client& client) { return client.domain == nullptr ? "none" : client.domain->name(); }

LogLevel LevelOf(const Client& client) { return client.role == kvmwire::WORKER ? LogLevel::kInfo : LogLevel::kDebug; }

}  // namespace

Broker::Broker(const Config& config, std::function<void()> work_to_do, StateStore* state_store, HugePageMaker* huge_pages,
               MemoryFreer* memory_freer, DescriptorCloser* closer)
    : config_(config),
      work_to_do_(std::move(work_to_do)),
      huge_pages_(huge_pages != nullptr ? *huge_pages : huge_pages_now_),
      memory_freer_(memory_freer != nullptr ? *memory_freer : free_now_),
      persistence_(state_store, clients_),
      domains_(config, persistence_, memory_freer_, closer,
               [this](Domain& domain, const WorkBudget& budget) { return GiveUp(domain, budget); }),
      leases_(config, work_to_do_, clients_),
      announcer_(config, work_to_do_, clients_, domains_, leases_, persistence_),
      offload_(config, work_to_do_, clients_, domains_, announcer_, persistence_, huge_pages_, memory_freer_),
      restorer_(work_to_do_, clients_, domains_, persistence_, offload_.host_cache()),
      orphans_(config, clients_, domains_, leases_, persistence_, announcer_, restorer_, closer),
      regions_(config, clients_, domains_, persistence_, announcer_, offload_, orphans_),
      evictions_(config, domains_, offload_),
      dispatcher_(Rules()) {}

// ---- membership ---------------------------------------------------------------------------------

ClientId Broker::Join(Connection& connection, const Credentials& credentials, UniqueFd process) {
  return clients_.Add(connection, credentials, std::move(process)).id;
}

int Broker::ProcessOf(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client == nullptr ? -1 : client->process->pidfd();
}

bool Broker::Behind(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && client->announcements.replies() >= kMaxWaitingReplies;
}

bool Broker::Busy(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && client->busy();
}

void Broker::GoOn(ClientId id) {
  if (Client* client = clients_.Find(id)) client->GoOn();
}

Status Broker::Outcome(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && client->dropped ? Status(*client->dropped) : Status();
}

// A stranger can be busy with its hello only.
bool Broker::Greeted(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && (client->greeted || client->busy());
}

bool Broker::HasToTell(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && !client->announcements.empty();
}

void Broker::GoOnAnnouncing(ClientId id) {
  if (Client* client = clients_.Find(id)) announcer_.GoOn(*client);
}

void Broker::Leave(ClientId id, bool died) {
  const std::unique_ptr<Client> client = clients_.Take(id);
  if (!client || !client->greeted) return;
  if (died) client->process->NoteEnd();
  if (client->domain != nullptr) LeaveDomain(*client);
  LogLimited(LevelOf(*client), died ? "client_died" : "client_left",
             {{"client", id}, {"name", client->name}, {"pid", client->credentials.pid}, {"domain", DomainName(*client)}});
}

void Broker::LeaveDomain(Client& client) {
  leases_.Leave(client);
  marks_.Leave(client);
  // A kvmd that stops leaves its state unchanged for the next one.
  if (!closing_) {
    regions_.Leave(client);
    orphans_.Leave(client);
    announcer_.Leave(client);
  }
  offload_.Leave(client);
  client.domain->models().ForgetClient(client.id);
  --client.domain->clients;
}

Status Broker::Hello(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Hello& hello = message.hello();
  if (hello.protocol_version() != kProtocolVersion) {
    Error error = MakeError(Errc::kVersionMismatch, "protocol version " + std::to_string(hello.protocol_version()) + ", this kvmd speaks " +
                                                        std::to_string(kProtocolVersion));
    client.ReplyError(message.request_id(), error);
    return error;
  }
  if (hello.client_name().size() > kMaxNameBytes) return MakeError(Errc::kInvalidArgument, "client name is too long");
  if (hello.role() != kvmwire::WORKER && hello.role() != kvmwire::OBSERVER && hello.role() != kvmwire::MONITOR)
    return MakeError(Errc::kProtocol, "unknown role");
  if (hello.role() == kvmwire::MONITOR) {
    Welcome(client, message);
    return {};
  }
  // Its domain may have to be made first.
  client.Work([this, message, making = DomainTable::Making()](Client& its, const WorkBudget& budget) mutable {
    const Result<Domain*> domain = domains_.MakeFor(its.credentials, making, budget);
    if (domain && *domain == nullptr) return false;
    if (domain) {
      its.domain = *domain;
      ++its.domain->clients;
      Welcome(its, message);
    } else {
      its.ReplyError(message.request_id(), domain.error());
      its.dropped = domain.error();
    }
    return true;
  });
  return Outcome(client.id);
}

void Broker::Welcome(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Hello& hello = message.hello();
  client.greeted = true;
  client.role = hello.role();
  client.name = hello.client_name();
  client.instance = hello.instance();
  client.wants_payload = hello.wants_payload();
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::HelloReply& reply = *message_out.mutable_hello_reply();
  reply.set_protocol_version(kProtocolVersion);
  reply.set_client_id(client.id);
  reply.set_server_version(KVM_VERSION);
  std::vector<int> registry;
  if (client.domain != nullptr) {
    reply.set_domain(client.domain->name());
    reply.set_epoch(client.domain->segment().header().epoch);
    offload_.Describe(reply);
    registry.push_back(client.domain->segment().fd());
  }
  client.connection->Send(message_out, registry);
  LogLimited(LevelOf(client), "client_joined",
             {{"client", client.id},
              {"name", client.name},
              {"pid", client.credentials.pid},
              {"uid", client.credentials.uid},
              {"domain", DomainName(client)},
              {"library", hello.library_version().substr(0, 32)}});
}

// ---- messages -----------------------------------------------------------------------------------

Status Broker::Handle(ClientId id, kvmwire::ClientMessage message, std::vector<PeerFd> fds) {
  Client* client = clients_.Find(id);
  if (client == nullptr) return MakeError(Errc::kCancelled, "client has left");
  while (client->busy()) client->GoOn();
  return dispatcher_.Handle(*client, {std::move(message), std::move(fds)});
}

Status Broker::HandleWithoutDescriptors(ClientId id, const kvmwire::ClientMessage& message, const Error& why) {
  const Client* client = clients_.Find(id);
  if (client == nullptr) return MakeError(Errc::kCancelled, "client has left");
  return dispatcher_.HandleWithoutDescriptors(*client, message, why);
}

// Every message that a client may send. A message that is not in this table is refused.
std::vector<MessageRule> Broker::Rules() {
  using Message = kvmwire::ClientMessage;
  using enum Sender;
  using enum Answer;
  constexpr auto kNoFds = Descriptors::kNone, kFds = Descriptors::kAllowed;
  const auto register_region = [this](Client& client, Request& request) -> Status {
    regions_.Register(client, std::move(request.message), std::move(request.fds));
    return {};
  };
  return {
      {Message::kHello, "hello", kStranger, kNoFds, kReply, To(*this, &Broker::Hello)},
      {Message::kPing, "ping", kAll, kNoFds, kReply, To(&Ping)},
      {Message::kStatsReport, "stats report", kMember, kNoFds, kNone, To(&NoteStats)},
      {Message::kStatusQuery, "status query", kAll, kNoFds, kReply, To(*this, &Broker::ReplyStatus)},

      {Message::kDeclareModel, "declare model", kWorker, kNoFds, kReply, To(announcer_, &RegionAnnouncer::DeclareModel)},
      {Message::kWithdrawAck, "withdraw ack", kMember, kNoFds, kNone,
       To(announcer_, &RegionAnnouncer::WithdrawAck, &Message::withdraw_ack)},

      {Message::kRegisterRegion, "register region", kWorker, kFds, kReply, register_region},
      {Message::kUnregisterRegion, "unregister region", kWorker, kNoFds, kReply, To(regions_, &RegionService::Unregister)},
      {Message::kPublish, "publish", kWorker, kNoFds, kAck, To(regions_, &RegionService::Publish)},
      {Message::kRetract, "retract", kWorker, kNoFds, kNone, To(regions_, &RegionService::Retract)},

      {Message::kAllocateMemory, "allocate memory", kWorker, kNoFds, kReply, To(orphans_, &OrphanService::AllocateMemory)},
      {Message::kAdoptRegion, "adopt region", kWorker, kNoFds, kReply, To(orphans_, &OrphanService::Adopt)},
      {Message::kReclaim, "reclaim", kMember, kNoFds, kReply, To(orphans_, &OrphanService::Reclaim)},

      {Message::kPrepareStore, "prepare store", kWorker, kNoFds, kReply, To(offload_, &OffloadService::PrepareStore)},
      {Message::kCompleteStore, "complete store", kWorker, kNoFds, kNone, To(offload_, &OffloadService::CompleteStore)},
      {Message::kHostCacheUse, "host cache use", kWorker, kNoFds, kNone, To(offload_, &OffloadService::Use)},

      {Message::kEvict, "evict", kMember, kNoFds, kReply, To(evictions_, &EvictService::Evict)},

      {Message::kAcquireLease, "acquire lease", kWorker, kNoFds, kReply, To(leases_, &LeaseService::Acquire)},
      {Message::kRenewLease, "renew lease", kWorker, kNoFds, kReply, To(leases_, &LeaseService::Renew)},
      {Message::kReleaseLease, "release lease", kWorker, kNoFds, kNone, To(leases_, &LeaseService::Release, &Message::release_lease)},

      {Message::kMarkComputing, "mark computing", kWorker, kNoFds, kReply, To(marks_, &MarkService::Mark)},
      {Message::kEndComputing, "end computing", kWorker, kNoFds, kNone, To(marks_, &MarkService::End, &Message::end_computing)},
  };
}

void Broker::ReplyStatus(Client& client, const kvmwire::ClientMessage& message) {
  const StatusSources sources{.config = config_,
                              .clients = clients_,
                              .domains = domains_,
                              .lessor = leases_.lessor(),
                              .host_cache = offload_.host_cache(),
                              .keeps_state = persistence_.stores(),
                              .started_ms = started_ms_,
                              .rejected_connections = rejected_connections,
                              .protocol_errors = protocol_errors};
  client.Work([answer = std::make_shared<StatusAnswer>(sources, message.status_query()), id = message.request_id()](
                  Client& its, const WorkBudget& budget) {
    if (!answer->GoOn(its, budget)) return false;
    kvmwire::ServerMessage reply;
    reply.set_request_id(id);
    *reply.mutable_status_reply() = std::move(answer->reply());
    its.connection->Send(reply);
    return true;
  });
}

// ---- time ---------------------------------------------------------------------------------------

void Broker::Tick(SteadyTime now) {
  leases_.Expire(now);  // first, so that blocks which only these leases kept can be freed now
  regions_.DropDamagedRegions();
  orphans_.Expire(now);
  announcer_.AnswerWaiting(now);
  static_cast<void>(orphans_.AnswerWaiting(now));  // the next tick comes at once if one is overdue
  domains_.ForEach([now](Domain& domain) {
    domain.segment().Heartbeat();
    domain.WriteRows();
    domain.marks().Expire(static_cast<std::uint64_t>(now.time_since_epoch().count()), WorkBudget());
  });
  announcer_.GoOnAll();
  offload_.Tick(now);
  domains_.granted().Look(kLookedAtOnce);
}

SteadyTime Broker::next_deadline() const noexcept { return std::min(announcer_.next_deadline(), orphans_.next_deadline()); }

bool Broker::Work() {
  bool more = restorer_.Work();
  more = leases_.Work() || more;
  domains_.ForEach([&](Domain& domain) {
    Spend(1);
    more = domain.Reap(kReapedAtOnce) || more;
    more = domain.segment().MakeSomeHuge(huge_pages_) || more;
  });
  more = announcer_.Work() || more;
  announcer_.AnswerWaiting(SteadyTime::min());
  more = orphans_.AnswerWaiting(SteadyTime::min()) || more;
  return offload_.Work() || more;
}

// Who needs the domain's place works for it.
bool Broker::GiveUp(Domain& domain, const WorkBudget& budget) {
  // No client is left, so all leases of the domain are about to end.
  const bool left = leases_.Work(budget) || !offload_.GiveUpAll(domain, budget);
  if (!left) domain.Reap(kReapedAtOnce);
  if (left || !domain.empty()) return false;
  offload_.Forget(domain);
  return true;
}

void Broker::Sweep() {
  domains_.ForEach([&](Domain& domain) { domain.Sweep(config_.sweep_slots); });
}

void Broker::Close() {
  closing_ = true;
  domains_.ForEach([](Domain& domain) { domain.segment().SetState(layout::SegmentState::kClosed); });
}

}  // namespace kvm::daemon
