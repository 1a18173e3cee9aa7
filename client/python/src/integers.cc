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
bool ReadItem(PyObject* item, const char* noun, std::size_t index, T& out) {
  nb::object converted;
  if (!Py_IS_TYPE(item, &PyLong_Type) && !PyLong_Check(item)) {
    if (!PyIndex_Check(item)) return false;
    converted = nb::steal(PyNumber_Index(item));
    if (!converted.is_valid()) throw nb::python_error();
    item = converted.ptr();
  }
  const unsigned long long value = PyLong_AsUnsignedLongLong(item);
  if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    RaiseRange<T>(noun, index);
  }
  if (!std::in_range<T>(value)) RaiseRange<T>(noun, index);
  out = static_cast<T>(value);
  return true;
}

// Reads items without taking a reference to each, since an engine passes lists of ten thousand
// token ids. An item's __index__ could change the list meanwhile, so the size is read in each
// round.
template <class T>
bool ReadList(PyObject* list, const char* noun, std::vector<T>& out) {
  out.resize(static_cast<std::size_t>(PyList_Size(list)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    PyObject* item = PyList_GetItem(list, static_cast<Py_ssize_t>(i));
    if (item == nullptr) throw nb::python_error();
    if (!ReadItem(item, noun, i, out[i])) return false;
  }
  return true;
}

template <class T>
bool ReadSequence(nb::handle source, const char* noun, std::vector<T>& out) {
  const nb::sequence sequence = nb::borrow<nb::sequence>(source);
  out.resize(nb::len(sequence));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const nb::object item = sequence[i];
    if (!ReadItem(item.ptr(), noun, i, out[i])) return false;
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
  if (PyList_Check(source.ptr())) return ReadList(source.ptr(), noun, out);
  if (PyTuple_Check(source.ptr())) return ReadSequence(source, noun, out);
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
