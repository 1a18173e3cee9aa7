// kvm::Error → Python exceptions: kvclient.errors has one class for each kvm::Errc. Exceptions exist at this
// edge only; below it, errors are values.
#pragma once

#include <utility>

#include <nanobind/nanobind.h>

#include "kvm/error.h"

namespace kvm::python {

namespace nb = nanobind;

// The exception that stands for `error`, not raised. Needs the GIL.
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
