#include "client/mesh/node/state/node_disk.h"

namespace kvm::mesh {

NodeDisk::~NodeDisk() { Stop(); }

void NodeDisk::Stop() {
  cache_->Stop();
  read_thread_.join();
  write_thread_.join();
}

bool NodeDisk::readable(const std::string& domain) const {
  return cache_->recovered() && cache_->domain() == domain && cache_->health().may_read();
}

std::string NodeDisk::Refusal(const std::string& domain) const {
  if (readable(domain)) return overdue_ > 0 ? "it has not answered an earlier read yet" : "";
  std::string reason = cache_->health().reason();
  if (!reason.empty()) return reason;
  return cache_->recovered() ? "it has blocks of another domain" : "its files are still being read";
}

void NodeDisk::Use(std::span<const BlockKey> keys) {
  if (cache_->recovered()) cache_->table().Use(keys);
}

std::size_t NodeDisk::LeadingBlocks(std::span<const BlockKey> keys) const {
  return cache_->recovered() ? cache_->table().LeadingBlocks(keys) : 0;
}

bool NodeDisk::TakeServingRoom(std::uint64_t bytes) noexcept {
  if (serving_bytes_ > 0 && serving_bytes_ + bytes > kServingBytes) return false;
  serving_bytes_ += bytes;
  return true;
}

void NodeDisk::Offer(std::vector<CachedBlock> blocks, bool more, bool all) {
  waiting_.insert(waiting_.end(), blocks.begin(), blocks.end());
  more_ = more || (more_ && !all);
}

void NodeDisk::Describe(const std::string& domain, kvmmesh::DiskStatus& out) const {
  const DiskFigures figures = cache_->table().figures();
  const bool reads = readable(domain), writes = reads && cache_->health().may_write();
  out.set_path(cache_->options().path);
  out.set_state(writes ? "on" : cache_->health().off() ? "off" : !cache_->recovered() ? "opening" : reads ? "read only" : "paused");
  out.set_reason(reads ? cache_->health().reason() : Refusal(domain));
  out.set_io(std::string(cache_->io_name()));
  out.set_policy(std::string(policy::PolicyName(cache_->options().policy)));
  out.set_blocks(figures.blocks);
  out.set_bytes(figures.bytes);
  out.set_file_bytes(figures.file_bytes);
  out.set_limit_bytes(cache_->options().limit_bytes);
  out.set_read_blocks(figures.read_blocks);
  out.set_read_bytes(figures.read_bytes);
  out.set_written_blocks(figures.written_blocks);
  out.set_written_bytes(figures.written_bytes);
  out.set_moved_blocks(figures.moved_blocks);
  out.set_evicted_blocks(figures.evicted_blocks);
  out.set_bad_records(figures.bad_records);
  out.set_failed_reads(figures.failed_reads);
  out.set_waiting_blocks(waiting_.size());
  out.set_bytes_per_s(rate_.measured());
}

}  // namespace kvm::mesh
