// OwnerProcess: remembers which process made an object of libkvclient.
//
// A forked child inherits its parent's objects without their threads, with a copy of their socket,
// and without their writable mappings. It may use none of them: every public call asks Here()
// first, before it takes a lock (which a thread may hold that does not exist in the child) or
// touches memory. An object that is destroyed in a child is left as it is (LeaveToParent).
//
// The answer costs two loads: each process writes a mark of its own into a page that the kernel
// clears on fork (MADV_WIPEONFORK). So children of any kind of fork are recognised, and clients
// that a child makes belong to the child. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "kvm/error.h"

namespace kvm {

class OwnerProcess {
 public:
  OwnerProcess() noexcept;  // the calling process
  bool Here() const noexcept;

 private:
  std::uint64_t mark_;
};

// kUnsupported: `what` belongs to the parent process.
Error BelongsToParent(const char* what);

// Drops a reference without running the object's destructor in this process; other references to it
// stay valid.
template <class T>
void LeaveToParent(std::shared_ptr<T> object) noexcept {
  union Left {  // a union does not destroy its member
    explicit Left(std::shared_ptr<T> its_object) noexcept : object(std::move(its_object)) {}
    ~Left() {}
    std::shared_ptr<T> object;
  };
  [[maybe_unused]] const Left left(std::move(object));
}

}  // namespace kvm
