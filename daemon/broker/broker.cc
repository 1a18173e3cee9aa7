#include "daemon/broker/broker.h"

#include <algorithm>

#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

constexpr std::size_t kMaxReasonBytes = 200;  // of a client's words, kept for operators
constexpr std::size_t kMaxErrorBytes = 1024;  // of an error that is sent: it may quote what the client has sent
constexpr std::size_t kMaxWaitingReplies = 16;

}  // namespace

Broker::Broker(const Config& config, std::function<void()> work_to_do, StateStore* state_store)
    : config_(config),
      work_to_do_(std::move(work_to_do)),
      descriptors_(config, state_store != nullptr && state_store->stores()),
      leases_(config),
      state_store_(state_store) {
  if (config.host_cache_bytes != 0) host_cache_ = std::make_unique<HostCache>(config, static_cast<HostCacheEvents&>(*this));
}
Broker::~Broker() = default;

ClientId Broker::Join(Connection& connection, const Credentials& credentials, UniqueFd process) {
  auto client = std::make_unique<Client>();
  client->id = next_client_++;
  client->connection = &connection;
  client->credentials = credentials;
  client->process = std::make_shared<WatchedProcess>(std::move(process), false);
  client->connected_ms = RealtimeMs();
  const ClientId id = client->id;
  clients_.emplace(id, std::move(client));
  return id;
}

int Broker::ProcessOf(ClientId client) const {
  const auto found = clients_.find(client);
  return found == clients_.end() ? -1 : found->second->process->pidfd();
}

bool Broker::Behind(ClientId client) const {
  const auto found = clients_.find(client);
  return found != clients_.end() && found->second->announcements.replies() >= kMaxWaitingReplies;
}

bool Broker::Greeted(ClientId client) const {
  const auto found = clients_.find(client);
  return found != clients_.end() && found->second->greeted;
}

void Broker::Leave(ClientId id, bool died) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  const std::unique_ptr<Client> client = std::move(found->second);
  clients_.erase(found);
  if (client->domain == nullptr) return;
  if (died) client->process->NoteEnd();
  EndLeasesOf(*client);
  // A kvmd that stops leaves everything as it is for the next one.
  if (!closing_) DropRegionsOf(*client);
  LeaveHostCache(*client);
  client->domain->models().ForgetClient(id);
  --client->domain->clients;
  LogLimited(client->role == kvmwire::WORKER ? LogLevel::kInfo : LogLevel::kDebug, died ? "client_died" : "client_left",
             {{"client", id}, {"name", client->name}, {"pid", client->credentials.pid}, {"domain", client->domain->name()}});
}

// ---- messages -----------------------------------------------------------------------------------

Status Broker::Handle(ClientId id, kvmwire::ClientMessage message, std::vector<UniqueFd> fds) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return MakeError(Errc::kCancelled, "client has left");
  Client& client = *found->second;
  using Message = kvmwire::ClientMessage;
  if (!fds.empty() && message.body_case() != Message::kRegisterRegion)
    return MakeError(Errc::kProtocol, "descriptors with a message that takes none");
  if (!client.greeted) {
    if (message.body_case() != Message::kHello) return MakeError(Errc::kProtocol, "the first message is not a hello");
    return HandleHello(client, message);
  }
  const bool worker_only = message.body_case() == Message::kDeclareModel || message.body_case() == Message::kRegisterRegion ||
                           message.body_case() == Message::kUnregisterRegion || message.body_case() == Message::kPublish ||
                           message.body_case() == Message::kRetract || message.body_case() == Message::kAllocateMemory ||
                           message.body_case() == Message::kAdoptRegion || message.body_case() == Message::kPrepareStore ||
                           message.body_case() == Message::kCompleteStore || message.body_case() == Message::kHostCacheUse ||
                           message.body_case() == Message::kAcquireLease || message.body_case() == Message::kRenewLease ||
                           message.body_case() == Message::kReleaseLease;
  if (worker_only && client.role != kvmwire::WORKER) {
    ReplyError(client, message.request_id(), MakeError(Errc::kPermissionDenied, "observers only read"));
    return {};
  }
  switch (message.body_case()) {
    case Message::kHello: return MakeError(Errc::kProtocol, "a second hello");
    case Message::kDeclareModel: HandleDeclareModel(client, message); return {};
    case Message::kRegisterRegion: HandleRegisterRegion(client, std::move(message), std::move(fds)); return {};
    case Message::kUnregisterRegion: HandleUnregisterRegion(client, message); return {};
    case Message::kPublish: return HandlePublish(client, message.publish());
    case Message::kRetract: return HandleRetract(client, message.retract());
    case Message::kPrepareStore: return HandlePrepareStore(client, std::move(message));
    case Message::kCompleteStore: return HandleCompleteStore(client, message.complete_store());
    case Message::kHostCacheUse: return HandleHostCacheUse(client, message.host_cache_use());
    case Message::kAcquireLease: return HandleAcquireLease(client, message);
    case Message::kRenewLease: HandleRenewLease(client, message); return {};
    case Message::kReleaseLease: HandleReleaseLease(client, message.release_lease()); return {};
    case Message::kWithdrawAck: HandleWithdrawAck(client, message.withdraw_ack()); return {};
    case Message::kStatsReport:
      message.mutable_stats_report()->set_unmapped_reason(message.stats_report().unmapped_reason().substr(0, kMaxReasonBytes));
      client.stats = message.stats_report();
      return {};
    case Message::kStatusQuery: HandleStatusQuery(client, message); return {};
    case Message::kAllocateMemory: HandleAllocateMemory(client, message); return {};
    case Message::kAdoptRegion: HandleAdoptRegion(client, message); return {};
    case Message::kReclaim: HandleReclaim(client, message); return {};
    case Message::kPing: ReplyEmpty(client, message.request_id()); return {};
    case Message::BODY_NOT_SET: break;
  }
  Error error = MakeError(Errc::kProtocol, "unknown message");
  ReplyError(client, message.request_id(), error);
  return error;
}

Status Broker::HandleWithoutDescriptors(ClientId id, const kvmwire::ClientMessage& message, const Error& why) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return MakeError(Errc::kCancelled, "client has left");
  Client& client = *found->second;
  if (!client.greeted || message.body_case() != kvmwire::ClientMessage::kRegisterRegion)
    return MakeError(Errc::kProtocol, "descriptors with a message that takes none");
  LogLimited(LogLevel::kError, "out_of_descriptors",
             {{"what", "those of a request"}, {"client", client.id}, {"reason", why.ToString()}, {"raise", "LimitNOFILE= of kvmd's unit"}});
  ReplyError(client, message.request_id(), MakeError(Errc::kResourceExhausted, "register region: kvmd is " + why.ToString()));
  return {};
}

void Broker::ReplyEmpty(Client& client, std::uint64_t request_id) {
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  reply.mutable_empty();
  client.connection->Send(reply);
}

void Broker::ReplyError(Client& client, std::uint64_t request_id, const Error& error) {
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  reply.mutable_error()->set_code(static_cast<std::uint32_t>(error.code));
  reply.mutable_error()->set_message(error.ToString().substr(0, kMaxErrorBytes));
  client.connection->Send(reply);
  // Unavailable: not yet; it is asked for again.
  LogLimited(error.code == Errc::kUnavailable ? LogLevel::kDebug : LogLevel::kWarn, "request_refused",
             {{"client", client.id},
              {"name", client.name},
              {"pid", client.credentials.pid},
              {"error", ErrcName(error.code)},
              {"reason", error.ToString()}});
}

Status Broker::HandleHello(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Hello& hello = message.hello();
  if (hello.protocol_version() != kProtocolVersion) {
    Error error = MakeError(Errc::kVersionMismatch, "protocol version " + std::to_string(hello.protocol_version()) + ", this kvmd speaks " +
                                                        std::to_string(kProtocolVersion));
    ReplyError(client, message.request_id(), error);
    return error;
  }
  if (hello.client_name().size() > kMaxNameBytes) return MakeError(Errc::kInvalidArgument, "client name is too long");
  if (hello.role() != kvmwire::WORKER && hello.role() != kvmwire::OBSERVER) return MakeError(Errc::kProtocol, "unknown role");
  Result<Domain*> domain = DomainFor(client.credentials);
  if (!domain) {
    ReplyError(client, message.request_id(), domain.error());
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
  DescribeHostCache(reply);
  client.connection->Send(message_out, {client.domain->segment().fd()});
  LogLimited(client.role == kvmwire::WORKER ? LogLevel::kInfo : LogLevel::kDebug, "client_joined",
             {{"client", client.id},
              {"name", client.name},
              {"pid", client.credentials.pid},
              {"uid", client.credentials.uid},
              {"domain", client.domain->name()},
              {"library", hello.library_version().substr(0, 32)}});
  return {};
}

Result<Domain*> Broker::DomainFor(const Credentials& credentials) {
  std::string name = "node";
  switch (config_.domain_mode) {
    case DomainMode::kUid: name = "uid-" + std::to_string(credentials.uid); break;
    case DomainMode::kGid: name = "gid-" + std::to_string(credentials.gid); break;
    case DomainMode::kNode: break;
  }
  return DomainNamed(name);
}

Result<Domain*> Broker::DomainNamed(const std::string& name) {
  if (const auto found = domains_.find(name); found != domains_.end()) return found->second.get();
  if (domains_.size() >= config_.max_domains && !DropIdleDomain()) {
    return MakeError(Errc::kResourceExhausted,
                     "no room for domain " + name + ": the limit is " + std::to_string(config_.max_domains) + " (--max-domains)");
  }
  Result<std::unique_ptr<Domain>> domain = Domain::Create(name, config_, descriptors_);
  if (!domain) {
    LogLimited(LogLevel::kError, "domain_failed", {{"domain", name}, {"reason", domain.error().ToString()}});
    return MakeError(Errc::kResourceExhausted, "domain " + name + ": " + domain.error().ToString());
  }
  LogLimited(LogLevel::kInfo, "domain_created", {{"domain", name}, {"segment_bytes", (*domain)->segment().size()}});
  if (state_store_ != nullptr) state_store_->PersistRegistry((*domain)->segment());
  KVM_FAULT_POINT(kvmd_restore_registry);
  return domains_.emplace(name, std::move(*domain)).first->second.get();
}

std::uint64_t Broker::RegistryBytesToCome() const {
  const std::uint64_t registry = RegistrySegment::BytesFor({config_.max_entries, config_.max_regions, config_.max_models});
  const std::uint64_t most = MostDomains(config_), made = domains_.size();
  // The next kvmd makes its own beside those that it is given.
  const std::uint64_t again = state_store_ != nullptr && state_store_->stores() ? made : 0;
  return registry * ((most > made ? most - made : 0) + again);
}

// A domain is kept when its last client leaves, since the next one is likely to come soon, but not at
// the price of another domain.
bool Broker::DropIdleDomain() {
  for (auto domain = domains_.begin(); domain != domains_.end(); ++domain) {
    if (domain->second->clients > 0 || !domain->second->idle()) continue;
    LogLimited(LogLevel::kInfo, "domain_dropped", {{"domain", domain->first}, {"reason", "idle, another one needs its place"}});
    domain->second->segment().SetState(layout::SegmentState::kSuperseded);
    if (host_cache_) host_cache_->Forget(*domain->second);
    if (state_store_ != nullptr) state_store_->ForgetRegistry(domain->second->epoch());
    domains_.erase(domain);
    return true;
  }
  return false;
}

void Broker::HandleDeclareModel(Client& client, const kvmwire::ClientMessage& message) {
  Result<ModelSpec> spec = ModelSpec::FromCanonical(message.declare_model().spec());
  if (!spec) return ReplyError(client, message.request_id(), spec.error());
  const Result<ModelTable::Declared> declared = client.domain->models().Declare(client.id, *spec);
  if (!declared) return ReplyError(client, message.request_id(), declared.error());
  if (!declared->before || message.declare_model().announce_again()) {
    for (Region* region : client.domain->ServingRegionsOfModel(declared->row)) {
      if (region->owner != client.id) Announce(client, *region);
    }
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  reply.mutable_declare_model_reply()->set_model(declared->row);
  client.announcements.AddReply(std::move(reply));
  SendAnnouncements(client);
}

Status Broker::HandlePublish(Client& client, const kvmwire::Publish& publish) {
  if (publish.records().size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "publish: records are cut off");
  if (publish.records().size() / sizeof(PublishRecord) > kMaxPublishBatch)
    return MakeError(Errc::kProtocol, "publish: too many records in one message");
  // Reading a hole would make kvmd pay for the memory in it.
  Region* region = client.domain->FindRegion(publish.region(), publish.region_epoch());
  if (region != nullptr && region->owner == client.id && region->live() && !region->table_whole()) DropDamaged(*client.domain, *region);
  kvmwire::ServerMessage message;
  *message.mutable_publish_ack() = client.domain->Publish(client.id, publish);
  client.connection->Send(message);
  return {};
}

Status Broker::HandleRetract(Client& client, const kvmwire::Retract& retract) {
  if (retract.blocks_size() > static_cast<int>(kMaxPublishBatch))
    return MakeError(Errc::kProtocol, "retract: too many blocks in one message");
  client.domain->Retract(client.id, retract);
  return {};
}

// ---- time ---------------------------------------------------------------------------------------

void Broker::Tick(SteadyTime now) {
  ExpireLeases(now);  // first: what only they kept goes now
  DropDamagedRegions();
  ExpireOrphans(now);
  CheckUnregisters(now);
  CheckReclaims(now);
  for (const auto& [name, domain] : domains_) {
    domain->segment().Heartbeat();
    domain->WriteRows();
  }
  for (const auto& [id, client] : clients_) SendAnnouncements(*client);
  if (host_cache_) host_cache_->Tick(now);
  AnswerWaitingStores();
}

bool Broker::Work() {
  constexpr std::uint32_t kSlice = 4096;
  bool more = RebuildSome();
  for (const auto& [name, domain] : domains_) {
    more = domain->Reap(kSlice) || more;
    more = domain->segment().MakeSomeHuge() || more;
  }
  CheckUnregisters(SteadyTime::min());
  CheckReclaims(SteadyTime::min());
  if (host_cache_) more = host_cache_->Work() || more;
  AnswerWaitingStores();
  return more;
}

void Broker::Sweep() {
  for (const auto& [name, domain] : domains_) domain->Sweep(config_.sweep_slots);
}

void Broker::Close() {
  closing_ = true;
  for (const auto& [name, domain] : domains_) domain->segment().SetState(layout::SegmentState::kClosed);
}

}  // namespace kvm::daemon
