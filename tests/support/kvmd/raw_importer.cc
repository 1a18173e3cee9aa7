#include "tests/support/kvmd/raw_importer.h"

#include <thread>
#include <utility>

#include "tests/support/data/standing_generations.h"
#include "tests/support/process/watched_memory.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {

Result<std::unique_ptr<RawImporter>> RawImporter::Start(const std::string& socket_path, const ModelSpec& spec, std::uint64_t block_bytes) {
  Result<WireClient> connection = WireClient::Connect(socket_path);
  if (!connection) return connection.error();
  std::unique_ptr<RawImporter> importer(new RawImporter(std::move(*connection)));
  const Result<Received> hello = importer->connection_.Hello("raw-importer");
  if (!hello) return hello.error();
  Result<RegistryView> registry = OpenRegistry(*hello);
  if (!registry) return registry.error();
  importer->registry_ = std::move(*registry);
  // In two segments: a copy has two pieces.
  const std::uint64_t half = block_bytes / 2;
  importer->destination_geometry_ = Geometry{1, {{0, 0, half, half, 1, 0}, {1, 0, half, half, 1, 0}}};
  const std::uint64_t sizes[] = {half, half};
  auto destination = importer->backend_->Allocate("raw-importer", sizes);
  if (!destination) return destination.error();
  importer->destination_ = std::move(*destination);

  // The announcements of all live regions come before the reply.
  const Result<std::uint32_t> model = importer->connection_.DeclareModel(spec);
  if (!model) return model.error();
  for (Received& announced : importer->connection_.announced) {
    if (!announced.message.has_region_announce()) continue;
    if (Status mapped = importer->MapRegion(announced.message.region_announce(), std::move(announced.fds)); !mapped) return mapped.error();
  }
  importer->connection_.announced.clear();
  return importer;
}

Status RawImporter::MapRegion(const kvmwire::RegionAnnounce& announce, std::vector<UniqueFd> fds) {
  const kvmwire::RegionDescriptor& descriptor = announce.descriptor_();
  if (fds.size() != 2 || descriptor.parts_size() != 1 || descriptor.segments_size() != 1) {
    return MakeError(Errc::kProtocol, "not a contiguous region with its memory");
  }
  Region region;
  const kvmwire::GeometryPart& part = descriptor.parts(0);
  region.geometry =
      Geometry{descriptor.block_count(), {{0, part.offset(), part.chunk_bytes(), part.block_stride(), part.count(), part.repeat_stride()}}};
  Result<PeerGenerations> generations = MapGenerations(fds[0].get(), region.geometry.block_count);
  if (!generations) return generations.error();
  region.generations = std::move(*generations);
  std::vector<SegmentHandle> segments(1);
  segments[0].size_bytes = descriptor.segments(0).size_bytes();
  segments[0].fd = std::move(fds[1]);
  auto memory = backend_->Map(std::move(segments));
  if (!memory) return memory.error();
  region.memory = std::move(*memory);
  Result<CopyPlan> plan = MakeCopyPlan(region.geometry, destination_geometry_);
  if (!plan) return plan.error();
  region.plan = std::move(*plan);
  regions_.emplace(std::pair(announce.region(), announce.region_epoch()), std::move(region));
  return {};
}

RawOutcome RawImporter::ImportBy(std::span<const BlockKey> keys, const Copy& copy) {
  RawOutcome outcome;
  IndexEntry entries[layout::kMaxReplicas];
  for (const BlockKey& key : keys) {
    if (registry_.index().Find(key, std::span<IndexEntry>(entries)) == 0) continue;
    const auto found = regions_.find({entries[0].region, entries[0].region_epoch});
    if (found == regions_.end()) continue;
    if (!copy(found->second, {entries[0].block, 0, entries[0].generation})) {
      ++outcome.stale;
      continue;
    }
    ++outcome.imported;
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint64_t bytes = destination_geometry_.BlockBytes() / 2;
      if (HasContent(key, half * bytes, destination_->SegmentData(half), bytes)) continue;
      ++outcome.wrong;
      break;
    }
  }
  return outcome;
}

bool RawImporter::CopyTo(const LocalMemory& destination, const Region& region, const PeerGenerations& generations,
                         const ImportBlock& block) {
  ImportRequest request;
  request.destination = &destination;
  request.runs = {{region.memory.get(), &generations, &region.plan, 0, 1}};
  request.blocks = {block};
  return backend_->Import(std::move(request))->statuses().front() == BlockStatus::kValid;
}

RawOutcome RawImporter::Import(std::span<const BlockKey> keys) {
  return ImportBy(
      keys, [this](const Region& region, const ImportBlock& block) { return CopyTo(*destination_, region, region.generations, block); });
}

RawOutcome RawImporter::ImportUnchecked(std::span<const BlockKey> keys) {
  return ImportBy(keys, [this](const Region& region, const ImportBlock& block) {
    const StandingGenerations standing(region.geometry.block_count, {&block, 1});
    const WatchedMemory watched(*destination_, [&](std::size_t piece) {
      const Deadline deadline = After(std::chrono::seconds(1));
      const auto rewritten = [&] {
        const Generation now = region.generations.reader.Current(block.source_block);
        return IsReadable(now) && now != block.generation;
      };
      while (piece == 1 && !rewritten() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    });
    return CopyTo(watched, region, standing.Get(), block);
  });
}

}  // namespace kvm::test
