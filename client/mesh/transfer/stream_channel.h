// StreamChannel: a Channel over a stream socket of Asio, TCP or Unix.
//
// A deadline closes the socket. The operation under way then completes with an error, and it is the
// completion that ends the call, so the kernel is done with the caller's memory by then.
#pragma once

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <memory>
#include <utility>

#include "client/mesh/transfer/transfer.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {

template <class Socket>
class StreamChannel final : public Channel {
 public:
  explicit StreamChannel(Socket socket) : state_(std::make_shared<State>(std::move(socket))) {}
  ~StreamChannel() override { Close(); }
  StreamChannel(const StreamChannel&) = delete;
  StreamChannel& operator=(const StreamChannel&) = delete;

  Awaitable<Status> Send(const std::string& message, std::span<const std::byte> payload, Time deadline) override {
    if (message.size() > kMaxMessageBytes || payload.size() > kMaxPayloadBytes)
      co_return Fail(MakeError(Errc::kInvalidArgument, "a message or payload over the limit"));
    const std::shared_ptr<State> state = state_;
    const MeshHeaderBytes header = EncodeMeshHeader({static_cast<std::uint32_t>(message.size()), payload.size()});
    const std::array<boost::asio::const_buffer, 3> buffers{boost::asio::buffer(header), boost::asio::buffer(message),
                                                           boost::asio::buffer(payload.data(), payload.size())};
    boost::system::error_code error;
    Arm(state, deadline);
    co_await boost::asio::async_write(state->socket, buffers, boost::asio::redirect_error(boost::asio::use_awaitable, error));
    co_return Disarm(*state, error, "send");
  }

  Awaitable<Result<Received>> Receive(Time deadline) override {
    const std::shared_ptr<State> state = state_;
    if (state->untaken != 0) co_return Fail(MakeError(Errc::kProtocol, "a payload was not expected"));
    MeshHeaderBytes bytes{};
    boost::system::error_code error;
    Arm(state, deadline);
    co_await boost::asio::async_read(state->socket, boost::asio::buffer(bytes),
                                     boost::asio::redirect_error(boost::asio::use_awaitable, error));
    Status arrived = Disarm(*state, error, "receive");
    if (!arrived) co_return arrived.error();
    Result<MeshFrameHeader> header = DecodeMeshHeader(bytes);
    if (!header) co_return Fail(header.error());
    Received out;
    out.message.resize(header->message_bytes);
    out.payload_bytes = header->payload_bytes;
    Arm(state, deadline);
    co_await boost::asio::async_read(state->socket, boost::asio::buffer(out.message),
                                     boost::asio::redirect_error(boost::asio::use_awaitable, error));
    arrived = Disarm(*state, error, "receive");
    if (!arrived) co_return arrived.error();
    state->untaken = out.payload_bytes;
    co_return out;
  }

  Awaitable<Status> ReceivePayload(std::span<std::byte> into, Time deadline) override {
    const std::shared_ptr<State> state = state_;
    boost::system::error_code error;
    Arm(state, deadline);
    co_await boost::asio::async_read(state->socket, boost::asio::buffer(into.data(), into.size()),
                                     boost::asio::redirect_error(boost::asio::use_awaitable, error));
    state->untaken = 0;
    co_return Disarm(*state, error, "receive a payload");
  }

  void Close() noexcept override { state_->Close(); }
  bool open() const noexcept override { return state_->socket.is_open(); }

 private:
  struct State {
    explicit State(Socket opened) : socket(std::move(opened)), timer(socket.get_executor()) {}
    void Close() noexcept {
      boost::system::error_code ignored;
      socket.close(ignored);
    }
    Socket socket;
    boost::asio::steady_timer timer;
    std::uint64_t operation = 0;  // number of the one that the timer belongs to
    std::uint64_t untaken = 0;    // bytes of a payload that was announced and not received
    bool late = false;
  };

  // A timer that fired just before its operation completed must not close the socket under the next
  // operation, hence the number.
  static void Arm(const std::shared_ptr<State>& state, Time deadline) {
    const std::uint64_t operation = ++state->operation;
    state->timer.expires_at(deadline);
    state->timer.async_wait([state, operation](boost::system::error_code error) {
      if (error || state->operation != operation) return;
      state->late = true;
      state->Close();
    });
  }

  Status Disarm(State& state, const boost::system::error_code& error, const char* what) {
    ++state.operation;
    state.timer.cancel();
    if (!error) return {};
    const bool late = state.late;
    return Fail(
        MakeError(late ? Errc::kDeadlineExceeded : Errc::kUnavailable, std::string(what) + (late ? ": too late" : ": " + error.message())));
  }

  Error Fail(Error error) {
    Close();
    return error;
  }

  std::shared_ptr<State> state_;
};

}  // namespace kvm::mesh
