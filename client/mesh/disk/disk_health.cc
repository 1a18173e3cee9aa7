#include "client/mesh/disk/disk_health.h"

#include <cerrno>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {

bool IsFullDisk(const Error& error) noexcept {
  return error.sys_errno == ENOSPC || error.sys_errno == EDQUOT || error.sys_errno == EFBIG || error.sys_errno == EROFS;
}

void DiskHealth::Pause(const Error& error, bool by_write, bool reads) {
  by_write_ = by_write;
  const Clock::time_point until = Clock::now() + pause_;
  writes_from_ = until;
  if (reads) reads_from_ = until;
  const std::string reason = error.ToString();
  if (reason != reason_) LogEvent(LogLevel::kWarn, "disk_paused", {{"reason", reason}});
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
  LogEvent(LogLevel::kInfo, "disk_resumed", {});
}

void DiskHealth::TurnOff(const Error& error) {
  MutexLock lock(mutex_);
  off_ = true;
  reason_ = error.ToString();
  LogEvent(LogLevel::kError, "disk_off", {{"reason", reason_}});
}

void DiskHealth::Refused(const std::string& what) { LogEvent(LogLevel::kWarn, "disk_file_refused", {{"reason", what}}); }

void DiskHealth::BadRecord(const std::string& what) {
  MutexLock lock(mutex_);
  if (const auto left_out = bad_record_lines_.Take())
    LogEvent(LogLevel::kWarn, "disk_record_dropped", {{"record", what}, {"left_out", *left_out}});
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
