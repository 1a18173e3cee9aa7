#include "client/region/make_region.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "client/connection/wait.h"
#include "client/peers/segment_handles.h"
#include "client/region/region_options.h"
#include "proto/base/memory_room.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/region_descriptor.h"

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kFirstPause{10}, kLastPause{160};

// `granted`: memory from kvmd; may be not open.
Result<OwnedMemory> MakeGenerations(const RegionOptions& options, UniqueFd granted) {
  const std::size_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  Result<OwnedMemory> memory = granted ? OwnedMemory::Take(std::move(granted), bytes, HugePages::kTry)
                                       : OwnedMemory::Create("kvm:" + options.name + ":generations", bytes, HugePages::kTry);
  if (memory) GenerationWriter::Format({memory->data(), memory->size()}, options.geometry.block_count, options.checksums);
  return memory;
}

// Whether the table has checksums; false as well if it is none, which Open refuses.
bool HasChecksums(int table) {
  GenerationHeader header{};
  return ::pread(table, &header, sizeof(header), 0) == static_cast<ssize_t>(sizeof(header)) && header.has_checksums != 0;
}

Result<std::shared_ptr<PeerMapping>> MapOwn(const Region::Impl::Parts& region, std::size_t devices) {
  PeerMapping::Parts parts;
  Result<PeerGenerations> own_generations = MapGenerations(region.generation_memory.fd(), region.options.geometry.block_count);
  if (!own_generations) return own_generations.error();
  parts.generations = std::move(*own_generations);
  // Without it, the CPU validates
  if (region.device != DeviceSet::kHost) static_cast<void>(region.backend->AttachGenerations(parts.generations));
  Result<std::unique_ptr<PeerMemory>> view = region.backend->View(*region.memory);
  if (!view) return view.error();
  parts.payload = std::make_shared<PeerPayload>();
  // The view must not outlive the memory, so the payload owns both.
  parts.payload->memories[region.device] =
      std::shared_ptr<PeerMemory>(view->release(), [keep = region.memory](PeerMemory* peer) { delete peer; });
  parts.geometry = region.options.geometry;
  parts.name = region.options.name;
  parts.content = ContentOf(ExpectedDescriptor(region.model, region.options));
  parts.identity = FileIdOf(region.generation_memory.fd());
  parts.devices = devices;
  parts.device_uuid = region.options.device;
  parts.own = true;
  return std::make_shared<PeerMapping>(std::move(parts));
}

Result<std::shared_ptr<Region::Impl>> Make(const Model& model, RegionOptions options, const DeviceSet& devices, std::size_t device,
                                           std::shared_ptr<LocalMemory> memory, OwnedMemory generations) {
  const std::uint32_t blocks = options.geometry.block_count;
  const std::uint64_t record_bytes = std::uint64_t{blocks} * sizeof(PublishRecord);
  if (Status fits = CheckMemoryRoom(record_bytes, "the records of region " + options.name); !fits) return fits.error();
  Result<GenerationWriter> writer = GenerationWriter::Open({generations.data(), generations.size()}, blocks);
  if (!writer) return writer.error();
  Region::Impl::Parts parts;
  parts.memory = std::move(memory);
  parts.generation_memory = std::move(generations);
  parts.generations = *writer;
  parts.model = model;
  parts.device = device;
  parts.backend = devices.Share(device);
  parts.options = std::move(options);
  Result<std::shared_ptr<PeerMapping>> own = MapOwn(parts, devices.size());
  if (!own) return own.error();
  parts.own_mapping = std::move(*own);
  return std::make_shared<Region::Impl>(std::move(parts));
}

}  // namespace

Result<std::shared_ptr<Region::Impl>> MakeAllocated(const Model& model, RegionOptions options, const DeviceSet& devices, std::size_t device,
                                                    const GrantMemory& grant) {
  if (Status sound = Complete(options); !sound) return sound.error();
  std::vector<std::uint64_t> sizes{GenerationTableBytes(options.geometry.block_count, options.checksums)};
  if (device == DeviceSet::kHost) sizes.insert(sizes.end(), options.segment_bytes.begin(), options.segment_bytes.end());
  Fds granted = grant(sizes);
  Result<OwnedMemory> generations = MakeGenerations(options, granted.empty() ? UniqueFd() : UniqueFd(std::move(granted[0])));
  if (!generations) return generations.error();
  std::vector<SegmentHandle> segments;
  for (std::size_t i = 1; i < granted.size(); ++i) {
    segments.emplace_back();
    segments.back().size_bytes = sizes[i];
    segments.back().fd = std::move(granted[i]);
  }
  Result<std::unique_ptr<LocalMemory>> memory =
      segments.empty() ? devices[device].Allocate(options.name, options.segment_bytes) : devices[device].Take(std::move(segments));
  if (!memory) return memory.error();
  return Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
}

Result<std::shared_ptr<Region::Impl>> AllocateInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& options,
                                                               const DeviceSet& devices, std::size_t device, Deadline deadline) {
  bool gave_way = false;  // kvmd has freed memory of dead workers for this region
  const auto allocate = [&] {
    return MakeAllocated(model, options, devices, device, GrantInPlaceOfTheDead(link, model, options, deadline, gave_way));
  };
  Result<std::shared_ptr<Region::Impl>> made = allocate();
  const auto exhausted = [&] { return !made && made.error().code == Errc::kResourceExhausted && link.connected(); };
  if (exhausted()) {
    // Ask kvmd to free regions of dead workers on this device, then try again.
    const Result<ReclaimedMemory> reclaimed = ReclaimOrphans(link, {.device = options.device, .name = {}, .min_age = {}}, deadline);
    gave_way = gave_way || (reclaimed && reclaimed->regions > 0);
    if (gave_way) made = allocate();
  }
  // The service manager may have the last descriptor of the freed memory, and closes it some time
  // later.
  for (auto pause = kFirstPause; exhausted() && gave_way && pause <= kLastPause && After(pause) < deadline; pause *= 2) {
    if (!Sleep(pause)) break;
    made = allocate();
  }
  return made;
}

Result<std::shared_ptr<Region::Impl>> MakeRegistered(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                     std::size_t device, std::span<const DeviceRange> segments, const GrantMemory& grant) {
  options.segment_bytes.clear();
  for (const DeviceRange& segment : segments) options.segment_bytes.push_back(segment.size_bytes);
  if (Status sound = CheckOptions(options, kMaxSegmentsByHandle); !sound) return sound.error();
  Result<std::unique_ptr<LocalMemory>> memory = devices[device].Register(segments);
  if (!memory) return MakeError(memory.error().code, "region " + options.name + ": " + memory.error().message);
  Fds granted;
  const std::uint64_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  if ((*memory)->kind() == layout::HandleKind::kCudaVmmFd) granted = grant({&bytes, 1});
  Result<OwnedMemory> generations = MakeGenerations(options, granted.empty() ? UniqueFd() : UniqueFd(std::move(granted[0])));
  if (!generations) return generations.error();
  return Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
}

Result<std::shared_ptr<Region::Impl>> MakeAdopted(const Model& model, RegionOptions options, const DeviceSet& devices, std::size_t device,
                                                  const kvmwire::AdoptRegionReply& reply, Fds fds) {
  Result<std::vector<SegmentHandle>> segments = HandlesOf(reply.descriptor_(), fds);
  if (!segments) return segments.error();
  // The table stays as its last owner made it, whatever this one records.
  const bool has_checksums = HasChecksums(fds.front().get());
  if (has_checksums && !options.checksums) options.checksum_one_in = 0;
  options.checksums = has_checksums;
  const std::size_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  Result<OwnedMemory> generations = OwnedMemory::Take(std::move(fds.front()), bytes, HugePages::kTry);
  if (!generations) return MakeError(generations.error().code, "region " + options.name + ": generations: " + generations.error().message);
  Result<std::unique_ptr<LocalMemory>> memory = devices[device].Take(std::move(*segments));
  if (!memory) return memory.error();
  Result<std::shared_ptr<Region::Impl>> made =
      Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
  if (!made) return made;
  const Result<MappedMemory> list =
      MappedMemory::Attach(fds.back().get(), std::max<std::uint64_t>(reply.records(), 1) * sizeof(PublishRecord));
  if (!list) return list.error();
  // The last owner may have ended some blocks before it died.
  (*made)->generations.TakeUpAll();
  (*made)->TakeOver({reply.region(), reply.region_epoch()}, {list->data(), reply.records() * sizeof(PublishRecord)});
  return made;
}

}  // namespace kvm
