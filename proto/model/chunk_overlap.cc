// Series of different strides: a sweep over their extents. Series of one stride s: byte a lies in
// period a / s at residue a % s, so a series covers one rectangle of residues and periods, or two
// where its chunks cross the end of a period, and two series share a byte iff rectangles of theirs
// intersect. A sweep over the residues keeps the rectangles that are open, which are disjoint in
// their periods as long as nothing was found.
#include "proto/model/chunk_overlap.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace kvm {
namespace {

SharedBytes Shared(std::uint32_t a, std::uint32_t b) { return {std::max(a, b), std::min(a, b)}; }

// `of_segment` is sorted by `first`. The sweep remembers the two furthest ends so far, of two
// different strides.
std::optional<SharedBytes> FindMixedStrides(std::span<const ChunkSeries> of_segment, std::uint64_t block_count) {
  struct Furthest {
    std::uint64_t end = 0, stride = 0;
    std::uint32_t part = 0;
  };
  Furthest furthest, other;  // end 0: none; strides differ
  for (const ChunkSeries& series : of_segment) {
    const Furthest& of_another = furthest.stride == series.stride ? other : furthest;
    if (of_another.end > series.first) return Shared(series.part, of_another.part);
    const Furthest mine{series.first + (block_count - 1) * series.stride + series.length, series.stride, series.part};
    if (mine.stride == furthest.stride) {
      if (mine.end > furthest.end) furthest = mine;
    } else if (mine.end > furthest.end) {
      other = furthest;
      furthest = mine;
    } else if (mine.end > other.end) {
      other = mine;
    }
  }
  return std::nullopt;
}

struct Edge {
  std::uint64_t residue = 0;
  bool opens = false;
  std::uint64_t period = 0;  // first of block_count
  std::uint32_t part = 0;
};

void AddEdges(std::vector<Edge>& edges, const ChunkSeries& series) {
  const std::uint64_t residue = series.first % series.stride, period = series.first / series.stride;
  const std::uint64_t in_period = std::min(series.length, series.stride - residue);
  edges.push_back({residue, true, period, series.part});
  edges.push_back({residue + in_period, false, period, series.part});
  if (in_period == series.length) return;
  edges.push_back({0, true, period + 1, series.part});
  edges.push_back({series.length - in_period, false, period + 1, series.part});
}

std::optional<SharedBytes> FindOfOneStride(std::span<const ChunkSeries> of_stride, std::uint64_t block_count) {
  std::vector<Edge> edges;
  edges.reserve(4 * of_stride.size());
  for (const ChunkSeries& series : of_stride) AddEdges(edges, series);
  // A rectangle that ends at a residue is removed before another that begins there is added.
  std::sort(edges.begin(), edges.end(),
            [](const Edge& a, const Edge& b) { return std::tie(a.residue, a.opens, a.part) < std::tie(b.residue, b.opens, b.part); });
  std::map<std::uint64_t, std::uint32_t> open;  // first period → part
  for (const Edge& edge : edges) {
    if (!edge.opens) {
      open.erase(edge.period);
      continue;
    }
    const auto behind = open.lower_bound(edge.period);
    if (behind != open.end() && behind->first - edge.period < block_count) return Shared(edge.part, behind->second);
    if (behind != open.begin()) {
      const auto before = std::prev(behind);
      if (edge.period - before->first < block_count) return Shared(edge.part, before->second);
    }
    open.emplace_hint(behind, edge.period, edge.part);
  }
  return std::nullopt;
}

// Calls `find` for each run of equal `key`s until it finds something.
template <class KeyOf, class Find>
std::optional<SharedBytes> ForEachRun(std::span<const ChunkSeries> series, KeyOf key, Find find) {
  for (std::size_t begin = 0, end = 0; begin < series.size(); begin = end) {
    while (end < series.size() && key(series[end]) == key(series[begin])) ++end;
    if (const std::optional<SharedBytes> found = find(series.subspan(begin, end - begin))) return found;
  }
  return std::nullopt;
}

}  // namespace

std::optional<SharedBytes> FindSharedBytes(std::vector<ChunkSeries> series, std::uint64_t block_count) {
  const auto segment = [](const ChunkSeries& each) { return each.segment; };
  const auto segment_and_stride = [](const ChunkSeries& each) { return std::pair(each.segment, each.stride); };
  std::sort(series.begin(), series.end(), [](const ChunkSeries& a, const ChunkSeries& b) {
    return std::tie(a.segment, a.first, a.part) < std::tie(b.segment, b.first, b.part);
  });
  const auto mixed = ForEachRun(series, segment, [&](std::span<const ChunkSeries> run) { return FindMixedStrides(run, block_count); });
  if (mixed) return mixed;
  std::sort(series.begin(), series.end(),
            [&](const ChunkSeries& a, const ChunkSeries& b) { return segment_and_stride(a) < segment_and_stride(b); });
  return ForEachRun(series, segment_and_stride, [&](std::span<const ChunkSeries> run) { return FindOfOneStride(run, block_count); });
}

}  // namespace kvm
