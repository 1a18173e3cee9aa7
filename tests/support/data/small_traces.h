// Small traces for tests, and the results with which a simulation of them is compared.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <vector>

#include "client/kvctl/simulate/simulated_cache.h"
#include "client/kvctl/workload/block_trace.h"
#include "daemon/policy/policies.h"
#include "tests/support/data/random.h"

namespace kvm::test {

inline std::vector<ctl::Request> Requests(const std::vector<std::vector<std::uint64_t>>& ids) {
  std::vector<ctl::Request> requests(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) requests[i].hash_ids = ids[i];
  return requests;
}

// Requests with a few ids in random order and number, as in a trace whose ids name the content of
// single blocks.
inline std::vector<ctl::Request> RandomIds(Random& random, std::size_t requests, std::uint64_t ids, std::uint64_t longest) {
  std::vector<std::vector<std::uint64_t>> all(requests);
  for (auto& request : all) {
    for (std::uint64_t n = random.Below(longest + 1); n > 0; --n) request.push_back(random.Below(ids));
  }
  return Requests(all);
}

// Prefixes that fork, of at most `most` different blocks.
inline std::vector<ctl::Request> RandomPrefixes(std::uint64_t seed, std::size_t requests, std::uint64_t most) {
  Random random(seed);
  std::vector<std::vector<std::uint64_t>> paths;
  std::uint64_t blocks = 0;
  while (paths.size() < requests) {
    std::vector<std::uint64_t> path;
    if (!paths.empty()) path = random.Pick(paths);
    path.resize(static_cast<std::size_t>(random.Below(path.size() + 1)));
    for (std::uint64_t added = random.Below(4); added > 0 && blocks < most; --added) path.push_back(100 + blocks++);
    if (!path.empty()) paths.push_back(path);
  }
  return Requests(paths);
}

inline std::uint64_t HitsOf(const ctl::BlockTrace& trace, policy::PolicyKind kind, std::uint32_t capacity) {
  return ctl::SimulateCache(trace, *policy::MakePolicy(kind, capacity), capacity);
}

// The most hits that any choice of evictions and admissions can have, found by trying all of them.
// Of at most 32 different blocks.
inline std::uint64_t BestHits(const ctl::BlockTrace& trace, int capacity) {
  std::map<std::uint32_t, std::uint64_t> best{{0, 0}};  // resident blocks as bits → hits so far
  for (std::size_t request = 0; request < trace.requests(); ++request) {
    std::uint32_t asked = 0;
    for (const std::uint32_t block : trace[request]) asked |= 1u << block;
    std::map<std::uint32_t, std::uint64_t> next;
    for (const auto& [resident, before] : best) {
      std::uint64_t hits = before;
      for (const std::uint32_t block : trace[request]) {
        if ((resident & 1u << block) == 0) break;
        ++hits;
      }
      const std::uint32_t possible = resident | asked;
      for (std::uint32_t kept = possible;; kept = (kept - 1) & possible) {
        if (std::popcount(kept) <= capacity) next[kept] = std::max(next[kept], hits);
        if (kept == 0) break;
      }
    }
    best = std::move(next);
  }
  std::uint64_t hits = 0;
  for (const auto& [resident, each] : best) hits = std::max(hits, each);
  return hits;
}

}  // namespace kvm::test
