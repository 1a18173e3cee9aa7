#include "daemon/host_cache/slab_allocator.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "daemon/system/log.h"
#include "daemon/system/steady_ms.h"

namespace kvm::daemon {
namespace {

// No slab is begun for so long after the machine had no memory left
constexpr std::chrono::seconds kMemoryPause{10};
constexpr std::string_view kNamePrefix = "host-cache-";

// N of the name "host-cache-N"; 0 for other names.
std::uint64_t NumberIn(std::string_view name) {
  std::uint64_t number = 0;
  if (name.starts_with(kNamePrefix)) std::from_chars(name.data() + kNamePrefix.size(), name.data() + name.size(), number);
  return number;
}

}  // namespace

bool SlabAllocator::Allocating(const SlabClass& group, const SlabWriter& writer) const {
  return std::any_of(allocating_.begin(), allocating_.end(),
                     [&](const auto& slab) { return &slab->group == &group && slab->WritableBy(writer); });
}

void SlabAllocator::Avoid(std::string_view name) { next_name_ = std::max(next_name_, NumberIn(name) + 1); }

// Memory of slabs that are begun and not allocated yet, and memory that registries will need.
std::uint64_t SlabAllocator::PromisedBytes() const {
  std::uint64_t bytes = host_.RegistryBytesToCome();
  for (const auto& slab : allocating_) bytes += slab->memory.missing_bytes();
  return bytes;
}

void SlabAllocator::Pause(const Error& error, SteadyTime now) {
  no_memory_until_ = now + kMemoryPause;
  LogLimited(LogLevel::kWarn, "host_cache_not_grown", {{"reason", error.ToString()}});
}

bool SlabAllocator::Start(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, SteadyTime now) {
  if (now < no_memory_until_) return false;
  Result<std::unique_ptr<Slab>> slab = Slab::Create(pool_, std::string(kNamePrefix) + std::to_string(next_name_), group, PromisedBytes());
  if (!slab) {
    Pause(slab.error(), now);
    return false;
  }
  ++next_name_;
  ++group.slabs;
  (*slab)->uid = writer->uid;
  (*slab)->writer = writer;
  writer->bytes += (*slab)->cost();
  allocating_.push_back(std::move(*slab));
  host_.WorkToDo();
  return true;
}

bool SlabAllocator::Work(SteadyTime now) {
  if (allocating_.empty()) return false;
  const Result<bool> more = allocating_.front()->memory.AllocateSome(huge_pages_, host_.RegistryBytesToCome());
  if (more && *more) return !allocating_.front()->memory.waits();
  std::unique_ptr<Slab> slab = std::move(allocating_.front());
  allocating_.pop_front();
  pool_.NoteProgress();
  if (more) {
    Finish(std::move(slab), now);
  } else {
    Pause(more.error(), now);
    Drop(*slab);
  }
  return !allocating_.empty();
}

// Drops a slab that can't be finished.
void SlabAllocator::Drop(const Slab& slab) {
  if (slab.writer->client != 0) slab.writer->bytes -= slab.cost();
  --slab.group.slabs;
  pool_.DropIfEmpty(slab.group);
}

void SlabAllocator::Finish(std::unique_ptr<Slab> finished, SteadyTime now) {
  SlotTable& blocks = finished->group.blocks;
  const bool writer_left = finished->writer->client == 0;
  const std::uint32_t position = blocks.AddSlab();
  if (Status opened = finished->Open(position); !opened) {
    Pause(opened.error(), now);
    blocks.RemoveSlab(position);
    return Drop(*finished);
  }
  // The writer has never had the slab's descriptor.
  if (writer_left) finished->writer = nullptr;
  finished->used_ms = SteadyMs(now);
  Slab& slab = pool_.Add(std::move(finished));
  LogLimited(LogLevel::kInfo, "host_cache_grown",
             {{"domain", slab.group.domain.name()},
              {"region", slab.region->descriptor.name()},
              {"row", slab.region->row},
              {"bytes", slab.bytes()}});
  host_.WorkToDo();  // its class may have a new policy
  host_.SlabOpened(slab);
  if (!writer_left) host_.SlabGranted(slab);
}

void SlabAllocator::Forget(const Domain& domain) {
  for (auto at = allocating_.begin(); at != allocating_.end();) {
    if (&(*at)->group.domain != &domain) {
      ++at;
      continue;
    }
    const std::unique_ptr<Slab> slab = std::move(*at);
    at = allocating_.erase(at);
    pool_.Empty(*slab);
    Drop(*slab);
  }
}

std::uint64_t SlabAllocator::BytesOf(std::uint32_t uid) const {
  std::uint64_t bytes = 0;
  for (const auto& slab : allocating_) bytes += slab->uid == uid ? slab->cost() : 0;
  return bytes;
}

void SlabAllocator::Count(const Domain* domain, HostCacheUsage& usage) const {
  for (const auto& slab : allocating_) {
    if (domain == nullptr || &slab->group.domain == domain) usage.Add(*slab);
  }
}

}  // namespace kvm::daemon
