#include "client/import/import_ticket.h"

#include <algorithm>
#include <utility>

#include "client/connection/wait.h"
#include "client/find/match_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

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

}  // namespace

ImportTicket::Impl::~Impl() {
  // Dropped before its end was seen; the job's end, which comes first, ends the copy.
  job.reset();
  if (!finished) stats->imports_ended.fetch_add(1, std::memory_order_relaxed);
}

std::optional<ImportFailure> ImportTicket::Impl::Verify() {
  std::vector<std::size_t> at;  // of the blocks that are compared
  std::vector<std::uint32_t> compared;
  for (std::size_t i = 0; i < std::min(result.valid, checksums.size()); ++i) {
    if (!checksums[i]) continue;
    at.push_back(i);
    compared.push_back(blocks[i]);
  }
  if (compared.empty()) return std::nullopt;
  const Region::Impl& region = *keep->destination;
  const auto sums = region.backend->Checksum(*region.memory, region.options.geometry, compared);
  if (!sums) {
    result.valid = 0;
    return ImportFailure::kError;
  }
  std::size_t corrupt = 0;
  for (std::size_t i = at.size(); i-- > 0;) {
    if (*checksums[at[i]] == (*sums)[i]) continue;
    ++corrupt;
    result.valid = at[i];
  }
  stats->blocks_verified.fetch_add(compared.size(), std::memory_order_relaxed);
  stats->blocks_corrupt.fetch_add(corrupt, std::memory_order_relaxed);
  return corrupt == 0 ? std::nullopt : std::optional(ImportFailure::kCorrupt);
}

void ImportTicket::Impl::CountFailure(ImportFailure first) {
  std::atomic<std::uint64_t>* counter = &stats->imports_failed_error;
  switch (first) {
    case ImportFailure::kStale: counter = &stats->imports_failed_stale; break;
    case ImportFailure::kUnmapped: counter = &stats->imports_failed_unmapped; break;
    case ImportFailure::kDeadline: counter = &stats->imports_failed_deadline; break;
    case ImportFailure::kCorrupt: counter = &stats->imports_failed_corrupt; break;
    case ImportFailure::kBehindFailed:  // never the first
    case ImportFailure::kError: break;
  }
  counter->fetch_add(1, std::memory_order_relaxed);
}

void ImportTicket::Impl::FailInChild() {
  if (std::exchange(finished, true)) return;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    result.failed.push_back({i, blocks[i], i == 0 ? ImportFailure::kError : ImportFailure::kBehindFailed});
  }
}

void ImportTicket::Impl::CountTraffic() {
  const Match& match = keep->match;
  if (match.impl() == nullptr) return;
  const Match::Impl& sources = *match.impl();
  const DeviceUuid& to = keep->destination->options.device;
  const auto mapping_of = std::span(sources.mapping_of).subspan(match.first(), result.valid);
  for (std::size_t i = 0, end = 0; i < result.valid; i = end) {
    const DeviceUuid& from = sources.mappings[mapping_of[i]]->device_uuid;
    for (end = i + 1; end < result.valid && (mapping_of[end] == mapping_of[i] || sources.mappings[mapping_of[end]]->device_uuid == from);)
      ++end;
    stats->traffic.Add(from, to, end - i, (end - i) * block_bytes);
  }
}

void ImportTicket::Impl::Finish() {
  if (finished) return;
  finished = true;
  stats->imports_ended.fetch_add(1, std::memory_order_relaxed);
  stats->import_times.Add(std::chrono::steady_clock::now() - begun);
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
  stats->blocks_imported.fetch_add(result.valid, std::memory_order_relaxed);
  stats->blocks_failed.fetch_add(result.failed.size(), std::memory_order_relaxed);
  if (!result.failed.empty()) CountFailure(result.failed.front().reason);
  stats->bytes_imported.fetch_add(result.bytes, std::memory_order_relaxed);
  CountTraffic();
  if (const std::size_t kept = host_cache_uses ? host_cache_uses->Add(keep->match, result.valid) : 0)
    stats->blocks_from_host_cache.fetch_add(kept, std::memory_order_relaxed);
  keep.reset();
}

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
  // In a forked child, the copy and its completion belong to the parent.
  if (impl_ && !impl_->process.Here()) static_cast<void>(impl_.release());
}
ImportTicket::ImportTicket(ImportTicket&&) noexcept = default;
ImportTicket& ImportTicket::operator=(ImportTicket&& other) noexcept {
  if (this == &other) return *this;
  const ImportTicket before(std::move(*this));  // is destroyed at the end of this function
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

}  // namespace kvm
