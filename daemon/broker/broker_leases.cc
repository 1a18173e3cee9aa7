// Leases: who asks for one, who is told of its end.
#include "daemon/broker/broker.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

SteadyTime Until(std::uint32_t ttl_ms) { return std::chrono::steady_clock::now() + std::chrono::milliseconds(ttl_ms); }

Error NoSuchLease() { return MakeError(Errc::kNotFound, "lease: no such lease of this client (it may have ended)"); }

}  // namespace

Status Broker::HandleAcquireLease(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::AcquireLease& acquire = message.acquire_lease();
  if (acquire.sources_size() > static_cast<int>(kMaxLeaseBatch)) return MakeError(Errc::kProtocol, "lease: too many blocks in one message");
  const auto refuse = [&](const Error& error) {
    ReplyError(client, message.request_id(), error);
    return Status();
  };
  if (acquire.sources_size() == 0) return refuse(MakeError(Errc::kInvalidArgument, "lease: no blocks"));
  if (acquire.registry_epoch() != client.domain->epoch()) return refuse(MakeError(Errc::kStale, "lease: the match is of another registry"));
  Lease* lease = nullptr;
  if (acquire.lease() != 0) {
    lease = leases_.Find(client.id, acquire.lease());
    if (lease == nullptr) return refuse(NoSuchLease());
    // A prefix has no holes.
    if (acquire.after() != lease->blocks.size()) return refuse(MakeError(Errc::kStale, "lease: the lease has lost blocks"));
  } else {
    if (Status sound = leases_.CheckTtl(acquire.ttl_ms()); !sound) return refuse(sound.error());
    Result<Lease*> opened = leases_.Open(client.id, *client.domain, Until(acquire.ttl_ms()));
    if (!opened) return refuse(opened.error());
    lease = *opened;
  }
  Status held;
  for (auto source = acquire.sources().begin(); held && source != acquire.sources().end(); ++source) held = leases_.Add(*lease, *source);
  if (lease->blocks.empty()) {
    leases_.Cut(*lease, 0);
    return refuse(held.error());
  }
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  kvmwire::AcquireLeaseReply& reply = *answer.mutable_acquire_lease_reply();
  reply.set_lease(lease->id);
  reply.set_blocks(static_cast<std::uint32_t>(lease->blocks.size()));
  if (!held) {
    reply.mutable_not_leased()->set_code(static_cast<std::uint32_t>(held.error().code));
    reply.mutable_not_leased()->set_message(held.error().ToString());
  }
  client.connection->Send(answer);
  return {};
}

void Broker::HandleRenewLease(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::RenewLease& extend = message.renew_lease();
  Lease* lease = leases_.Find(client.id, extend.lease());
  if (lease == nullptr) return ReplyError(client, message.request_id(), NoSuchLease());
  if (Status sound = leases_.CheckTtl(extend.ttl_ms()); !sound) return ReplyError(client, message.request_id(), sound.error());
  leases_.Renew(*lease, Until(extend.ttl_ms()));
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  answer.mutable_acquire_lease_reply()->set_lease(lease->id);
  answer.mutable_acquire_lease_reply()->set_blocks(static_cast<std::uint32_t>(lease->blocks.size()));
  client.connection->Send(answer);
}

void Broker::HandleReleaseLease(Client& client, const kvmwire::ReleaseLease& release) {
  if (Lease* lease = leases_.Find(client.id, release.lease())) leases_.Cut(*lease, 0);
}

void Broker::ExpireLeases(SteadyTime now) {
  for (Lease* lease : leases_.Expired(now)) {
    LogLimited(LogLevel::kDebug, "lease_expired", {{"lease", lease->id}, {"client", lease->client}});
    leases_.Cut(*lease, 0);
  }
}

void Broker::EndLeasesOf(const Client& client) {
  for (Lease* lease : leases_.Of(client.id)) leases_.Cut(*lease, 0);
}

std::uint32_t Broker::CutLeases(const Domain& domain, const Region& region, const char* why) {
  std::uint32_t cut = 0;
  for (const auto& [lease, left] : leases_.On(domain, region)) {
    LogLimited(LogLevel::kInfo, "lease_shrunk",
               {{"lease", lease->id}, {"client", lease->client}, {"region", region.descriptor.name()}, {"blocks", left}, {"reason", why}});
    kvmwire::ServerMessage message;
    message.mutable_lease_shrunk()->set_lease(lease->id);
    message.mutable_lease_shrunk()->set_blocks(static_cast<std::uint32_t>(left));
    message.mutable_lease_shrunk()->set_reason(region.descriptor.name() + ": " + why);
    if (const auto holder = clients_.find(lease->client); holder != clients_.end()) holder->second->connection->Send(message);
    leases_.Cut(*lease, left);
    ++cut;
  }
  return cut;
}

void Broker::DescribeLease(const Lease& lease, kvmwire::LeaseStatus& out) const {
  out.set_lease(lease.id);
  out.set_client_id(lease.client);
  if (const auto holder = clients_.find(lease.client); holder != clients_.end()) {
    out.set_client_name(holder->second->name);
    out.set_pid(holder->second->credentials.pid);
    out.set_uid(holder->second->credentials.uid);
  }
  out.set_domain(lease.domain->name());
  out.set_model_id(lease.domain->models().spec(lease.model).model_id);
  out.set_blocks(static_cast<std::uint32_t>(lease.blocks.size()));
  std::uint64_t bytes = 0;
  std::uint32_t cached = 0;
  for (const LeasedBlock& block : lease.blocks) {
    bytes += block.bytes;
    cached += block.cached;
  }
  out.set_bytes(bytes);
  out.set_host_cache_blocks(cached);
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(lease.deadline - std::chrono::steady_clock::now()).count();
  out.set_left_ms(left > 0 ? static_cast<std::uint64_t>(left) : 0);
}

}  // namespace kvm::daemon
