#include "daemon/broker.h"

#include <unistd.h>

#include <algorithm>

#include "daemon/process_info.h"
#include "proto/protocol_limits.h"

namespace kvm::daemon {

struct Broker::Client {
  ClientId id = 0;
  Peer* peer = nullptr;
  Credentials credentials;
  bool greeted = false;
  kvmwire::Role role = kvmwire::WORKER;
  bool wants_payload = false;
  std::string name;
  Domain* domain = nullptr;
  std::uint64_t connected_ms = 0;
  kvmwire::StatsReport stats;
};

Broker::Broker(const Config& config) : config_(config) {}
Broker::~Broker() = default;

ClientId Broker::Join(Peer& peer, const Credentials& credentials) {
  auto client = std::make_unique<Client>();
  client->id = next_client_++;
  client->peer = &peer;
  client->credentials = credentials;
  client->connected_ms = RealtimeMs();
  const ClientId id = client->id;
  clients_.emplace(id, std::move(client));
  return id;
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
  for (Region* region : client->domain->RegionsOf(id)) {
    if (region->live()) Withdraw(*client->domain, *region, /*owner_died=*/true, /*wants_ack=*/false);
    region->waiting_for.clear();
    client->domain->StartLeaving(*region);
  }
  for (PendingUnregister& pending : unregisters_) {
    if (Region* region = pending.domain->FindRegion(pending.row, pending.region_epoch)) region->waiting_for.erase(id);
  }
  CheckUnregisters(SteadyTime::min());
  client->domain->ForgetClient(id);
  Log(LogLevel::kInfo, died ? "client_died" : "client_left",
      {{"client", id}, {"name", client->name}, {"pid", client->credentials.pid}, {"domain", client->domain->name()}});
}

// ---- messages -----------------------------------------------------------------------------------

Status Broker::Handle(ClientId id, kvmwire::ClientMessage message, std::vector<UniqueFd> fds) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return MakeError(Errc::kCancelled, "client has left");
  Client& client = *found->second;
  using Message = kvmwire::ClientMessage;
  if (!client.greeted) {
    if (message.body_case() != Message::kHello) return MakeError(Errc::kProtocol, "the first message is not a hello");
    return HandleHello(client, message);
  }
  if (!fds.empty() && message.body_case() != Message::kRegisterRegion)
    return MakeError(Errc::kProtocol, "descriptors with a message that takes none");
  const bool worker_only = message.body_case() == Message::kDeclareModel || message.body_case() == Message::kRegisterRegion ||
                           message.body_case() == Message::kUnregisterRegion || message.body_case() == Message::kPublish ||
                           message.body_case() == Message::kRetract;
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
    case Message::kRetract: client.domain->Retract(id, message.retract()); return {};
    case Message::kWithdrawAck: HandleWithdrawAck(client, message.withdraw_ack()); return {};
    case Message::kStatsReport: client.stats = message.stats_report(); return {};
    case Message::kStatusQuery: HandleStatusQuery(client, message); return {};
    case Message::kPing: {
      kvmwire::ServerMessage reply;
      reply.set_request_id(message.request_id());
      reply.mutable_empty();
      client.peer->Send(reply);
      return {};
    }
    case Message::BODY_NOT_SET: break;
  }
  return MakeError(Errc::kProtocol, "unknown message");
}

void Broker::ReplyError(Client& client, std::uint64_t request_id, const Error& error) {
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  reply.mutable_error()->set_code(static_cast<std::uint32_t>(error.code));
  reply.mutable_error()->set_message(error.ToString());
  client.peer->Send(reply);
  LogLimited(LogLevel::kWarn, "request_refused",
             {{"client", client.id},
              {"name", client.name},
              {"pid", client.credentials.pid},
              {"error", ErrcName(error.code)},
              {"reason", error.ToString()}});
}

Status Broker::HandleHello(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Hello& hello = message.hello();
  if (hello.protocol_version() != kProtocolVersion) {
    const Error error = MakeError(Errc::kVersionMismatch, "protocol version " + std::to_string(hello.protocol_version()) +
                                                              ", this kvmd speaks " + std::to_string(kProtocolVersion));
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
  client.role = hello.role();
  client.name = hello.client_name();
  client.wants_payload = hello.wants_payload();
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::HelloReply& reply = *message_out.mutable_hello_reply();
  reply.set_protocol_version(kProtocolVersion);
  reply.set_client_id(client.id);
  reply.set_domain(client.domain->name());
  reply.set_epoch(client.domain->segment().header().epoch);
  reply.set_server_version(KVM_VERSION);
  client.peer->Send(message_out, {client.domain->segment().fd()});
  Log(client.role == kvmwire::WORKER ? LogLevel::kInfo : LogLevel::kDebug, "client_joined",
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
  if (const auto found = domains_.find(name); found != domains_.end()) return found->second.get();
  if (domains_.size() >= config_.max_domains) {
    return MakeError(Errc::kResourceExhausted,
                     "no room for domain " + name + ": the limit is " + std::to_string(config_.max_domains) + " (--max-domains)");
  }
  Result<std::unique_ptr<Domain>> domain = Domain::Create(name, config_);
  if (!domain) {
    Log(LogLevel::kError, "domain_failed", {{"domain", name}, {"reason", domain.error().ToString()}});
    return MakeError(Errc::kResourceExhausted, "domain " + name + ": " + domain.error().ToString());
  }
  Log(LogLevel::kInfo, "domain_created", {{"domain", name}, {"segment_bytes", (*domain)->segment().size()}});
  return domains_.emplace(name, std::move(*domain)).first->second.get();
}

void Broker::HandleDeclareModel(Client& client, const kvmwire::ClientMessage& message) {
  Result<ModelSpec> spec = ModelSpec::FromCanonical(message.declare_model().spec());
  Result<std::uint32_t> row = spec ? client.domain->DeclareModel(client.id, *spec) : Result<std::uint32_t>(spec.error());
  if (!row) return ReplyError(client, message.request_id(), row.error());
  for (Region* region : client.domain->LiveRegionsOfModel(*row)) {
    if (region->owner != client.id) Announce(client, *region);
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  reply.mutable_declare_model_reply()->set_model(*row);
  client.peer->Send(reply);
}

void Broker::Announce(Client& to, Region& region) {
  kvmwire::ServerMessage message;
  kvmwire::RegionAnnounce& announce = *message.mutable_region_announce();
  announce.set_region(region.row);
  announce.set_region_epoch(region.info.region_epoch);
  announce.set_client_id(region.owner);
  *announce.mutable_descriptor_() = region.descriptor;
  announce.set_has_payload(to.wants_payload);
  std::vector<int> fds{region.fds[0].get()};
  for (std::size_t i = 1; to.wants_payload && i < region.fds.size(); ++i) fds.push_back(region.fds[i].get());
  to.peer->Send(message, fds);
  region.announced_to.insert(to.id);
}

void Broker::HandleRegisterRegion(Client& client, kvmwire::ClientMessage message, std::vector<UniqueFd> fds) {
  Result<Region*> registered =
      client.domain->RegisterRegion(Owner{client.id, client.credentials.pid, client.credentials.uid},
                                    std::move(*message.mutable_register_region()->mutable_region()), std::move(fds));
  if (!registered) return ReplyError(client, message.request_id(), registered.error());
  Region& region = **registered;
  for (const auto& [id, other] : clients_) {
    if (id != client.id && other->domain == client.domain && client.domain->HasDeclared(id, region.info.model)) Announce(*other, region);
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  reply.mutable_register_region_reply()->set_region(region.row);
  reply.mutable_register_region_reply()->set_region_epoch(region.info.region_epoch);
  client.peer->Send(reply);
  Log(LogLevel::kInfo, "region_registered",
      {{"client", client.id},
       {"region", region.descriptor.name()},
       {"row", region.row},
       {"blocks", region.info.block_count},
       {"block_bytes", region.info.block_bytes}});
}

Status Broker::HandlePublish(Client& client, const kvmwire::Publish& publish) {
  if (publish.records().size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "publish: records are cut off");
  if (publish.records().size() / sizeof(PublishRecord) > kMaxPublishBatch)
    return MakeError(Errc::kProtocol, "publish: too many records in one message");
  kvmwire::ServerMessage message;
  *message.mutable_publish_ack() = client.domain->Publish(client.id, publish);
  client.peer->Send(message);
  return {};
}

// ---- leaving ------------------------------------------------------------------------------------

void Broker::Withdraw(Domain& domain, Region& region, bool owner_died, bool wants_ack) {
  kvmwire::ServerMessage message;
  kvmwire::RegionWithdraw& withdraw = *message.mutable_region_withdraw();
  withdraw.set_region(region.row);
  withdraw.set_region_epoch(region.info.region_epoch);
  withdraw.set_owner_died(owner_died);
  withdraw.set_wants_ack(wants_ack);
  for (const ClientId id : region.announced_to) {
    const auto importer = clients_.find(id);
    if (importer == clients_.end()) continue;
    importer->second->peer->Send(message);
    if (wants_ack) region.waiting_for.insert(id);
  }
  domain.StartLeaving(region);
}

void Broker::HandleUnregisterRegion(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::UnregisterRegion& request = message.unregister_region();
  Region* region = client.domain->FindRegion(request.region(), request.region_epoch());
  if (region == nullptr || region->owner != client.id || !region->live()) {
    return ReplyError(client, message.request_id(), MakeError(Errc::kNotFound, "unregister: no such region of this client"));
  }
  const std::uint32_t timeout_ms =
      request.ack_timeout_ms() != 0 ? std::min(request.ack_timeout_ms(), config_.withdraw_timeout_ms) : config_.withdraw_timeout_ms;
  Log(LogLevel::kInfo, "region_unregistered", {{"client", client.id}, {"region", region->descriptor.name()}, {"row", region->row}});
  Withdraw(*client.domain, *region, /*owner_died=*/false, /*wants_ack=*/true);
  unregisters_.push_back({client.domain, request.region(), request.region_epoch(), client.id, message.request_id(),
                          std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms)});
  CheckUnregisters(SteadyTime::min());
}

void Broker::HandleWithdrawAck(Client& client, const kvmwire::WithdrawAck& ack) {
  Region* region = client.domain->FindRegion(ack.region(), ack.region_epoch());
  if (region == nullptr) return;
  region->announced_to.erase(client.id);
  if (region->waiting_for.erase(client.id) > 0) CheckUnregisters(SteadyTime::min());
}

void Broker::CheckUnregisters(SteadyTime now) {
  std::vector<PendingUnregister> finished;
  std::erase_if(unregisters_, [&](const PendingUnregister& pending) {
    Region* region = pending.domain->FindRegion(pending.row, pending.region_epoch);
    if (region != nullptr && !region->waiting_for.empty() && now < pending.deadline) return false;
    finished.push_back(pending);
    return true;
  });
  for (const PendingUnregister& pending : finished) {
    Region* region = pending.domain->FindRegion(pending.row, pending.region_epoch);
    FinishUnregister(pending, region != nullptr && !region->waiting_for.empty());
  }
}

void Broker::FinishUnregister(const PendingUnregister& pending, bool timed_out) {
  if (Region* region = pending.domain->FindRegion(pending.row, pending.region_epoch)) {
    if (timed_out) {
      Log(LogLevel::kWarn, "withdraw_timed_out", {{"region", region->descriptor.name()}, {"importers", region->waiting_for.size()}});
    }
    region->waiting_for.clear();
    pending.domain->StartLeaving(*region);
  }
  const auto client = clients_.find(pending.client);
  if (client == clients_.end()) return;
  if (timed_out) {
    return ReplyError(*client->second, pending.request_id,
                      MakeError(Errc::kDeadlineExceeded, "unregister: an importer has not unmapped the region in time"));
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(pending.request_id);
  reply.mutable_empty();
  client->second->peer->Send(reply);
}

// ---- time ---------------------------------------------------------------------------------------

void Broker::Tick(SteadyTime now) {
  CheckUnregisters(now);
  for (const auto& [name, domain] : domains_) {
    domain->segment().Heartbeat();
    domain->WriteRows();
  }
}

bool Broker::Work() {
  constexpr std::uint32_t kSlice = 4096;
  bool more = false;
  for (const auto& [name, domain] : domains_) more = domain->Reap(kSlice) || more;
  return more;
}

void Broker::Sweep() {
  for (const auto& [name, domain] : domains_) domain->Sweep(config_.sweep_slots);
}

void Broker::Close() {
  for (const auto& [name, domain] : domains_) domain->segment().SetState(layout::SegmentState::kClosed);
}

void Broker::HandleStatusQuery(Client& asking, const kvmwire::ClientMessage& message) {
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::StatusReply& reply = *message_out.mutable_status_reply();
  const bool sees_all = asking.credentials.uid == 0 || asking.credentials.uid == ::geteuid();
  reply.set_server_version(KVM_VERSION);
  reply.set_pid(static_cast<std::uint32_t>(::getpid()));
  reply.set_started_ms(started_ms_);
  reply.set_resident_bytes(ResidentBytes());
  reply.set_open_fds(OpenFds());
  reply.set_clients(static_cast<std::uint32_t>(clients_.size()));
  reply.set_max_clients(config_.max_clients);
  reply.set_rejected_connections(rejected_connections);
  reply.set_protocol_errors(protocol_errors);
  for (const auto& [name, domain] : domains_) {
    if (!sees_all && domain.get() != asking.domain) continue;
    kvmwire::DomainStatus& out = *reply.add_domains();
    out.set_name(name);
    out.set_epoch(domain->segment().header().epoch);
    out.set_entries(domain->entries());
    out.set_max_entries(config_.max_entries);
    out.set_regions(domain->live_regions());
    out.set_max_regions(config_.max_regions);
    out.set_models(domain->live_models());
    out.set_max_models(config_.max_models);
    out.set_clients(static_cast<std::uint32_t>(
        std::count_if(clients_.begin(), clients_.end(), [&](const auto& c) { return c.second->domain == domain.get(); })));
    out.set_segment_bytes(domain->segment().size());
  }
  for (const auto& [id, client] : clients_) {
    if (!message.status_query().clients() || client->domain == nullptr || (!sees_all && client->domain != asking.domain)) continue;
    kvmwire::ClientStatus& out = *reply.add_client_list();
    out.set_client_id(id);
    out.set_name(client->name);
    out.set_pid(client->credentials.pid);
    out.set_uid(client->credentials.uid);
    out.set_domain(client->domain->name());
    out.set_role(client->role);
    out.set_connected_ms(client->connected_ms);
    for (const Region* region : client->domain->RegionsOf(id)) {
      out.set_regions(out.regions() + 1);
      out.set_entries(out.entries() + region->entries);
    }
    out.set_queued_bytes(client->peer->queued_bytes());
    *out.mutable_stats() = client->stats;
  }
  asking.peer->Send(message_out);
}

}  // namespace kvm::daemon
