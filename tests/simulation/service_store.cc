#include "tests/simulation/service_store.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

namespace kvm::simulation {
namespace {

bool SameFile(int a, int b) {
  return ::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_FILE, static_cast<unsigned long>(a), static_cast<unsigned long>(b)) == 0;
}

}  // namespace

ServiceStore::ServiceStore() {
  static int number = 0;
  address_ = "@kvm-simulation-" + std::to_string(::getpid()) + "-" + std::to_string(++number);
  socket_.Reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  address_.copy(name.sun_path + 1, sizeof(name.sun_path) - 1, 0);
  address_.copy(name.sun_path, sizeof(name.sun_path));
  name.sun_path[0] = 0;
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&name), bytes) != 0) std::abort();
}

bool ServiceStore::ReadOne() {
  char text[4096];
  iovec bytes{text, sizeof(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) return false;
  UniqueFd fd;
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int received = -1;
    std::memcpy(&received, CMSG_DATA(header), sizeof(received));
    fd.Reset(received);
  }
  Take(std::string(text, static_cast<std::size_t>(got)), std::move(fd));
  return true;
}

void ServiceStore::Take(const std::string& text, UniqueFd fd) {
  bool store = false, remove = false;
  std::string name;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    store = store || line == "FDSTORE=1";
    remove = remove || line == "FDSTOREREMOVE=1";
    if (line.starts_with("FDNAME=")) name = line.substr(7);
  }
  // As systemd: a file that is stored is not stored again under another name.
  const auto same = [&](const auto& other) { return SameFile(other.second.get(), fd.get()); };
  if (store && fd && std::none_of(stored_.begin(), stored_.end(), same)) stored_[name] = std::move(fd);
  if (remove) stored_.erase(name);
}

void ServiceStore::Clear() {
  while (ReadOne()) continue;
  stored_.clear();
}

std::vector<PassedFd> ServiceStore::Pass() {
  while (ReadOne()) continue;
  std::vector<PassedFd> passed;
  for (const auto& [name, fd] : stored_) {
    PassedFd one;
    one.name = name;
    one.fd.Reset(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    passed.push_back(std::move(one));
  }
  return passed;
}

}  // namespace kvm::simulation
