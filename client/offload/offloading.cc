// What the Offloader's thread does with a batch: offer, copy, report.
#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "client/offload/offloader.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

// Between two reports, so that blocks are found soon and a region or slab that goes is let go of soon.
constexpr std::uint64_t kCopyBytes = std::uint64_t{64} << 20;
// kvmd answers when it has memory, and the end of a connection answers as well.
constexpr std::chrono::hours kPatience{24};

// What a copy needs to stay where it is.
struct Keep {
  std::shared_ptr<const PeerPayload> source;
  std::shared_ptr<const CopyPlan> plan;
  std::shared_ptr<LocalMemory> destination;
};

}  // namespace

void Region::Impl::OfferPublished(Client::Impl& owner, std::span<const PublishRecord> batch) {
  if (options.offload == OffloadMode::kAuto && owner.offloader.WantsPublished())
    static_cast<void>(owner.offloader.Offer(shared_from_this(), batch, /*asked=*/false, nullptr));
}

std::size_t Region::Impl::Offload(std::span<const std::uint32_t> blocks, const std::shared_ptr<OffloadWait>& wait) {
  const std::shared_ptr<Client::Impl> owner = client.lock();
  if (!owner || options.offload == OffloadMode::kNever) return 0;
  std::vector<PublishRecord> batch;
  {
    std::lock_guard lock(mutex);
    for (const std::uint32_t block : blocks) {
      if (block < records.size() && records[block].generation != 0 && generations.Current(block) == records[block].generation)
        batch.push_back(records[block]);
    }
  }
  return owner->offloader.Offer(shared_from_this(), batch, /*asked=*/true, wait);
}

void Offloader::Process(const std::shared_ptr<Region::Impl>& region, Batch batch) {
  kvmwire::ClientMessage message;
  kvmwire::PrepareStore& offload = *message.mutable_prepare_store();
  bool registered = false;
  {
    std::lock_guard lock(region->mutex);
    registered = region->registered && !region->closed;
    offload.set_region(region->row);
    offload.set_region_epoch(region->region_epoch);
  }
  offload.set_asked(batch.front().asked);
  std::span<const Item> left(batch);
  while (!left.empty()) {
    if (!registered) return Drop(left);
    std::string& records = *offload.mutable_records();
    records.clear();
    for (const Item& item : left) records.append(reinterpret_cast<const char*>(&item.record), sizeof(item.record));
    {
      std::lock_guard lock(mutex_);
      offload.set_grants_lost(std::exchange(grants_lost_, false));
    }
    const Result<Answer> reply = link_.Call(message, {}, After(kPatience));
    const std::size_t decided = reply ? std::min<std::size_t>(reply->message.prepare_store_reply().decided(), left.size()) : 0;
    if (decided == 0) return Drop(left);
    KVM_FAULT_POINT(client_store_granted);
    Store(region, left.first(decided), reply->message.prepare_store_reply());
    left = left.subspan(decided);
  }
}

void Offloader::Store(const std::shared_ptr<Region::Impl>& region, std::span<const Item> offered, const kvmwire::PrepareStoreReply& reply) {
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
    if (!granted[i] && offered[i].wait) offered[i].wait->End(present[i]);
  }
  const std::uint64_t at_once = std::max<std::uint64_t>(1, kCopyBytes / region->block_bytes);
  for (std::size_t first = 0; first < grants.size();) {
    std::size_t end = first + 1;
    while (end < grants.size() && end - first < at_once && grants[end]->region() == grants[first]->region() &&
           grants[end]->region_epoch() == grants[first]->region_epoch()) {
      ++end;
    }
    kvmwire::ClientMessage message;
    Copy(*region, offered, std::span(grants).subspan(first, end - first), *message.mutable_complete_store());
    KVM_FAULT_POINT(client_store_copied);
    link_.Post(message);
    KVM_FAULT_POINT(client_store_done);
    first = end;
  }
}

bool Offloader::BeginCopy(const Region::Impl& region) {
  std::lock_guard lock(mutex_);
  if (forget_ || stopped_) return false;
  copying_ = &region;
  return true;
}

void Offloader::EndCopy() {
  std::lock_guard lock(mutex_);
  copying_ = nullptr;
  changed_.notify_all();
}

std::shared_ptr<LocalMemory> Offloader::MemoryFor(Slab& slab, const Region::Impl& region) {
  std::shared_ptr<LocalMemory>& memory = slab.memories[region.device];
  if (memory) return memory;
  SegmentHandle handle;
  handle.size_bytes = slab.size_bytes;
  handle.fd.Reset(::fcntl(slab.fd.get(), F_DUPFD_CLOEXEC, 0));
  Result<std::unique_ptr<LocalMemory>> mapped = region.backend->MapGranted(std::move(handle));
  if (mapped) memory = std::move(*mapped);
  return memory;
}

void Offloader::Copy(Region::Impl& region, std::span<const Item> offered, std::span<const kvmwire::StoreGrant* const> grants,
                     kvmwire::CompleteStore& done) {
  std::vector<BlockStatus> statuses(grants.size(), BlockStatus::kError);
  std::shared_ptr<Slab> slab;
  {
    std::lock_guard lock(mutex_);
    const auto found = slabs_.find({grants[0]->region(), grants[0]->region_epoch()});
    if (found != slabs_.end()) slab = found->second;
  }
  const bool fits = slab && slab->slot_bytes == region.block_bytes &&
                    std::all_of(grants.begin(), grants.end(), [&](const auto* grant) { return grant->slot() < slab->slots; });
  if (fits && BeginCopy(region)) {
    auto keep = std::make_shared<Keep>();
    keep->source = region.own_mapping->payload();
    keep->destination = MemoryFor(*slab, region);
    Result<std::shared_ptr<const CopyPlan>> plan = region.own_mapping->PlanTo(Geometry::Contiguous(slab->slots, slab->slot_bytes));
    if (keep->source && keep->destination && plan) {
      keep->plan = std::move(*plan);
      ImportRequest request;
      request.destination = keep->destination.get();
      request.runs.push_back(
          {keep->source->memories[region.device].get(), &region.own_mapping->generations, keep->plan.get(), 0, grants.size()});
      for (const kvmwire::StoreGrant* grant : grants) {
        const PublishRecord& record = offered[grant->record()].record;
        request.blocks.push_back({record.block, grant->slot(), record.generation});
      }
      request.background = true;
      request.keep = keep;
      const std::unique_ptr<ImportJob> job = region.backend->Import(std::move(request));
      job->Wait(SteadyTime::max());
      statuses.assign(job->statuses().begin(), job->statuses().end());
    }
    keep.reset();
    EndCopy();
  }
  std::vector<Item> again;
  std::size_t stored = 0;
  for (std::size_t i = 0; i < grants.size(); ++i) {
    const Item& item = offered[grants[i]->record()];
    kvmwire::StoreOutcome& outcome = *done.add_outcomes();
    outcome.set_region(grants[i]->region());
    outcome.set_region_epoch(grants[i]->region_epoch());
    outcome.set_slot(grants[i]->slot());
    outcome.set_generation(grants[i]->generation());
    outcome.set_stored(statuses[i] == BlockStatus::kValid);
    stored += outcome.stored();
    // Blocks are no prefix here: one that was reused says nothing of those behind it.
    if (statuses[i] == BlockStatus::kBehindFailed) {
      again.push_back(item);
    } else if (outcome.stored()) {
      if (item.wait) item.wait->End(true);
    } else {
      Drop(std::span(&item, 1));
    }
  }
  stats_.blocks_offloaded.fetch_add(stored, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  queue_.insert(queue_.begin(), again.begin(), again.end());
}

}  // namespace kvm
