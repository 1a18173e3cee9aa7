// A small service manager. It starts kvmd like its systemd unit, with a listening socket and
// NOTIFY_SOCKET, keeps the descriptors that kvmd stores (FDSTORE=1) when kvmd dies, and passes them
// to the next kvmd. A thread reads real datagrams from a real Unix socket. The destructor kills
// kvmd; kvmd's log is shown if the test fails.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "proto/base/unique_fd.h"
#include "tests/support/kvmd/kvmd_home.h"

namespace kvm::test {

class Supervisor {
 public:
  // `options`: kvmd's. `environment`: "NAME=value", beside what a service manager sets.
  explicit Supervisor(std::vector<std::string> options = {}, std::vector<std::string> environment = {});
  ~Supervisor();

  const TempDir& dir() const noexcept { return home_.dir(); }
  std::string socket() const { return home_.socket(); }
  pid_t pid() const noexcept { return pid_; }
  bool running();
  std::string Log() const { return home_.Log(); }

  // Takes effect at the next start.
  void Reconfigure(std::vector<std::string> options) { options_ = std::move(options); }
  // kvmd is started by the thread that lives longest, since the kernel ends kvmd with the thread
  // that started it.
  void Start();           // waits until kvmd is ready
  void StartUnwatched();  // does not wait
  void Kill();            // SIGKILL, as a crash would
  void Signal(int signal) const;
  int Stop();  // sends SIGTERM; returns the exit code, -1 if kvmd did not exit

  // Names of what is stored now, sorted.
  std::vector<std::string> Stored() const;
  void Put(const std::string& name, int fd);  // as if kvmd had stored it
  void Forget();                              // all that is stored, as when the service is stopped
  // How often a line such as "READY=1" was heard so far.
  std::size_t Heard(const std::string& line) const;

 private:
  void Listen();
  void HearAll();  // reads all messages so far, as systemd does before it starts a service
  void HandleDatagram(const std::string& text, std::vector<UniqueFd> fds);
  void Exec(const std::vector<std::string>& names, const std::vector<int>& fds) const;

  KvmdHome home_;
  std::vector<std::string> options_;
  const std::vector<std::string> environment_;
  UniqueFd listening_, notify_, wake_;
  pid_t pid_ = -1;

  mutable std::mutex mutex_;
  std::map<std::string, UniqueFd> stored_;
  std::map<std::string, std::size_t> heard_;
  std::thread thread_;
};

}  // namespace kvm::test
