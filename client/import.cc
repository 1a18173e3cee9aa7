// From a match to a copy: one run per stretch of blocks with the same source region, handed to the
// backend that mapped it; the backend's statuses become an ImportResult once the copy is done.
#include "kvclient/import.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "client/connection/wait.h"
#include "client/find/match_impl.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

// `blocks` are below `block_count`. Sorting thousands of blocks in a random order takes longer than queueing their copy,
// so a bit for each block of the region is used, unless those would be many more than there is to look at.
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

ImportFailure Failure(BlockStatus status) {
  switch (status) {
    case BlockStatus::kStale: return ImportFailure::kStale;
    case BlockStatus::kBehindFailed: return ImportFailure::kBehindFailed;
    case BlockStatus::kDeadline: return ImportFailure::kDeadline;
    case BlockStatus::kPending:
    case BlockStatus::kValid:
    case BlockStatus::kError: return ImportFailure::kError;
  }
  return ImportFailure::kError;
}

// What one import needs to stay where it is.
struct Keep {
  Match match;
  std::shared_ptr<Region::Impl> destination;
  std::vector<std::shared_ptr<const CopyPlan>> plans;
  std::vector<std::shared_ptr<const PeerPayload>> payloads;
};

}  // namespace

struct ImportTicket::Impl {
  const OwnerProcess process;
  std::shared_ptr<Client::Impl> client;
  std::shared_ptr<Keep> keep;
  std::unique_ptr<ImportJob> job;  // null: nothing could be copied
  std::vector<std::uint32_t> blocks;
  std::size_t mapped = 0;  // leading blocks the job covers
  std::uint64_t block_bytes = 0;
  std::vector<std::optional<std::uint64_t>> checksums;  // of the leading blocks; empty: nothing is compared
  ImportResult result;
  bool finished = false;

  // Cuts result.valid at the first block whose bytes are not what was published; the reason, if there is one.
  std::optional<ImportFailure> Verify() {
    if (checksums.empty() || result.valid == 0) return std::nullopt;
    const Region::Impl& region = *keep->destination;
    const auto sums = region.backend->Checksum(*region.memory, region.options.geometry, std::span(blocks).first(result.valid));
    if (!sums) {
      result.valid = 0;
      return ImportFailure::kError;
    }
    for (std::size_t i = 0; i < result.valid; ++i) {
      if (!checksums[i] || *checksums[i] == (*sums)[i]) continue;
      result.valid = i;
      return ImportFailure::kCorrupt;
    }
    return std::nullopt;
  }

  // Nothing of it is this process's.
  void FailInChild() {
    if (std::exchange(finished, true)) return;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      result.failed.push_back({i, blocks[i], i == 0 ? ImportFailure::kError : ImportFailure::kBehindFailed});
    }
  }

  void Finish() {
    if (finished) return;
    finished = true;
    std::span<const BlockStatus> statuses = job ? job->statuses() : std::span<const BlockStatus>();
    while (result.valid < statuses.size() && statuses[result.valid] == BlockStatus::kValid) ++result.valid;
    const std::optional<ImportFailure> corrupt = Verify();
    result.bytes = result.valid * block_bytes;
    for (std::size_t i = result.valid; i < blocks.size(); ++i) {
      ImportFailure reason = ImportFailure::kBehindFailed;
      if (i < statuses.size() && statuses[i] != BlockStatus::kValid) reason = Failure(statuses[i]);
      if (i == mapped && result.valid == mapped) reason = ImportFailure::kUnmapped;
      if (i == result.valid && corrupt) reason = *corrupt;
      result.failed.push_back({i, blocks[i], reason});
    }
    KVM_FAULT_POINT(client_import_done);
    client->stats.blocks_imported.fetch_add(result.valid, std::memory_order_relaxed);
    client->stats.blocks_failed.fetch_add(result.failed.size(), std::memory_order_relaxed);
    client->stats.bytes_imported.fetch_add(result.bytes, std::memory_order_relaxed);
    if (const std::size_t kept = client->host_cache_uses.Add(keep->match, result.valid))
      client->stats.blocks_from_host_cache.fetch_add(kept, std::memory_order_relaxed);
    keep.reset();
  }
};

std::string_view ImportFailureName(ImportFailure failure) noexcept {
  switch (failure) {
    case ImportFailure::kStale: return "stale";
    case ImportFailure::kBehindFailed: return "behind_failed";
    case ImportFailure::kDeadline: return "deadline";
    case ImportFailure::kUnmapped: return "unmapped";
    case ImportFailure::kError: return "error";
    case ImportFailure::kCorrupt: return "corrupt";
  }
  return "unknown";
}

ImportTicket::ImportTicket() = default;
ImportTicket::ImportTicket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ImportTicket::~ImportTicket() {
  // In a forked child: what is being copied, and who is told when it is done, are the parent's.
  if (impl_ && !impl_->process.Here()) static_cast<void>(impl_.release());
}
ImportTicket::ImportTicket(ImportTicket&&) noexcept = default;
ImportTicket& ImportTicket::operator=(ImportTicket&& other) noexcept {
  if (this == &other) return *this;
  const ImportTicket before(std::move(*this));  // ends as a destroyed one does
  impl_ = std::move(other.impl_);
  return *this;
}

bool ImportTicket::Done() noexcept {
  if (!impl_) return true;
  if (!impl_->process.Here()) {
    impl_->FailInChild();
    return true;
  }
  if (impl_->job && !impl_->job->Done()) return false;
  impl_->Finish();
  return true;
}

void* ImportTicket::event() const noexcept { return impl_ && impl_->job && impl_->process.Here() ? impl_->job->event() : nullptr; }

Status ImportTicket::Wait(Deadline deadline) noexcept {
  if (!impl_) return {};
  if (!impl_->process.Here()) return BelongsToParent("import ticket");
  const InterruptScope* const scope = InterruptScope::Current();
  while (impl_->job && !impl_->job->Wait(scope == nullptr ? deadline : std::min(deadline, scope->next_question()))) {
    if (std::chrono::steady_clock::now() >= deadline || Interrupted()) return MakeError(Errc::kDeadlineExceeded, "import still under way");
  }
  impl_->Finish();
  return {};
}

const ImportResult& ImportTicket::result() const noexcept {
  static const ImportResult kNothing;
  return impl_ ? impl_->result : kNothing;
}

Result<ImportTicket> Client::Import(const Match& match, Region& destination, std::span<const std::uint32_t> blocks,
                                    const ImportOptions& options) {
  if (!impl_->process.Here()) return BelongsToParent("client");
  Region::Impl& region = destination.impl();
  if (region.client.lock() != impl_)
    return MakeError(Errc::kInvalidArgument, "import: region " + region.options.name + " belongs to another client");
  if (blocks.size() != match.size()) {
    return MakeError(Errc::kInvalidArgument, "import: " + std::to_string(match.size()) + " blocks matched, " +
                                                 std::to_string(blocks.size()) + " destinations given");
  }
  const auto outside = std::find_if(blocks.begin(), blocks.end(), [&](std::uint32_t block) { return block >= destination.block_count(); });
  if (outside != blocks.end()) {
    return MakeError(Errc::kInvalidArgument, "import: block " + std::to_string(*outside) + " is outside region " + region.options.name);
  }
  if (!AllDifferent(blocks, destination.block_count()))
    return MakeError(Errc::kInvalidArgument, "import: a destination block is named twice");

  {
    std::lock_guard lock(region.mutex);
    if (region.closed) return MakeError(Errc::kCancelled, "import: region " + region.options.name + " is closed");
  }

  auto keep = std::make_shared<Keep>(Keep{match, region.shared_from_this(), {}, {}});
  ImportRequest request;
  request.destination = region.memory.get();
  request.deadline = options.deadline;
  std::vector<std::optional<std::uint64_t>> checksums;
  request.stream = options.stream;
  request.max_sms = options.max_sms;
  request.wants_event = options.wants_event;
  request.patience = impl_->options.timeout;
  if (!match.empty()) {
    const Match::Impl& sources = *match.impl();
    const PeerMapping* last = nullptr;
    for (std::size_t i = 0; i < match.size(); ++i) {
      const std::size_t at = match.first() + i;
      const PeerMapping& mapping = *sources.mappings[sources.mapping_of[at]];
      if (&mapping != last) {
        std::shared_ptr<const PeerPayload> payload = mapping.payload();
        if (!payload || !payload->memories[region.device]) break;  // withdrawn, or out of this device's reach
        if (payload->memories[region.device]->lost()) {
          sources.mappings[sources.mapping_of[at]]->GiveUpPaths();  // nor is it matched again
          break;
        }
        Result<std::shared_ptr<const CopyPlan>> plan = mapping.PlanTo(region.options.geometry);
        if (!plan) return MakeError(Errc::kInvalidArgument, "import: " + plan.error().message);
        request.runs.push_back({payload->memories[region.device].get(), &mapping.generations, plan->get(), i, 0});
        keep->plans.push_back(std::move(*plan));
        keep->payloads.push_back(std::move(payload));
        last = &mapping;
      }
      request.runs.back().count++;
      request.blocks.push_back({sources.sources[at].block, blocks[i], sources.sources[at].generation});
      if (!options.verify) continue;
      // What is read here belongs to the generation that the import checks before and after the copy.
      const GenerationReader& reader = mapping.generations.reader;
      checksums.push_back(reader.has_checksums() ? std::optional(reader.Checksum(sources.sources[at].block)) : std::nullopt);
    }
  }

  auto ticket = std::make_unique<ImportTicket::Impl>();
  ticket->client = impl_;
  ticket->blocks.assign(blocks.begin(), blocks.end());
  ticket->block_bytes = region.block_bytes;
  ticket->mapped = request.blocks.size();
  ticket->checksums = std::move(checksums);
  ticket->result.writes.reserve(blocks.size());
  for (const std::uint32_t block : blocks) ticket->result.writes.push_back(destination.BeginWrite(block));
  KVM_FAULT_POINT(client_import_begun);
  impl_->stats.imports.fetch_add(1, std::memory_order_relaxed);
  request.keep = keep;
  if (!request.blocks.empty()) ticket->job = region.backend->Import(std::move(request));
  ticket->keep = std::move(keep);
  return ImportTicket(std::move(ticket));
}

}  // namespace kvm
