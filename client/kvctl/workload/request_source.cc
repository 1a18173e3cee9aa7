#include "client/kvctl/workload/request_source.h"

#include <CLI/CLI.hpp>

#include <algorithm>

#include "client/kvctl/workload/workload.h"

namespace kvm::ctl {

const char* const kRequestSourceHelp =
    "Workloads (from --seed, the same on every machine):\n"
    "  chat    64 conversations at a time, 2-12 turns; each prompt is the whole conversation so far;\n"
    "          4 system prompts shared by all\n"
    "  rag     one of 6 templates, up to 3 of 400 documents by popularity (Zipf), a new question\n"
    "  agents  32 tasks at a time, 3-15 steps; 5 tool prompts of 6,000-16,000 tokens, a growing scratchpad\n"
    "A trace has one JSON object a line, as Mooncake's and Qwen-Bailian's have: {\"input_length\": tokens,\n"
    "\"hash_ids\": [a whole number for each block of --block-tokens tokens]}; \"timestamp\" and \"output_length\" may be\n"
    "present, and so may other members. Plain or compressed by gzip; --trace - reads standard input.\n"
    "An id names the content of a block: two blocks are the same if their ids and all ids before them in their\n"
    "requests are. CSV traces of lengths (Azure, BurstGPT) and conversations (ShareGPT) have no block ids.\n";

void AddRequestOptions(CLI::App& command, RequestSource& source) {
  CLI::Option* trace = command.add_option("--trace", source.trace, "Trace file, JSON lines or .gz of them, - for standard input");
  command.add_option("--workload", source.workload, "Generated requests instead: chat, rag or agents")
      ->check(CLI::IsMember({"chat", "rag", "agents"}))
      ->excludes(trace);
  command.add_option("--seed", source.seed, "Seed of the random numbers")->capture_default_str();
  command.add_option("--requests", source.requests, "Requests of a generated workload")
      ->capture_default_str()
      ->check(CLI::Range(std::size_t{1}, std::size_t{10'000'000}));
  command.add_option("--limit-requests", source.limit_requests, "Stop after this many requests, 0 for all")->capture_default_str();
  command
      .add_option("--block-tokens", source.block_tokens,
                  "Tokens a block; of a trace: the block size that its ids were made for (Mooncake 512, Qwen-Bailian 16)")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1u << 20));
}

Result<std::vector<Request>> LoadRequests(const RequestSource& source) {
  if (source.trace.empty() == source.workload.empty())
    return MakeError(Errc::kInvalidArgument, "--trace or --workload is needed, and not both");
  if (!source.trace.empty()) return ReadTrace(source.trace, {source.block_tokens, source.limit_requests, source.timestamps});
  const std::optional<Workload> workload = WorkloadFromName(source.workload);
  if (!workload) return MakeError(Errc::kInvalidArgument, "--workload: unknown workload " + source.workload);
  std::size_t count = source.requests;
  if (source.limit_requests != 0) count = std::min(count, source.limit_requests);
  return GenerateWorkload({*workload, source.seed, count, source.block_tokens});
}

}  // namespace kvm::ctl
