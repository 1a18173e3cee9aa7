#include "client/offload/host_cache_uses.h"

#include <algorithm>

#include "client/find/match_impl.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {

std::size_t HostCacheUses::Add(const Match& match, std::size_t valid) {
  if (match.impl() == nullptr || valid == 0) return 0;
  const Match::Impl& sources = *match.impl();
  std::vector<kvmwire::HostCacheRun> runs;
  std::size_t kept = 0;
  bool in_run = false;
  const bool any_kept = std::any_of(sources.mappings.begin(), sources.mappings.end(), [](const auto& mapping) { return mapping->kept; });
  for (std::size_t i = 0; any_kept && i < valid; ++i) {
    const std::size_t at = match.first() + i;
    if (!sources.mappings[sources.mapping_of[at]]->kept) {
      in_run = false;
      continue;
    }
    ++kept;
    if (!in_run) runs.emplace_back();
    in_run = true;
    // Only the run's last block is named: kvmd follows the prefix back from it.
    const BlockSource& source = sources.sources[at];
    kvmwire::HostCacheRun& run = runs.back();
    run.set_region(source.region);
    run.set_region_epoch(source.region_epoch);
    run.set_slot(source.block);
    run.set_blocks(run.blocks() + 1);
  }
  const BlockSource& last = sources.sources[match.first() + valid - 1];
  MutexLock lock(mutex_);
  if (imports_.size() < kMaxHostCacheRuns) {
    kvmwire::HostCacheRun& import = imports_.emplace_back();
    import.set_region(last.region);
    import.set_region_epoch(last.region_epoch);
    import.set_slot(last.block);
    import.set_blocks(static_cast<std::uint32_t>(valid));
  }
  for (kvmwire::HostCacheRun& run : runs) {
    if (runs_.size() < kMaxHostCacheRuns) runs_.push_back(std::move(run));
  }
  return kept;
}

kvmwire::ClientMessage HostCacheUses::Take() {
  kvmwire::ClientMessage message;
  kvmwire::HostCacheUse& use = *message.mutable_host_cache_use();
  MutexLock lock(mutex_);
  for (kvmwire::HostCacheRun& run : runs_) *use.add_runs() = std::move(run);
  for (kvmwire::HostCacheRun& import : imports_) *use.add_imports() = std::move(import);
  runs_.clear();
  imports_.clear();
  return message;
}

}  // namespace kvm
