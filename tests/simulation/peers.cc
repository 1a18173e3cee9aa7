#include "tests/simulation/peers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace kvm::simulation {

void Peers::Announced(ToClient& announced) {
  const kvmwire::RegionAnnounce& announce = announced.message.region_announce();
  const kvmwire::RegionDescriptor& descriptor = announce.descriptor_();
  // I5: nothing is seen of other domains. Honest names begin with their user.
  if (!announce.host_cache() && !descriptor.name().starts_with(std::to_string(domain_) + "-"))
    world_.Fail("I5: a region of another domain is announced");
  if (announced.fds.size() != 2 || !announced.fds[0] || !announced.fds[1]) return;
  auto peer = std::make_shared<Peer>();
  Result<MappedMemory> table = MappedMemory::Attach(announced.fds[0].get());
  Result<MappedMemory> payload = MappedMemory::Attach(announced.fds[1].get());
  if (!table || !payload) return;  // damaged, or no room
  // I1: what an importer is handed can't be mapped for writing.
  if (world_.random.OneIn(4)) {
    void* const writable = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, announced.fds[world_.random.Below(2)].get(), 0);
    if (writable != MAP_FAILED) world_.Fail("I1: an importer can write what it was announced");
  }
  peer->generation_memory = std::move(*table);
  peer->payload = std::move(*payload);
  const Result<GenerationReader> reader =
      GenerationReader::Open({peer->generation_memory.data(), peer->generation_memory.size()}, descriptor.block_count());
  if (!reader) return;
  peer->generations = *reader;
  peer->cached = announce.host_cache();
  if (peer->payload.size() < descriptor.block_count() * kBlockBytes) return;  // a hostile client's
  mapped_[{announce.region(), announce.region_epoch()}] = std::move(peer);
}

bool Peers::Withdrawn(const RegionName& region, bool wants_ack) {
  const auto found = mapped_.find(region);
  if (found == mapped_.end()) return true;
  std::shared_ptr<Peer> peer = std::move(found->second);
  mapped_.erase(found);
  if (peer.use_count() == 1) return true;
  leaving_.push_back({region, std::move(peer), wants_ack});
  return false;
}

std::vector<RegionName> Peers::TakeUnmapped() {
  std::vector<RegionName> out;
  std::erase_if(leaving_, [&](const Leaving& leaving) {
    if (leaving.peer.use_count() > 1) return false;
    if (leaving.wants_ack) out.push_back(leaving.region);
    return true;
  });
  return out;
}

bool Peers::Maps(const RegionName& region) const {
  return mapped_.contains(region) ||
         std::any_of(leaving_.begin(), leaving_.end(), [&](const Leaving& leaving) { return leaving.region == region; });
}

std::optional<IndexHit> Peers::Begin(std::uint32_t number) {
  std::array<IndexHit, layout::kMaxReplicas> hits;
  const std::size_t count = registry_.index().Find(KeyOf(number), std::span<IndexHit>(hits));
  if (count == 0 || copies_.size() >= 4) return std::nullopt;
  const IndexHit& hit = hits[world_.random.Below(count)];
  const auto found = mapped_.find({hit.region, hit.region_epoch});
  if (found == mapped_.end() || found->second->generations.Current(hit.block) != hit.generation || !IsReadable(hit.generation))
    return std::nullopt;
  copies_.push_back({found->second, hit.block, number, 0, hit.generation, {}});
  ++world_.counted.copies;
  return hit;
}

void Peers::GoOn(bool kvmd_is_down) {
  if (copies_.empty()) return;
  const std::size_t at = world_.random.Below(copies_.size());
  Copy& copy = copies_[at];
  constexpr std::uint32_t kPart = kWords / 4;
  std::memcpy(copy.bytes.data() + copy.words, copy.peer->payload.data() + copy.block * kBlockBytes + copy.words * sizeof(std::uint64_t),
              kPart * sizeof(std::uint64_t));
  copy.words += kPart;
  if (copy.words < kWords) return;
  const bool valid =
      copy.peer->generations.StillValid(copy.block, copy.generation) && !copy.peer->payload.lost() && !copy.peer->generation_memory.lost();
  const bool right = Holds(reinterpret_cast<const std::byte*>(copy.bytes.data()), domain_, KeyOf(copy.number));
  const bool cached = copy.peer->cached;
  const std::uint32_t number = copy.number, block = copy.block;
  const Generation generation = copy.generation;
  copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(at));
  if (!valid && world_.defect != Defect::kImporterDoesNotValidate) {
    world_.counted.caught += !right;
    return;
  }
  if (!right) {
    world_.Note("wrong bytes", number, block, generation);
    world_.Fail("I2, I4: a validated copy holds other bytes than its key's");
  }
  ++world_.counted.validated;
  world_.counted.validated_while_down += kvmd_is_down;
  world_.counted.validated_cached += cached;
}

}  // namespace kvm::simulation
