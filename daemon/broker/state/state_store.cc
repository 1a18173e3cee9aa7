#include "daemon/broker/state/state_store.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "daemon/system/work_meter.h"
#include "proto/base/fault_point.h"
#include "proto/wire/frame.h"

namespace kvm::daemon {
namespace {

const std::string kRegistries = std::string(kStoredPrefix) + "registry.", kFiles = std::string(kStoredPrefix) + "file.",
                  kManifests = std::string(kStoredPrefix) + "region.";
constexpr std::size_t kIdDigits = 16, kSerialDigits = 8;

std::string Hex(std::uint64_t value, int digits) {
  char text[17];
  std::snprintf(text, sizeof(text), "%0*llx", digits, static_cast<unsigned long long>(value));
  return text;
}

std::string NewId() {
  std::uint64_t id = 0;
  while (::getrandom(&id, sizeof(id), 0) != sizeof(id)) continue;
  return Hex(id, kIdDigits);
}

std::string RegistryName(std::uint64_t epoch) { return kRegistries + Hex(epoch, kIdDigits); }
// In the order of their names, the newest manifest of a region comes last.
std::string ManifestName(const std::string& id, std::uint32_t serial) { return kManifests + id + "." + Hex(serial, kSerialDigits); }

bool ReadManifest(int fd, kvmwire::StoredRegion& out) {
  const Result<MappedMemory> memory = MappedMemory::Attach(fd);
  return memory && out.ParseFromArray(memory->data(), static_cast<int>(memory->size()));
}

}  // namespace

std::vector<std::string> FilesOf(const kvmwire::StoredRegion& manifest) {
  std::vector<std::string> names(manifest.files().begin(), manifest.files().end());
  if (!manifest.process().empty()) names.push_back(manifest.process());
  return names;
}

std::uint32_t UserOf(const kvmwire::StoredRegion& manifest) {
  return manifest.has_slab() ? manifest.slab().writer_uid() : manifest.owner_uid();
}

// Where the kernel does not compare (-1), no two descriptors are taken for one open file.
bool StateStore::FileOrder::operator()(int a, int b) const noexcept {
  constexpr long kEqual = 0, kLess = 1, kGreater = 2;
  Spend(kSystemCallUnits);
  const auto own = static_cast<pid_t>(::getpid());
  const long order = ::syscall(SYS_kcmp, own, own, KCMP_FILE, static_cast<unsigned long>(a), static_cast<unsigned long>(b));
  return order == kLess || (order != kEqual && order != kGreater && a < b);
}

std::string StateStore::PersistFile(std::uint32_t user, int fd) {
  const FileId id = FileIdOf(fd);
  Names& its = names_[id];
  if (const auto found = its.find(fd); found != its.end()) {
    ++files_.at(found->second).uses;
    return found->second;
  }
  std::string name = kFiles + NewId();
  File file{{UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), closer_, user}, id, 1, user};
  if (!file.fd) LogLimited(LogLevel::kWarn, "state_not_stored", {{"name", name}, {"reason", OutOfDescriptors(errno).ToString()}});
  manager_.Store(user, name, file.fd.get());
  KVM_FAULT_POINT(kvmd_file_stored);
  if (file.fd) its.emplace(file.fd.get(), name);
  if (its.empty()) names_.erase(id);
  files_[name] = std::move(file);
  return name;
}

void StateStore::DropFile(const std::string& name) {
  const auto file = files_.find(name);
  if (file == files_.end() || --file->second.uses > 0) return;
  manager_.Remove(file->second.user, name);
  if (const auto its = names_.find(file->second.id); its != names_.end() && file->second.fd) {
    const auto found = its->second.find(file->second.fd.get());
    if (found != its->second.end() && found->second == name) its->second.erase(found);
    if (its->second.empty()) names_.erase(its);
  }
  files_.erase(file);
}

void StateStore::DropFiles(const std::vector<std::string>& names) {
  for (const std::string& name : names) DropFile(name);
}

void StateStore::PersistRegistry(const RegistrySegment& segment) {
  manager_.Store(NotifyQueue::kOwnLane, RegistryName(segment.header().epoch), segment.fd());
}

// Last of all: what refers to it has been replaced by then.
void StateStore::ForgetRegistry(std::uint64_t epoch) {
  manager_.AfterAllStored([this, epoch] { manager_.Remove(NotifyQueue::kOwnLane, RegistryName(epoch)); });
}

// The manifest is stored last, and the one that it replaces is removed afterwards, since a region's
// newest manifest counts.
void StateStore::PersistRegion(const Domain& domain, Region& region, const WatchedProcess* process, const kvmwire::StoredSlab* slab) {
  if (!manager_.has_store()) return;
  if (region.persisted_id.empty()) region.persisted_id = NewId();
  const std::uint32_t user = region.persisted_user = slab != nullptr ? slab->writer_uid() : region.info.owner_uid;
  kvmwire::StoredRegion manifest;
  for (const PeerFd& fd : region.fds) manifest.add_files(PersistFile(user, fd.get()));
  if (process != nullptr && process->pidfd() >= 0) manifest.set_process(PersistFile(user, process->pidfd()));
  manifest.set_domain(domain.name());
  manifest.set_registry_epoch(domain.epoch());
  manifest.set_row(region.row);
  manifest.set_region_epoch(region.info.region_epoch);
  *manifest.mutable_descriptor_() = region.descriptor;
  manifest.set_model_spec(domain.SpecOf(region).Canonical());
  manifest.set_owner_pid(region.info.owner_pid);
  manifest.set_owner_uid(region.info.owner_uid);
  manifest.set_owner_instance(region.owner_instance);
  if (slab != nullptr) *manifest.mutable_slab() = *slab;
  const std::string bytes = manifest.SerializeAsString();
  const Result<OwnedMemory> memory = OwnedMemory::Create("kvmd:manifest", bytes.size());
  if (memory) std::memcpy(memory->data(), bytes.data(), bytes.size());
  UniqueFd stored(memory ? ::fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0) : -1);
  if (!stored) {
    LogLimited(LogLevel::kWarn, "state_not_stored",
               {{"region", region.descriptor.name()}, {"reason", memory ? OutOfDescriptors(errno).ToString() : memory.error().ToString()}});
    DropFiles(FilesOf(manifest));
    // The one before may name an owner or a writer that has ended, while another one writes now.
    return ForgetRegion(region);
  }
  manager_.StoreOwned(user, ManifestName(region.persisted_id, region.persisted_serial + 1), std::move(stored));
  KVM_FAULT_POINT(kvmd_manifest_stored);
  if (region.persisted_serial > 0) manager_.Remove(user, ManifestName(region.persisted_id, region.persisted_serial));
  ++region.persisted_serial;
  DropFiles(std::exchange(region.persisted_files, FilesOf(manifest)));
}

void StateStore::ForgetRegion(Region& region) {
  if (region.persisted_id.empty()) return;
  manager_.Remove(region.persisted_user, ManifestName(region.persisted_id, region.persisted_serial));
  DropFiles(std::exchange(region.persisted_files, {}));
  region.persisted_id.clear();
  region.persisted_serial = 0;
}

PersistedState StateStore::Sort(std::vector<PassedFd> passed) {
  PersistedState state;
  std::map<std::string, UniqueFd> manifests;
  for (PassedFd& one : passed) {
    if (one.name.starts_with(kRegistries)) {
      state.registries.push_back(std::move(one.fd));
    } else if (one.name.starts_with(kManifests) && one.name.size() == kManifests.size() + kIdDigits + 1 + kSerialDigits) {
      manifests[one.name] = std::move(one.fd);
    } else if (one.name.starts_with(kFiles)) {
      const FileId id = FileIdOf(one.fd.get());
      names_[id].emplace(one.fd.get(), one.name);
      files_[one.name] = File{{std::move(one.fd), closer_, NotifyQueue::kOwnLane}, id, 0, NotifyQueue::kOwnLane};
    } else {
      manager_.Remove(NotifyQueue::kOwnLane, one.name);
    }
  }
  std::map<std::string, std::shared_ptr<WatchedProcess>> processes;
  // The newest of each region first.
  for (auto it = manifests.rbegin(); it != manifests.rend(); ++it) {
    PersistedRegion region;
    region.id = it->first.substr(kManifests.size(), kIdDigits);
    bool whole = (state.regions.empty() || state.regions.back().id != region.id) && ReadManifest(it->second.get(), region.manifest);
    const std::vector<std::string> names = FilesOf(region.manifest);
    for (const std::string& name : names) whole = whole && files_.contains(name);
    if (!whole) {
      manager_.Remove(NotifyQueue::kOwnLane, it->first);
      continue;
    }
    region.manifest.set_serial(static_cast<std::uint32_t>(std::stoul(it->first.substr(it->first.size() - kSerialDigits), nullptr, 16)));
    for (const std::string& name : region.manifest.files())
      region.fds.emplace_back(UniqueFd(::fcntl(files_[name].fd.get(), F_DUPFD_CLOEXEC, 0)), closer_, UserOf(region.manifest));
    std::shared_ptr<WatchedProcess>& process = processes[region.manifest.process()];
    if (!process) {
      const auto file = files_.find(region.manifest.process());
      process =
          std::make_shared<WatchedProcess>(UniqueFd(file == files_.end() ? -1 : ::fcntl(file->second.fd.get(), F_DUPFD_CLOEXEC, 0)), false);
    }
    region.process = process;
    for (const std::string& name : names) {
      ++files_[name].uses;
      files_[name].user = UserOf(region.manifest);
    }
    state.regions.push_back(std::move(region));
  }
  for (auto file = files_.begin(); file != files_.end();) {
    if (file->second.uses > 0) {
      ++file;
      continue;
    }
    const std::string unused = (file++)->first;
    files_[unused].uses = 1;
    DropFile(unused);
  }
  return state;
}

}  // namespace kvm::daemon
