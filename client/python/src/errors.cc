#include "client/python/src/errors.h"

namespace kvm::python {

nb::object ToException(const Error& error) {
  const std::string_view code = ErrcName(error.code);
  return nb::module_::import_("kvclient.errors")
      .attr("from_code")(nb::str(code.data(), code.size()), nb::str(error.message.data(), error.message.size()), error.sys_errno);
}

void Raise(const Error& error) {
  const nb::object exception = ToException(error);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  throw nb::python_error();
}

}  // namespace kvm::python
