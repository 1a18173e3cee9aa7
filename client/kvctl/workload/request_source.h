// RequestSource: the options --trace and --workload, and those that belong to them, for commands
// that read a trace or generate a workload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/workload/request.h"
#include "client/kvctl/workload/trace.h"
#include "kvm/error.h"

namespace CLI {
class App;
}

namespace kvm::ctl {

struct RequestSource {
  std::string trace;  // exactly one of trace and workload
  std::string workload;
  std::uint64_t seed = 1;
  std::size_t requests = 1000;     // of a generated workload
  std::size_t limit_requests = 0;  // 0: all
  std::uint32_t block_tokens = 512;
  std::optional<TimestampUnit> timestamps;  // of a trace; empty: timestamps are not used

  const std::string& name() const noexcept { return trace.empty() ? workload : trace; }
};

// Describes workloads and trace files, for a command's help.
extern const char* const kRequestSourceHelp;

// `source` must outlive parsing.
void AddRequestOptions(CLI::App& command, RequestSource& source);

// kInvalidArgument: both or neither of trace and workload, or an unknown workload. Also the errors
// of ReadTrace.
[[nodiscard]] Result<std::vector<Request>> LoadRequests(const RequestSource& source);

}  // namespace kvm::ctl
