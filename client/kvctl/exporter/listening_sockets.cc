#include "client/kvctl/exporter/listening_sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include <boost/asio/ip/tcp.hpp>

#include "client/kvctl/cli/observer.h"
#include "proto/base/passed_fds.h"

namespace kvm::ctl {
namespace {

constexpr int kBacklog = 64;

Result<UniqueFd> NewSocket(int family) {
  UniqueFd socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("--listen: socket");
  return socket;
}

// Removes a socket file that an exporter has left.
Status ClearPath(const std::string& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return SystemError("--listen: look at " + path);
  }
  if (!S_ISSOCK(info.st_mode)) return MakeError(Errc::kAlreadyExists, "--listen: " + path + " exists and is not a socket");
  Result<UniqueFd> probe = NewSocket(AF_UNIX);
  if (!probe) return probe.error();
  const bool connected = ::connect(probe->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  if (connected || errno == EAGAIN) return MakeError(Errc::kAlreadyExists, "--listen: another process answers on " + path);
  if (errno != ECONNREFUSED) return SystemError("--listen: " + path + " exists, connect");
  if (::unlink(path.c_str()) != 0) return SystemError("--listen: remove the stale " + path);
  return {};
}

Result<mode_t> ParseMode(const std::string& text) {
  unsigned mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error != std::errc{} || end != text.data() + text.size() || mode > 0777)
    return MakeError(Errc::kInvalidArgument, "--listen-mode: " + text + " is no mode such as 0660");
  return static_cast<mode_t>(mode);
}

}  // namespace

ListeningSockets::ListeningSockets(ListeningSockets&& other) noexcept { *this = std::move(other); }

ListeningSockets& ListeningSockets::operator=(ListeningSockets&& other) noexcept {
  std::swap(sockets_, other.sockets_);
  std::swap(names_, other.names_);
  std::swap(path_, other.path_);
  return *this;
}

ListeningSockets::~ListeningSockets() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<ListeningSockets> ListeningSockets::Passed() {
  ListeningSockets passed;
  for (PassedFd& each : TakePassedFds()) {
    const std::string number = std::to_string(each.fd.get());
    if (!IsListening(each.fd.get()))
      return MakeError(Errc::kInvalidArgument, "LISTEN_FDS: descriptor " + number + " is no socket that listens");
    ::fcntl(each.fd.get(), F_SETFL, ::fcntl(each.fd.get(), F_GETFL) | O_NONBLOCK);
    passed.sockets_.push_back(std::move(each.fd));
    passed.names_.push_back("socket " + number + " of the service manager");
  }
  return passed;
}

Status ListeningSockets::ListenOnPath(const std::string& path, const std::string& mode_text) {
  if (Status possible = CheckSocketPath(path); !possible) return possible;
  Result<mode_t> mode = ParseMode(mode_text);
  if (!mode) return mode.error();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  if (Status clear = ClearPath(path, address); !clear) return clear;
  Result<UniqueFd> socket = NewSocket(AF_UNIX);
  if (!socket) return socket.error();
  // No process may connect before the mode is set.
  const mode_t mask = ::umask(0777);
  const bool bound = ::bind(socket->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  const int bind_error = errno;
  ::umask(mask);
  if (!bound) return SystemError("--listen: bind " + path, bind_error);
  path_ = path;
  if (::chmod(path.c_str(), *mode) != 0) return SystemError("--listen: set the mode of " + path);
  if (::listen(socket->get(), kBacklog) != 0) return SystemError("--listen: listen on " + path);
  sockets_.push_back(std::move(*socket));
  names_.push_back(path);
  return {};
}

Status ListeningSockets::ListenOnTcp(const std::string& text) {
  namespace ip = boost::asio::ip;
  const auto wrong = [&](const std::string& why) { return MakeError(Errc::kInvalidArgument, "--listen-tcp: " + text + ": " + why); };
  const std::size_t colon = text.rfind(':');
  if (colon == text.npos) return wrong("write ADDRESS:PORT");
  std::string host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  std::uint16_t port = 0;
  const char* const end_of_text = text.data() + text.size();
  const auto [end, parse_error] = std::from_chars(text.data() + colon + 1, end_of_text, port);
  if (parse_error != std::errc{} || end != end_of_text) return wrong("the port is a number up to 65535");
  boost::system::error_code error;
  const ip::address address = ip::make_address(host, error);
  if (error) return wrong("no numeric address");
  if (!address.is_loopback()) return wrong("only addresses of the loopback interface: the metrics name users and models");
  const ip::tcp::endpoint endpoint(address, port);
  Result<UniqueFd> socket = NewSocket(address.is_v4() ? AF_INET : AF_INET6);
  if (!socket) return socket.error();
  const int on = 1;
  ::setsockopt(socket->get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (::bind(socket->get(), endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0)
    return SystemError("--listen-tcp: bind " + text);
  if (::listen(socket->get(), kBacklog) != 0) return SystemError("--listen-tcp: listen on " + text);
  ip::tcp::endpoint bound;
  socklen_t size = static_cast<socklen_t>(bound.capacity());
  if (::getsockname(socket->get(), bound.data(), &size) != 0) return SystemError("--listen-tcp: getsockname");
  sockets_.push_back(std::move(*socket));
  names_.push_back("http://" + (address.is_v4() ? host : "[" + host + "]") + ":" + std::to_string(bound.port()));
  return {};
}

}  // namespace kvm::ctl
