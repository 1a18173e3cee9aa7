// BytesOnlySocket: a connection of a server that takes bytes only, as a stream of Asio.
//
// Descriptors that its other end sends end it: reading fails with bad_message. They are closed in
// another thread, as are those that are still unread when the socket is closed, so that the thread
// of the server never waits for such a close. Not thread-safe; other sockets than Unix sockets work
// as well.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/compose.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "proto/base/descriptor_closer.h"
#include "proto/base/receive_bytes.h"
#include "proto/base/socket_peer.h"
#include "proto/base/unique_fd.h"

namespace kvm {

template <class Protocol, class Executor = boost::asio::any_io_executor>
class BytesOnlySocket {
 public:
  using Socket = boost::asio::basic_stream_socket<Protocol, Executor>;
  using executor_type = Socket::executor_type;
  using lowest_layer_type = BytesOnlySocket;

  // `socket`: a connection that nothing has been received from. `closer` outlives this.
  BytesOnlySocket(Socket socket, DescriptorCloser& closer) : socket_(std::move(socket)), closer_(&closer) {
    uid_ = PeerUserOf(socket_.native_handle());
    ReceiveInOrder(socket_.native_handle());
  }
  BytesOnlySocket(BytesOnlySocket&&) noexcept = default;
  BytesOnlySocket& operator=(BytesOnlySocket&&) = delete;
  ~BytesOnlySocket() {
    boost::system::error_code ignored;
    close(ignored);
  }

  executor_type get_executor() noexcept { return socket_.get_executor(); }
  BytesOnlySocket& lowest_layer() noexcept { return *this; }
  bool is_open() const noexcept { return socket_.is_open(); }
  std::uint32_t uid() const noexcept { return uid_; }  // of its other end; of a Unix socket

  // What is under way ends with operation_aborted.
  void close(boost::system::error_code& error) noexcept {
    error = {};
    if (!socket_.is_open()) return;
    closer_->CloseSocket(uid_, UniqueFd(socket_.release(error)));
  }

  template <class Buffers, class Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    boost::asio::mutable_buffer into;
    for (auto it = boost::asio::buffer_sequence_begin(buffers); into.size() == 0 && it != boost::asio::buffer_sequence_end(buffers); ++it)
      into = *it;
    return boost::asio::async_compose<Token, void(boost::system::error_code, std::size_t)>(ReadSome{*this, into}, token, socket_);
  }
  template <class Buffers, class Token>
  auto async_write_some(const Buffers& buffers, Token&& token) {
    return socket_.async_write_some(buffers, std::forward<Token>(token));
  }

 private:
  struct ReadSome {
    BytesOnlySocket& from;
    boost::asio::mutable_buffer into;
    bool waited = false;

    template <class Self>
    void operator()(Self& self, boost::system::error_code error = {}) {
      if (into.size() == 0 && !std::exchange(waited, true)) return boost::asio::post(from.socket_.get_executor(), std::move(self));
      if (error || into.size() == 0) return self.complete(error, 0);
      ssize_t got = -1;
      if (std::exchange(waited, true)) {
        got = ReceiveBytes(from.socket_.native_handle(), {static_cast<std::byte*>(into.data()), into.size()});
        if (got == 0) return self.complete(boost::asio::error::eof, 0);
        if (got < 0 && errno != EAGAIN && errno != EINTR) return self.complete({errno, boost::system::system_category()}, 0);
      }
      if (got > 0) return self.complete({}, static_cast<std::size_t>(got));
      from.socket_.async_wait(Socket::wait_read, std::move(self));
    }
  };

  Socket socket_;
  DescriptorCloser* closer_;
  std::uint32_t uid_ = kNoUser;
};

}  // namespace kvm
