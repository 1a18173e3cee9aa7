#include "client/mesh/disk/disk_cache.h"

namespace kvm::mesh {

Result<std::unique_ptr<DiskCache>> DiskCache::Open(const DiskOptions& options, const MakeIo& make_io) {
  Result<DiskDirectory> directory = DiskDirectory::Open(options.path);
  if (!directory) return directory.error();
  Result<std::unique_ptr<BlockIo>> reads = make_io(options.io);
  Result<std::unique_ptr<BlockIo>> writes = make_io(options.io);
  for (const auto* io : {&reads, &writes})
    if (!*io) return MakeError(Errc::kUnsupported, "--disk-io: " + io->error().ToString());
  return std::unique_ptr<DiskCache>(new DiskCache(options, std::move(*directory), std::move(*reads), std::move(*writes)));
}

DiskCache::DiskCache(DiskOptions options, DiskDirectory directory, std::unique_ptr<BlockIo> reads, std::unique_ptr<BlockIo> writes)
    : options_(std::move(options)),
      directory_(std::move(directory)),
      table_(options_.policy),
      health_(options_.pause),
      pace_(options_.write_bytes_per_s),
      io_name_(reads->name()),
      reader_(table_, health_, std::move(reads)),
      writer_(table_, health_, directory_, pace_, options_.limit_bytes),
      writes_(std::move(writes)) {}

Status DiskCache::Recover(const std::string& domain) {
  try {
    return RecoverAll(domain);
  } catch (const std::exception& failed) {
    // Half of the files may be known, and that is no state to write in.
    Error error = MakeError(Errc::kResourceExhausted, std::string("its files could not be read: ") + failed.what());
    health_.TurnOff(error);
    return error;
  }
}

Status DiskCache::RecoverAll(const std::string& domain) {
  if (domain.size() > kMaxDiskDomain) return MakeError(Errc::kUnsupported, "the domain's name is too long for the disk cache");
  const Result<RecoveredFiles> files = RecoverFiles(directory_, domain, *writes_);
  if (!files) {
    health_.TurnOff(files.error());
    return files.error();
  }
  for (const std::string& refused : files->refused) health_.Refused(refused);
  writer_.Start(domain, std::move(writes_), *files);
  domain_ = domain;
  recovered_.store(true, std::memory_order_release);
  return {};
}

}  // namespace kvm::mesh
