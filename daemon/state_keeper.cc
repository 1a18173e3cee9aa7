#include "daemon/state_keeper.h"

#include <sys/random.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>

namespace kvm::daemon {
namespace {

std::string Hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string RegistryName(std::uint64_t epoch) { return kStoredPrefix + ("registry." + Hex(epoch)); }
std::string Name(const std::string& id, const char* part, std::uint64_t number) {
  return kStoredPrefix + id + "." + part + std::to_string(number);
}

std::string NewId() {
  std::uint64_t id = 0;
  while (::getrandom(&id, sizeof(id), 0) != sizeof(id)) continue;
  return Hex(id);
}

// "kept.ID.fd3" → ID, "fd", 3. False: not such a name.
bool Parse(const std::string& name, std::string& id, std::string& part, std::uint64_t& number) {
  std::istringstream in(name.substr(std::strlen(kStoredPrefix)));
  std::string last;
  if (!std::getline(in, id, '.') || !std::getline(in, last)) return false;
  const std::size_t digits = last.find_first_of("0123456789");
  if (digits == std::string::npos || digits == 0 || last.size() - digits > 9) return false;
  part = last.substr(0, digits);
  number = 0;
  for (std::size_t i = digits; i < last.size(); ++i) {
    if (last[i] < '0' || last[i] > '9') return false;
    number = number * 10 + static_cast<std::uint64_t>(last[i] - '0');
  }
  return true;
}

struct Parts {
  std::map<std::uint64_t, UniqueFd> fds, manifests, processes;
};

bool ReadManifest(const UniqueFd& fd, kvmwire::StoredRegion& out) {
  const Result<MappedMemory> memory = MappedMemory::Attach(fd.get());
  return memory && out.ParseFromArray(memory->data(), static_cast<int>(memory->size()));
}

}  // namespace

bool StateKeeper::Store(const std::string& name, int fd) {
  if (manager_.Store(name, fd)) return true;
  LogLimited(LogLevel::kWarn, "state_not_stored", {{"name", name}, {"reason", "the service manager did not take it in time"}});
  return false;
}

void StateKeeper::KeepRegistry(const RegistrySegment& segment) {
  if (manager_.has_store()) Store(RegistryName(segment.header().epoch), segment.fd());
}

void StateKeeper::ForgetRegistry(std::uint64_t epoch) { manager_.Remove(RegistryName(epoch)); }

// The manifest goes last, and what it replaces after it: a region is known by its newest manifest.
void StateKeeper::KeepRegion(const Domain& domain, Region& region, const WatchedProcess* process) {
  if (!manager_.has_store()) return;
  const std::uint32_t before = region.kept_serial++;
  if (region.kept_id.empty()) {
    region.kept_id = NewId();
    for (std::size_t i = 0; i < region.fds.size(); ++i) Store(Name(region.kept_id, "fd", i), region.fds[i].get());
  }
  if (process != nullptr && process->pidfd() >= 0) Store(Name(region.kept_id, "process", region.kept_serial), process->pidfd());
  kvmwire::StoredRegion manifest;
  manifest.set_domain(domain.name());
  manifest.set_registry_epoch(domain.epoch());
  manifest.set_row(region.row);
  manifest.set_region_epoch(region.info.region_epoch);
  *manifest.mutable_descriptor_() = region.descriptor;
  manifest.set_model_spec(domain.SpecOf(region).Canonical());
  manifest.set_owner_pid(region.info.owner_pid);
  manifest.set_owner_uid(region.info.owner_uid);
  manifest.set_fds(static_cast<std::uint32_t>(region.fds.size()));
  const std::string bytes = manifest.SerializeAsString();
  const Result<OwnedMemory> memory = OwnedMemory::Create("kvmd:manifest", bytes.size());
  if (!memory) {
    LogLimited(LogLevel::kWarn, "state_not_stored", {{"name", region.kept_id}, {"reason", memory.error().ToString()}});
    return;
  }
  std::memcpy(memory->data(), bytes.data(), bytes.size());
  if (!Store(Name(region.kept_id, "manifest", region.kept_serial), memory->fd()) || before == 0) return;
  manager_.Remove(Name(region.kept_id, "manifest", before));
  manager_.Remove(Name(region.kept_id, "process", before));
}

void StateKeeper::ForgetRegion(Region& region) {
  if (region.kept_id.empty()) return;
  manager_.Remove(Name(region.kept_id, "manifest", region.kept_serial));
  manager_.Remove(Name(region.kept_id, "process", region.kept_serial));
  for (std::size_t i = 0; i < region.fds.size(); ++i) manager_.Remove(Name(region.kept_id, "fd", i));
  region.kept_id.clear();
}

KeptState StateKeeper::Sort(std::vector<PassedFd> passed) {
  KeptState state;
  std::map<std::string, Parts> by_id;
  for (PassedFd& one : passed) {
    std::string id, part;
    std::uint64_t number = 0;
    if (one.name.starts_with(std::string(kStoredPrefix) + "registry.")) {
      state.registries.push_back(std::move(one.fd));
    } else if (!Parse(one.name, id, part, number)) {
      manager_.Remove(one.name);
    } else {
      Parts& parts = by_id[id];
      (part == "fd" ? parts.fds : part == "manifest" ? parts.manifests : parts.processes)[number] = std::move(one.fd);
    }
  }
  for (auto& [id, parts] : by_id) {
    KeptRegion region;
    region.id = id;
    const bool readable = !parts.manifests.empty() && ReadManifest(parts.manifests.rbegin()->second, region.manifest);
    const std::uint64_t serial = parts.manifests.empty() ? 0 : parts.manifests.rbegin()->first;
    if (readable && parts.fds.size() == region.manifest.fds()) {
      for (auto& [number, fd] : parts.fds) region.fds.push_back(std::move(fd));
      if (const auto process = parts.processes.find(serial); process != parts.processes.end()) region.process = std::move(process->second);
      state.regions.push_back(std::move(region));
      // Left behind by a kvmd that died between two steps; the newest goes when the region is kept again.
      parts.fds.clear();
    }
    for (const auto& [number, fd] : parts.fds) manager_.Remove(Name(id, "fd", number));
    for (const auto& [number, fd] : parts.manifests) {
      if (!readable || number != serial) manager_.Remove(Name(id, "manifest", number));
    }
    for (const auto& [number, fd] : parts.processes) {
      if (!readable || number != serial) manager_.Remove(Name(id, "process", number));
    }
    if (!state.regions.empty() && state.regions.back().id == id)
      state.regions.back().manifest.set_serial(static_cast<std::uint32_t>(serial));
  }
  return state;
}

}  // namespace kvm::daemon
