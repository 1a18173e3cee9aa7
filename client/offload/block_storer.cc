#include "client/offload/block_storer.h"

#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

// The most bytes copied between two reports, so that blocks are found soon, and a region or slab
// that is being closed is released soon.
constexpr std::uint64_t kCopyBytes = std::uint64_t{64} << 20;
// In effect no deadline: kvmd answers when it has memory, and the end of a connection ends the call
// as well.
constexpr std::chrono::hours kPatience{24};

// The objects that must live as long as the copy runs.
struct Keep {
  std::shared_ptr<const PeerPayload> source;
  std::shared_ptr<const CopyPlan> plan;
  std::shared_ptr<LocalMemory> destination;
};

// Ends the copy that BeginCopy has begun.
class CopyUnderWay {
 public:
  explicit CopyUnderWay(StoreQueue& queue) : queue_(queue) {}
  ~CopyUnderWay() { queue_.EndCopy(); }
  CopyUnderWay(const CopyUnderWay&) = delete;
  CopyUnderWay& operator=(const CopyUnderWay&) = delete;

 private:
  StoreQueue& queue_;
};

void End(OffloadItem& item, bool stored) noexcept {
  item.ended = true;
  if (item.wait) item.wait->End(stored);
}

}  // namespace

void BlockStorer::Process(OffloadSource& source, std::span<OffloadItem> batch) {
  kvmwire::ClientMessage message;
  kvmwire::PrepareStore& offload = *message.mutable_prepare_store();
  const std::optional<RegionRow> row = source.OpenRow();
  if (!row) return queue_.Drop(batch);
  offload.set_region(row->row);
  offload.set_region_epoch(row->region_epoch);
  offload.set_asked(batch.front().asked);
  std::span<OffloadItem> left(batch);
  while (!left.empty()) {
    std::string& records = *offload.mutable_records();
    records.clear();
    for (const OffloadItem& item : left) records.append(reinterpret_cast<const char*>(&item.record), sizeof(item.record));
    offload.set_grants_lost(queue_.TakeGrantsLost());
    const Result<Answer> reply = link_.Call(message, {}, After(kPatience));
    const std::size_t decided = reply ? std::min<std::size_t>(reply->message.prepare_store_reply().decided(), left.size()) : 0;
    if (decided == 0) return queue_.Drop(left);
    KVM_FAULT_POINT(client_store_granted);
    Store(source, left.first(decided), reply->message.prepare_store_reply());
    left = left.subspan(decided);
  }
}

void BlockStorer::Store(OffloadSource& source, std::span<OffloadItem> offered, const kvmwire::PrepareStoreReply& reply) {
  stats_.offloads_refused.fetch_add(reply.refused_full(), std::memory_order_relaxed);
  stats_.offloads_dropped.fetch_add(reply.refused_stale(), std::memory_order_relaxed);
  std::vector<bool> granted(offered.size()), present(offered.size());
  std::vector<const kvmwire::StoreGrant*> grants;
  for (const kvmwire::StoreGrant& grant : reply.grants()) {
    if (grant.record() >= offered.size() || granted[grant.record()]) continue;
    granted[grant.record()] = true;
    grants.push_back(&grant);
  }
  for (const std::uint32_t record : reply.present()) {
    if (record < offered.size()) present[record] = true;
  }
  for (std::size_t i = 0; i < offered.size(); ++i) {
    if (!granted[i]) End(offered[i], present[i]);
  }
  const std::uint64_t at_once = std::max<std::uint64_t>(1, kCopyBytes / source.BlockBytes());
  for (std::size_t first = 0; first < grants.size();) {
    std::size_t end = first + 1;
    while (end < grants.size() && end - first < at_once && grants[end]->region() == grants[first]->region() &&
           grants[end]->region_epoch() == grants[first]->region_epoch()) {
      ++end;
    }
    kvmwire::ClientMessage message;
    Copy(source, offered, std::span(grants).subspan(first, end - first), *message.mutable_complete_store());
    KVM_FAULT_POINT(client_store_copied);
    link_.Post(message);
    KVM_FAULT_POINT(client_store_done);
    first = end;
  }
}

std::shared_ptr<LocalMemory> BlockStorer::MemoryFor(GrantedSlab& slab, const OffloadSource& source) {
  std::shared_ptr<LocalMemory>& memory = slab.memories[source.Device()];
  if (memory) return memory;
  SegmentHandle handle;
  handle.size_bytes = slab.size_bytes;
  handle.fd.Reset(::fcntl(slab.fd.get(), F_DUPFD_CLOEXEC, 0));
  Result<std::unique_ptr<LocalMemory>> mapped = source.Backend().MapGranted(std::move(handle));
  if (mapped) memory = std::move(*mapped);
  return memory;
}

std::vector<BlockStatus> BlockStorer::CopyToSlab(OffloadSource& source, std::span<const OffloadItem> offered,
                                                 std::span<const kvmwire::StoreGrant* const> grants, GrantedSlab& slab) {
  std::vector<BlockStatus> statuses(grants.size(), BlockStatus::kError);
  const PeerMapping& mapping = source.Mapping();
  auto keep = std::make_shared<Keep>();
  keep->source = mapping.payload();
  keep->destination = MemoryFor(slab, source);
  Result<std::shared_ptr<const CopyPlan>> plan = mapping.PlanTo(Geometry::Contiguous(slab.slots, slab.slot_bytes));
  if (!keep->source || !keep->destination || !plan) return statuses;
  keep->plan = std::move(*plan);
  ImportRequest request;
  request.destination = keep->destination.get();
  request.runs.push_back({keep->source->memories[source.Device()].get(), &mapping.generations, keep->plan.get(), 0, grants.size()});
  for (const kvmwire::StoreGrant* grant : grants) {
    const PublishRecord& record = offered[grant->record()].record;
    request.blocks.push_back({record.block, grant->slot(), record.generation});
  }
  request.background = true;
  request.keep = keep;
  const std::unique_ptr<ImportJob> job = source.Backend().Import(std::move(request));
  job->Wait(SteadyTime::max());
  statuses.assign(job->statuses().begin(), job->statuses().end());
  return statuses;
}

void BlockStorer::Copy(OffloadSource& source, std::span<OffloadItem> offered, std::span<const kvmwire::StoreGrant* const> grants,
                       kvmwire::CompleteStore& done) {
  std::vector<BlockStatus> statuses(grants.size(), BlockStatus::kError);
  const std::shared_ptr<GrantedSlab> slab = queue_.SlabAt({grants[0]->region(), grants[0]->region_epoch()});
  const bool fits = slab && slab->slot_bytes == source.BlockBytes() &&
                    std::all_of(grants.begin(), grants.end(), [&](const auto* grant) { return grant->slot() < slab->slots; });
  if (fits && queue_.BeginCopy()) {
    const CopyUnderWay under_way(queue_);
    statuses = CopyToSlab(source, offered, grants, *slab);
  }
  std::vector<OffloadItem> again;
  std::vector<OffloadItem*> behind;
  std::size_t stored = 0;
  for (std::size_t i = 0; i < grants.size(); ++i) {
    OffloadItem& item = offered[grants[i]->record()];
    kvmwire::StoreOutcome& outcome = *done.add_outcomes();
    outcome.set_region(grants[i]->region());
    outcome.set_region_epoch(grants[i]->region_epoch());
    outcome.set_slot(grants[i]->slot());
    outcome.set_generation(grants[i]->generation());
    outcome.set_stored(statuses[i] == BlockStatus::kValid);
    stored += outcome.stored();
    // These blocks are no prefix: a block that was reused does not make those behind it invalid.
    if (statuses[i] == BlockStatus::kBehindFailed) {
      again.push_back(item);
      behind.push_back(&item);
    } else if (outcome.stored()) {
      End(item, true);
    } else {
      queue_.Drop(std::span(&item, 1));
    }
  }
  stats_.blocks_offloaded.fetch_add(stored, std::memory_order_relaxed);
  queue_.QueueAgain(again);
  for (OffloadItem* item : behind) item->ended = true;
}

}  // namespace kvm
