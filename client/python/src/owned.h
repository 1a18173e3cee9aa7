// Owned: a reference of a Python object to an object of libkvclient. To release it can wait (a
// region unregisters, a client joins its thread, a match unmaps), so that is done without the GIL.
// In a forked child, where libkvclient's thread does not exist, it is never released.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include <nanobind/nanobind.h>

#include "client/python/src/errors.h"
#include "client/python/src/gil.h"

namespace kvm::python {

template <class T>
class Owned {
 public:
  Owned(std::shared_ptr<T> value, const char* what) : value_(std::move(value)), what_(what), process_(::getpid()) {}
  ~Owned() { Release(); }
  Owned(Owned&&) noexcept = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Owned& operator=(Owned&&) = delete;

  // Returns a reference of its own, so that another thread's Release can't destroy the object
  // during a call.
  std::shared_ptr<T> Get() const {
    if (!value_) Raise(MakeError(Errc::kCancelled, std::string("this ") + what_ + " is closed"));
    if (process_ != ::getpid()) {
      Raise(MakeError(Errc::kUnsupported, std::string("this ") + what_ + " belongs to the process that was forked; connect anew"));
    }
    return value_;
  }
  bool closed() const noexcept { return !value_; }

  void Release() noexcept {
    std::shared_ptr<T> value = std::move(value_);
    value_.reset();
    if (!value) return;
    if (process_ != ::getpid()) {
      // In a forked child it is never destroyed; without the memory for that the child ends.
      static_cast<void>(new std::shared_ptr<T>(std::move(value)));  // NOLINT(bugprone-unhandled-exception-at-new)
      return;
    }
    const WithoutGilScope scope;
    value.reset();
  }

  // Does the same for an explicit close: Ctrl-C ends the wait, and is raised.
  void Close() {
    std::shared_ptr<T> value = std::move(value_);
    value_.reset();
    if (!value || process_ != ::getpid()) {
      value_ = std::move(value);
      return Release();
    }
    static_cast<void>(WaitWithoutGil([&] {
      value.reset();
      return true;
    }));
  }

 private:
  std::shared_ptr<T> value_;
  const char* what_;
  pid_t process_;
};

}  // namespace kvm::python
