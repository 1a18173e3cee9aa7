// A process dies between any two steps that others can see (proto/base/fault_point.h): no wrong
// byte is served, nothing that was acknowledged is lost, nothing is left behind, and the next one
// does all of it again.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>
#include <thread>
#include <vector>

#include "proto/base/fault_point.h"
#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/process/child_main.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::Eventually;
using test::ImportCheck;
using test::RegistryProbe;
using test::RemoteWorker;
using test::Supervisor;
using test::Worker;
using test::WorkerOptions;
using namespace std::chrono_literals;

constexpr int kWrongBytes = 3, kTooLate = 4, kNotAdopted = 5;
constexpr auto kLifetime = 40s;
constexpr std::uint64_t kBlock = 4096, kSlots = 32;
constexpr std::size_t kPeerBlocks = 16, kLeftBlocks = 24;

// ---- a worker that does everything, once --------------------------------------------------------

class Life {
 public:
  // With `adopter` set, the worker adopts "heritage": the region that a dead worker left.
  Life(std::string socket, bool adopter) : socket_(std::move(socket)), adopter_(adopter) {}

  // Exit code. kvmd may die at any moment, and comes back.
  int Run() {
    if (!TakeOver() || !Until([&] { return (own_ = Started("life", false)) != nullptr; })) return code_;
    if (!Until([&] { return own_->Find("p:16").size() == kPeerBlocks; })) return code_;
    const ImportCheck import = own_->FindAndImport("p:16", 0);
    if (import.wrong > 0) return kWrongBytes;
    // More than one slab of the host cache has room for, so that it evicts.
    for (const char* prompt : {"v:20", "w:20", "x:20", "y:20", "a:20", "b:20"}) {
      own_->Publish(prompt, 20);
      if (!Until([&] { return own_->Flush(1s).has_value(); })) return code_;
      Offloaded();
    }
    heritage_->Publish("z:4", 40);
    if (!Until([&] { return heritage_->Flush(1s).has_value(); })) return code_;
    heritage_->DropRegion();
    own_->DropRegion();
    return 0;
  }

 private:
  bool Until(const std::function<bool()>& step) {
    while (!step()) {
      if (std::chrono::steady_clock::now() >= deadline_) {
        code_ = kTooLate;
        return false;
      }
      std::this_thread::sleep_for(2ms);
    }
    return true;
  }

  std::unique_ptr<Worker> Started(const std::string& name, bool adopt) const {
    WorkerOptions options;
    options.socket = socket_;
    options.name = name;
    options.adopt = adopt;
    Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
    return worker ? std::move(*worker) : nullptr;
  }

  // What was left holds what its keys say.
  bool TakeOver() {
    if (!Until([&] { return (heritage_ = Started("heritage", true)) != nullptr; })) return false;
    if (adopter_ && heritage_->adopted().size() < kLeftBlocks) {
      code_ = kNotAdopted;
      return false;
    }
    for (const AdoptedBlock& block : heritage_->adopted()) {
      if (heritage_->Holds(block.block, block.key)) continue;
      code_ = kWrongBytes;
      return false;
    }
    return true;
  }

  // Gives the host cache time to take what was published; kvmd may be away.
  void Offloaded() const {
    const auto decided = [&] {
      const ClientStats stats = own_->client().Stats();
      return stats.blocks_offloaded + stats.offloads_dropped + stats.offloads_refused;
    };
    const std::uint64_t before = decided();
    Eventually([&] { return decided() >= before + 20; }, 200ms);
  }

  const std::string socket_;
  const bool adopter_;
  const std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::now() + kLifetime;
  int code_ = 0;
  std::unique_ptr<Worker> own_, heritage_;
};

const test::ChildMain life_main("fault_life", [](const std::vector<std::string>& arguments) {
  ::setenv("KVM_FAULT_FILE", arguments.at(1).c_str(), 1);
  return Life(arguments.at(0), arguments.at(2) == "adopter").Run();
});

// ---- an observer -------------------------------------------------------------------------------

// Imports all that is there, all the time, and compares it.
class Watcher {
 public:
  explicit Watcher(const std::string& socket)
      : worker_(test::StartWorker({.socket = socket, .name = "watcher"})), thread_([this] { Run(); }) {}
  ~Watcher() { Stop(); }

  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  bool Finds(const std::string& prompt, std::size_t blocks) const {
    return Eventually([&] { return worker_->Find(prompt).size() >= blocks; });
  }
  Client& client() { return worker_->client(); }
  std::uint64_t wrong() const { return wrong_; }
  std::uint64_t valid() const { return valid_; }

 private:
  void Run() {
    while (!stop_) {
      for (const char* prompt : {"p:16", "h:24", "v:20", "w:20", "x:20", "y:20", "a:20", "b:20", "z:4"}) {
        const ImportCheck import = worker_->FindAndImport(prompt, 0);
        wrong_ += import.wrong;
        valid_ += import.valid;
      }
      std::this_thread::sleep_for(1ms);  // leaves the processors to those that are watched
    }
  }

  const std::unique_ptr<Worker> worker_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> wrong_{0}, valid_{0};
  std::thread thread_;
};

// ---- the points ---------------------------------------------------------------------------------

// Each point once: X(point, whose process dies there, the how manyth time that it comes there).
// clang-format off
#define KVM_FIRST_DEATHS(X) \
  X(client_request_sent, Worker, 1)                  \
  X(client_memory_made, Worker, 1)                   \
  X(client_registered, Worker, 1)                    \
  X(kvmd_region_added, Kvmd, 1)                      \
  X(kvmd_region_persisted, Kvmd, 1)                  \
  X(kvmd_region_announced, Kvmd, 1)                  \
  X(kvmd_file_stored, Kvmd, 1)                       \
  X(kvmd_manifest_stored, Kvmd, 1)                   \
  X(client_write_begun, Worker, 1)                   \
  X(client_block_readable, Worker, 1)                \
  X(client_batch_readable, Worker, 1)                \
  X(client_batch_sent, Worker, 1)                    \
  X(kvmd_slot_being_written, Kvmd, 1)                \
  X(kvmd_slot_written, Kvmd, 1)                      \
  X(kvmd_entry_inserted, Kvmd, 1)                    \
  X(kvmd_batch_published, Kvmd, 1)                   \
  X(kvmd_entry_erased, Kvmd, 1)                      \
  X(client_peer_mapped, Worker, 1)                   \
  X(client_import_begun, Worker, 1)                  \
  X(client_block_copied, Worker, 1)                  \
  X(client_import_done, Worker, 1)                   \
  X(client_withdraw_unmapped, Worker, 1)             \
  X(client_store_granted, Worker, 1)                 \
  X(client_store_copied, Worker, 1)                  \
  X(client_store_done, Worker, 1)                    \
  X(kvmd_slab_allocating, Kvmd, 1)                   \
  X(kvmd_slab_opened, Kvmd, 1)                       \
  X(kvmd_slab_persisted, Kvmd, 1)                    \
  X(kvmd_store_granted, Kvmd, 1)                     \
  X(kvmd_store_readable, Kvmd, 1)                    \
  X(kvmd_store_published, Kvmd, 1)                   \
  X(kvmd_evict_begun, Kvmd, 1)                       \
  X(kvmd_evict_withdrawn, Kvmd, 1)                   \
  X(kvmd_orphan_made, Kvmd, 1)                       \
  X(client_adoption_granted, Worker, 1)              \
  X(client_adopted, Worker, 1)                       \
  X(kvmd_adoption_taken, Kvmd, 1)                    \
  X(kvmd_adoption_persisted, Kvmd, 1)                \
  X(kvmd_adoption_answered, Kvmd, 1)                 \
  X(client_blocks_ended, Worker, 1)                  \
  X(client_unregistering, Worker, 1)                 \
  X(kvmd_region_withdrawn, Kvmd, 1)                  \
  X(kvmd_file_stored, RestoringKvmd, 1)              \
  X(kvmd_manifest_stored, RestoringKvmd, 1)          \
  X(kvmd_slot_written, RestoringKvmd, 1)             \
  X(kvmd_restore_registry, RestoringKvmd, 1)         \
  X(kvmd_restore_region, RestoringKvmd, 1)           \
  X(kvmd_rebuild_slice, RestoringKvmd, 1)            \
  X(kvmd_rebuild_region_persisted, RestoringKvmd, 1) \
  X(kvmd_rebuild_done, RestoringKvmd, 1)

// Points that are come to by different ways, or in the middle of something.
#define KVM_LATER_DEATHS(X) \
  X(client_request_sent, Worker, 2)                  \
  X(client_request_sent, Worker, 3)                  \
  X(client_request_sent, Worker, 4)                  \
  X(client_request_sent, Worker, 5)                  \
  X(client_request_sent, Worker, 6)                  \
  X(kvmd_file_stored, Kvmd, 2)                       \
  X(kvmd_file_stored, Kvmd, 3)                       \
  X(kvmd_file_stored, Kvmd, 4)                       \
  X(kvmd_manifest_stored, Kvmd, 2)                   \
  X(kvmd_manifest_stored, Kvmd, 3)                   \
  X(client_write_begun, Worker, 30)                  \
  X(client_block_readable, Worker, 30)               \
  X(client_batch_readable, Worker, 2)                \
  X(client_batch_sent, Worker, 2)                    \
  X(kvmd_slot_being_written, Kvmd, 30)               \
  X(kvmd_slot_written, Kvmd, 30)                     \
  X(kvmd_entry_inserted, Kvmd, 30)                   \
  X(kvmd_batch_published, Kvmd, 2)                   \
  X(kvmd_entry_erased, Kvmd, 7)                      \
  X(client_block_copied, Worker, 9)                  \
  X(client_store_copied, Worker, 2)                  \
  X(kvmd_store_granted, Kvmd, 2)                     \
  X(kvmd_store_readable, Kvmd, 9)                    \
  X(kvmd_store_published, Kvmd, 9)                   \
  X(kvmd_evict_begun, Kvmd, 5)                       \
  X(kvmd_evict_withdrawn, Kvmd, 5)                   \
  X(client_blocks_ended, Worker, 2)                  \
  X(client_unregistering, Worker, 2)                 \
  X(kvmd_region_withdrawn, Kvmd, 2)                  \
  X(kvmd_manifest_stored, RestoringKvmd, 3)          \
  X(kvmd_slot_written, RestoringKvmd, 30)            \
  X(kvmd_restore_region, RestoringKvmd, 2)           \
  X(kvmd_restore_region, RestoringKvmd, 3)           \
  X(kvmd_rebuild_slice, RestoringKvmd, 2)            \
  X(kvmd_rebuild_region_persisted, RestoringKvmd, 2) \
  X(kvmd_rebuild_region_persisted, RestoringKvmd, 3)
// clang-format on

std::vector<std::string> Options() {
  return {"--host-cache", std::to_string(4 * kSlots * kBlock), "--host-cache-slab", std::to_string(kSlots * kBlock), "--offload-timeout-ms",
          "2000"};
}

class Scenario {
 public:
  Scenario(const char* point, unsigned count)
      : point_(point),
        count_(count),
        kvmd_(Options(), {"KVM_FAULT_FILE=" + (dir_ / "kvmd")}),
        peer_(WorkerOptions{.socket = kvmd_.socket(), .name = "peer"}) {
    peer_.Publish("p:16", 0);
    RemoteWorker gone({.socket = kvmd_.socket(), .name = "heritage"});
    gone.Publish("h:24", 0);
    gone_ = gone.pid();
    if (std::string(point) != "kvmd_orphan_made") {
      gone.Kill();
    } else {
      Arm("kvmd");
      gone.Kill();
      AwaitDeath();
    }
    watcher_ = std::make_unique<Watcher>(kvmd_.socket());
    REQUIRE(watcher_->Finds("p:16", kPeerBlocks));
    REQUIRE(watcher_->Finds("h:24", kLeftBlocks));
  }

  void KillWorker() {
    Arm("life");
    ChildProcess life = StartLife(true);
    // Importers of its region are asked to unmap it only once it goes; this one is a worker as any.
    if (std::string(point_) == "client_withdraw_unmapped") {
      RemoteWorker other({.socket = kvmd_.socket(), .name = "other"});
      Eventually([&] { return watcher_->client().Stats().mapped_regions >= 4; });
      other.Unregister();
    }
    const std::optional<test::ProcessEnd> end = life.Wait(kLifetime);
    REQUIRE(end.has_value());
    CHECK(end->code != kWrongBytes);
    CHECK(end->signal == SIGKILL);  // it came to the point
    Disarm("life");
    // What others hold, and what was left, is served on.
    CHECK(watcher_->Finds("p:16", kPeerBlocks));
  }

  void KillKvmd() {
    if (std::string(point_) != "kvmd_orphan_made") Arm("kvmd");
    ChildProcess life = StartLife(true);
    if (std::string(point_) != "kvmd_orphan_made") AwaitDeath();
    const std::optional<test::ProcessEnd> end = life.Wait(kLifetime);
    REQUIRE(end.has_value());
    CHECK(end->signal == 0);
    CHECK(end->code == 0);
    CHECK(watcher_->Finds("p:16", kPeerBlocks));
  }

  void KillRestoringKvmd() {
    kvmd_.Kill();
    Arm("kvmd");
    kvmd_.StartUnwatched();
    AwaitDeath();
    CHECK(watcher_->Finds("p:16", kPeerBlocks));
    CHECK(watcher_->Finds("h:24", kLeftBlocks));
    ChildProcess life = StartLife(true);
    const std::optional<test::ProcessEnd> end = life.Wait(kLifetime);
    REQUIRE(end.has_value());
    CHECK(end->signal == 0);
    CHECK(end->code == 0);
  }

  // Everything can be done again, and then nothing is left but what kvmd caches.
  void CheckAfterwards() {
    ChildProcess life = StartLife(false);
    const std::optional<test::ProcessEnd> end = life.Wait(kLifetime);
    REQUIRE(end.has_value());
    CHECK(end->signal == 0);
    CHECK(end->code == 0);
    watcher_->Stop();
    CHECK(watcher_->wrong() == 0);
    CHECK(watcher_->valid() > 0);
    // What a worker that died in the middle of its life has left.
    RegistryProbe probe(kvmd_.socket());
    REQUIRE(Eventually([&] { return watcher_->client().ReclaimOrphans({}, After(5s)).has_value(); }));
    watcher_.reset();
    peer_.Kill();
    CHECK(Eventually([&] { return probe.Status().clients() == 1; }));
    const auto reclaimed = [&] {
      const auto client = test::StartWorker({.socket = kvmd_.socket(), .name = "last", .blocks = 0});
      return client->client().ReclaimOrphans({}, After(5s)).has_value() && probe.Status().domains(0).orphans() == 0;
    };
    CHECK(Eventually(reclaimed));
    CHECK(Eventually([&] { return probe.Status().clients() == 1; }));
    const std::uint32_t slabs = test::HostCacheOf(probe).slabs();
    CHECK(Eventually([&] { return probe.live_regions() == slabs; }));
    CHECK(Eventually([&] { return probe.live_entries() == test::HostCacheOf(probe).blocks(); }));
    // A registry; of each slab a manifest, two files, and the process of its writer if that runs.
    CHECK(Eventually([&] { return kvmd_.Stored().size() >= 1 + 3 * slabs && kvmd_.Stored().size() <= 1 + 4 * slabs; }));
    for (const std::string& name : kvmd_.Stored()) UNSCOPED_INFO(name);
    // Two descriptors of a slab, read-only ones of both, writable ones of both, and copies of what
    // is stored.
    int fds = 0;
    CHECK(Eventually([&] { return (fds = test::OpenFds(kvmd_.pid())) <= kIdleFds + 10 * static_cast<int>(slabs); }));
    INFO("descriptors " << fds << ", slabs " << slabs);
  }

 private:
  static constexpr int kIdleFds = 24;

  void Arm(const std::string& who) const {
    const std::string path = dir_ / who, made = path + ".new";
    std::ofstream(made) << point_ << ' ' << count_ << std::endl;
    REQUIRE(std::rename(made.c_str(), path.c_str()) == 0);
  }
  void Disarm(const std::string& who) const { std::remove((dir_ / who).c_str()); }

  void AwaitDeath() {
    const bool died = Eventually([&] { return !kvmd_.running(); });
    Disarm("kvmd");
    REQUIRE(died);  // it came to the point
    kvmd_.Start();
  }

  ChildProcess StartLife(bool adopter) const {
    return ChildProcess::Self("fault_life", {kvmd_.socket(), dir_ / "life", adopter ? "adopter" : "anybody"});
  }

  const test::TempDir dir_;
  const char* const point_;
  const unsigned count_;
  Supervisor kvmd_;
  RemoteWorker peer_;
  pid_t gone_ = 0;
  std::unique_ptr<Watcher> watcher_;
};

}  // namespace

TEST_CASE("Fault points: all have a test", "[fault]") {
  std::set<std::string> tested;
#define KVM_IS_TESTED(point, victim, count) tested.insert(#point);
  KVM_FIRST_DEATHS(KVM_IS_TESTED)
#undef KVM_IS_TESTED
#define KVM_CHECK_THAT_IT_IS_TESTED(name) CHECK(tested.contains(#name));
  KVM_FAULT_POINT_NAMES(KVM_CHECK_THAT_IT_IS_TESTED)
#undef KVM_CHECK_THAT_IT_IS_TESTED
}

#define KVM_DEATH(point, victim, count, tags)                                     \
  TEST_CASE("Fault points: " #victim " dies at " #point ", time " #count, tags) { \
    Scenario scenario(#point, count);                                             \
    scenario.Kill##victim();                                                      \
    scenario.CheckAfterwards();                                                   \
  }
#define KVM_DEATH_ALWAYS(point, victim, count) KVM_DEATH(point, victim, count, "[fault]")
#define KVM_DEATH_NIGHTLY(point, victim, count) KVM_DEATH(point, victim, count, "[fault][nightly]")

KVM_FIRST_DEATHS(KVM_DEATH_ALWAYS)
KVM_LATER_DEATHS(KVM_DEATH_NIGHTLY)
