// Passes bytes between connections to a port of the loopback and another port, until it is cut:
// then all connections end, and new ones end at once, until it is mended.
#pragma once

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm::test {

class TcpRelay {
 public:
  // `url`: "http://127.0.0.1:PORT".
  explicit TcpRelay(const std::string& url);
  ~TcpRelay();

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  void Cut() { cut_ = true; }
  void Mend() { cut_ = false; }
  int refused() const noexcept { return refused_.load(); }  // connections while it was cut

 private:
  void Accept();
  void Pass(UniqueFd from, UniqueFd to);

  const std::string target_;
  UniqueFd listener_;
  unsigned port_ = 0;
  std::atomic<bool> cut_{false}, stop_{false};
  std::atomic<int> refused_{0};
  std::vector<std::jthread> threads_;
  std::jthread acceptor_;
};

}  // namespace kvm::test
