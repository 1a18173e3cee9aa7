#include "daemon/broker/broker.h"

#include <algorithm>
#include <string>
#include <utility>

#include "daemon/broker/status.h"
#include "daemon/system/log.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

constexpr std::size_t kMaxReasonBytes = 200;  // of a client's words, kept for operators
constexpr std::size_t kMaxWaitingReplies = 16;

void NoteStats(Client& client, kvmwire::StatsReport& report) {
  report.set_unmapped_reason(report.unmapped_reason().substr(0, kMaxReasonBytes));
  client.stats = std::move(report);
}

LogLevel LevelOf(const Client& client) { return client.role == kvmwire::WORKER ? LogLevel::kInfo : LogLevel::kDebug; }

}  // namespace

Broker::Broker(const Config& config, std::function<void()> work_to_do, StateStore* state_store)
    : config_(config),
      work_to_do_(std::move(work_to_do)),
      persistence_(state_store, clients_),
      domains_(config, persistence_, [this](Domain& domain) { offload_.Forget(domain); }),
      leases_(config, clients_),
      announcer_(config, work_to_do_, clients_, domains_, leases_, persistence_),
      offload_(config, work_to_do_, clients_, domains_, announcer_, persistence_),
      restorer_(work_to_do_, clients_, domains_, persistence_, offload_.host_cache()),
      orphans_(config, clients_, domains_, leases_, persistence_, announcer_, restorer_),
      regions_(config, clients_, domains_, persistence_, announcer_, offload_, orphans_),
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

bool Broker::Greeted(ClientId id) const {
  const Client* client = clients_.Find(id);
  return client != nullptr && client->greeted;
}

void Broker::GoOnAnnouncing(ClientId id) {
  if (Client* client = clients_.Find(id)) announcer_.GoOn(*client);
}

void Broker::Leave(ClientId id, bool died) {
  const std::unique_ptr<Client> client = clients_.Take(id);
  if (!client || client->domain == nullptr) return;
  if (died) client->process->NoteEnd();
  leases_.Leave(*client);
  // A kvmd that stops leaves everything as it is for the next one.
  if (!closing_) {
    regions_.Leave(*client);
    orphans_.Leave(*client);
    announcer_.Leave(*client);
  }
  offload_.Leave(*client);
  client->domain->models().ForgetClient(id);
  --client->domain->clients;
  LogLimited(LevelOf(*client), died ? "client_died" : "client_left",
             {{"client", id}, {"name", client->name}, {"pid", client->credentials.pid}, {"domain", client->domain->name()}});
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
  if (hello.role() != kvmwire::WORKER && hello.role() != kvmwire::OBSERVER) return MakeError(Errc::kProtocol, "unknown role");
  Result<Domain*> domain = domains_.For(client.credentials);
  if (!domain) {
    client.ReplyError(message.request_id(), domain.error());
    return domain.error();
  }
  client.greeted = true;
  client.domain = *domain;
  ++client.domain->clients;
  client.role = hello.role();
  client.name = hello.client_name();
  client.instance = hello.instance();
  client.wants_payload = hello.wants_payload();
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::HelloReply& reply = *message_out.mutable_hello_reply();
  reply.set_protocol_version(kProtocolVersion);
  reply.set_client_id(client.id);
  reply.set_domain(client.domain->name());
  reply.set_epoch(client.domain->segment().header().epoch);
  reply.set_server_version(KVM_VERSION);
  offload_.Describe(reply);
  client.connection->Send(message_out, {client.domain->segment().fd()});
  LogLimited(LevelOf(client), "client_joined",
             {{"client", client.id},
              {"name", client.name},
              {"pid", client.credentials.pid},
              {"uid", client.credentials.uid},
              {"domain", client.domain->name()},
              {"library", hello.library_version().substr(0, 32)}});
  return {};
}

// ---- messages -----------------------------------------------------------------------------------

Status Broker::Handle(ClientId id, kvmwire::ClientMessage message, std::vector<UniqueFd> fds) {
  Client* client = clients_.Find(id);
  if (client == nullptr) return MakeError(Errc::kCancelled, "client has left");
  return dispatcher_.Handle(*client, {std::move(message), std::move(fds)});
}

Status Broker::HandleWithoutDescriptors(ClientId id, const kvmwire::ClientMessage& message, const Error& why) {
  const Client* client = clients_.Find(id);
  if (client == nullptr) return MakeError(Errc::kCancelled, "client has left");
  return dispatcher_.HandleWithoutDescriptors(*client, message, why);
}

// Every message that a client may send. What is not here is refused.
std::vector<MessageRule> Broker::Rules() {
  using Message = kvmwire::ClientMessage;
  using enum Sender;
  using enum Answer;
  constexpr auto kNoFds = Descriptors::kNone, kFds = Descriptors::kAllowed;
  // A handler that answers whatever is wrong, and one that may find the protocol broken.
  const auto does = [](auto handler) {
    return [handler](Client& client, Request& request) -> Status {
      handler(client, request);
      return {};
    };
  };
  // clang-format off
  return {
    {Message::kHello, "hello", kStranger, kNoFds, kReply,
     [this](Client& client, Request& request) { return Hello(client, request.message); }},
    {Message::kPing, "ping", kMember, kNoFds, kReply,
     does([](Client& client, Request& request) { client.ReplyEmpty(request.message.request_id()); })},
    {Message::kStatsReport, "stats report", kMember, kNoFds, kNone,
     does([](Client& client, Request& request) { NoteStats(client, *request.message.mutable_stats_report()); })},
    {Message::kStatusQuery, "status query", kMember, kNoFds, kReply,
     does([this](Client& client, Request& request) { ReplyStatus(client, request.message); })},

    {Message::kDeclareModel, "declare model", kWorker, kNoFds, kReply,
     does([this](Client& client, Request& request) { announcer_.DeclareModel(client, request.message); })},
    {Message::kWithdrawAck, "withdraw ack", kMember, kNoFds, kNone,
     does([this](Client& client, Request& request) { announcer_.WithdrawAck(client, request.message.withdraw_ack()); })},

    {Message::kRegisterRegion, "register region", kWorker, kFds, kReply,
     does([this](Client& client, Request& request) { regions_.Register(client, std::move(request.message), std::move(request.fds)); })},
    {Message::kUnregisterRegion, "unregister", kWorker, kNoFds, kReply,
     does([this](Client& client, Request& request) { regions_.Unregister(client, request.message); })},
    {Message::kPublish, "publish", kWorker, kNoFds, kAck,
     [this](Client& client, Request& request) { return regions_.Publish(client, request.message.publish()); }},
    {Message::kRetract, "retract", kWorker, kNoFds, kNone,
     [this](Client& client, Request& request) { return regions_.Retract(client, request.message.retract()); }},

    {Message::kAllocateMemory, "memory", kWorker, kNoFds, kReply,
     does([this](Client& client, Request& request) { orphans_.AllocateMemory(client, request.message); })},
    {Message::kAdoptRegion, "adopt region", kWorker, kNoFds, kReply,
     does([this](Client& client, Request& request) { orphans_.Adopt(client, request.message); })},
    {Message::kReclaim, "reclaim", kMember, kNoFds, kReply,
     does([this](Client& client, Request& request) { orphans_.Reclaim(client, request.message); })},

    {Message::kPrepareStore, "offload", kWorker, kNoFds, kReply,
     [this](Client& client, Request& request) { return offload_.PrepareStore(client, std::move(request.message)); }},
    {Message::kCompleteStore, "offload done", kWorker, kNoFds, kNone,
     [this](Client& client, Request& request) { return offload_.CompleteStore(client, request.message.complete_store()); }},
    {Message::kHostCacheUse, "host cache use", kWorker, kNoFds, kNone,
     [this](Client& client, Request& request) { return offload_.Use(client, request.message.host_cache_use()); }},

    {Message::kAcquireLease, "lease", kWorker, kNoFds, kReply,
     [this](Client& client, Request& request) { return leases_.Acquire(client, request.message); }},
    {Message::kRenewLease, "renew lease", kWorker, kNoFds, kReply,
     does([this](Client& client, Request& request) { leases_.Renew(client, request.message); })},
    {Message::kReleaseLease, "release lease", kWorker, kNoFds, kNone,
     does([this](Client& client, Request& request) { leases_.Release(client, request.message.release_lease()); })},
  };
  // clang-format on
}

void Broker::ReplyStatus(const Client& client, const kvmwire::ClientMessage& message) const {
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  *reply.mutable_status_reply() = BuildStatus({.config = config_,
                                               .clients = clients_,
                                               .domains = domains_,
                                               .lessor = leases_.lessor(),
                                               .host_cache = offload_.host_cache(),
                                               .started_ms = started_ms_,
                                               .rejected_connections = rejected_connections,
                                               .protocol_errors = protocol_errors},
                                              client, message.status_query());
  client.connection->Send(reply);
}

// ---- time ---------------------------------------------------------------------------------------

void Broker::Tick(SteadyTime now) {
  leases_.Expire(now);  // first: what only they kept goes now
  regions_.DropDamagedRegions();
  orphans_.Expire(now);
  announcer_.AnswerWaiting(now);
  orphans_.AnswerWaiting(now);
  domains_.ForEach([](Domain& domain) {
    domain.segment().Heartbeat();
    domain.WriteRows();
  });
  clients_.ForEach([&](Client& client) { announcer_.GoOn(client); });
  offload_.Tick(now);
}

SteadyTime Broker::next_deadline() const noexcept { return std::min(announcer_.next_deadline(), orphans_.next_deadline()); }

bool Broker::Work() {
  constexpr std::uint32_t kSlice = 4096;
  bool more = restorer_.Work();
  domains_.ForEach([&](Domain& domain) {
    more = domain.Reap(kSlice) || more;
    more = domain.segment().MakeSomeHuge() || more;
  });
  announcer_.AnswerWaiting(SteadyTime::min());
  orphans_.AnswerWaiting(SteadyTime::min());
  return offload_.Work() || more;
}

void Broker::Sweep() {
  domains_.ForEach([&](Domain& domain) { domain.Sweep(config_.sweep_slots); });
}

void Broker::Close() {
  closing_ = true;
  domains_.ForEach([](Domain& domain) { domain.segment().SetState(layout::SegmentState::kClosed); });
}

}  // namespace kvm::daemon
