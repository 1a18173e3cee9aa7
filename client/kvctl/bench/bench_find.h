// bench find, for a program that makes the same lookups by other means as well.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "client/kvctl/bench/bench.h"
#include "kvm/block_key.h"
#include "proto/base/random.h"

namespace kvm::ctl {

// Lookups that are not timed, before those that are.
inline constexpr std::uint32_t kWarmUpLookups = 200;

// The keys of one lookup after the other, the same ones for each run.
class Lookups {
 public:
  Lookups(std::uint64_t run, const BenchOptions& options) : run_(run), options_(options), random_(run) {}

  // Valid until the next call.
  std::span<const BlockKey> Next();

 private:
  const std::uint64_t run_;
  const BenchOptions& options_;
  SplitMix random_;
  std::vector<BlockKey> keys_;
};

// Called behind the last lookup of `run`, whose times are `find_us`, to add figures to the report.
using BesideFind = std::function<Status(std::uint64_t run, Samples& find_us, BenchReport& report)>;

// kInvalidArgument: fewer entries than keys. kStale, kSystem: a lookup did not find all of its
// keys.
[[nodiscard]] Result<BenchReport> BenchFind(const CommonOptions& common, const BenchOptions& options, const BesideFind& beside = {});

}  // namespace kvm::ctl
