// Why lookups end before their last key: what each reason means, and what to do about it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

struct MissReason {
  std::uint64_t (kvmwire::StatsReport::*count)() const;
  std::string_view name;     // for programs
  std::string_view meaning;  // goes on a sentence: "because …"
  bool warns;                // it can be mended
  std::string_view advice;
};

// In the order of kvmwire::MissReason.
inline constexpr std::array<MissReason, 6> kMissReasons{{
    {&kvmwire::StatsReport::misses_absent, "absent", "the next block is not published", false,
     "normal where prompts part there; kvctl explain --tokens says at which block a prompt does"},
    {&kvmwire::StatsReport::misses_other_model, "other_model", "only a model is served that differs in a field", true,
     "kvctl doctor's check models and kvctl explain --model-spec name the field; start the engines with the same options"},
    {&kvmwire::StatsReport::misses_stale, "stale", "the block was rewritten after it was published", true,
     "pools are recycled faster than they are read: larger pools, or a host cache (--host-cache), whose blocks don't go so soon"},
    {&kvmwire::StatsReport::misses_unreachable, "unreachable", "the block is in memory that the worker can't import from", true,
     "kvctl clients (unmapped) and this doctor's check client say which region and why; kvctl topo shows which GPUs reach each other"},
    {&kvmwire::StatsReport::misses_too_short, "too_short", "the prompt is shorter than a block", false,
     "a smaller block size of the engine shares shorter prompts"},
    {&kvmwire::StatsReport::misses_kvmd_away, "kvmd_away", "kvmd was away", true,
     "journalctl -u kvmd says why; workers reconnect by themselves"},
}};

// Of a message, whose reason may be one of a newer version's.
inline MissReason ReasonOf(const kvmwire::RecentMiss& miss) noexcept {
  const auto index = static_cast<std::size_t>(miss.reason());
  if (index < kMissReasons.size()) return kMissReasons[index];
  return {nullptr, "unknown", "this kvctl does not know the reason", true, "use the kvctl of the workers' version"};
}

}  // namespace kvm::ctl
