#include "client/kvctl/process/node_guard.h"

#include <cerrno>
#include <thread>

#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kStatusTimeout{5};
constexpr std::chrono::milliseconds kPause{20};

// Names a region or model of the run that is left; empty if there is none.
std::string FirstLeft(const RegistryView& registry, const RunMarks& marks) {
  for (const RegionEntry& region : ReadRegions(registry)) {
    if (region.name().find(marks.region) != std::string::npos) return "region " + region.name();
  }
  if (marks.revision.empty()) return "";
  for (const ModelEntry& model : ReadModels(registry)) {
    if (model.spec.revision == marks.revision) return "model " + Printable(model.spec.model_id + " " + model.spec.revision);
  }
  return "";
}

}  // namespace

Result<Observer> ConnectDespiteRestart(const std::string& socket, std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (bool was_there = false;; was_there = true) {
    Result<Observer> observer = Observer::Connect(socket, timeout);
    if (observer || observer.error().code != Errc::kUnavailable || steady_clock::now() >= deadline) return observer;
    const int reason = observer.error().sys_errno;
    if (!was_there && (reason == ENOENT || reason == ECONNREFUSED)) return observer;
    std::this_thread::sleep_for(kPause);
  }
}

Status CheckRoom(const Observer& observer, std::uint64_t blocks) {
  const layout::RegistryHeader& header = observer.registry().header();
  const std::uint64_t live = header.live_entries.load(std::memory_order_relaxed), most = header.index_entries;
  const std::uint64_t room = most > live ? most - live : 0;
  if (blocks <= room) return {};
  return MakeError(Errc::kResourceExhausted, "this needs room for " + std::to_string(blocks) + " blocks, and the node's kvmd has " +
                                                 std::to_string(room) + " of " + std::to_string(most) +
                                                 " left: it would evict the node's own");
}

Status CheckNothingLeft(const std::string& socket, std::chrono::milliseconds timeout, const RunMarks& marks) {
  for (const auto deadline = steady_clock::now() + kStatusTimeout;;) {
    const Result<Observer> observer = ConnectDespiteRestart(socket, timeout);
    if (!observer) return observer.error();
    const std::string left = FirstLeft(observer->registry(), marks);
    if (left.empty()) return {};
    if (steady_clock::now() >= deadline) return MakeError(Errc::kSystem, "the node's kvmd still has the " + left + " of this run");
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace kvm::ctl
