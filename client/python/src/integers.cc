#include "client/python/src/integers.h"

#include <string>
#include <utility>

#include <nanobind/ndarray.h>

#include "client/python/src/errors.h"

namespace kvm::python {
namespace {

template <class T>
[[noreturn]] void RaiseRange(const char* noun, std::size_t index) {
  Raise(MakeError(Errc::kInvalidArgument, std::string(noun) + " " + std::to_string(index) + " is not an unsigned " +
                                              std::to_string(8 * sizeof(T)) + "-bit number"));
}

template <class T>
bool ReadSequence(nb::handle source, const char* noun, std::vector<T>& out) {
  const nb::sequence sequence = nb::borrow<nb::sequence>(source);
  const std::size_t size = nb::len(sequence);
  out.resize(size);
  for (std::size_t i = 0; i < size; ++i) {
    const nb::object item = sequence[i];
    if (!PyLong_Check(item.ptr()) && !PyIndex_Check(item.ptr())) return false;
    const nb::object number = PyLong_Check(item.ptr()) ? item : nb::steal(PyNumber_Index(item.ptr()));
    if (!number.is_valid()) throw nb::python_error();
    const unsigned long long value = PyLong_AsUnsignedLongLong(number.ptr());
    if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      RaiseRange<T>(noun, i);
    }
    if (!std::in_range<T>(value)) RaiseRange<T>(noun, i);
    out[i] = static_cast<T>(value);
  }
  return true;
}

using Array = nb::ndarray<nb::ro, nb::ndim<1>, nb::device::cpu>;

template <class From, class T>
bool CopyArray(const Array& array, const char* noun, std::vector<T>& out) {
  const From* data = static_cast<const From*>(array.data());
  const std::int64_t stride = array.stride(0);
  out.resize(array.shape(0));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const From value = data[static_cast<std::int64_t>(i) * stride];
    if (!std::in_range<T>(value)) RaiseRange<T>(noun, i);
    out[i] = static_cast<T>(value);
  }
  return true;
}

template <class T>
bool ReadArray(const Array& array, const char* noun, std::vector<T>& out) {
  if (array.dtype() == nb::dtype<std::int64_t>()) return CopyArray<std::int64_t>(array, noun, out);
  if (array.dtype() == nb::dtype<std::int32_t>()) return CopyArray<std::int32_t>(array, noun, out);
  if (array.dtype() == nb::dtype<std::uint32_t>()) return CopyArray<std::uint32_t>(array, noun, out);
  if (array.dtype() == nb::dtype<std::uint64_t>()) return CopyArray<std::uint64_t>(array, noun, out);
  return false;
}

template <class T>
bool Read(nb::handle source, const char* noun, std::vector<T>& out) {
  if (PyList_Check(source.ptr()) || PyTuple_Check(source.ptr())) return ReadSequence(source, noun, out);
  Array array;
  if (nb::try_cast(source, array)) return ReadArray(array, noun, out);
  if (PySequence_Check(source.ptr()) && !PyUnicode_Check(source.ptr()) && !PyBytes_Check(source.ptr()))
    return ReadSequence(source, noun, out);
  return false;
}

}  // namespace

bool ReadIntegers(nb::handle source, const char* noun, std::vector<std::uint32_t>& out) { return Read(source, noun, out); }
bool ReadIntegers(nb::handle source, const char* noun, std::vector<std::uint64_t>& out) { return Read(source, noun, out); }

}  // namespace kvm::python
