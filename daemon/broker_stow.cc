// The host cache: who offers what, who is granted which chunk, and who is told of it.
#include <cstring>

#include "daemon/broker.h"
#include "proto/fault_point.h"
#include "proto/protocol_limits.h"

namespace kvm::daemon {
namespace {

kvmwire::HostCacheAdmission ToWire(HostCacheAdmission admission) {
  switch (admission) {
    case HostCacheAdmission::kPublish: return kvmwire::ON_PUBLISH;
    case HostCacheAdmission::kSecondHit: return kvmwire::ON_SECOND_HIT;
    case HostCacheAdmission::kReuse: return kvmwire::BEFORE_REUSE;
  }
  return kvmwire::ON_PUBLISH;
}

std::string_view AdmissionName(HostCacheAdmission admission) {
  switch (admission) {
    case HostCacheAdmission::kPublish: return "publish";
    case HostCacheAdmission::kSecondHit: return "second-hit";
    case HostCacheAdmission::kReuse: return "reuse";
  }
  return "?";
}

}  // namespace

void Broker::DescribeHostCache(kvmwire::HelloReply& reply) const {
  if (tier_) reply.mutable_host_cache()->set_admission(ToWire(config_.host_cache_admission));
}

void Broker::DescribeHostCache(kvmwire::HostCacheStatus& status) const {
  const HostTier::Usage all = tier_->UsageOf(nullptr);
  status.set_max_bytes(tier_->max_bytes());
  status.set_bytes(all.bytes);
  status.set_chunk_bytes(tier_->chunk_bytes());
  status.set_policy(std::string(policy::PolicyName(config_.host_cache_policy)));
  status.set_admission(std::string(AdmissionName(config_.host_cache_admission)));
  status.set_huge_bytes(all.huge_bytes);
  status.set_transparent_bytes(all.transparent_bytes);
}

void Broker::DescribeHostCache(const Domain& domain, kvmwire::HostCacheDomain& status) const {
  const HostTier::Usage usage = tier_->UsageOf(&domain);
  const HostTier::Counters counters = tier_->CountersOf(domain);
  status.set_bytes(usage.bytes);
  status.set_used_bytes(usage.used_bytes);
  status.set_chunks(usage.chunks);
  status.set_blocks(usage.blocks);
  status.set_hits(counters.hits);
  status.set_stowed(counters.stowed);
  status.set_evicted(counters.evicted);
  status.set_refused(counters.refused);
  status.set_expired(counters.expired);
}

Status Broker::HandleStow(Client& client, kvmwire::ClientMessage message) {
  const std::string& records = message.stow().records();
  if (records.size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "stow: records are cut off");
  if (records.size() / sizeof(PublishRecord) > kMaxStowBatch) return MakeError(Errc::kProtocol, "stow: too many records in one message");
  if (waiting_stows_.contains(client.id)) return MakeError(Errc::kProtocol, "stow: the offer before has not been answered");
  if (!tier_) {
    ReplyError(client, message.request_id(), MakeError(Errc::kUnsupported, "this kvmd has no host cache (--host-cache)"));
    return {};
  }
  if (message.stow().grants_lost()) {
    for (TierChunk* chunk : tier_->ChunksOf(client.id)) SendGrant(client, *chunk);
  }
  if (!AnswerStow(client, message)) {
    waiting_stows_.emplace(client.id, std::move(message));
  }
  return {};
}

// False: nothing could be decided yet.
bool Broker::AnswerStow(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Stow& stow = message.stow();
  Region* source = client.domain->FindRegion(stow.region(), stow.region_epoch());
  if (source == nullptr || source->owner != client.id || !source->live()) {
    ReplyError(client, message.request_id(), MakeError(Errc::kNotFound, "stow: no such region of this client"));
    return true;
  }
  std::vector<PublishRecord> records(stow.records().size() / sizeof(PublishRecord));
  if (!records.empty()) std::memcpy(records.data(), stow.records().data(), stow.records().size());
  const HostTier::Offerer offerer{client.id, client.credentials.uid, client.credentials.pid, client.instance};
  const HostTier::Decision decision = tier_->Offer(offerer, *client.domain, *source, records, stow.asked());
  if (decision.decided == 0 && !records.empty()) return false;
  if (!decision.grants.empty()) KVM_FAULT_POINT(kvmd_stow_granted);
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  kvmwire::StowReply& reply = *answer.mutable_stow_reply();
  reply.set_decided(static_cast<std::uint32_t>(decision.decided));
  for (const HostTier::Grant& grant : decision.grants) {
    kvmwire::StowGrant& out = *reply.add_grants();
    out.set_record(grant.record);
    out.set_region(grant.chunk->region->row);
    out.set_region_epoch(grant.chunk->region->info.region_epoch);
    out.set_slot(grant.slot);
    out.set_generation(grant.write);
  }
  for (const std::uint32_t record : decision.present) reply.add_present(record);
  reply.set_not_admitted(decision.not_admitted);
  reply.set_refused_stale(decision.stale);
  reply.set_refused_full(decision.full);
  if (decision.full > 0) reply.set_reason(decision.reason);
  client.peer->Send(answer);
  return true;
}

void Broker::AnswerWaitingStows() {
  if (!tier_ || !tier_->TakeProgress()) return;
  for (auto waiting = waiting_stows_.begin(); waiting != waiting_stows_.end();) {
    const auto client = clients_.find(waiting->first);
    const bool answered = client == clients_.end() || AnswerStow(*client->second, waiting->second);
    waiting = answered ? waiting_stows_.erase(waiting) : std::next(waiting);
  }
}

Status Broker::HandleStowDone(Client& client, const kvmwire::StowDone& done) {
  if (done.outcomes_size() > static_cast<int>(kMaxStowBatch))
    return MakeError(Errc::kProtocol, "stow done: too many blocks in one message");
  if (tier_) tier_->Done(client.id, *client.domain, done);
  return {};
}

Status Broker::HandleHostCacheUse(Client& client, const kvmwire::HostCacheUse& use) {
  if (use.runs_size() > static_cast<int>(kMaxHostCacheRuns))
    return MakeError(Errc::kProtocol, "host cache use: too many runs in one message");
  if (tier_) tier_->Used(*client.domain, use);
  return {};
}

void Broker::LeaveHostCache(const Client& client) {
  waiting_stows_.erase(client.id);
  if (tier_) tier_->Leave(client.id, client.process);
}

// ---- chunks -------------------------------------------------------------------------------------

void Broker::ChunkOpened(TierChunk& chunk) {
  KVM_FAULT_POINT(kvmd_chunk_opened);
  if (!chunk.writer) Keep(chunk.group.domain, *chunk.region);
  for (const auto& [id, client] : clients_) {
    if (client->domain == &chunk.group.domain && client->domain->models().HasDeclared(id, chunk.group.kind.model))
      Announce(*client, *chunk.region);
  }
}

void Broker::ChunkGranted(TierChunk& chunk) {
  const auto client = clients_.find(chunk.writer->client);
  if (client == clients_.end()) return;
  // First, so that no later kvmd can take the chunk for somebody else's to write.
  Keep(chunk.group.domain, *chunk.region);
  KVM_FAULT_POINT(kvmd_chunk_kept);
  SendGrant(*client->second, chunk);
}

void Broker::SendGrant(Client& client, TierChunk& chunk) {
  kvmwire::ServerMessage message;
  kvmwire::ChunkGrant& grant = *message.mutable_chunk_grant();
  grant.set_region(chunk.region->row);
  grant.set_region_epoch(chunk.region->info.region_epoch);
  grant.set_size_bytes(chunk.bytes());
  grant.set_slots(chunk.group.blocks.slots_per_chunk());
  grant.set_slot_bytes(chunk.group.kind.block_bytes);
  client.peer->Send(message, {chunk.memory.writable_fd()});
}

void Broker::ChunkClosing(Domain& domain, Region& region) {
  unregisters_.push_back({&domain, region.row, region.info.region_epoch, kNoClient, 0, AckDeadline(0)});
  Withdraw(domain, region, /*owner_died=*/false);
}

}  // namespace kvm::daemon
