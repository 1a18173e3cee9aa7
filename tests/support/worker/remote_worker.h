// A Worker (worker.h) in a process of its own, which reads commands line by line. This class is the
// test's side; the other side is the child "worker" of the test binary. The destructor kills it.
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
  // Only socket, name, blocks, block_bytes and verify_one_in of the options are passed on; the
  // model is SmallSpec(). `uid`: runs as that user and group, if this process may; 0: as this
  // process's user.
  explicit RemoteWorker(const WorkerOptions& options, unsigned uid = 0);

  pid_t pid() const noexcept { return process_.pid(); }
  ChildProcess& process() noexcept { return process_; }
  void Kill() { process_.Kill(); }

  // Publishes the prompt's blocks and waits until kvmd has them.
  void Publish(const std::string& prompt, std::uint32_t first_block);
  // Publishes and does not wait; returns how many blocks were deferred.
  std::size_t PublishDeferred(const std::string& prompt, std::uint32_t first_block);
  std::size_t Find(const std::string& prompt);
  RemoteImport Import(const std::string& prompt, std::uint32_t first_block);
  // Calls BeginWrite for `count` blocks, like an owner that starts to reuse them.
  void BeginWrites(std::uint32_t first_block, std::uint32_t count);
  // Acquires a lease on the prompt's blocks, in place of the previous lease; returns how many
  // blocks it covers.
  std::size_t AcquireLease(const std::string& prompt, std::chrono::milliseconds ttl);
  void Release();
  // Marks the prompt's blocks as being computed, and waits until kvmd has done so.
  void Mark(const std::string& prompt, std::chrono::milliseconds ttl);
  // Makes another region, of the same number of blocks.
  void Allocate(const std::string& name);
  void Unregister();
  void WaitConnected();

 private:
  std::vector<std::string> Ask(const std::string& line);
  ChildProcess process_;
};

}  // namespace kvm::test
