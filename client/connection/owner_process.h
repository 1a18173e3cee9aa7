// Which process an object of libkvclient belongs to.
//
// A forked child inherits its parent's objects without their threads, with a copy of their socket, and without their
// writable mappings. It may use none of them: every public call asks Here() first, before it takes a lock (which a thread
// that the child has not got may hold) or touches memory. Objects that end in a child are left alone (LeaveToParent).
//
// The answer costs two loads: a page that the kernel empties on fork (MADV_WIPEONFORK) holds a mark that each process
// makes anew. So children of any kind of fork are recognised, and a child's own clients are its own. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "kvm/error.h"

namespace kvm {

class OwnerProcess {
 public:
  OwnerProcess() noexcept;  // the process that runs
  bool Here() const noexcept;

 private:
  std::uint64_t mark_;
};

// kUnsupported: `what` is the parent's.
Error BelongsToParent(const char* what);

// Ends no object: other holders of it go on, and its destructor never runs in this process.
template <class T>
void LeaveToParent(std::shared_ptr<T> object) noexcept {
  union Left {  // has no destructor for what it holds
    explicit Left(std::shared_ptr<T> its_object) noexcept : object(std::move(its_object)) {}
    ~Left() {}
    std::shared_ptr<T> object;
  };
  [[maybe_unused]] const Left left(std::move(object));
}

}  // namespace kvm
