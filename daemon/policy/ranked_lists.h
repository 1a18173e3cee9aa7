// A fixed number of lists in an order of rank; finds the first list that is not empty.
//
// A list is made of runs: neighbours that were added with the same stamp (the time of a use, for
// example). A run knows which list it is in, so it moves from one list to another without a visit
// to its nodes.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "daemon/policy/linked_list.h"

namespace kvm::policy {

class RankedLists {
 public:
  // `max_nodes`: the most nodes that are in lists at a time.
  RankedLists(std::uint32_t count, std::uint32_t max_nodes) : lists_(count), rank_of_(count), at_rank_(count), filled_((count + 63) / 64) {
    std::iota(rank_of_.begin(), rank_of_.end(), 0u);
    std::iota(at_rank_.begin(), at_rank_.end(), 0u);
    runs_.reserve(max_nodes);  // most of it stays untouched, since most nodes share a run
  }

  bool empty(std::uint32_t list) const { return lists_[list].empty(); }
  std::uint32_t Back(std::uint32_t list) const { return runs_[lists_[list].back].nodes.back; }
  std::uint32_t ListOf(std::uint32_t run) const { return runs_[run].list; }
  // The stamp of the run at the back.
  std::uint32_t BackStamp(std::uint32_t list) const { return runs_[lists_[list].back].stamp; }

  // kNil: all are empty.
  std::uint32_t First() const {
    for (std::size_t word = 0; word < filled_.size(); ++word) {
      if (filled_[word] != 0) return at_rank_[word * 64 + static_cast<std::size_t>(std::countr_zero(filled_[word]))];
    }
    return kNil;
  }

  // Each list that is not empty; `visit` may move runs between lists.
  template <class Visit>
  void ForEachFilled(Visit&& visit) {
    for (std::size_t word = 0; word < filled_.size(); ++word) {
      for (std::uint64_t bits = filled_[word]; bits != 0; bits &= bits - 1) {
        visit(at_rank_[word * 64 + static_cast<std::size_t>(std::countr_zero(bits))]);
      }
    }
  }

  // Visits nodes from the back to the front, as long as `visit(node)` returns true.
  template <class Visit, class LinksOf>
  void ForEachFromBack(std::uint32_t list, Visit&& visit, LinksOf&& links) const {
    for (std::uint32_t run = lists_[list].back; run != kNil; run = runs_[run].links.newer) {
      for (std::uint32_t node = runs_[run].nodes.back; node != kNil; node = links(node).newer) {
        if (!visit(node)) return;
      }
    }
  }

  // Adds the node, and returns the run that the node is in until Remove.
  template <class LinksOf>
  [[nodiscard]] std::uint32_t Add(std::uint32_t list, std::uint32_t node, std::uint32_t stamp, bool front, LinksOf&& links) {
    std::uint32_t run = front ? lists_[list].front : lists_[list].back;
    if (run == kNil || runs_[run].stamp != stamp) {
      run = MakeRun(stamp);
      AddRun(list, run, front);
    }
    front ? PushFront(runs_[run].nodes, node, links) : PushBack(runs_[run].nodes, node, links);
    return run;
  }

  template <class LinksOf>
  void Remove(std::uint32_t run, std::uint32_t node, LinksOf&& links) {
    Unlink(runs_[run].nodes, node, links);
    if (!runs_[run].nodes.empty()) return;
    RemoveRun(run);
    runs_[run].links.older = std::exchange(free_, run);
  }

  // Moves the run at the back of a list that is not empty to the front of another.
  void MoveBackRun(std::uint32_t from, std::uint32_t to) {
    const std::uint32_t run = lists_[from].back;
    RemoveRun(run);
    AddRun(to, run, true);
  }

  // Ranks the lists by rising worth(list); lists of equal worth by their numbers.
  template <class Worth>
  void Rank(Worth&& worth) {
    std::sort(at_rank_.begin(), at_rank_.end(), [&](std::uint32_t a, std::uint32_t b) {
      const auto worth_a = worth(a), worth_b = worth(b);
      return worth_a != worth_b ? worth_a < worth_b : a < b;
    });
    std::fill(filled_.begin(), filled_.end(), 0);
    for (std::uint32_t rank = 0; rank < at_rank_.size(); ++rank) {
      rank_of_[at_rank_[rank]] = rank;
      if (!lists_[at_rank_[rank]].empty()) filled_[rank / 64] |= std::uint64_t{1} << rank % 64;
    }
  }

 private:
  struct Run {
    ListEnds nodes;
    Links links;  // in a list
    std::uint32_t list = 0;
    std::uint32_t stamp = 0;
  };

  auto LinksOfRun() {
    return [this](std::uint32_t run) -> Links& { return runs_[run].links; };
  }

  std::uint32_t MakeRun(std::uint32_t stamp) {
    std::uint32_t run = free_;
    if (run == kNil) {
      run = static_cast<std::uint32_t>(runs_.size());
      runs_.emplace_back();
    } else {
      free_ = runs_[run].links.older;
    }
    runs_[run].nodes = {};
    runs_[run].stamp = stamp;
    return run;
  }

  void AddRun(std::uint32_t list, std::uint32_t run, bool front) {
    runs_[run].list = list;
    front ? PushFront(lists_[list], run, LinksOfRun()) : PushBack(lists_[list], run, LinksOfRun());
    filled_[rank_of_[list] / 64] |= std::uint64_t{1} << rank_of_[list] % 64;
  }

  void RemoveRun(std::uint32_t run) {
    const std::uint32_t list = runs_[run].list;
    Unlink(lists_[list], run, LinksOfRun());
    if (lists_[list].empty()) filled_[rank_of_[list] / 64] &= ~(std::uint64_t{1} << rank_of_[list] % 64);
  }

  std::vector<ListEnds> lists_;  // of runs
  std::vector<std::uint32_t> rank_of_, at_rank_;
  std::vector<std::uint64_t> filled_;  // bit `rank`: the list holds something
  std::vector<Run> runs_;
  std::uint32_t free_ = kNil;  // a chain of runs, by `older`
};

}  // namespace kvm::policy
