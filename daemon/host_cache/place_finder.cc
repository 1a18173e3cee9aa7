#include "daemon/host_cache/place_finder.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {
namespace {

// By how much the content of another writer's slab must be older than the block of its own that a
// writer would evict. Dropping a slab costs all of its blocks, and the zeroing of as much memory.
constexpr std::uint64_t kMuchOlderMs = 10'000;

// Grants a free slot of the slab; empty if it has none.
std::optional<Placement> Take(Slab& slab, const PublishRecord& record) {
  const std::optional<policy::Slot> slot = slab.group.blocks.Grant(slab.position, record);
  return slot ? std::optional(Placement::At(slab, *slot)) : std::nullopt;
}

}  // namespace

Placement PlaceFinder::Find(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, const PublishRecord& record, SteadyTime now) {
  using Outcome = Placement::Outcome;
  if (writer->granted >= kMaxGrantsPerClient)
    return Placement::None(Outcome::kFull, "too many blocks are granted to this client and not stored yet");
  bool has_slab = false;
  Spend(pool_.slabs().size());
  for (const auto& slab : pool_.slabs()) {
    if (&slab->group != &group || !slab->WritableBy(*writer)) continue;
    has_slab = true;
    if (const auto place = Take(*slab, record)) return *place;
  }
  if (Slab* slab = Abandoned(group, *writer, /*with_room=*/true)) {
    AssignWriter(*slab, writer);
    return Take(*slab, record).value_or(Placement{});
  }
  if (BeingCleared(group, *writer)) return Placement::None(Outcome::kWait);
  SlabQuota::Limit limit = quota_.LimitFor(group, *writer);
  if (limit == SlabQuota::Limit::kNone) {
    if (allocator_.Allocating(group, *writer) || allocator_.Start(group, writer, now)) return Placement::None(Outcome::kWait);
    limit = SlabQuota::Limit::kMachine;
  }
  return MakeRoom(group, writer, record, limit, has_slab);
}

// The writer gets no more memory now: a stored block or a slab has to make room.
Placement PlaceFinder::MakeRoom(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, const PublishRecord& record,
                                SlabQuota::Limit limit, bool has_slab) {
  using Limit = SlabQuota::Limit;
  using Outcome = Placement::Outcome;
  Spend(4 * pool_.slabs().size());
  if (Slab* slab = Abandoned(group, *writer, /*with_room=*/false)) {
    AssignWriter(*slab, writer);
    has_slab = true;
  }
  Candidate others;
  const std::optional<policy::Slot> own = has_slab ? OwnVictim(group, *writer, record) : std::nullopt;
  if ((limit == Limit::kFull || limit == Limit::kDomain || limit == Limit::kUser) && !pool_.closing()) {
    const auto used_ms = own ? std::optional(group.blocks[*own].used_ms) : std::nullopt;
    others = ToGiveUp(group, *writer, used_ms, limit);
    if (others.slab != nullptr) pool_.Close(*others.slab);
  }
  if (own) {
    Slab& slab = pool_.Holding(group, *own);
    pool_.Evict(slab, *own);
    return Take(slab, record).value_or(Placement{});
  }
  // Memory of closing slabs is free soon, and blocks that are being stored can be evicted once they
  // are stored.
  if ((pool_.closing() && limit != Limit::kClient && limit != Limit::kHeld) || (has_slab && writer->granted > 0))
    return Placement::None(Outcome::kWait, quota_.Reason(limit, group, writer->uid));
  if (others.leased || HoldsPinned(group, *writer))
    return Placement::None(Outcome::kLeased, "leased: leases hold the blocks that could make room (kvctl leases)");
  return Placement::None(Outcome::kFull, quota_.Reason(limit, group, writer->uid));
}

std::optional<policy::Slot> PlaceFinder::OwnVictim(SlabClass& group, const SlabWriter& writer, const PublishRecord& wanted) const {
  std::vector<std::uint32_t> positions;
  for (const auto& slab : pool_.slabs()) {
    if (&slab->group == &group && slab->WritableBy(writer)) positions.push_back(slab->position);
  }
  return group.blocks.ChooseVictim(positions, wanted);
}

bool PlaceFinder::HoldsPinned(const SlabClass& group, const SlabWriter& writer) const {
  return std::any_of(pool_.slabs().begin(), pool_.slabs().end(), [&](const auto& slab) {
    return &slab->group == &group && slab->WritableBy(writer) && group.blocks.pinned_in(slab->position) > 0;
  });
}

// ---- whose memory -------------------------------------------------------------------------------

Slab* PlaceFinder::Abandoned(const SlabClass& group, const SlabWriter& writer, bool with_room) const {
  Slab* best = nullptr;
  for (const auto& slab : pool_.slabs()) {
    if (&slab->group != &group || !slab->abandoned() || slab->uid != writer.uid) continue;
    if (!quota_.ClientMayHave(writer, slab->cost())) continue;
    if (with_room && group.blocks.free_in(slab->position) == 0) continue;
    if (best == nullptr || group.blocks.free_in(slab->position) > group.blocks.free_in(best->position)) best = slab.get();
  }
  return best;
}

// Whether slabs of dead writers can be had soon (SlabWriters::Work).
bool PlaceFinder::BeingCleared(const SlabClass& group, const SlabWriter& writer) const {
  return std::any_of(pool_.slabs().begin(), pool_.slabs().end(), [&](const auto& slab) {
    return &slab->group == &group && slab->uid == writer.uid && slab->writer && slab->writer->ended && slab->writer->clearing;
  });
}

void PlaceFinder::AssignWriter(Slab& slab, const std::shared_ptr<SlabWriter>& writer) {
  slab.writer = writer;
  writer->bytes += slab.cost();
  host_.SlabGranted(slab);
}

// Candidates are slabs of a dead or disconnected writer, slabs much older than what this writer
// would evict, and, if this writer is below its share, slabs of a writer above its share. Among
// those, the slab that was used least recently is chosen.
PlaceFinder::Candidate PlaceFinder::ToGiveUp(const SlabClass& group, const SlabWriter& writer, std::optional<std::uint64_t> own_used_ms,
                                             SlabQuota::Limit limit) const {
  const auto share_of = [&](const SlabWriter& its) { return writers_.ShareOf(its, writer, config_.host_cache_bytes); };
  const bool poor = writer.bytes + group.Cost(group.slab_bytes()) <= share_of(writer);
  Candidate best;
  for (const auto& slab : pool_.slabs()) {
    if (slab->WritableBy(writer)) continue;
    if (limit == SlabQuota::Limit::kDomain && &slab->group.domain != &group.domain) continue;
    if (limit == SlabQuota::Limit::kUser && slab->uid != writer.uid) continue;
    const bool nobodys = !slab->writer || slab->writer->client == 0;
    const bool older = own_used_ms && slab->used_ms + kMuchOlderMs < *own_used_ms;
    const bool too_rich = !nobodys && poor && slab->writer->bytes > share_of(*slab->writer);
    if (!(nobodys && !own_used_ms) && !older && !too_rich) continue;
    if (best.slab != nullptr && best.slab->used_ms <= slab->used_ms) continue;
    if (slab->group.blocks.pinned_in(slab->position) > 0) {
      best.leased = true;
    } else {
      best.slab = slab.get();
    }
  }
  return best;
}

void PlaceFinder::AllocateAhead(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, SteadyTime now) {
  std::uint32_t free = 0;
  for (const auto& slab : pool_.slabs()) {
    if (&slab->group == &group && slab->WritableBy(*writer)) free += group.blocks.free_in(slab->position);
  }
  if (free > group.blocks.slots_per_slab() / 8 || allocator_.Allocating(group, *writer) || Abandoned(group, *writer, true) != nullptr)
    return;
  if (quota_.LimitFor(group, *writer) == SlabQuota::Limit::kNone) static_cast<void>(allocator_.Start(group, writer, now));
}

}  // namespace kvm::daemon
