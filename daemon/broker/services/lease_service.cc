#include "daemon/broker/services/lease_service.h"

#include "daemon/system/log.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// Of one region's end, before anything else. Many regions may end in one step.
constexpr WorkUnits kCutAtOnceUnits = kSliceUnits / 16;

}  // namespace

Status LeaseService::Acquire(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::AcquireLease& acquire = message.acquire_lease();
  if (acquire.sources_size() > static_cast<int>(kMaxLeaseBatch)) return MakeError(Errc::kProtocol, "lease: too many blocks in one message");
  const auto refuse = [&](const Error& error) {
    client.ReplyError(message.request_id(), error);
    return Status();
  };
  if (acquire.sources_size() == 0) return refuse(MakeError(Errc::kInvalidArgument, "lease: no blocks"));
  if (acquire.registry_epoch() != client.domain->epoch()) return refuse(MakeError(Errc::kStale, "lease: the match is of another registry"));
  const bool goes_on = acquire.lease() != 0;
  const Result<Lease*> found = goes_on ? lessor_.Find(client.id, acquire.lease())
                                       : lessor_.Grant(client.id, client.credentials.uid, *client.domain, acquire.ttl_ms());
  if (!found) return refuse(found.error());
  Lease& lease = **found;
  // A prefix has no holes.
  if (goes_on && acquire.after() != lease.blocks.size()) return refuse(MakeError(Errc::kStale, "lease: the lease has lost blocks"));
  Status held;
  for (auto source = acquire.sources().begin(); held && source != acquire.sources().end(); ++source) held = lessor_.Add(lease, *source);
  if (lease.blocks.empty()) {
    lessor_.Revoke(lease);
    return refuse(held.error());
  }
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  kvmwire::AcquireLeaseReply& reply = *answer.mutable_acquire_lease_reply();
  reply.set_lease(lease.id);
  reply.set_blocks(static_cast<std::uint32_t>(lease.blocks.size()));
  if (!held) {
    reply.mutable_not_leased()->set_code(static_cast<std::uint32_t>(held.error().code));
    reply.mutable_not_leased()->set_message(held.error().ToString());
  }
  client.connection->Send(answer);
  return {};
}

void LeaseService::Renew(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::RenewLease& renew = message.renew_lease();
  const Result<Lease*> lease = lessor_.Find(client.id, renew.lease());
  if (!lease) return client.ReplyError(message.request_id(), lease.error());
  if (Status renewed = lessor_.Renew(**lease, renew.ttl_ms()); !renewed) return client.ReplyError(message.request_id(), renewed.error());
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  answer.mutable_acquire_lease_reply()->set_lease((*lease)->id);
  answer.mutable_acquire_lease_reply()->set_blocks(static_cast<std::uint32_t>((*lease)->blocks.size()));
  client.connection->Send(answer);
}

void LeaseService::Release(Client& client, const kvmwire::ReleaseLease& release) {
  const Result<Lease*> lease = lessor_.Find(client.id, release.lease());
  if (!lease) return;
  lessor_.Revoke(**lease);
  WorkNow();
}

void LeaseService::Expire(SteadyTime now) {
  lessor_.Expire(now);
  WorkNow();
}

void LeaseService::Leave(const Client& client) {
  lessor_.RevokeAllOf(client.id);
  WorkNow();
}

// What is small ends at once, so that its blocks may go before anything else is asked for.
void LeaseService::WorkNow(WorkUnits units) {
  if (lessor_.Work(WorkBudget(units))) work_to_do_();
}

std::uint32_t LeaseService::CutOff(const Domain& domain, const Region& region, const char* why) {
  const std::uint32_t leases = lessor_.CutOff(domain, region, why);
  if (leases > 0) WorkNow(kCutAtOnceUnits);
  return leases;
}

void LeaseService::TellLosing(const Lease& lease, const RegionCut& cut, std::size_t left) const {
  LogLimited(LogLevel::kInfo, "lease_shrunk",
             {{"lease", lease.id}, {"client", lease.client}, {"region", cut.region}, {"blocks", left}, {"reason", cut.why}});
  kvmwire::ServerMessage message;
  message.mutable_lease_shrunk()->set_lease(lease.id);
  message.mutable_lease_shrunk()->set_blocks(static_cast<std::uint32_t>(left));
  message.mutable_lease_shrunk()->set_reason(cut.region + ": " + cut.why);
  clients_.Send(lease.client, message);
}

}  // namespace kvm::daemon
