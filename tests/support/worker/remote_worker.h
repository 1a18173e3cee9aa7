// A Worker (worker.h) in a process of its own, told what to do line by line. The object is the test's
// end; the process's end is the child "worker" of the test binary. Killed with the object.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/support/process/child_process.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {

struct RemoteImport {
  std::size_t matched = 0, valid = 0, wrong = 0;
};

class RemoteWorker {
 public:
  // Only socket, name, blocks and block_bytes of the options travel; the model is SmallSpec(). `uid`: runs
  // as that user and group, if this process may; 0: as this one.
  explicit RemoteWorker(const WorkerOptions& options, unsigned uid = 0);

  pid_t pid() const noexcept { return process_.pid(); }
  ChildProcess& process() noexcept { return process_; }
  void Kill() { process_.Kill(); }

  // Publishes the prompt's blocks and waits until kvmd has them.
  void Publish(const std::string& prompt, std::uint32_t first_block);
  // Publishes and does not wait: how many blocks kvmd gets to know only later.
  std::size_t PublishDeferred(const std::string& prompt, std::uint32_t first_block);
  std::size_t Find(const std::string& prompt);
  RemoteImport Import(const std::string& prompt, std::uint32_t first_block);
  // BeginWrite of `count` blocks and nothing more: as an owner that starts to reuse them.
  void BeginWrites(std::uint32_t first_block, std::uint32_t count);
  // A lease on what is found of the prompt, instead of the one before; how many blocks it holds.
  std::size_t AcquireLease(const std::string& prompt, std::chrono::milliseconds ttl);
  void Release();
  // Another region, of as many blocks.
  void Allocate(const std::string& name);
  void Unregister();
  void WaitConnected();

 private:
  std::vector<std::string> Ask(const std::string& line);
  ChildProcess process_;
};

}  // namespace kvm::test
