#include "daemon/registry/granted_memory.h"

#include <algorithm>
#include <string>
#include <utility>

#include "daemon/registry/quota_error.h"
#include "daemon/system/work_meter.h"
#include "proto/base/machine_memory.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {
namespace {

// Looked at before a user is refused.
constexpr std::size_t kMostBeforeRefusal = 1024;

std::uint64_t MostOf(const Config& config) {
  if (config.max_granted_memory_per_user != 0) return config.max_granted_memory_per_user;
  const Result<InstalledMemory> machine = ReadInstalledMemory();
  return machine ? machine->bytes : 0;
}

}  // namespace

GrantedMemory::GrantedMemory(const Config& config, DescriptorQuota& descriptors, DescriptorCloser* closer)
    : max_per_user_(MostOf(config)), descriptors_(descriptors), closer_(closer) {}

GrantedMemory::~GrantedMemory() {
  for (auto& [file, grant] : grants_) Watch(grant, {});
}

Status GrantedMemory::Check(std::uint32_t uid, std::uint64_t bytes) {
  const auto fits = [&] { return bytes <= max_per_user_ && BytesOf(uid) <= max_per_user_ - bytes; };
  if (!fits()) Look(kMostBeforeRefusal);
  if (fits()) return {};
  return Exhausted("memory: too many bytes granted to user " + std::to_string(uid), max_per_user_, "--max-granted-memory-per-user");
}

Status GrantedMemory::Add(std::uint32_t uid, int fd, std::uint64_t bytes) {
  Spend(kSystemCallUnits);
  Result<UniqueFd> read_only = ReopenReadOnly(fd);
  if (!read_only) return read_only.error();
  Grant& grant = grants_[FileIdOf(fd)];
  Watch(grant, {});
  Count(grant, false);  // if there was one: the kernel has used the inode's number again
  grant = Grant{uid, bytes, false, false, {}};
  Count(grant, true);
  Watch(grant, {std::move(*read_only), closer_, uid});
  return {};
}

void GrantedMemory::AddSlab(std::uint32_t uid, const Region& slab) {
  Grant& grant = grants_[slab.files.back()];
  if (grant.slab) return;
  grant = Grant{uid, slab.segment_bytes(), true, false, {}};
}

void GrantedMemory::Registered(const Region& region) {
  for (std::size_t i = 0; i < region.files.size(); ++i) {
    if (!region.read_only[i]) continue;  // sealed: its owner has made it
    const auto [found, added] = grants_.try_emplace(region.files[i]);
    Grant& grant = found->second;
    Watch(grant, {});
    if (!added) continue;
    grant = Grant{region.info.owner_uid,
                  i == 0 ? region.generation_memory.size() : region.descriptor.segments(static_cast<int>(i) - 1).size_bytes(),
                  false,
                  false,
                  {}};
    Count(grant, true);
  }
}

void GrantedMemory::Freed(Region& region) {
  region.generation_memory = MappedMemory();  // a mapping through the owner's descriptor
  for (std::size_t i = 0; i < region.files.size(); ++i) {
    auto found = grants_.find(region.files[i]);
    if (found == grants_.end()) continue;
    // At once, or kvmd itself could write it; it is not the last one.
    static_cast<void>(UniqueFd(std::move(region.fds[i])));
    Count(found->second, true);
    Watch(found->second, std::move(region.read_only[i]));
    DropIfGone(found);
  }
}

void GrantedMemory::Look(std::size_t most) {
  auto next = grants_.upper_bound(look_hand_);
  for (std::size_t left = std::min(most, grants_.size()); left > 0; --left) {
    if (next == grants_.end()) next = grants_.begin();
    look_hand_ = next->first;
    Spend(1);
    if (!DropIfGone(next)) ++next;
  }
}

// True: `grant` is the next one.
bool GrantedMemory::DropIfGone(Grants::iterator& grant) {
  if (!grant->second.watch) return false;
  Spend(2 * kSystemCallUnits);
  if (MayBeWritten(grant->second.watch.get())) return false;
  Watch(grant->second, {});
  Count(grant->second, false);
  grant = grants_.erase(grant);
  return true;
}

void GrantedMemory::Count(Grant& grant, bool counted) {
  if (std::exchange(grant.counted, counted) == counted) return;
  Use& use = users_[grant.uid];
  const std::uint64_t slab_bytes = grant.slab ? grant.bytes : 0;
  if (counted) {
    use.bytes += grant.bytes;
    use.slab_bytes += slab_bytes;
  } else {
    use.bytes -= grant.bytes;
    use.slab_bytes -= slab_bytes;
    if (use.bytes == 0) users_.erase(grant.uid);
  }
}

void GrantedMemory::Watch(Grant& grant, PeerFd read_only) {
  if (grant.watch) descriptors_.Remove(1, grant.uid);
  grant.watch = std::move(read_only);
  if (grant.watch) descriptors_.Add(1, grant.uid);
}

std::uint64_t GrantedMemory::watched() const noexcept {
  return static_cast<std::uint64_t>(
      std::count_if(grants_.begin(), grants_.end(), [](const auto& grant) { return bool(grant.second.watch); }));
}

std::uint64_t GrantedMemory::BytesOf(std::uint32_t uid) const {
  const auto user = users_.find(uid);
  return user == users_.end() ? 0 : user->second.bytes;
}

std::uint64_t GrantedMemory::SlabBytesOf(std::uint32_t uid) const {
  const auto user = users_.find(uid);
  return user == users_.end() ? 0 : user->second.slab_bytes;
}

}  // namespace kvm::daemon
