// HttpServer: answers GET and HEAD over sockets that listen, of any family, in one thread.
//
// It is as small as serving metrics allows: requests without a body, few connections, each with a
// time limit. A client that is slow or says nothing costs its own connection only, since nothing
// but the content itself is waited for.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm::ctl {

struct HttpContent {
  std::string type;  // Content-Type
  std::string body;
  std::string security_policy = {};  // Content-Security-Policy; empty: none is sent
};

// Not thread-safe.
class HttpServer {
 public:
  // The content of a path, without its query; none: 404. `by_tcp`: every user of the machine may be
  // asking. Called in Run.
  using Content = std::function<std::optional<HttpContent>(std::string_view path, bool by_tcp)>;
  // Whether a request with this Host header is answered (host_header.h); else it gets 421.
  using HostCheck = std::function<bool(std::string_view host, bool by_tcp)>;

  HttpServer(std::vector<UniqueFd> sockets, Content content, HostCheck host_check);
  ~HttpServer();

  // Serves until SIGINT or SIGTERM. A lack of memory ends the connection that met it, no more.
  void Run();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvm::ctl
