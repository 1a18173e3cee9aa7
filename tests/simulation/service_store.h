// The service manager of a simulation: it keeps the descriptors that kvmd stores (FDSTORE=1), reads
// one datagram when it is told to, and passes what it has to the next kvmd.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "daemon/system/service_manager.h"
#include "proto/base/unique_fd.h"

namespace kvm::simulation {

class ServiceStore {
 public:
  ServiceStore();

  const std::string& address() const noexcept { return address_; }  // for NOTIFY_SOCKET
  bool ReadOne();                                                   // false: nothing has been sent
  std::vector<PassedFd> Pass();                                     // reads everything first
  void Clear();                                                     // what has been sent, too
  std::size_t size() const noexcept { return stored_.size(); }

 private:
  void Take(const std::string& text, UniqueFd fd);

  std::string address_;
  UniqueFd socket_;
  std::map<std::string, UniqueFd> stored_;
};

}  // namespace kvm::simulation
