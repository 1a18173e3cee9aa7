// How Python names GPUs: "GPU-<uuid>", "MIG-<uuid>" or the UUID's 16 bytes; None is host memory.
#pragma once

#include <cstring>
#include <optional>
#include <string>

#include <nanobind/nanobind.h>

#include "client/python/src/errors.h"
#include "kvm/device.h"

namespace kvm::python {

// The unconverted value: a type caster inside another one must not raise.
struct DeviceId {
  std::string text;
  bool raw = false;  // 16 bytes
};

// Raises InvalidArgumentError.
inline DeviceUuid UuidOf(const DeviceId& device) {
  if (!device.raw) return Unwrap(ParseUuid(device.text));
  DeviceUuid uuid{};
  if (device.text.size() != uuid.size())
    Raise(MakeError(Errc::kInvalidArgument, "a GPU's UUID has 16 bytes, not " + std::to_string(device.text.size())));
  std::memcpy(uuid.data(), device.text.data(), uuid.size());
  return uuid;
}
inline DeviceUuid UuidOf(const std::optional<DeviceId>& device) { return device ? UuidOf(*device) : kHostMemory; }

// The name of a UUID; empty for host memory.
inline std::optional<std::string> NameOf(const DeviceUuid& uuid) {
  if (uuid == kHostMemory) return std::nullopt;
  return FormatUuid(uuid);
}

}  // namespace kvm::python

namespace nanobind::detail {

template <>
struct type_caster<kvm::python::DeviceId> {
  NB_TYPE_CASTER(kvm::python::DeviceId, const_name("DeviceId"))
  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    value.raw = PyBytes_Check(source.ptr());
    if (!value.raw && !PyUnicode_Check(source.ptr())) return false;
    if (value.raw) {
      value.text.assign(PyBytes_AsString(source.ptr()), static_cast<std::size_t>(PyBytes_Size(source.ptr())));
      return true;
    }
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(source.ptr(), &size);
    if (text == nullptr) PyErr_Clear();
    if (text != nullptr) value.text.assign(text, static_cast<std::size_t>(size));
    return text != nullptr;
  }
};

}  // namespace nanobind::detail
