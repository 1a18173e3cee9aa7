// DiskCache: blocks in files of one directory, which outlive this process and the machine's
// restart.
//
// The parts: DiskDirectory (the lock), DiskTable (what is where), DiskWriter and DiskReader, each
// with a thread of its own, and DiskHealth. Before Recover has succeeded nothing is read or
// written.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "client/mesh/disk/block_io.h"
#include "client/mesh/disk/disk_directory.h"
#include "client/mesh/disk/disk_health.h"
#include "client/mesh/disk/disk_reader.h"
#include "client/mesh/disk/disk_table.h"
#include "client/mesh/disk/disk_writer.h"

namespace kvm::mesh {

struct DiskOptions {
  std::string path{};
  // Of all files; at least kLeastDiskBytes
  std::uint64_t limit_bytes = 0;
  std::uint64_t write_bytes_per_s = std::uint64_t{128} << 20;  // 0: without a limit
  policy::PolicyKind policy = policy::PolicyKind::kHitDensity;
  IoKind io = IoKind::kAuto;
  std::chrono::milliseconds pause{30'000};  // after a failure
};

inline constexpr std::uint64_t kLeastDiskBytes = std::uint64_t{1} << 20;

class DiskCache {
 public:
  // Takes the directory. The errors of DiskDirectory::Open; kUnsupported: no io_uring.
  // `make_io` is called twice: for the thread that reads, then for the one that writes.
  using MakeIo = std::function<Result<std::unique_ptr<BlockIo>>(IoKind)>;
  [[nodiscard]] static Result<std::unique_ptr<DiskCache>> Open(const DiskOptions& options, const MakeIo& make_io = MakeBlockIo);
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // Once, before all calls below; reads a page of each record. After an error the cache is off.
  [[nodiscard]] Status Recover(const std::string& domain);

  // Of the thread that writes. As DiskWriter has it; waits to keep to the write rate.
  [[nodiscard]] Status Append(std::span<const NewDiskBlock> blocks) { return writer_.Append(blocks); }
  // Of the thread that reads.
  void Read(const BlockShape& shape, std::span<DiskRead> reads) { reader_.Read(shape, reads); }

  // Of any thread.
  bool recovered() const noexcept { return recovered_.load(std::memory_order_acquire); }
  const std::string& domain() const noexcept { return domain_; }  // once recovered
  DiskTable& table() noexcept { return table_; }
  const DiskTable& table() const noexcept { return table_; }
  const DiskHealth& health() const noexcept { return health_; }
  const DiskOptions& options() const noexcept { return options_; }
  std::string_view io_name() const noexcept { return io_name_; }
  // Waits for the write rate end, for good.
  void Stop() { pace_.Stop(); }

 private:
  [[nodiscard]] Status RecoverAll(const std::string& domain);
  DiskCache(DiskOptions options, DiskDirectory directory, std::unique_ptr<BlockIo> reads, std::unique_ptr<BlockIo> writes);

  const DiskOptions options_;
  const DiskDirectory directory_;
  DiskTable table_;
  DiskHealth health_;
  WritePace pace_;
  std::string_view io_name_;
  DiskReader reader_;
  DiskWriter writer_;
  std::unique_ptr<BlockIo> writes_;  // until Recover
  std::string domain_;
  std::atomic<bool> recovered_{false};
};

}  // namespace kvm::mesh
