// EtcdLink: asks a cluster of etcd over its JSON gateway, one endpoint of the list at a time.
//
// The caller says after each of its rounds whether it went well: after Failed the next endpoint is
// used, and Failed waits, longer each time, with chance in it, so that nodes do not come back all
// at once. The first failure and the recovery are logged. One call at a time, of the io_context's
// thread; calls refer to the object until they have ended.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/object.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/mesh/membership/http_connection.h"
#include "proto/base/random.h"

namespace kvm::mesh {

// What all links of a process share; Reload may replace its parts.
struct EtcdAccess {
  std::vector<EtcdEndpoint> endpoints;
  std::shared_ptr<boost::asio::ssl::context> tls;  // null: no endpoint has https
  std::string user, password;                      // empty: no authentication

  // Reads the files. kInvalidArgument.
  [[nodiscard]] static Result<EtcdAccess> Load(const EtcdSettings& settings);
};

class EtcdLink {
 public:
  // `purpose`: for the log. `longest_pause`: between two tries.
  EtcdLink(boost::asio::io_context& io, const EtcdAccess& access, std::string purpose, std::chrono::milliseconds longest_pause);

  // The answer to a request. kNotFound: etcd knows no such lease. kPermissionDenied: credentials.
  // kUnavailable: also an answer of etcd that it can't do it now. kDeadlineExceeded, kProtocol.
  // A connection that was closed since its last use is opened anew.
  Awaitable<Result<boost::json::object>> Call(std::string path, boost::json::object request, Time deadline);
  // Begins a request that is answered by a stream of objects, which Next returns.
  Awaitable<Status> Begin(std::string path, boost::json::object request, Time deadline);
  Awaitable<Result<boost::json::object>> Next(Time deadline);

  void Worked();
  Awaitable<void> Failed(Error error);
  // Ends the pause of Failed, and fails what is under way.
  void Interrupt();
  // The next call opens a new connection, with what `access` has then.
  void Close() noexcept { connection_.reset(); }

  const std::string& endpoint() const noexcept { return access_.endpoints[at_ % access_.endpoints.size()].url; }
  bool works() const noexcept { return works_; }
  const std::string& last_error() const noexcept { return last_error_; }

 private:
  Awaitable<Status> Connect(Time deadline);
  Awaitable<Status> Authenticate(Time deadline);
  // One try.
  Awaitable<Result<HttpAnswer>> Exchange(HttpRequest request, bool stream, Time deadline);
  Awaitable<Result<HttpAnswer>> ExchangeAnyhow(std::string path, std::string body, bool stream, Time deadline);

  boost::asio::io_context& io_;
  const EtcdAccess& access_;
  const std::string purpose_;
  const std::chrono::milliseconds longest_pause_;
  boost::asio::steady_timer pause_;
  SplitMix chance_;
  std::size_t at_ = 0;  // endpoint in use
  std::optional<HttpConnection> connection_;
  std::string token_;
  unsigned failures_ = 0;  // in a row
  bool works_ = false, lost_ = false;
  std::string last_error_;
};

}  // namespace kvm::mesh
