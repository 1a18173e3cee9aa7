// A node over a long time: replay, workers that are killed and adopted, importers, kvmd killed and
// stopped under a service manager that stores its descriptors, seven hostile clients of other
// users, a small host cache. At the end nothing is wrong, lost or left.
//
// KVM_SOAK_MINUTES says how long (scripts/soak.sh); one minute without it.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <thread>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/held_resources.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/hostile_clients.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using test::ChildProcess;

const std::vector<std::string> kHostCache = {"--host-cache", "16M", "--host-cache-slab", "1M"};
const std::vector<std::string> kOptions = {"--orphan-ttl-s", "15",  "--max-entries", "200000",
                                           "--max-regions",  "128", "--log-level",   "error"};
constexpr std::uint32_t kFirstHostileUser = 60'001;
constexpr std::uint32_t kKept = 32;  // blocks of a worker that lives all the time

std::vector<std::string> With(std::vector<std::string> options, const std::vector<std::string>& more) {
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

std::uint64_t NumberAfter(const std::string& text, const std::string& key) {
  const std::size_t at = text.find("\"" + key + "\":");
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + key.size() + 3, nullptr, 10);
}

struct Counts {
  std::uint64_t requests = 0, replays = 0, replays_killed = 0, mismatched = 0, workers_killed = 0, workers_stopped = 0,
                importers_killed = 0, kvmd_killed = 0, kvmd_stopped = 0, hostile_started = 0;
  std::map<std::string, std::uint64_t> replays_failed;  // by what they said
};

class Soak {
 public:
  Soak() : kvmd_(With(kOptions, kHostCache)) {
    // Other users connect, too.
    ::chmod(std::filesystem::path(kvmd_.socket()).parent_path().c_str(), 0755);
    ::chmod(kvmd_.socket().c_str(), 0666);
    keeper_ = test::StartWorker({.socket = kvmd_.socket(), .name = "keeper"});
    keeper_->Publish(KeptPrompt(), 0);
    KVM_REQUIRE_OK(keeper_->Flush());
    crew_ = std::make_unique<test::BusyCrew>(kvmd_.socket(), 1, 4, test::BusyCrew::Successor::kAdopter);
    importers_ = std::make_unique<test::BusyCrew>(kvmd_.socket(), 1000, 2);
    hostile_.resize(test::kHostileKinds.size());
  }

  void Run(seconds time) {
    const auto began = steady_clock::now();
    // kvmd lives from here on, so that its memory can be compared.
    const auto quiet_from = began + time * 7 / 10;
    const auto warm = began + time * 8 / 10, end = began + time;
    std::uint64_t warm_kib = 0;
    while (steady_clock::now() < end) {
      Restart();
      Disturb(steady_clock::now() < quiet_from);
      if (warm_kib == 0 && steady_clock::now() >= warm) warm_kib = test::StatusKib(kvmd_.pid(), "RssAnon");
      std::this_thread::sleep_for(milliseconds(random_.Between(20, 200)));
    }
    const std::uint64_t end_kib = test::StatusKib(kvmd_.pid(), "RssAnon");
    std::cout << "kvmd's own memory: " << warm_kib << " KiB after warm-up, " << end_kib << " KiB at the end" << std::endl;
    CHECK(end_kib <= warm_kib + warm_kib / 2 + 8192);
  }

  void Finish() {
    for (ChildProcess& each : hostile_) each.Kill();
    FinishReplay(seconds(60));
    // Each exits with an error at the first wrong byte.
    CHECK(crew_->EndWell());
    CHECK(importers_->EndWell());
    std::size_t found = 0;
    test::Eventually([&] { return (found = keeper_->Find(KeptPrompt()).size()) == kKept; }, seconds(20));
    const test::ImportCheck kept = keeper_->FindAndImport(KeptPrompt(), kKept);
    counts_.mismatched += kept.wrong;
    Print(kKept - found);
    CHECK(counts_.mismatched == 0);
    CHECK(found == kKept);
    CHECK(counts_.requests > 0);
    keeper_.reset();
    NothingIsLeft();
  }

 private:
  static std::string KeptPrompt() { return "kept:" + std::to_string(kKept); }

  std::string ReplayErrors() const { return kvmd_.dir() / "replay.err"; }

  static ChildProcess StartReplay(const std::string& socket, const std::string& errors, std::uint64_t seed) {
    const std::string kvctl = std::filesystem::path(test::KvmdBinary()).parent_path() / "kvctl";
    return ChildProcess({kvctl,
                         "--socket",
                         socket,
                         "--json",
                         "replay",
                         "--workload",
                         "chat",
                         "--seed",
                         std::to_string(seed),
                         "--requests",
                         "400",
                         "--workers",
                         "4",
                         "--pool-blocks",
                         "256",
                         "--block-bytes",
                         "4096",
                         "--prefill-us-per-token",
                         "0",
                         "--model-id",
                         "soak"},
                        errors);
  }

  // What has ended begins again.
  void Restart() {
    if (replay_.pid() <= 0 || !replay_.running()) {
      FinishReplay(seconds(5));
      std::filesystem::remove(ReplayErrors());
      replay_ = StartReplay(kvmd_.socket(), ReplayErrors(), ++started_);
    }
    Revive(*crew_);
    Revive(*importers_);
    for (std::size_t i = 0; i < hostile_.size(); ++i) {
      if (hostile_[i].pid() > 0 && hostile_[i].running()) continue;
      const std::uint32_t uid = ::geteuid() == 0 ? kFirstHostileUser + static_cast<std::uint32_t>(i) : 0;
      hostile_[i] = test::StartHostileClient(kvmd_.socket(), test::kHostileKinds[i], ++started_, uid);
      ++counts_.hostile_started;
    }
  }

  // A worker ends by itself if it gets no region in time, while kvmd is stopped.
  static void Revive(test::BusyCrew& crew) {
    for (std::size_t i = 0; i < crew.size(); ++i) {
      if (crew[i].running()) continue;
      crew.Kill(i);
      crew.Replace(i);
    }
  }

  void Disturb(bool kvmd_too) {
    const std::size_t worker = random_.Below(crew_->size());
    switch (random_.Below(kvmd_too ? 12 : 9)) {
      case 0:
      case 1:
        crew_->Kill(worker);
        crew_->Replace(worker);
        ++counts_.workers_killed;
        break;
      case 2:
        StopFor((*crew_)[worker].pid());
        ++counts_.workers_stopped;
        break;
      case 3:
        importers_->Kill(worker % importers_->size());
        importers_->Replace(worker % importers_->size());
        ++counts_.importers_killed;
        break;
      case 4: random_.Pick(hostile_).Kill(); break;
      case 5:
        if (!random_.OneIn(8)) break;
        replay_killed_ = replay_.running();
        replay_.Kill();
        break;
      case 9:
        if (!random_.OneIn(4)) break;
        kvmd_.Kill();
        std::this_thread::sleep_for(milliseconds(random_.Below(300)));
        kvmd_.Start();
        ++counts_.kvmd_killed;
        break;
      case 10:
        StopFor(kvmd_.pid());
        ++counts_.kvmd_stopped;
        break;
      default: break;
    }
  }

  void StopFor(pid_t pid) {
    ::kill(pid, SIGSTOP);
    std::this_thread::sleep_for(milliseconds(random_.Between(10, 300)));
    ::kill(pid, SIGCONT);
  }

  void FinishReplay(milliseconds patience) {
    if (replay_.pid() <= 0) return;
    std::string text;
    while (const std::optional<std::string> line = replay_.ReadLine(patience)) text += *line;
    replay_.Kill();
    if (text.find("\"requests\":") == std::string::npos) {
      std::exchange(replay_killed_, false) ? ++counts_.replays_killed : ++counts_.replays_failed[WhyReplayFailed()];
    } else {
      replay_killed_ = false;
      ++counts_.replays;
      counts_.requests += NumberAfter(text, "requests");
      counts_.mismatched += NumberAfter(text, "mismatched_blocks");
    }
    replay_ = ChildProcess();
  }

  // Its last line, without what differs each time.
  std::string WhyReplayFailed() const {
    std::ifstream errors(ReplayErrors());
    std::string last;
    for (std::string line; std::getline(errors, line);) last = line;
    return last.empty() ? "without a word" : std::regex_replace(last, std::regex("[0-9]+"), "N");
  }

  void Print(std::size_t lost) const {
    std::cout << "requests " << counts_.requests << " in " << counts_.replays << " replays; " << counts_.replays_killed
              << " replays killed\n";
    for (const auto& [why, times] : counts_.replays_failed) std::cout << "replays that failed: " << times << " x " << why << "\n";
    std::cout << "kills: workers " << counts_.workers_killed << ", importers " << counts_.importers_killed << ", kvmd "
              << counts_.kvmd_killed << "; stops: workers " << counts_.workers_stopped << ", kvmd " << counts_.kvmd_stopped << "\n"
              << "hostile clients started " << counts_.hostile_started << "\n"
              << "mismatched " << counts_.mismatched << ", lost " << lost << std::endl;
  }

  // All workers have gone: kvmd gives back what it has of them. Then, without its host cache, it
  // has what a new one has.
  void NothingIsLeft() {
    const pid_t long_lived = kvmd_.pid();
    const auto regions = [&] { return Regions(); };
    std::uint64_t left = 0;
    CHECK(test::Eventually([&] { return (left = regions()) == 0; }, seconds(60)));
    const std::size_t fds = static_cast<std::size_t>(test::OpenFds(long_lived)), mappings = test::SharedMappings(long_lived);
    const test::OpenFiles inodes(long_lived);
    kvmd_.Reconfigure(kOptions);
    kvmd_.Kill();
    kvmd_.Start();
    test::Supervisor fresh(kOptions);
    Domains(fresh.socket());
    Domains(kvmd_.socket());
    const auto stored = [&] { return kvmd_.Stored(); };
    const auto descriptors = [](const test::Supervisor& of) { return test::OpenFds(of.pid()); };
    CHECK(test::Eventually([&] { return stored().size() == 1 && stored()[0].starts_with("kept.registry."); }, seconds(20)));
    // No more than a new one: that may have inherited one of this process.
    CHECK(test::Eventually([&] { return descriptors(kvmd_) <= descriptors(fresh); }, seconds(20)));
    // Nor does it: while its registry gets huge pages, that is mapped once more.
    const auto same_mappings = [&] { return test::SharedMappings(kvmd_.pid()) == test::SharedMappings(fresh.pid()); };
    CHECK(test::Eventually(same_mappings, seconds(60)));
    const test::OpenFiles now(kvmd_.pid()), of_fresh(fresh.pid());
    std::cout << "left in the kvmd that lived last: regions of workers " << left << ", descriptors " << fds << ", mappings " << mappings
              << ", inodes " << inodes.inodes.size() << " (" << (inodes.bytes >> 10) << " KiB), with registries and host cache\n"
              << "after it, without host cache, beyond a new kvmd: descriptors " << std::max(0, descriptors(kvmd_) - descriptors(fresh))
              << ", inodes " << now.inodes.size() - of_fresh.inodes.size() << ", bytes " << now.bytes - of_fresh.bytes << ", stored "
              << stored().size() - 1 << std::endl;
    CHECK(now.inodes.size() == of_fresh.inodes.size());
    CHECK(now.bytes == of_fresh.bytes);
  }

  static kvmwire::StatusReply Domains(const std::string& socket) {
    Result<test::WireClient> client = test::WireClient::Connect(socket);
    KVM_REQUIRE_OK(client);
    KVM_REQUIRE_OK(client->Hello("soak", kvmwire::OBSERVER));
    Result<kvmwire::StatusReply> status = client->QueryStatus();
    KVM_REQUIRE_OK(status);
    return *status;
  }
  // Of workers: live ones and orphans; slabs are not counted.
  std::uint64_t Regions() const {
    std::uint64_t regions = 0;
    const kvmwire::StatusReply status = Domains(kvmd_.socket());
    for (const kvmwire::DomainStatus& domain : status.domains())
      regions += domain.regions() + domain.orphans() - domain.host_cache().slabs();
    return regions;
  }

  test::Supervisor kvmd_;
  test::Random random_{20'261'129};
  std::unique_ptr<test::Worker> keeper_;
  std::unique_ptr<test::BusyCrew> crew_, importers_;
  std::vector<ChildProcess> hostile_;
  ChildProcess replay_;
  bool replay_killed_ = false;
  std::uint64_t started_ = 0;
  Counts counts_;
};

}  // namespace

TEST_CASE("Soak: a node under kills, stops and hostile clients serves right bytes, loses none and leaks nothing", "[fault][nightly]") {
  const char* const minutes = std::getenv("KVM_SOAK_MINUTES");
  Soak soak;
  soak.Run(seconds(minutes == nullptr ? 60 : 60 * std::strtol(minutes, nullptr, 10)));
  soak.Finish();
}
