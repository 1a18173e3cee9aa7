#include "client/python/src/tokens.h"

#include <string>
#include <utility>

#include <nanobind/ndarray.h>

#include "client/python/src/errors.h"

namespace kvm::python {
namespace {

[[noreturn]] void RaiseRange(std::size_t index) {
  Raise(MakeError(Errc::kInvalidArgument, "token " + std::to_string(index) + " is not a 32-bit id"));
}

bool ReadSequence(nb::handle source, Tokens& out) {
  const nb::sequence sequence = nb::borrow<nb::sequence>(source);
  const std::size_t size = nb::len(sequence);
  out.ids.resize(size);
  for (std::size_t i = 0; i < size; ++i) {
    const nb::object item = sequence[i];
    if (!PyLong_Check(item.ptr()) && !PyIndex_Check(item.ptr())) return false;
    const nb::object number = PyLong_Check(item.ptr()) ? item : nb::steal(PyNumber_Index(item.ptr()));
    if (!number.is_valid()) throw nb::python_error();
    const long long value = PyLong_AsLongLong(number.ptr());
    if (value == -1 && PyErr_Occurred() != nullptr) PyErr_Clear();
    if (!std::in_range<std::uint32_t>(value)) RaiseRange(i);
    out.ids[i] = static_cast<std::uint32_t>(value);
  }
  return true;
}

using Array = nb::ndarray<nb::ro, nb::ndim<1>, nb::device::cpu>;

template <class T>
void CopyArray(const Array& array, Tokens& out) {
  const T* data = static_cast<const T*>(array.data());
  const std::int64_t stride = array.stride(0);
  for (std::size_t i = 0; i < out.ids.size(); ++i) {
    const T value = data[static_cast<std::int64_t>(i) * stride];
    if (!std::in_range<std::uint32_t>(value)) RaiseRange(i);
    out.ids[i] = static_cast<std::uint32_t>(value);
  }
}

bool ReadArray(const Array& array, Tokens& out) {
  out.ids.resize(array.shape(0));
  if (array.dtype() == nb::dtype<std::int64_t>()) return CopyArray<std::int64_t>(array, out), true;
  if (array.dtype() == nb::dtype<std::int32_t>()) return CopyArray<std::int32_t>(array, out), true;
  if (array.dtype() == nb::dtype<std::uint32_t>()) return CopyArray<std::uint32_t>(array, out), true;
  if (array.dtype() == nb::dtype<std::uint64_t>()) return CopyArray<std::uint64_t>(array, out), true;
  return false;
}

}  // namespace

bool ReadTokens(nb::handle source, Tokens& out) {
  if (PyList_Check(source.ptr()) || PyTuple_Check(source.ptr())) return ReadSequence(source, out);
  Array array;
  if (nb::try_cast(source, array)) return ReadArray(array, out);
  if (PySequence_Check(source.ptr()) && !PyUnicode_Check(source.ptr()) && !PyBytes_Check(source.ptr())) return ReadSequence(source, out);
  return false;
}

}  // namespace kvm::python
