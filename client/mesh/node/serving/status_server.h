// StatusServer: answers status queries on Unix sockets that the service manager passes, and nothing
// else: who may connect there, which the permissions of the socket's file decide, sees the counts
// of metrics, and reaches no block. Its connections are none of the workers', and their number is
// bounded, so that they take nothing from workers. Of the io_context's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "client/mesh/log/line_limit.h"
#include "client/mesh/node/serving/accepting.h"
#include "client/mesh/node/serving/node_status.h"
#include "client/mesh/node/serving/waiting_channels.h"
#include "proto/base/descriptor_closer.h"
#include "proto/base/passed_fds.h"
#include "proto/base/unique_fd.h"

namespace kvm::mesh {

class StatusServer {
 public:
  // All together. Half of them may wait for a query; the others are being answered, a second each
  // at most.
  static constexpr std::size_t kMostConnections = 16;

  // `closer` outlives this.
  StatusServer(boost::asio::io_context& io, DescriptorCloser& closer) : io_(io), closer_(closer) {}
  ~StatusServer() { Close(); }
  StatusServer(const StatusServer&) = delete;
  StatusServer& operator=(const StatusServer&) = delete;

  // Sockets to answer on. kInvalidArgument: one is not a Unix socket that listens.
  [[nodiscard]] Status Take(std::vector<PassedFd> passed);
  // `status` outlives the runs of `io`.
  void Start(const NodeStatus& status);
  // Closes the sockets, whose files are the service manager's.
  void Close() noexcept;

 private:
  using Acceptor = boost::asio::local::stream_protocol::acceptor;

  Awaitable<void> Accept(Acceptor& acceptor, const NodeStatus& status);
  Awaitable<void> Serve(std::shared_ptr<Channel> channel, const NodeStatus& status);
  Awaitable<Result<Received>> NextQuery(std::shared_ptr<Channel> channel);

  boost::asio::io_context& io_;
  DescriptorCloser& closer_;
  std::deque<Acceptor> acceptors_;
  std::size_t connections_ = 0;
  WaitingChannels waiting_{kMostConnections / 2};
  LineLimit lines_{kRefusedPause};
};

}  // namespace kvm::mesh
