#include "daemon/broker/services/offload_service.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "daemon/system/work_meter.h"
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

}  // namespace

OffloadService::OffloadService(const Config& config, const std::function<void()>& work_to_do, const ClientTable& clients,
                               const DomainTable& domains, RegionAnnouncer& announcer, Persistence& persistence, HugePageMaker& huge_pages,
                               MemoryFreer& freer)
    : config_(config), work_to_do_(work_to_do), clients_(clients), domains_(domains), announcer_(announcer), persistence_(persistence) {
  if (config.host_cache_bytes != 0)
    host_cache_ = std::make_unique<HostCache>(config, static_cast<HostCacheEvents&>(*this), huge_pages, freer);
}

OffloadService::~OffloadService() = default;

void OffloadService::Describe(kvmwire::HelloReply& reply) const {
  if (host_cache_) reply.mutable_host_cache()->set_admission(ToWire(config_.host_cache_admission));
}

Status OffloadService::PrepareStore(Client& client, kvmwire::ClientMessage message) {
  const std::string& records = message.prepare_store().records();
  if (records.size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "offload: records are cut off");
  if (records.size() / sizeof(PublishRecord) > kMaxStoreBatch)
    return MakeError(Errc::kProtocol, "offload: too many records in one message");
  if (waiting_.contains(client.id) || unanswered_.contains(client.id))
    return MakeError(Errc::kProtocol, "offload: the offer before has not been answered");
  if (!host_cache_) {
    client.ReplyError(message.request_id(), MakeError(Errc::kUnsupported, "this kvmd has no host cache (--host-cache)"));
    return {};
  }
  if (message.prepare_store().grants_lost()) {
    for (Slab* slab : host_cache_->SlabsOf(client.id)) GrantOnceStored(client, *slab);
  }
  if (!AnswerPrepareStore(client, message)) {
    waiting_.emplace(client.id, std::move(message));
  }
  return {};
}

// False: nothing could be decided yet.
bool OffloadService::AnswerPrepareStore(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::PrepareStore& offload = message.prepare_store();
  Region* source = client.domain->FindRegion(offload.region(), offload.region_epoch());
  if (source == nullptr || source->owner != client.id || !source->live()) {
    client.ReplyError(message.request_id(), MakeError(Errc::kNotFound, "offload: no such region of this client"));
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
  SendAnswer(client, std::move(answer));
  return true;
}

// Each progress gives every offer one chance. An offer may cost a slice, and a user may have as
// many as it has connections.
bool OffloadService::AnswerWaiting() {
  if (!host_cache_) return false;
  if (!next_waiting_ && host_cache_->TakeProgress()) next_waiting_ = ClientId{0};
  if (!next_waiting_) return false;
  const WorkBudget budget;
  for (auto waiting = waiting_.lower_bound(*next_waiting_); waiting != waiting_.end();) {
    if (budget.used_up()) {
      next_waiting_ = waiting->first;
      return true;
    }
    Spend(1);
    Client* client = clients_.Find(waiting->first);
    const bool answered = client == nullptr || AnswerPrepareStore(*client, waiting->second);
    waiting = answered ? waiting_.erase(waiting) : std::next(waiting);
  }
  next_waiting_.reset();
  return false;
}

Status OffloadService::CompleteStore(Client& client, kvmwire::ClientMessage message) {
  kvmwire::CompleteStore& done = *message.mutable_complete_store();
  if (done.outcomes_size() > static_cast<int>(kMaxStoreBatch))
    return MakeError(Errc::kProtocol, "offload done: too many blocks in one message");
  if (!host_cache_) return {};
  client.Work([this, done = std::move(done), next = 0](Client& its, const WorkBudget& budget) mutable {
    return host_cache_->Done(its.id, *its.domain, done, next, budget);
  });
  return {};
}

// As many as a message may have are a part of a slice.
void OffloadService::NoteImports(Domain& domain, const kvmwire::HostCacheUse& use) {
  const SteadyTime now = std::chrono::steady_clock::now();
  for (const kvmwire::HostCacheRun& import : use.imports()) {
    Spend(1);
    const Region* region = domain.FindRegion(import.region(), import.region_epoch());
    if (region == nullptr || import.slot() >= region->info.block_count) continue;
    const IndexEntry entry = domain.EntryOf(*region, import.slot());
    if (entry.region_epoch == 0) continue;
    domain.hot.Note(entry.key, entry.depth, domain.SpecOf(*region).model_id, std::min(import.blocks(), entry.depth + 1), now);
  }
}

Status OffloadService::Use(Client& client, kvmwire::ClientMessage message) {
  kvmwire::HostCacheUse& use = *message.mutable_host_cache_use();
  if (std::max(use.runs_size(), use.imports_size()) > static_cast<int>(kMaxHostCacheRuns))
    return MakeError(Errc::kProtocol, "host cache use: too many runs in one message");
  NoteImports(*client.domain, use);
  if (!host_cache_) return {};
  client.Work([this, use = std::move(use), progress = HostCache::Using()](Client& its, const WorkBudget& budget) mutable {
    return host_cache_->Used(*its.domain, use, progress, budget);
  });
  return {};
}

void OffloadService::DropMismatched(Domain& domain, const Region& region) {
  if (host_cache_) host_cache_->DropMismatched(domain, region);
}

void OffloadService::GiveUp(Region& region) {
  if (host_cache_) host_cache_->GiveUp(region);
}

bool OffloadService::GiveUpAll(const Domain& domain, const WorkBudget& budget) {
  return !host_cache_ || host_cache_->GiveUpAll(domain, budget);
}

void OffloadService::Forget(const Domain& domain) {
  if (host_cache_) host_cache_->Forget(domain);
}

void OffloadService::Leave(const Client& client) {
  waiting_.erase(client.id);
  if (host_cache_) host_cache_->Leave(client.id, client.process);
}

void OffloadService::Tick(SteadyTime now) {
  if (host_cache_) host_cache_->Tick(now);
  if (AnswerWaiting()) work_to_do_();
}

bool OffloadService::Work() {
  bool more = host_cache_ && host_cache_->Work();
  more = AnswerWaiting() || more;
  if (more || !host_cache_) return more;
  more = host_cache_->Work();  // an answer may have begun a slab
  return AnswerWaiting() || more;
}

// ---- slabs -------------------------------------------------------------------------------------

void OffloadService::SlabOpened(Slab& slab) {
  KVM_FAULT_POINT(kvmd_slab_opened);
  if (!slab.writer) persistence_.PersistSlab(slab.group.domain, *slab.region, *host_cache_);
  announcer_.AnnounceToAll(slab.group.domain, *slab.region);
}

void OffloadService::SlabGranted(Slab& slab) {
  domains_.granted().AddSlab(slab.uid, *slab.region);
  Client* client = clients_.Find(slab.writer->client);
  if (client == nullptr) return;
  // Persisted first, so that no later kvmd gives the slab to another writer.
  persistence_.PersistSlab(slab.group.domain, *slab.region, *host_cache_);
  KVM_FAULT_POINT(kvmd_slab_persisted);
  GrantOnceStored(*client, slab);
}

bool OffloadService::HasUngranted(ClientId client) const {
  const auto first = ungranted_.lower_bound({client, {0, 0}});
  return first != ungranted_.end() && first->first == client;
}

// A client may ask for its slabs again while the store is slow: each waits once.
void OffloadService::GrantOnceStored(const Client& client, const Slab& slab) {
  const std::pair row{slab.region->row, slab.region->info.region_epoch};
  if (!ungranted_.emplace(client.id, row).second) return;
  persistence_.AfterStored(slab.uid, [this, id = client.id, row, ref = DomainTable::RefOf(slab.group.domain, *slab.region)] {
    ungranted_.erase({id, row});
    Client* writer = clients_.Find(id);
    Region* region = domains_.Find(ref);
    if (writer == nullptr || region == nullptr || region->filler == nullptr) return;
    auto& granted = *static_cast<Slab*>(region->filler);
    if (granted.writer && granted.writer->client == id) SendGrant(*writer, granted);
  });
}

// A client knows the slabs of its grants before it hears of them.
void OffloadService::SendAnswer(const Client& client, kvmwire::ServerMessage answer) {
  if (!HasUngranted(client.id)) return client.connection->Send(answer);
  unanswered_.insert(client.id);
  persistence_.AfterStored(client.credentials.uid, [this, id = client.id, answer = std::move(answer)] {
    unanswered_.erase(id);
    clients_.Send(id, answer);
  });
}

void OffloadService::SendGrant(const Client& client, const Slab& slab) {
  kvmwire::ServerMessage message;
  kvmwire::SlabGrant& grant = *message.mutable_slab_grant();
  grant.set_region(slab.region->row);
  grant.set_region_epoch(slab.region->info.region_epoch);
  grant.set_size_bytes(slab.bytes());
  grant.set_slots(slab.group.blocks.slots_per_slab());
  grant.set_slot_bytes(slab.group.kind.block_bytes);
  client.connection->Send(message, {slab.memory.writable_fd()});
}

void OffloadService::SlabClosing(Domain& domain, Region& region) {
  announcer_.WithdrawAndAnswer(domain, region, kNoClient, /*request_id=*/0, /*ack_timeout_ms=*/0);
}

}  // namespace kvm::daemon
