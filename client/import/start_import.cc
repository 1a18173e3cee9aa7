#include "client/import/start_import.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/find/match_impl.h"
#include "proto/base/fault_point.h"
#include "proto/wire/region_descriptor.h"

namespace kvm {
namespace {

// `blocks` are below `block_count`. Sorting thousands of blocks in a random order takes longer than
// queueing their copy, so a bit for each block of the region is used, unless that would be many
// more bits than `blocks` has elements.
bool AllDifferent(std::span<const std::uint32_t> blocks, std::uint32_t block_count) {
  if (std::adjacent_find(blocks.begin(), blocks.end(), std::greater_equal<>()) == blocks.end()) return true;
  if (block_count / 1024 <= blocks.size()) {
    std::vector<std::uint64_t> seen(block_count / 64 + 1);
    for (const std::uint32_t block : blocks) {
      const std::uint64_t bit = std::uint64_t{1} << block % 64;
      if ((seen[block / 64] & bit) != 0) return false;
      seen[block / 64] |= bit;
    }
    return true;
  }
  std::vector<std::uint32_t> sorted(blocks.begin(), blocks.end());
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
}

Status CheckDestination(const Match& match, const Region::Impl& region, std::span<const std::uint32_t> blocks) {
  const std::uint32_t block_count = region.options.geometry.block_count;
  if (blocks.size() != match.size()) {
    return MakeError(Errc::kInvalidArgument, "import: " + std::to_string(match.size()) + " blocks matched, " +
                                                 std::to_string(blocks.size()) + " destinations given");
  }
  const auto outside = std::find_if(blocks.begin(), blocks.end(), [&](std::uint32_t block) { return block >= block_count; });
  if (outside != blocks.end()) {
    return MakeError(Errc::kInvalidArgument, "import: block " + std::to_string(*outside) + " is outside region " + region.options.name);
  }
  if (!AllDifferent(blocks, block_count)) return MakeError(Errc::kInvalidArgument, "import: a destination block is named twice");
  if (region.closed()) return MakeError(Errc::kCancelled, "import: region " + region.options.name + " is closed");
  return {};
}

using Checksums = std::vector<std::optional<std::uint64_t>>;

// The checksum to compare with, if the publisher has recorded one. The one that is read here
// belongs to the source's generation, since the import checks that before and after the copy.
std::optional<std::uint64_t> ChecksumOf(const GenerationReader& reader, std::uint32_t block) {
  const std::uint64_t checksum = reader.has_checksums() ? reader.Checksum(block) : kNoChecksum;
  return checksum == kNoChecksum ? std::nullopt : std::optional(checksum);
}

// Adds the runs of `match` up to the first block that can't be reached from the destination. The
// objects that they refer to are added to `keep`, and the checksums to compare with, if any, to
// `checksums`.
Status AddRuns(const Match& match, std::span<const std::uint32_t> blocks, bool verify, ImportKeep& keep, ImportRequest& request,
               Checksums& checksums) {
  if (match.empty()) return {};
  const Region::Impl& region = *keep.destination;
  const Match::Impl& sources = *match.impl();
  const PeerMapping* last = nullptr;
  auto sampled = std::lower_bound(sources.sampled.begin(), sources.sampled.end(), match.first());
  const bool compares = verify || !sources.sampled.empty();
  for (std::size_t i = 0; i < match.size(); ++i) {
    const std::size_t at = match.first() + i;
    const PeerMapping& mapping = *sources.mappings[sources.mapping_of[at]];
    if (&mapping != last) {
      std::shared_ptr<const PeerPayload> payload = mapping.payload();
      // Withdrawn, or not reachable from this device
      if (!payload || !payload->memories[region.device]) break;
      if (payload->memories[region.device]->lost()) {
        // So that Find does not match it again
        sources.mappings[sources.mapping_of[at]]->DropPaths();
        break;
      }
      Result<std::shared_ptr<const CopyPlan>> plan = mapping.PlanTo(region.options.geometry);
      if (!plan) {
        if (mapping.content != ContentOf(region.Descriptor())) {
          return MakeError(Errc::kInvalidArgument, "import: " + plan.error().message);
        }
        // Another user's worker has blocks of another size: they are a miss, and Find does not
        // match them again.
        sources.mappings[sources.mapping_of[at]]->DropPaths();
        break;
      }
      request.runs.push_back({payload->memories[region.device].get(), &mapping.generations, plan->get(), i, 0});
      keep.plans.push_back(std::move(*plan));
      keep.payloads.push_back(std::move(payload));
      last = &mapping;
    }
    request.runs.back().count++;
    request.blocks.push_back({sources.sources[at].block, blocks[i], sources.sources[at].generation});
    if (!compares) continue;
    const bool in_sample = sampled != sources.sampled.end() && *sampled == at;
    if (in_sample) ++sampled;
    checksums.push_back(verify || in_sample ? ChecksumOf(mapping.generations.reader, sources.sources[at].block) : std::nullopt);
  }
  return {};
}

}  // namespace

Result<ImportTicket> StartImport(const ImportServices& services, const Match& match, Region& destination,
                                 std::span<const std::uint32_t> blocks, const ImportOptions& options) {
  Region::Impl& region = destination.impl();
  if (Status sound = CheckDestination(match, region, blocks); !sound) return sound.error();
  auto keep = std::make_shared<ImportKeep>(ImportKeep{match, region.shared_from_this(), {}, {}});
  ImportRequest request;
  request.destination = region.memory.get();
  request.deadline = options.deadline;
  request.stream = options.stream;
  request.max_sms = options.max_sms;
  request.wants_event = options.wants_event;
  request.patience = services.patience;
  Checksums checksums;
  if (Status added = AddRuns(match, blocks, options.verify, *keep, request, checksums); !added) return added.error();

  auto ticket = std::make_unique<ImportTicket::Impl>();
  ticket->stats = services.stats;
  if (options.counts_as_use) ticket->host_cache_uses = services.host_cache_uses;
  ticket->blocks.assign(blocks.begin(), blocks.end());
  ticket->block_bytes = region.block_bytes;
  ticket->mapped = request.blocks.size();
  ticket->checksums = std::move(checksums);
  ticket->result.writes.reserve(blocks.size());
  for (const std::uint32_t block : blocks) ticket->result.writes.push_back(destination.BeginWrite(block));
  KVM_FAULT_POINT(client_import_begun);
  services.stats->imports.fetch_add(1, std::memory_order_relaxed);
  request.keep = keep;
  if (!request.blocks.empty()) ticket->job = region.backend->Import(std::move(request));
  ticket->keep = std::move(keep);
  return ImportTicket(std::move(ticket));
}

}  // namespace kvm
