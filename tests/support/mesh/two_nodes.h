// Two nodes on one machine, of which one has the other as a peer, and a worker on each.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/read_file.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {

inline void PublishAndFlush(Worker& worker, const std::string& prompt, std::uint32_t first_block = 0) {
  worker.Publish(prompt, first_block);
  KVM_REQUIRE_OK(worker.Flush());
}

inline JoinOutcome Join(Worker& worker, const MeshProcess& mesh, const std::string& prompt,
                        std::chrono::milliseconds within = std::chrono::seconds(5), const std::string& hint = {}) {
  JoinOptions options = JoinBy(mesh, within);
  options.source_hint = hint;
  return worker.client().JoinCache(worker.region(), worker.Keys(prompt), options);
}

inline bool JoinsEventually(Worker& worker, const MeshProcess& mesh, const std::string& prompt, std::size_t blocks) {
  return Eventually([&] { return Join(worker, mesh, prompt).blocks >= blocks; }, std::chrono::seconds(30));
}

// State of a process as the kernel shows it: 'T' if it has been stopped.
inline char ProcessState(pid_t pid) {
  const std::string text = ReadFile("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t name_end = text.rfind(')');
  return name_end == std::string::npos ? '?' : text[name_end + 2];
}

// Two nodes; their mesh processes read `fault_file` for places where it stops or dies.
struct TwoNodes {
  explicit TwoNodes(const std::vector<std::string>& environment_a = {}, const std::vector<std::string>& environment_b = {},
                    const std::vector<std::string>& options = {}, std::uint32_t blocks = 64, std::uint64_t block_bytes = 4096)
      : mesh_a(kvmd_a, "a", {}, With(environment_a, kvmd_a), options),
        mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, With(environment_b, kvmd_b), options),
        publisher(StartWorker({.socket = kvmd_a.socket(), .name = "publisher", .blocks = blocks, .block_bytes = block_bytes})),
        joiner(StartWorker({.socket = kvmd_b.socket(), .name = "joiner", .blocks = blocks, .block_bytes = block_bytes})) {}

  static std::vector<std::string> With(std::vector<std::string> environment, const KvmdProcess& kvmd) {
    environment.push_back("KVM_FAULT_FILE=" + kvmd.dir().path().string() + "/fault");
    return environment;
  }
  static void Fault(const KvmdProcess& kvmd, const std::string& what) {
    const std::string path = kvmd.dir().path().string() + "/fault";
    std::ofstream(path + ".new") << what;
    std::filesystem::rename(path + ".new", path);
  }

  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a, mesh_b;
  std::unique_ptr<Worker> publisher, joiner;
};

}  // namespace kvm::test
