// One node of a soak of several nodes: kvmd under a service manager that stores its descriptors,
// kvmd-mesh with a disk cache at an address that stays, and workers (soak_workers.h). Each of them
// can be killed, and started again.
#pragma once

#include <arpa/inet.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/mesh/loopback.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/mesh/soak_workers.h"
#include "tests/support/mesh/two_nodes.h"
#include "tests/support/process/eventually.h"

namespace kvm::test {

inline constexpr std::uint64_t kSoakHostCacheBytes = std::uint64_t{8} << 20, kSoakSlabBytes = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kSoakDiskBytes = std::uint64_t{64} << 20;
inline constexpr std::uint64_t kSoakPoolBlocks = 512;  // of a mesh process: what it has brought
inline constexpr std::size_t kSoakJoiners = 2;         // of a node

inline const std::vector<std::string> kSoakKvmdOptions{"--host-cache",      std::to_string(kSoakHostCacheBytes),
                                                       "--host-cache-slab", std::to_string(kSoakSlabBytes),
                                                       "--orphan-ttl-s",    "3",
                                                       "--max-regions",     "256",
                                                       "--log-level",       "error"};

// An address of the loopback that is this node's alone: no connection of another process can get
// its port while nothing listens there, since those are made from 127.0.0.1.
inline std::string FreeSoakAddress(std::size_t node) {
  const std::string host = "127.0.0." + std::to_string(2 + node);
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = LoopbackAddress(0);
  REQUIRE(::inet_pton(AF_INET, host.c_str(), &address.sin_addr) == 1);
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return host + ":" + std::to_string(PortOf(socket));
}

// kvmd, kvmd-mesh and workers of one node.
class SoakNode {
 public:
  SoakNode(std::size_t number, std::string board, std::vector<std::string> environment, std::vector<std::string> addresses)
      : kvmd(kSoakKvmdOptions), number_(number), environment_(std::move(environment)), addresses_(std::move(addresses)) {
    StartMesh();
    place_ = {kvmd.socket(), mesh->socket(), std::move(board), kvmd.dir() / "workers.log", number_};
  }

  void StartMesh() {
    const std::size_t other = 1 - number_;
    std::vector<std::string> environment = environment_;
    environment.push_back("KVM_FAULT_FILE=" + FaultFile());
    stops_ = 0;
    mesh.emplace(kvmd, SoakNodeName(number_), std::vector<std::string>{SoakNodeName(other) + "=" + addresses_[other]}, environment,
                 std::vector<std::string>{"--listen", addresses_[number_], "--pool-size", std::to_string(kSoakPoolBlocks * kSoakBlockBytes),
                                          "--staging-size", "256K", "--disk-path", DiskPath(), "--disk-bytes",
                                          std::to_string(kSoakDiskBytes), "--disk-write-rate", "8M"});
  }
  void KillMesh() {
    const kvmmesh::Status status = StatusOf(*mesh);
    CHECK_FALSE(status.peers(0).shunned());
    served_from_disk += status.served_from_disk();
    served += status.served_blocks();
    mesh->Kill();
  }

#if defined(KVM_FAULT_POINTS)
  // Stops kvmd-mesh between a lookup and the copy of what it has found, while publishers go on.
  // False: it was not there in time.
  bool StopBeforeCopy(std::chrono::milliseconds time) {
    std::ofstream(FaultFile() + ".new") << "client_import_begun " << ++stops_ << " stop";
    std::filesystem::rename(FaultFile() + ".new", FaultFile());
    const auto stopped = [&] { return ProcessState(mesh->pid()) == 'T'; };
    const bool in_time = Eventually(stopped, std::chrono::milliseconds(500));
    if (in_time) std::this_thread::sleep_for(time);
    std::filesystem::remove(FaultFile());
    mesh->Signal(SIGCONT);
    return in_time;
  }
#endif

  // Those that have ended, or are not there yet. Returns how many have ended by themselves, which a
  // worker does that gets no region in time.
  std::uint64_t StartWorkers(std::uint64_t& seed) {
    std::uint64_t ended = 0;
    publishers.resize(kSoakPublishers);
    joiners.resize(kSoakJoiners);
    for (std::size_t i = 0; i < publishers.size(); ++i)
      if (HasEnded(publishers[i], ended)) publishers[i] = StartSoakPublisher(place_, i, ++seed);
    for (ChildProcess& joiner : joiners)
      if (HasEnded(joiner, ended)) joiner = StartSoakJoiner(place_, 1 - number_, ++seed);
    return ended;
  }
  // How often joiners got no more blocks, by reason.
  void EndWorkers(std::map<std::string, std::uint64_t>& reasons) {
    for (auto* workers : {&publishers, &joiners}) {
      for (ChildProcess& worker : *workers) {
        if (!worker.running()) continue;
        worker.CloseInput();
        while (const std::optional<std::string> line = worker.ReadLine(std::chrono::seconds(30)))
          reasons[line->substr(line->find(' ') + 1)] += std::stoull(*line);
        const std::optional<ProcessEnd> end = worker.Wait(std::chrono::seconds(30));
        REQUIRE(end);
        CHECK(end->clean());
        worker = ChildProcess();
      }
    }
  }

  // Regions that kvmd keeps, of workers that live or have died.
  std::uint64_t RegionsOfWorkers() const {
    RegistryProbe probe(kvmd.socket());
    const kvmwire::DomainStatus domain = probe.Status().domains(0);
    return domain.regions() + domain.orphans() - domain.host_cache().slabs() - probe.RegionRows(mesh->pid());
  }
  kvmwire::HostCacheDomain HostCache() const { return RegistryProbe(kvmd.socket()).Status().domains(0).host_cache(); }

  std::string FaultFile() const { return kvmd.dir() / "fault"; }
  std::string DiskPath() const { return kvmd.dir() / "disk"; }
  // Of the disk cache: how many, and their bytes.
  std::pair<std::size_t, std::uint64_t> DiskFiles() const {
    std::pair<std::size_t, std::uint64_t> out;
    for (const auto& file : std::filesystem::directory_iterator(DiskPath())) {
      ++out.first;
      out.second += file.file_size();
    }
    return out;
  }

  std::string Logs() const {
    std::string out;
    for (const char* name : {"mesh.log", "workers.log", "kvmd.log"}) {
      const std::string text = ReadFile(kvmd.dir() / name);
      out += std::string(name) + ":\n" + text.substr(text.size() - std::min<std::size_t>(text.size(), 4000));
    }
    return out;
  }

  Supervisor kvmd;
  std::optional<MeshProcess> mesh;
  std::vector<ChildProcess> publishers, joiners;
  std::uint64_t served = 0, served_from_disk = 0;  // by kvmd-mesh that were killed

 private:
  static bool HasEnded(ChildProcess& worker, std::uint64_t& by_themselves) {
    if (worker.running()) return false;
    if (const std::optional<ProcessEnd> end = worker.Wait(std::chrono::milliseconds(0)); end && end->signal != SIGKILL) {
      REQUIRE(end->signal == 0);
      ++by_themselves;
    }
    return true;
  }

  const std::size_t number_;
  const std::vector<std::string> environment_, addresses_;
  SoakPlace place_;
  unsigned stops_ = 0;  // at the fault point, of this kvmd-mesh
};

}  // namespace kvm::test
