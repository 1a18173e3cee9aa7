// Two nodes that bring each other's blocks, of which each is compared with what its key says, over
// a long time: kvmd-mesh and kvmd of both are killed and started again, and stopped for moments,
// workers are killed, and publishers reuse and retract their blocks all the time. The blocks come
// from pools, host caches and disks. At the end nothing is wrong or left. The same without the
// source's validation finds wrong bytes.
//
// KVM_MESH_SOAK_BLOCKS says how many blocks of another node are compared (scripts/soak.sh).
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/mesh/soak_node.h"
#include "tests/support/mesh/soak_workers.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/held_resources.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using std::chrono::steady_clock;
using test::ChildProcess;
using test::Eventually;
using test::MeshProcess;
using test::SoakNode;
using test::SoakNodeName;

constexpr std::uint64_t kMostIdleSockets = 8;  // connections that wait for a join
constexpr std::size_t kMostOfSlab = 7;         // kvmd's descriptors, of two memfds
constexpr std::uint64_t kWarmBlocks = 2000;    // compared, before what processes hold is noted
constexpr auto kPatience = 120s;               // in which something has to be fetched

// What a process holds.
struct Held {
  explicit Held(pid_t pid) : files(pid), mappings(test::SharedMappings(pid)), own_kib(test::StatusKib(pid, "RssAnon")) {}
  std::string ToString() const {
    std::ostringstream out;
    out << files.sockets << " sockets, " << files.files << " files, " << files.others << " other descriptors, " << files.inodes.size()
        << " memfds, " << mappings << " mappings of memfds, " << own_kib << " KiB of its own";
    return out.str();
  }
  test::OpenFiles files;
  std::size_t mappings = 0;
  std::uint64_t own_kib = 0;
};

// What it may hold beyond that: of each of them so many.
struct Allowance {
  std::size_t sockets = 0, files = 0, memory = 0;
};
bool IsWithin(const Held& now, const Held& before, const Allowance& more) {
  return now.files.sockets <= before.files.sockets + more.sockets && now.files.files <= before.files.files + more.files &&
         now.files.removed == 0 && now.files.others <= before.files.others + more.memory &&
         now.files.inodes.size() <= before.files.inodes.size() + more.memory && now.mappings <= before.mappings + more.memory;
}

class MeshSoak {
 public:
  explicit MeshSoak(const std::vector<std::string>& environment = {}) {
    const std::vector<std::string> addresses{test::FreeSoakAddress(0), test::FreeSoakAddress(1)};
    for (std::size_t i = 0; i < nodes_.size(); ++i) nodes_[i] = std::make_unique<SoakNode>(i, board_path(), environment, addresses);
  }

  const test::SoakCounts& counts() const { return *board_.operator->(); }

  // Processes that have done something of everything, and whose workers have gone: what they hold.
  void NoteWhatIsHeld() {
    const auto fills = [](const auto& node) { return node->HostCache().evicted() > 0; };
    REQUIRE(RunUntil([&] { return board_->compared >= kWarmBlocks && std::all_of(nodes_.begin(), nodes_.end(), fills); }));
    EndWorkers();
    for (const auto& node : nodes_) {
      REQUIRE(Eventually([&] { return node->RegionsOfWorkers() == 0; }, 60s));
      Settle(*node);
      slabs_before_.push_back(node->HostCache().slabs());
      before_.emplace_back(node->mesh->pid());
      before_.emplace_back(node->kvmd.pid());
    }
  }

  // Faults until so many blocks of another node have been compared, or `enough`. In the second half
  // kvmd-mesh of node b and kvmd of node a live on, so that what they leak adds up.
  template <class Enough>
  void Run(std::uint64_t blocks, Enough enough) {
    const std::uint64_t begin = board_->compared;
    std::uint64_t late_kib[2] = {0, 0};
    REQUIRE(RunUntil([&] {
      const std::uint64_t done = board_->compared - begin;
      const bool both = done < blocks / 2;
      Disturb(both);
      if (late_kib[0] == 0 && done >= blocks / 10 * 6) {
        late_kib[0] = Held(nodes_[1]->mesh->pid()).own_kib;
        late_kib[1] = Held(nodes_[0]->kvmd.pid()).own_kib;
      }
      return done >= blocks || enough();
    }));
    if (late_kib[0] == 0) return;
    CheckGrowth("kvmd-mesh of b", late_kib[0], nodes_[1]->mesh->pid());
    CheckGrowth("kvmd of a", late_kib[1], nodes_[0]->kvmd.pid());
  }

  void Finish() {
    EndWorkers();
    Print();
    NothingIsLeft();
    AllSlotsAreUsable();
    for (const auto& node : nodes_) {
      CHECK_FALSE(test::StatusOf(*node->mesh).peers(0).shunned());
      CHECK(node->mesh->Stop().clean());
      CHECK(node->kvmd.Stop() == 0);
    }
  }

  void Print() {
    std::cout << "fetched " << board_->fetched << ", compared of them " << board_->compared << ", wrong " << board_->wrong << ", in "
              << board_->joins << " joins; imports that failed " << board_->stale << "\nfetched of the newest prompts "
              << board_->fetched_of_age[0] << ", of older ones " << board_->fetched_of_age[1] << ", of old ones "
              << board_->fetched_of_age[2] << "\npublished " << board_->published_blocks << " blocks; taken in storms "
              << board_->stormed_blocks << "\n";
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const kvmmesh::Status status = test::StatusOf(*nodes_[i]->mesh);
      std::cout << "served by " << SoakNodeName(i) << ": " << nodes_[i]->served + status.served_blocks() << " blocks, of them from disk "
                << nodes_[i]->served_from_disk + status.served_from_disk() << "\n";
    }
    for (const auto& [fault, count] : faults_) std::cout << "fault: " << count << " x " << fault << "\n";
    for (const auto& [reason, count] : reasons_) std::cout << "join: " << count << " x " << reason << "\n";
    std::cout << std::flush;
  }

 private:
  std::string board_path() const { return dir_ / "board"; }

  // Looks again and again, with workers that run. False: nothing has been fetched for long.
  template <class Done>
  bool RunUntil(Done done) {
    std::uint64_t last = board_->compared;
    auto progress = steady_clock::now();
    for (;;) {
      for (const auto& node : nodes_) {
        if (const std::uint64_t ended = node->StartWorkers(seed_)) faults_["worker ended by itself"] += ended;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(random_.Between(10, 150)));
      for (const auto& node : nodes_) {
        const bool alive = node->mesh->running() && node->kvmd.running();
        if (!alive) std::cout << node->Logs() << std::endl;
        REQUIRE(alive);
      }
      if (done()) return true;
      if (const std::uint64_t now = board_->compared; now != last) {
        last = now;
        progress = steady_clock::now();
      }
      if (steady_clock::now() - progress < kPatience) continue;
      for (const auto& node : nodes_) std::cout << node->Logs() << std::endl;
      return false;
    }
  }

  void EndWorkers() {
    for (const auto& node : nodes_) node->EndWorkers(reasons_);
  }

  void Disturb(bool both) {
    SoakNode& node = *nodes_[random_.Below(nodes_.size())];
    const bool spares_mesh = !both && &node == nodes_[1].get(), spares_kvmd = !both && &node == nodes_[0].get();
    switch (random_.Below(17)) {
      case 0:
      case 1:
        if (spares_mesh) break;
        node.KillMesh();
        Sleep(300);
        node.StartMesh();
        ++faults_["kvmd-mesh killed"];
        break;
      case 2:
        // With no pause, so that connections of the last one still are being closed.
        if (spares_mesh) break;
        node.KillMesh();
        node.StartMesh();
        ++faults_["kvmd-mesh killed"];
        break;
      case 3:
      case 4:
      case 5:
        Stop(node.mesh->pid());
        ++faults_["kvmd-mesh stopped for a moment"];
        break;
      case 6: {
        if (spares_kvmd) break;
        const bool forgets = random_.OneIn(2);
        node.kvmd.Kill();
        if (forgets) node.kvmd.Forget();
        Sleep(300);
        node.kvmd.Start();
        ++faults_[forgets ? "kvmd killed, with all that it stored" : "kvmd killed"];
        break;
      }
      case 7:
        Stop(node.kvmd.pid());
        ++faults_["kvmd stopped for a moment"];
        break;
      case 8:
      case 9:
        random_.Pick(node.publishers).Kill();
        ++faults_["publisher killed"];
        break;
      case 10:
        Stop(random_.Pick(node.publishers).pid());
        ++faults_["publisher stopped for a moment"];
        break;
      case 11:
        random_.Pick(node.joiners).Kill();
        ++faults_["joiner killed"];
        break;
      case 12: {
        // Both at once, as when a machine is switched off.
        if (!both) break;
        node.KillMesh();
        node.kvmd.Kill();
        node.kvmd.Forget();
        Sleep(300);
        node.kvmd.Start();
        node.StartMesh();
        ++faults_["kvmd and kvmd-mesh killed"];
        break;
      }
      default:
#if defined(KVM_FAULT_POINTS)
        if (node.StopBeforeCopy(std::chrono::milliseconds(random_.Between(20, 150)))) ++faults_["kvmd-mesh stopped before a copy"];
#endif
        break;
    }
  }

  void Sleep(std::uint64_t most_ms) { std::this_thread::sleep_for(std::chrono::milliseconds(random_.Below(most_ms))); }
  void Stop(pid_t pid) {
    if (pid <= 0) return;
    ::kill(pid, SIGSTOP);
    Sleep(300);
    ::kill(pid, SIGCONT);
  }

  static void CheckGrowth(const std::string& what, std::uint64_t before_kib, pid_t pid) {
    const std::uint64_t now_kib = Held(pid).own_kib;
    std::cout << what << ", own memory: " << before_kib << " KiB after warm-up, " << now_kib << " KiB at the end" << std::endl;
    CHECK(now_kib <= before_kib + before_kib / 2 + 8192);
  }

  // Workers have gone: each process holds what it held after the beginning.
  void NothingIsLeft() {
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const SoakNode& node = *nodes_[i];
      const bool workers_left = !Eventually([&] { return node.RegionsOfWorkers() == 0; }, 60s);
      CHECK_FALSE(workers_left);
      const auto check = [&](const std::string& what, pid_t pid, const Held& before, Allowance more) {
        more.memory = kMostOfSlab * (test::kSoakHostCacheBytes / test::kSoakSlabBytes - slabs_before_[i]);
        const bool within = Eventually([&] { return IsWithin(Held(pid), before, more); }, 60s);
        std::cout << what << " of " << SoakNodeName(i) << ": " << Held(pid).ToString() << "\n  at the beginning " << before.ToString()
                  << std::endl;
        CHECK(within);
      };
      const auto [files, bytes] = node.DiskFiles();
      check("kvmd-mesh", node.mesh->pid(), before_[2 * i], {kMostIdleSockets, files, 0});
      check("kvmd", node.kvmd.pid(), before_[2 * i + 1], {});
      std::cout << "disk of " << SoakNodeName(i) << ": " << bytes << " bytes in " << files << " files; slabs " << node.HostCache().slabs()
                << ", at the beginning " << slabs_before_[i] << std::endl;
      CHECK(bytes <= test::kSoakDiskBytes);
    }
    for (const auto& file : std::filesystem::directory_iterator("/dev/shm"))
      CHECK(file.path().filename().string().find("kvm") == std::string::npos);
  }

  // What belonged to workers is closed a moment after they have gone.
  static void Settle(const SoakNode& node) {
    const auto descriptors = [&] { return test::OpenFds(node.kvmd.pid()) + test::OpenFds(node.mesh->pid()); };
    int last = descriptors(), same = 0;
    REQUIRE(Eventually(
        [&] {
          std::this_thread::sleep_for(50ms);
          const int now = descriptors();
          same = now == last ? same + 1 : 0;
          last = now;
          return same == 10;
        },
        60s));
  }

  // A prompt that needs every slot for blocks of other nodes arrives whole, at both nodes.
  void AllSlotsAreUsable() {
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const SoakNode &source = *nodes_[1 - i], &node = *nodes_[i];
      const auto options = [](const SoakNode& of, const std::string& name) {
        return test::WorkerOptions{
            .socket = of.kvmd.socket(), .name = name, .blocks = test::kSoakPoolBlocks, .block_bytes = test::kSoakBlockBytes};
      };
      const auto publisher = test::StartWorker(options(source, "last-publisher")), joiner = test::StartWorker(options(node, "last-joiner"));
      const std::string prompt = "last" + std::to_string(i) + ":" + std::to_string(test::kSoakPoolBlocks);
      publisher->Publish(prompt, 0);
      KVM_REQUIRE_OK(publisher->Flush());
      JoinOutcome joined;
      CHECK(Eventually(
          [&] {
            joined = joiner->client().JoinCache(joiner->region(), joiner->Keys(prompt), test::JoinBy(*node.mesh, 5s));
            return joined.blocks == test::kSoakPoolBlocks;
          },
          30s));
      INFO(joined.blocks << " blocks: " << joined.reason);
      const test::ImportCheck import = joiner->FindAndImport(prompt, 0);
      CHECK(import.valid == test::kSoakPoolBlocks);
      CHECK(import.wrong == 0);
    }
  }

  test::TempDir dir_;
  test::SoakBoard board_{board_path()};
  std::array<std::unique_ptr<SoakNode>, test::kSoakNodes> nodes_;
  std::vector<Held> before_;  // kvmd-mesh and kvmd of each node
  std::vector<std::uint64_t> slabs_before_;
  test::Random random_{20'261'130};
  std::uint64_t seed_ = 0;
  std::map<std::string, std::uint64_t> faults_, reasons_;
};

std::uint64_t Blocks(std::uint64_t otherwise) {
  const char* const blocks = std::getenv("KVM_MESH_SOAK_BLOCKS");
  return blocks == nullptr ? otherwise : std::strtoull(blocks, nullptr, 10);
}

void SoakOf(std::uint64_t blocks) {
  MeshSoak soak;
  soak.NoteWhatIsHeld();
  soak.Run(blocks, [&] { return soak.counts().wrong > 0; });
  soak.Finish();
  CHECK(soak.counts().wrong == 0);
  CHECK(soak.counts().compared >= blocks);
}

}  // namespace

TEST_CASE("Mesh soak: blocks of another node are right under kills, stops and reuse, and nothing is left", "[fault]") { SoakOf(20'000); }

TEST_CASE("Mesh soak: a million blocks of another node are right under kills, stops and reuse, and nothing is left", "[fault][nightly]") {
  SoakOf(Blocks(1'000'000));
}

#if defined(KVM_FAULT_POINTS)
TEST_CASE("Mesh soak: without the source's validation the same soak finds wrong bytes (the control)", "[fault]") {
  MeshSoak soak({"KVM_FAULT_SWITCH=import_without_validation"});
  soak.Run(1'000'000, [&] { return soak.counts().wrong > 0; });
  soak.Print();
  CHECK(soak.counts().wrong > 0);
}
#endif
