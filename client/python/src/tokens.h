// Token ids as Python has them: a list or tuple of ints, or a one-dimensional CPU array of integers (numpy,
// torch, whatever speaks DLPack or the buffer protocol). Copied, range-checked.
#pragma once

#include <cstdint>
#include <vector>

#include <nanobind/nanobind.h>

namespace kvm::python {

struct Tokens {
  std::vector<std::uint32_t> ids;
};

// False: not such a thing at all. Raises kvclient.InvalidArgumentError for ids outside [0, 2^32).
bool ReadTokens(nanobind::handle source, Tokens& out);

}  // namespace kvm::python

namespace nanobind::detail {

template <>
struct type_caster<kvm::python::Tokens> {
  NB_TYPE_CASTER(kvm::python::Tokens, const_name("TokenIds"))
  bool from_python(handle source, std::uint8_t, cleanup_list*) { return kvm::python::ReadTokens(source, value); }
};

}  // namespace nanobind::detail
