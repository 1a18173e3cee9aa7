// Generated workloads: the same Request records as a trace, from a seed. The same options give the
// same requests on every machine.
//
//   chat    users in turn-by-turn conversations; each turn's prompt is all of the conversation so
//           far. A few system prompts are shared by all. Reuse: long, private prefixes, growing.
//   rag     one of few templates, then retrieved documents by popularity (Zipf), then a new
//           question. Reuse: template always, first document often.
//   agents  a long tool prompt per agent kind, then a task whose scratchpad grows by a tool's
//           output with every step. Reuse: tool prompt across tasks, scratchpad within one.
//
// Block ids are prefix-chained: two prompts share an id if and only if they are the same up to the
// end of that block.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "client/kvctl/workload/request.h"

namespace kvm::ctl {

enum class Workload { kChat, kRag, kAgents };

std::optional<Workload> WorkloadFromName(std::string_view name) noexcept;
std::string_view WorkloadName(Workload workload) noexcept;

struct WorkloadOptions {
  Workload workload = Workload::kChat;
  std::uint64_t seed = 1;
  std::size_t requests = 1000;
  std::uint32_t block_tokens = 512;
};

std::vector<Request> GenerateWorkload(const WorkloadOptions& options);

}  // namespace kvm::ctl
