// A fixed number of lists in an order of rank; finds the first one that holds something.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

#include "daemon/policy/linked_list.h"

namespace kvm::policy {

class RankedLists {
 public:
  explicit RankedLists(std::uint32_t count) : lists_(count), rank_of_(count), at_rank_(count), filled_((count + 63) / 64) {
    std::iota(rank_of_.begin(), rank_of_.end(), 0u);
    std::iota(at_rank_.begin(), at_rank_.end(), 0u);
  }

  const ListEnds& operator[](std::uint32_t list) const { return lists_[list]; }

  // kNil: all are empty.
  std::uint32_t First() const {
    for (std::size_t word = 0; word < filled_.size(); ++word) {
      if (filled_[word] != 0) return at_rank_[word * 64 + static_cast<std::size_t>(std::countr_zero(filled_[word]))];
    }
    return kNil;
  }

  // Each list that holds something; `visit` may move nodes between lists.
  template <class Visit>
  void ForEachFilled(Visit&& visit) {
    for (std::size_t word = 0; word < filled_.size(); ++word) {
      for (std::uint64_t bits = filled_[word]; bits != 0; bits &= bits - 1) {
        visit(at_rank_[word * 64 + static_cast<std::size_t>(std::countr_zero(bits))]);
      }
    }
  }

  template <class LinksOf>
  void Add(std::uint32_t list, std::uint32_t node, bool front, LinksOf&& links) {
    front ? PushFront(lists_[list], node, links) : PushBack(lists_[list], node, links);
    filled_[rank_of_[list] / 64] |= std::uint64_t{1} << rank_of_[list] % 64;
  }
  template <class LinksOf>
  void Remove(std::uint32_t list, std::uint32_t node, LinksOf&& links) {
    Unlink(lists_[list], node, links);
    if (lists_[list].empty()) filled_[rank_of_[list] / 64] &= ~(std::uint64_t{1} << rank_of_[list] % 64);
  }

  // Rank by rising worth(list); equal ones in the order of their numbers.
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
  std::vector<ListEnds> lists_;
  std::vector<std::uint32_t> rank_of_, at_rank_;
  std::vector<std::uint64_t> filled_;  // bit `rank`: the list holds something
};

}  // namespace kvm::policy
