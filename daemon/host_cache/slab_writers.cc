#include "daemon/host_cache/slab_writers.h"

#include <algorithm>
#include <set>
#include <utility>

namespace kvm::daemon {

std::shared_ptr<SlabWriter> SlabWriters::Of(const Offerer& offerer, Domain& domain) {
  std::shared_ptr<SlabWriter>& writer = writers_[offerer.client];
  if (writer) return writer;
  writer = Resume(offerer, domain);
  if (writer) return writer;
  writer = std::make_shared<SlabWriter>();
  writer->client = offerer.client;
  writer->uid = offerer.uid;
  writer->pid = offerer.pid;
  writer->instance = offerer.instance;
  writer->domain = &domain;
  return writer;
}

// Finds the writer of the same client on a new connection. A client makes its copies and sends its
// offers on one thread, so all copies of the old connection have ended by the time of the first
// offer.
std::shared_ptr<SlabWriter> SlabWriters::Resume(const Offerer& offerer, Domain& domain) {
  if (offerer.instance == 0 || offerer.pid == 0) return nullptr;
  const auto found = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<SlabWriter>& writer) {
    return writer->instance == offerer.instance && writer->pid == offerer.pid && writer->uid == offerer.uid && writer->domain == &domain &&
           !writer->process->Ended();
  });
  if (found == departed_.end()) return nullptr;
  std::shared_ptr<SlabWriter> writer = std::move(*found);
  departed_.erase(found);
  writer->client = offerer.client;
  writer->process.reset();
  writer->granted = 0;
  for (const auto& slab : pool_.slabs()) {
    if (!slab->WritableBy(*writer)) continue;
    writer->bytes += slab->cost();
    host_.SlabGranted(*slab);
  }
  Clear(writer);
  return writer;
}

SlabWriter* SlabWriters::Find(ClientId client) const {
  const auto found = writers_.find(client);
  return found == writers_.end() ? nullptr : found->second.get();
}

std::shared_ptr<SlabWriter> SlabWriters::OfRestored(Domain& domain, const kvmwire::StoredSlab& stored,
                                                    const std::shared_ptr<WatchedProcess>& process) {
  const auto known = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<SlabWriter>& writer) {
    return writer->process == process && writer->instance == stored.writer_instance() && writer->domain == &domain;
  });
  if (known != departed_.end()) return *known;
  auto writer = std::make_shared<SlabWriter>();
  writer->uid = stored.writer_uid();
  writer->pid = stored.writer_pid();
  writer->instance = stored.writer_instance();
  writer->domain = &domain;
  writer->process = process;
  departed_.push_back(writer);
  return writer;
}

void SlabWriters::ExpireGrants(SlabWriter& writer, SteadyTime now) {
  const auto answered = [](const OpenGrant& grant) {
    const CacheSlot& slot = grant.slab->group.blocks[grant.slot];
    return slot.state != CacheSlot::State::kGranted || slot.write != grant.write;
  };
  for (; !writer.open.empty(); writer.open.pop_front()) {
    const OpenGrant& grant = writer.open.front();
    if (answered(grant)) continue;
    if (now < grant.deadline) break;
    grant.slab->group.blocks.Expire(grant.slot);
    ++counters_[grant.slab->group.domain].expired;
    --writer.granted;
    pool_.NoteProgress();
  }
  // A grant at the front that is never answered for must not keep the answered ones behind it in
  // the list.
  if (writer.open.size() > 2 * kMaxGrantsPerClient) std::erase_if(writer.open, answered);
}

void SlabWriters::Leave(ClientId client, std::shared_ptr<WatchedProcess> process) {
  const auto found = writers_.find(client);
  if (found == writers_.end()) return;
  const std::shared_ptr<SlabWriter> writer = std::move(found->second);
  writers_.erase(found);
  writer->client = 0;
  writer->bytes = 0;
  writer->process = std::move(process);
  writer->open.clear();
  writer->ended = writer->process->Ended();
  departed_.push_back(writer);
  Clear(writer);
  pool_.NoteProgress();
}

// A writer may have as many slots as the cache has, and in a domain with zero-on-free each one
// that becomes free is written.
void SlabWriters::Clear(const std::shared_ptr<SlabWriter>& writer) {
  if (!std::exchange(writer->clearing, true)) clearing_.push_back(writer);
  if (Work(WorkBudget())) host_.WorkToDo();
}

bool SlabWriters::Work(const WorkBudget& budget) {
  for (; !clearing_.empty(); clearing_.pop_front()) {
    SlabWriter& writer = *clearing_.front();
    if (!ClearSome(writer, budget)) return true;
    writer.clearing = false;
    pool_.NoteProgress();
  }
  return false;
}

// Blocks that were granted to a writer before it has left will not be stored any more. Their slots
// become free once its process can't write them. False: there are more.
bool SlabWriters::ClearSome(const SlabWriter& writer, const WorkBudget& budget) {
  const bool writes = writer.client == 0 && !writer.ended;
  Spend(pool_.slabs().size());
  for (const auto& slab : pool_.slabs()) {
    if (!slab->WritableBy(writer)) continue;
    SlotTable& blocks = slab->group.blocks;
    while (blocks.granted_in(slab->position) > 0 || (!writes && blocks.expired_in(slab->position) > 0)) {
      if (budget.used_up()) return false;
      Spend(1);
      const std::uint32_t in_slab = std::exchange(slab->hand, slab->hand + 1 < blocks.slots_per_slab() ? slab->hand + 1 : 0);
      const policy::Slot at = blocks.SlotAt(slab->position, in_slab);
      if (blocks[at].state == CacheSlot::State::kGranted) blocks.Expire(at);
      if (!writes && blocks[at].state == CacheSlot::State::kExpired) slab->FreeSlot(in_slab);
    }
  }
  return true;
}

void SlabWriters::Tick(SteadyTime now) {
  for (const auto& [client, writer] : writers_) ExpireGrants(*writer, now);
  for (const std::shared_ptr<SlabWriter>& writer : departed_) {
    if (writer->ended || !writer->process->Ended()) continue;
    writer->ended = true;
    Clear(writer);
  }
  // If no slab refers to the writer, there is nothing left that it could write.
  std::erase_if(departed_,
                [](const std::shared_ptr<SlabWriter>& writer) { return !writer->clearing && (writer->ended || writer.use_count() == 1); });
}

std::uint64_t SlabWriters::ShareOf(const SlabWriter& writer, const SlabWriter& asking, std::uint64_t bytes) const {
  std::set<std::uint32_t> users;
  std::uint64_t of_user = 0;
  for (const auto& [client, other] : writers_) {
    if (other->bytes == 0 && other.get() != &asking) continue;
    users.insert(other->uid);
    of_user += other->uid == writer.uid;
  }
  return bytes / std::max<std::uint64_t>(users.size(), 1) / std::max<std::uint64_t>(of_user, 1);
}

}  // namespace kvm::daemon
