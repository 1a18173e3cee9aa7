#include "tests/support/raw_importer.h"

#include <utility>

#include "tests/support/worker.h"

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
  importer->destination_geometry_ = Geometry::Contiguous(1, block_bytes);
  const std::uint64_t sizes[] = {block_bytes};
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

RawOutcome RawImporter::Import(std::span<const BlockKey> keys, Validation validation) {
  RawOutcome outcome;
  IndexEntry entries[layout::kMaxReplicas];
  for (const BlockKey& key : keys) {
    if (registry_.index().Find(key, std::span<IndexEntry>(entries)) == 0) continue;
    const auto found = regions_.find({entries[0].region, entries[0].region_epoch});
    if (found == regions_.end()) continue;
    const Region& region = found->second;
    ImportRequest request;
    request.destination = destination_.get();
    request.runs = {{region.memory.get(), &region.generations, &region.plan, 0, 1}};
    request.blocks = {{entries[0].block, 0, entries[0].generation}};
    request.validation = validation;
    const std::unique_ptr<ImportJob> job = backend_->Import(std::move(request));
    if (job->statuses().front() != BlockStatus::kValid) {
      ++outcome.stale;
      continue;
    }
    ++outcome.imported;
    outcome.wrong += !HasContent(key, 0, destination_->SegmentData(0), destination_geometry_.BlockBytes());
  }
  return outcome;
}

}  // namespace kvm::test
