#include "client/mesh/disk/disk_health.h"

#include <cerrno>
#include <iostream>

namespace kvm::mesh {
namespace {

constexpr std::chrono::minutes kBetweenLines{1};

void Log(const std::string& line) { std::cerr << "kvmd-mesh: " + line + "\n" << std::flush; }

}  // namespace

bool IsFullDisk(const Error& error) noexcept {
  return error.sys_errno == ENOSPC || error.sys_errno == EDQUOT || error.sys_errno == EFBIG || error.sys_errno == EROFS;
}

void DiskHealth::Pause(const Error& error, bool by_write, bool reads) {
  by_write_ = by_write;
  const Clock::time_point until = Clock::now() + pause_;
  writes_from_ = until;
  if (reads) reads_from_ = until;
  const std::string reason = error.ToString();
  if (reason != reason_) Log("the disk cache pauses: " + reason);
  reason_ = reason;
}

void DiskHealth::WriteFailed(const Error& error) {
  MutexLock lock(mutex_);
  if (!off_) Pause(error, true, !IsFullDisk(error) && error.code == Errc::kSystem);
}

void DiskHealth::ReadFailed(const Error& error) {
  MutexLock lock(mutex_);
  if (!off_) Pause(error, false, true);
}

void DiskHealth::Worked(bool write) {
  MutexLock lock(mutex_);
  if (off_ || reason_.empty() || write != by_write_) return;
  reason_.clear();
  Log("the disk cache goes on");
}

void DiskHealth::TurnOff(const Error& error) {
  MutexLock lock(mutex_);
  off_ = true;
  reason_ = error.ToString();
  Log("the disk cache is off: " + reason_);
}

void DiskHealth::Refused(const std::string& what) { Log("the disk cache leaves a file alone: " + what); }

void DiskHealth::BadRecord(const std::string& what) {
  MutexLock lock(mutex_);
  const Clock::time_point now = Clock::now();
  if (told_of_bad_ != Clock::time_point() && now - told_of_bad_ < kBetweenLines) {
    ++untold_bad_;
    return;
  }
  const std::string others = untold_bad_ == 0 ? "" : "; " + std::to_string(untold_bad_) + " others since the last such line";
  Log("the disk cache dropped a bad record: " + what + others);
  told_of_bad_ = now;
  untold_bad_ = 0;
}

bool DiskHealth::may_read() const {
  MutexLock lock(mutex_);
  return !off_ && Clock::now() >= reads_from_;
}

bool DiskHealth::may_write() const {
  MutexLock lock(mutex_);
  return !off_ && Clock::now() >= writes_from_;
}

bool DiskHealth::off() const {
  MutexLock lock(mutex_);
  return off_;
}

std::string DiskHealth::reason() const {
  MutexLock lock(mutex_);
  return reason_;
}

}  // namespace kvm::mesh
