// StreamChannel: a Channel over a stream of Asio: a TCP or Unix socket, or TLS over one.
//
// A limit that has passed closes the socket. The operation under way then completes with an error,
// and it is the completion that ends the call, so the kernel is done with the caller's memory by
// then.
#pragma once

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "client/mesh/transfer/stall_guard.h"
#include "client/mesh/transfer/transfer.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {

template <class Stream>
class StreamChannel : public Channel {
 public:
  // The stream is made from `arguments`.
  template <class... Arguments>
  explicit StreamChannel(Arguments&&... arguments) : state_(std::make_shared<State>(std::forward<Arguments>(arguments)...)) {
    state_->guard = std::make_shared<StallGuard>(state_->stream.get_executor(), [weak = std::weak_ptr<State>(state_)] {
      if (const std::shared_ptr<State> state = weak.lock()) state->Close();
    });
  }
  ~StreamChannel() override {
    state_->guard->Stop();
    Close();
  }
  StreamChannel(const StreamChannel&) = delete;
  StreamChannel& operator=(const StreamChannel&) = delete;

  Awaitable<Status> Handshake(Time) override { co_return Status(); }
  bool IsNode(const std::string&, const std::string&) const override { return true; }

  Awaitable<Status> SendAll(std::span<const Outgoing> batch, Limits limits) override {
    for (const Outgoing& each : batch) {
      Status sent = co_await SendOne(each, limits);
      if (!sent) co_return sent;
    }
    co_return Status();
  }

  Awaitable<Result<Received>> Receive(Limits limits) override {
    if (state_->untaken != 0) co_return Fail(MakeError(Errc::kProtocol, "a payload was not expected"));
    MeshHeaderBytes bytes{};
    Status arrived = co_await Read(Buffer(bytes), limits, "receive", nullptr);
    if (!arrived) co_return arrived.error();
    Result<MeshFrameHeader> header = DecodeMeshHeader(bytes);
    if (!header) co_return Fail(header.error());
    Result<std::string> message = co_await ReadGrowing(header->message_bytes, limits, "receive");
    if (!message) co_return message.error();
    state_->untaken = header->payload_bytes;
    co_return Received{std::move(*message), header->payload_bytes};
  }

  Awaitable<Status> ReceiveParts(ReceivedParts into, Limits limits, Arrivals* arrivals) override {
    state_->untaken = 0;
    if (into.size() == 1) co_return co_await Read(Buffer(into.front()), limits, "receive a payload", arrivals);
    std::vector<boost::asio::mutable_buffer> buffers;
    for (const std::span<std::byte> part : into) buffers.push_back(Buffer(part));
    co_return co_await Read(buffers, limits, "receive a payload", arrivals);
  }

  Awaitable<Result<std::string>> TakePayload(Limits limits) override {
    const std::uint64_t bytes = std::exchange(state_->untaken, 0);
    co_return co_await ReadGrowing(bytes, limits, "receive a payload");
  }

  void Close() noexcept override { state_->Close(); }
  bool open() const noexcept override { return state_->stream.lowest_layer().is_open(); }
  bool current() const noexcept override { return open(); }

 protected:
  struct State {
    template <class... Arguments>
    explicit State(Arguments&&... arguments) : stream(std::forward<Arguments>(arguments)...) {}
    void Close() noexcept {
      boost::system::error_code ignored;
      stream.lowest_layer().close(ignored);
    }
    Stream stream;
    std::shared_ptr<StallGuard> guard;
    std::uint64_t untaken = 0;  // bytes of a payload that was announced and not received
  };

  // What an operation that has completed means; an error closes the channel.
  Status Ended(State& state, const boost::system::error_code& error, const std::string& what) {
    state.guard->End();
    if (!error) return {};
    const char* const cause = state.guard->cause();
    if (cause != nullptr) return Fail(MakeError(Errc::kDeadlineExceeded, what + ": " + cause));
    return Fail(MakeError(Errc::kUnavailable, what + ": " + error.message()));
  }

  Error Fail(Error error) {
    Close();
    return error;
  }

  const std::shared_ptr<State>& state() const noexcept { return state_; }

 private:
  static boost::asio::mutable_buffer Buffer(std::span<std::byte> bytes) noexcept { return {bytes.data(), bytes.size()}; }

  // Tells of progress, between two steps of a composed operation.
  static auto Counted(const std::shared_ptr<State>& state, std::size_t step, Arrivals* arrivals) {
    return [guard = state->guard, step, arrivals](const boost::system::error_code& error, std::size_t moved) -> std::size_t {
      guard->Progress(moved);
      if (arrivals != nullptr && !error) arrivals->Arrived(moved);
      return error ? 0 : step;
    };
  }

  Awaitable<Status> SendOne(const Outgoing& out, Limits limits) {
    const std::uint64_t payload_bytes = BytesOf(out.payload);
    if (out.message.size() > kMaxMessageBytes || payload_bytes > kMaxPayloadBytes)
      co_return Fail(MakeError(Errc::kInvalidArgument, "a message or payload over the limit"));
    const std::shared_ptr<State> state = state_;
    const MeshHeaderBytes header = EncodeMeshHeader({static_cast<std::uint32_t>(out.message.size()), payload_bytes});
    std::vector<boost::asio::const_buffer> buffers{boost::asio::buffer(header), boost::asio::buffer(out.message)};
    for (const std::span<const std::byte> part : out.payload) buffers.emplace_back(part.data(), part.size());
    boost::system::error_code error;
    state->guard->Begin(limits);
    co_await boost::asio::async_write(state->stream, buffers, Counted(state, kSendStep, nullptr),
                                      boost::asio::redirect_error(boost::asio::use_awaitable, error));
    co_return Ended(*state, error, "send");
  }

  template <class Buffers>
  Awaitable<Status> Read(const Buffers& into, Limits limits, const char* what, Arrivals* arrivals) {
    const std::shared_ptr<State> state = state_;
    boost::system::error_code error;
    state->guard->Begin(limits);
    co_await boost::asio::async_read(state->stream, into, Counted(state, kReceiveStep, arrivals),
                                     boost::asio::redirect_error(boost::asio::use_awaitable, error));
    co_return Ended(*state, error, what);
  }

  // Another process announces `bytes`; memory is taken as they arrive, at most twice as much.
  Awaitable<Result<std::string>> ReadGrowing(std::uint64_t bytes, Limits limits, const char* what) {
    std::string out;
    while (out.size() < bytes) {
      const std::size_t begin = out.size();
      const std::size_t step = std::min<std::uint64_t>(bytes - begin, std::max(kFirstBytes, begin));
      try {
        out.resize(begin + step);
      } catch (const std::bad_alloc&) {
        co_return Fail(MakeError(Errc::kResourceExhausted, "no memory for a message of " + std::to_string(bytes) + " bytes"));
      }
      Status arrived = co_await Read(Buffer(std::as_writable_bytes(std::span(out)).subspan(begin)), limits, what, nullptr);
      if (!arrived) co_return arrived.error();
    }
    co_return out;
  }

  // Of one call of the kernel. What is received is read again (Arrivals) before it leaves the
  // cache.
  static constexpr std::size_t kSendStep = std::size_t{1} << 20;
  static constexpr std::size_t kReceiveStep = std::size_t{512} << 10;
  static constexpr std::size_t kFirstBytes = std::size_t{16} << 10;

  std::shared_ptr<State> state_;
};

}  // namespace kvm::mesh
