// Doubly linked lists through an array of nodes, by index: nothing is allocated, a node is in one
// list of a kind at a time. Front is the newest.
#pragma once

#include <cstdint>

namespace kvm::policy {

inline constexpr std::uint32_t kNil = ~std::uint32_t{0};

struct Links {
  std::uint32_t newer = kNil, older = kNil;
};

struct ListEnds {
  std::uint32_t front = kNil, back = kNil;
  bool empty() const noexcept { return front == kNil; }
};

// `links(index)` returns the Links of a node.
template <class LinksOf>
void PushFront(ListEnds& list, std::uint32_t node, LinksOf&& links) {
  links(node) = {kNil, list.front};
  (list.front == kNil ? list.back : links(list.front).newer) = node;
  list.front = node;
}

template <class LinksOf>
void PushBack(ListEnds& list, std::uint32_t node, LinksOf&& links) {
  links(node) = {list.back, kNil};
  (list.back == kNil ? list.front : links(list.back).older) = node;
  list.back = node;
}

template <class LinksOf>
void InsertBehind(ListEnds& list, std::uint32_t newer, std::uint32_t node, LinksOf&& links) {
  const std::uint32_t older = links(newer).older;
  links(node) = {newer, older};
  links(newer).older = node;
  (older == kNil ? list.back : links(older).newer) = node;
}

template <class LinksOf>
void Unlink(ListEnds& list, std::uint32_t node, LinksOf&& links) {
  // Two loads, not one of both: a combined load would wait until recent stores to either half have
  // reached the cache.
  const std::uint32_t newer = links(node).newer, older = links(node).older;
  (newer == kNil ? list.front : links(newer).older) = older;
  (older == kNil ? list.back : links(older).newer) = newer;
}

}  // namespace kvm::policy
