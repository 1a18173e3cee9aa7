// ComputingMarks: the marks of a client (kvclient/computing.h): asks kvmd for them and ends them.
//
// Client calls Mark; ComputingMark, of which the caller has the object, calls End. Nothing is kept
// here: kvmd ends the marks of a connection with it, and they are not made again, since they are of
// requests that are under way. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "client/connection/link.h"
#include "client/connection/owner_process.h"
#include "client/peers/peers.h"
#include "kvclient/computing.h"
#include "proto/base/thread_safety.h"

namespace kvm {

class ComputingMarks {
 public:
  ComputingMarks(Link& link, const PeerTable& peers) : link_(link), peers_(peers) {}
  ComputingMarks(const ComputingMarks&) = delete;
  ComputingMarks& operator=(const ComputingMarks&) = delete;

  // `self`: a weak reference to this object, for its marks. To be called before any other method.
  void Start(std::weak_ptr<ComputingMarks> self) { self_ = std::move(self); }
  // See Client::MarkComputing.
  ComputingMark Mark(std::span<const BlockKey> missing, std::chrono::milliseconds ttl);
  void End(std::uint64_t mark);

 private:
  Link& link_;
  const PeerTable& peers_;
  std::weak_ptr<ComputingMarks> self_;
  std::atomic<std::uint64_t> last_{0};
};

// The link's thread sets the answer.
struct ComputingMark::Impl {
  Impl(std::weak_ptr<ComputingMarks> its_marks, std::uint64_t number) : marks(std::move(its_marks)), id(number) {}

  const OwnerProcess process;
  const std::weak_ptr<ComputingMarks> marks;  // of its client
  const std::uint64_t id;

  Mutex mutex;
  std::condition_variable answered;
  std::optional<Status> answer KVM_GUARDED_BY(mutex);

  void Answer(Status its_answer) KVM_EXCLUDES(mutex);
};

}  // namespace kvm
