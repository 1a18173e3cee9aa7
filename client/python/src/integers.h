// Integers: an argument that is a list or tuple of ints, or a one-dimensional CPU array of integers
// (numpy, torch, and all others with DLPack or the buffer protocol). The values are copied and
// range-checked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <nanobind/nanobind.h>

namespace kvm::python {

// The noun for one element, for messages.
template <std::size_t N>
struct Noun {
  constexpr Noun(const char (&text_)[N]) { std::copy_n(text_, N, text); }
  char text[N];
};

template <class T, Noun kNoun>
struct Integers {
  std::vector<T> values;
};

using Tokens = Integers<std::uint32_t, "token">;
using BlockIds = Integers<std::uint32_t, "block">;
using Generations = Integers<std::uint64_t, "generation">;
using Depths = Integers<std::uint32_t, "depth">;

// False if `source` is neither a list, a tuple nor such an array. Raises
// kvclient.InvalidArgumentError for a value that is negative or too large.
bool ReadIntegers(nanobind::handle source, const char* noun, std::vector<std::uint32_t>& out);
bool ReadIntegers(nanobind::handle source, const char* noun, std::vector<std::uint64_t>& out);

}  // namespace kvm::python

namespace nanobind::detail {

template <class T, kvm::python::Noun kNoun>
struct type_caster<kvm::python::Integers<T, kNoun>> {
  using List = kvm::python::Integers<T, kNoun>;
  NB_TYPE_CASTER(List, (const_name<std::is_same_v<List, kvm::python::Tokens>>("TokenIds", "Integers")))
  bool from_python(handle source, std::uint8_t, cleanup_list*) { return kvm::python::ReadIntegers(source, kNoun.text, value.values); }
};

}  // namespace nanobind::detail
