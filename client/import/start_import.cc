#include "client/import/start_import.h"

#include <algorithm>
#include <functional>
#include <memory>
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

// Adds the runs of `match` up to the first block that can't be reached from the destination. The
// objects that they refer to are added to `keep`.
Status AddRuns(const Match& match, ImportKeep& keep, ImportRequest& request) {
  if (match.empty()) return {};
  const Region::Impl& region = *keep.destination;
  const Match::Impl& sources = *match.impl();
  const auto mapping_of = std::span(sources.mapping_of).subspan(match.first(), match.size());
  for (std::size_t i = 0, end = 0; i < match.size(); i = end) {
    const PeerMapping& mapping = *sources.mappings[mapping_of[i]];
    end = i + 1;
    while (end < match.size() && mapping_of[end] == mapping_of[i]) ++end;
    std::shared_ptr<const PeerPayload> payload = mapping.payload();
    // Withdrawn, or not reachable from this device
    if (!payload || !payload->memories[region.device]) break;
    if (payload->memories[region.device]->lost()) {
      mapping.DropPaths();  // so that Find does not match it again
      break;
    }
    Result<std::shared_ptr<const CopyPlan>> plan = mapping.PlanTo(region.options.geometry);
    if (!plan) {
      if (mapping.content != ContentOf(region.Descriptor())) {
        return MakeError(Errc::kInvalidArgument, "import: " + plan.error().message);
      }
      // Another user's worker has blocks of another size: they are a miss, and Find does not
      // match them again.
      mapping.DropPaths();
      break;
    }
    request.runs.push_back({payload->memories[region.device].get(), &mapping.generations, plan->get(), i, end - i});
    keep.plans.push_back(std::move(*plan));
    keep.payloads.push_back(std::move(payload));
  }
  return {};
}

// Makes a request's blocks, and withdraws their destinations. Refers to the ticket, the region and
// the destinations of its call of StartImport.
class BlockMaker {
 public:
  BlockMaker(ImportTicket::Impl& ticket, Region& region, std::span<const std::uint32_t> destinations, bool verify)
      : ticket_(ticket), region_(region), destinations_(destinations), verify_(verify) {}

  void operator()(std::vector<ImportBlock>& blocks, std::size_t end) {
    const Match& match = ticket_.keep->match;
    const Match::Impl& sources = *match.impl();
    GenerationWriter& generations = region_.impl().generations;
    const bool compares = verify_ || !sources.sampled.empty();
    for (std::size_t i = blocks.size(); i < end; ++i) {
      const BlockSource& source = sources.sources[match.first() + i];
      blocks.push_back({source.block, destinations_[i], source.generation});
      if (i + kAhead < end) generations.Prefetch(destinations_[i + kAhead]);
      ticket_.result.writes.push_back({destinations_[i], generations.BeginWrite(destinations_[i])});
      if (compares) ticket_.checksums.push_back(Compared(match.first() + i) ? ChecksumOf(match.first() + i) : std::nullopt);
    }
    KVM_FAULT_POINT(client_import_begun);
  }

 private:
  static constexpr std::size_t kAhead = 12;

  bool Compared(std::size_t at) const {
    const std::vector<std::uint32_t>& sampled = ticket_.keep->match.impl()->sampled;
    return verify_ || std::binary_search(sampled.begin(), sampled.end(), at);
  }
  // The checksum to compare with, if the publisher has recorded one. The one that is read here
  // belongs to the source's generation, since the import checks that before and after the copy.
  std::optional<std::uint64_t> ChecksumOf(std::size_t at) const {
    const Match::Impl& sources = *ticket_.keep->match.impl();
    const GenerationReader& reader = sources.mappings[sources.mapping_of[at]]->generations.reader;
    const std::uint64_t checksum = reader.has_checksums() ? reader.Checksum(sources.sources[at].block) : kNoChecksum;
    return checksum == kNoChecksum ? std::nullopt : std::optional(checksum);
  }

  ImportTicket::Impl& ticket_;
  Region& region_;
  const std::span<const std::uint32_t> destinations_;
  const bool verify_;
};

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
  if (Status added = AddRuns(match, *keep, request); !added) return added.error();

  auto ticket = std::make_unique<ImportTicket::Impl>();
  ticket->stats = services.stats;
  if (options.counts_as_use) ticket->host_cache_uses = services.host_cache_uses;
  ticket->keep = keep;
  ticket->blocks.assign(blocks.begin(), blocks.end());
  ticket->block_bytes = region.block_bytes;
  ticket->mapped = BlocksOf(request.runs);
  std::vector<BlockWrite>& writes = ticket->result.writes;
  writes.reserve(blocks.size());
  request.blocks.reserve(ticket->mapped);
  if (options.verify || (match.impl() != nullptr && !match.impl()->sampled.empty())) ticket->checksums.reserve(ticket->mapped);
  request.prepare = BlockMaker(*ticket, destination, blocks, options.verify);
  services.stats->imports.fetch_add(1, std::memory_order_relaxed);
  request.keep = std::move(keep);
  if (ticket->mapped > 0) ticket->job = region.backend->Import(std::move(request));
  // Behind a block that is stale or can't be reached
  while (writes.size() < blocks.size()) writes.push_back(destination.BeginWrite(blocks[writes.size()]));
  return ImportTicket(std::move(ticket));
}

}  // namespace kvm
