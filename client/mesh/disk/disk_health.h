// DiskHealth: whether the disk cache is in use, and why not; and its lines in the log.
//
// A disk that is full, fails or has become read-only pauses the cache for a while and ends nothing.
// A full one (ENOSPC, EDQUOT, EFBIG, EROFS) is read all the same. Thread-safe.
#pragma once

#include <chrono>
#include <string>

#include "client/mesh/log/line_limit.h"
#include "kvm/error.h"
#include "proto/base/thread_safety.h"

namespace kvm::mesh {

// ENOSPC, EDQUOT, EFBIG or EROFS.
bool IsFullDisk(const Error& error) noexcept;

class DiskHealth {
 public:
  using Clock = std::chrono::steady_clock;

  explicit DiskHealth(std::chrono::milliseconds pause) : pause_(pause) {}

  // After a write, or a read, that failed.
  void WriteFailed(const Error& error) KVM_EXCLUDES(mutex_);
  void ReadFailed(const Error& error) KVM_EXCLUDES(mutex_);
  // A write, or a read, went well, which ends a pause that one like it began.
  void Worked(bool write) KVM_EXCLUDES(mutex_);
  // For good: nothing is read or written.
  void TurnOff(const Error& error) KVM_EXCLUDES(mutex_);
  // A file in the directory that is left alone; a line in the log.
  void Refused(const std::string& what) KVM_EXCLUDES(mutex_);
  // A record that was damaged: one line a minute at most, with the number of those before it.
  void BadRecord(const std::string& what) KVM_EXCLUDES(mutex_);

  bool may_read() const KVM_EXCLUDES(mutex_);
  bool may_write() const KVM_EXCLUDES(mutex_);
  bool off() const KVM_EXCLUDES(mutex_);
  // Why it does not read or does not write; empty: it does both.
  std::string reason() const KVM_EXCLUDES(mutex_);

 private:
  void Pause(const Error& error, bool by_write, bool reads) KVM_REQUIRES(mutex_);

  const std::chrono::milliseconds pause_;
  mutable Mutex mutex_;
  std::string reason_ KVM_GUARDED_BY(mutex_);
  bool off_ KVM_GUARDED_BY(mutex_) = false;
  bool by_write_ KVM_GUARDED_BY(mutex_) = false;  // the pause
  Clock::time_point reads_from_ KVM_GUARDED_BY(mutex_){}, writes_from_ KVM_GUARDED_BY(mutex_){};
  LineLimit bad_record_lines_ KVM_GUARDED_BY(mutex_){std::chrono::minutes(1)};
};

}  // namespace kvm::mesh
