// Converts kvm::Error to Python exceptions: kvclient.errors has one class for each kvm::Errc. Only
// the bindings raise exceptions; libkvclient itself returns errors as values.
#pragma once

#include <utility>

#include <nanobind/nanobind.h>

#include "kvm/error.h"

namespace kvm::python {

namespace nb = nanobind;

// Returns the exception for `error`, without raising it. Needs the GIL.
nb::object ToException(const Error& error);
// Raises it. Needs the GIL.
[[noreturn]] void Raise(const Error& error);

template <class T>
T Unwrap(Result<T>&& result) {
  if (!result) Raise(result.error());
  return std::move(*result);
}

inline void Check(const Status& status) {
  if (!status) Raise(status.error());
}

}  // namespace kvm::python
