// The host cache: who offers what, who is granted which slab, and who is told of it.
#include <cstring>

#include "daemon/broker/broker.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

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
  if (host_cache_) reply.mutable_host_cache()->set_admission(ToWire(config_.host_cache_admission));
}

void Broker::DescribeHostCache(kvmwire::HostCacheStatus& status) const {
  const HostCache::Usage all = host_cache_->UsageOf(nullptr);
  status.set_max_bytes(host_cache_->max_bytes());
  status.set_bytes(all.bytes);
  status.set_slab_bytes(host_cache_->slab_bytes());
  status.set_policy(std::string(policy::PolicyName(config_.host_cache_policy)));
  status.set_admission(std::string(AdmissionName(config_.host_cache_admission)));
  status.set_huge_bytes(all.huge_bytes);
  status.set_transparent_bytes(all.transparent_bytes);
}

void Broker::DescribeHostCache(const Domain& domain, kvmwire::HostCacheDomain& status) const {
  const HostCache::Usage usage = host_cache_->UsageOf(&domain);
  const HostCache::Counters counters = host_cache_->CountersOf(domain);
  status.set_bytes(usage.bytes);
  status.set_used_bytes(usage.used_bytes);
  status.set_slabs(usage.slabs);
  status.set_blocks(usage.blocks);
  status.set_hits(counters.hits);
  status.set_stored(counters.stored);
  status.set_evicted(counters.evicted);
  status.set_refused(counters.refused);
  status.set_expired(counters.expired);
}

Status Broker::HandlePrepareStore(Client& client, kvmwire::ClientMessage message) {
  const std::string& records = message.prepare_store().records();
  if (records.size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "offload: records are cut off");
  if (records.size() / sizeof(PublishRecord) > kMaxStoreBatch)
    return MakeError(Errc::kProtocol, "offload: too many records in one message");
  if (waiting_stores_.contains(client.id)) return MakeError(Errc::kProtocol, "offload: the offer before has not been answered");
  if (!host_cache_) {
    ReplyError(client, message.request_id(), MakeError(Errc::kUnsupported, "this kvmd has no host cache (--host-cache)"));
    return {};
  }
  if (message.prepare_store().grants_lost()) {
    for (Slab* slab : host_cache_->SlabsOf(client.id)) SendGrant(client, *slab);
  }
  if (!AnswerPrepareStore(client, message)) {
    waiting_stores_.emplace(client.id, std::move(message));
  }
  return {};
}

// False: nothing could be decided yet.
bool Broker::AnswerPrepareStore(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::PrepareStore& offload = message.prepare_store();
  Region* source = client.domain->FindRegion(offload.region(), offload.region_epoch());
  if (source == nullptr || source->owner != client.id || !source->live()) {
    ReplyError(client, message.request_id(), MakeError(Errc::kNotFound, "offload: no such region of this client"));
    return true;
  }
  std::vector<PublishRecord> records(offload.records().size() / sizeof(PublishRecord));
  if (!records.empty()) std::memcpy(records.data(), offload.records().data(), offload.records().size());
  const HostCache::Offerer offerer{client.id, client.credentials.uid, client.credentials.pid, client.instance};
  const HostCache::Decision decision = host_cache_->Offer(offerer, *client.domain, *source, records, offload.asked());
  if (decision.decided == 0 && !records.empty()) return false;
  if (!decision.grants.empty()) KVM_FAULT_POINT(kvmd_store_granted);
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  kvmwire::PrepareStoreReply& reply = *answer.mutable_prepare_store_reply();
  reply.set_decided(static_cast<std::uint32_t>(decision.decided));
  for (const HostCache::Grant& grant : decision.grants) {
    kvmwire::StoreGrant& out = *reply.add_grants();
    out.set_record(grant.record);
    out.set_region(grant.slab->region->row);
    out.set_region_epoch(grant.slab->region->info.region_epoch);
    out.set_slot(grant.slot);
    out.set_generation(grant.write);
  }
  for (const std::uint32_t record : decision.present) reply.add_present(record);
  reply.set_not_admitted(decision.not_admitted);
  reply.set_refused_stale(decision.stale);
  reply.set_refused_full(decision.full);
  if (decision.full > 0) reply.set_reason(decision.reason);
  client.connection->Send(answer);
  return true;
}

void Broker::AnswerWaitingStores() {
  if (!host_cache_ || !host_cache_->TakeProgress()) return;
  for (auto waiting = waiting_stores_.begin(); waiting != waiting_stores_.end();) {
    const auto client = clients_.find(waiting->first);
    const bool answered = client == clients_.end() || AnswerPrepareStore(*client->second, waiting->second);
    waiting = answered ? waiting_stores_.erase(waiting) : std::next(waiting);
  }
}

Status Broker::HandleCompleteStore(Client& client, const kvmwire::CompleteStore& done) {
  if (done.outcomes_size() > static_cast<int>(kMaxStoreBatch))
    return MakeError(Errc::kProtocol, "offload done: too many blocks in one message");
  if (host_cache_) host_cache_->Done(client.id, *client.domain, done);
  return {};
}

Status Broker::HandleHostCacheUse(Client& client, const kvmwire::HostCacheUse& use) {
  if (use.runs_size() > static_cast<int>(kMaxHostCacheRuns))
    return MakeError(Errc::kProtocol, "host cache use: too many runs in one message");
  if (host_cache_) host_cache_->Used(*client.domain, use);
  return {};
}

void Broker::LeaveHostCache(const Client& client) {
  waiting_stores_.erase(client.id);
  if (host_cache_) host_cache_->Leave(client.id, client.process);
}

// ---- slabs -------------------------------------------------------------------------------------

void Broker::SlabOpened(Slab& slab) {
  KVM_FAULT_POINT(kvmd_slab_opened);
  if (!slab.writer) Persist(slab.group.domain, *slab.region);
  for (const auto& [id, client] : clients_) {
    if (client->domain == &slab.group.domain && client->domain->models().HasDeclared(id, slab.group.kind.model))
      Announce(*client, *slab.region);
  }
}

void Broker::SlabGranted(Slab& slab) {
  const auto client = clients_.find(slab.writer->client);
  if (client == clients_.end()) return;
  // First, so that no later kvmd can take the slab for somebody else's to write.
  Persist(slab.group.domain, *slab.region);
  KVM_FAULT_POINT(kvmd_slab_persisted);
  SendGrant(*client->second, slab);
}

void Broker::SendGrant(Client& client, Slab& slab) {
  kvmwire::ServerMessage message;
  kvmwire::SlabGrant& grant = *message.mutable_slab_grant();
  grant.set_region(slab.region->row);
  grant.set_region_epoch(slab.region->info.region_epoch);
  grant.set_size_bytes(slab.bytes());
  grant.set_slots(slab.group.blocks.slots_per_slab());
  grant.set_slot_bytes(slab.group.kind.block_bytes);
  client.connection->Send(message, {slab.memory.writable_fd()});
}

void Broker::SlabClosing(Domain& domain, Region& region) {
  unregisters_.push_back({&domain, region.row, region.info.region_epoch, kNoClient, 0, AckDeadline(0)});
  Withdraw(domain, region, /*owner_died=*/false);
}

}  // namespace kvm::daemon
