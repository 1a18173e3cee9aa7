#include "proto/base/control_groups.h"

#include <algorithm>
#include <optional>

#include "proto/base/cgroup_paths.h"
#include "proto/base/text_files.h"

namespace kvm {
namespace {

// v1 writes the largest number of pages where there is no limit.
constexpr std::uint64_t kNoLimitV1 = std::uint64_t{1} << 62;

std::uint64_t Less(std::uint64_t a, std::uint64_t b) noexcept { return a > b ? a - b : 0; }

// The number in a file. kNotFound: there is no such file.
Result<std::uint64_t> NumberIn(const std::string& path) {
  const Result<std::string> text = ReadTextFile(path);
  if (!text) return text.error();
  if (const auto number = ParseNumber(*text)) return *number;
  return MakeError(Errc::kSystem, path + " is not a number: " + text->substr(0, 32));
}

// The same for a limit: "max", or no such file, means no limit.
Result<std::uint64_t> LimitIn(const std::string& path) {
  const Result<std::string> text = ReadTextFile(path);
  if (!text && text.error().code == Errc::kNotFound) return kNoMemoryLimit;
  if (!text) return text.error();
  if (*text == "max" || *text == "max\n") return kNoMemoryLimit;
  if (const auto number = ParseNumber(*text)) return *number >= kNoLimitV1 ? kNoMemoryLimit : *number;
  return MakeError(Errc::kSystem, path + " is no limit: " + text->substr(0, 32));
}

// Memory in use that the kernel drops when others need it: file cache and kernel slabs. Of the
// memory that is used often, half counts as needed. Shared memory does not count as reclaimable,
// since the kernel can only swap it. An amount that can't be read counts as in use.
std::uint64_t Reclaimable(const std::string& group, const std::string& prefix) {
  const Result<std::string> stat = ReadTextFile(group + "/memory.stat");
  if (!stat) return 0;
  const auto of = [&](const std::string& name) { return NumberAfter(*stat, prefix + name).value_or(0); };
  const std::uint64_t clean = of("inactive_file") + of("active_file") / 2 + of("slab_reclaimable") / 2;
  // "dirty" and "writeback" are v1's names, the others v2's.
  return Less(clean, of("dirty") + of("file_dirty") + of("writeback") + of("file_writeback"));
}

// Empty if the group has no limit of its own.
Result<std::optional<MemoryLevel>> LevelV1(const std::string& path, const std::string& shown) {
  const Result<std::uint64_t> limit = NumberIn(path + "/memory.limit_in_bytes");
  if (!limit) return limit.error();
  // This limit covers memory and swap together.
  const Result<std::uint64_t> with_swap = LimitIn(path + "/memory.memsw.limit_in_bytes");
  if (!with_swap) return with_swap.error();
  MemoryLevel level{"control group " + shown, std::min(*limit, *with_swap), kNoMemoryLimit};
  if (level.limit_bytes >= kNoLimitV1) return std::optional<MemoryLevel>();
  const std::uint64_t reclaimable = Reclaimable(path, "total_");
  for (const auto& [most, usage] : {std::pair(*limit, "/memory.usage_in_bytes"), std::pair(*with_swap, "/memory.memsw.usage_in_bytes")}) {
    if (most >= kNoLimitV1) continue;
    const Result<std::uint64_t> in_use = NumberIn(path + usage);
    if (!in_use) return in_use.error();
    level.available_bytes = std::min(level.available_bytes, Less(most, Less(*in_use, reclaimable)));
  }
  return std::optional(level);
}

Result<std::optional<MemoryLevel>> LevelV2(const std::string& path, const std::string& shown) {
  // Without these files the memory controller is not active here, as at the root.
  const Result<std::uint64_t> max = LimitIn(path + "/memory.max"), high = LimitIn(path + "/memory.high");
  if (!max) return max.error();
  if (!high) return high.error();
  // Above memory.high the kernel does not kill a process but stalls it.
  const std::uint64_t limit = std::min(*max, *high);
  if (limit == kNoMemoryLimit) return std::optional<MemoryLevel>();
  const Result<std::uint64_t> in_use = NumberIn(path + "/memory.current");
  if (!in_use) return in_use.error();
  return std::optional(MemoryLevel{"control group " + shown, limit, Less(limit, Less(*in_use, Reclaimable(path, "")))});
}

// v1 also shows the limit of a group above the outermost one, but not the memory in use there.
Status CheckNoneHidden(const std::string& own, const std::vector<MemoryLevel>& levels) {
  const Result<std::string> stat = ReadTextFile(own + "/memory.stat");
  const auto all = stat ? NumberAfter(*stat, "hierarchical_memory_limit") : std::nullopt;
  if (!all || *all >= kNoLimitV1) return {};
  std::uint64_t seen = kNoMemoryLimit;
  for (const MemoryLevel& level : levels) seen = std::min(seen, level.limit_bytes);
  if (*all >= seen) return {};
  return MakeError(Errc::kUnsupported, "a control group that can't be seen from here allows " + std::to_string(*all >> 20) +
                                           " MiB, and what is in use of it can't be told; give this one a limit of its own");
}

}  // namespace

Result<std::vector<MemoryLevel>> ReadControlGroups(const std::string& root) {
  Result<std::optional<CgroupPath>> found = FindMemoryCgroup(root);
  if (!found) return found.error();
  std::vector<MemoryLevel> levels;
  if (!*found) return levels;
  const CgroupPath& own = **found;
  std::vector<std::string> shown{own.mount};
  for (const std::string& group : own.groups) shown.push_back((shown.back() == "/" ? "" : shown.back()) + "/" + group);
  for (auto at = shown.rbegin(); at != shown.rend(); ++at) {
    Result<std::optional<MemoryLevel>> level = own.version == CgroupVersion::kV2 ? LevelV2(root + *at, *at) : LevelV1(root + *at, *at);
    if (!level) return MakeError(Errc::kSystem, "the memory limit of control group " + *at + " can't be told: " + level.error().ToString());
    if (*level) levels.push_back(std::move(**level));
  }
  if (own.version == CgroupVersion::kV1) {
    if (Status all_seen = CheckNoneHidden(root + shown.back(), levels); !all_seen) return all_seen.error();
  }
  return levels;
}

}  // namespace kvm
