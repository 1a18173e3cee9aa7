// The transfer's rules, over TCP and over UCX alike.
#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "client/mesh/memory/checksum.h"
#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/mesh/transfer_ends.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using mesh::Channel;
using mesh::Outgoing;
using mesh::Received;
using test::Soon;
using test::TransferEnds;

std::vector<std::byte> Pattern(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>((i * 31 + i / 251 + seed) & 0xff);
  return out;
}

// One message with its payload, received into memory of its size.
mesh::Awaitable<Result<std::pair<std::string, std::vector<std::byte>>>> ReceiveOne(std::shared_ptr<Channel> channel) {
  Result<Received> received = co_await channel->Receive(Soon());
  if (!received) co_return received.error();
  std::vector<std::byte> payload(received->payload_bytes);
  if (!payload.empty()) {
    Status arrived = co_await channel->ReceivePayload(payload, Soon());
    if (!arrived) co_return arrived.error();
  }
  co_return std::pair(received->message, std::move(payload));
}

// What `from` sends, `to` receives, byte for byte.
void Exchange(TransferEnds& ends, const std::shared_ptr<Channel>& from, const std::shared_ptr<Channel>& to, std::size_t bytes) {
  const std::vector<std::byte> payload = Pattern(bytes, static_cast<unsigned>(bytes));
  const std::string message = "message of " + std::to_string(bytes);
  std::optional<Status> sent;
  ends.Start(from->Send(message, payload, Soon()), [&](Status status) { sent = status; });
  const auto received = ends.Wait(ReceiveOne(to));
  ends.RunUntil([&] { return sent.has_value(); });
  KVM_REQUIRE_OK(*sent);
  KVM_REQUIRE_OK(received);
  CHECK(received->first == message);
  CHECK(received->second == payload);
}

// Compares what was sent with what has arrived, as it is told of.
class CheckedArrivals final : public mesh::Arrivals {
 public:
  CheckedArrivals(const mesh::SentParts& sent, mesh::ReceivedParts into) : sent_(sent), into_(into) {}

  void Arrived(std::size_t bytes) noexcept override {
    if (bytes < seen_) right_ = false;
    for (; seen_ < bytes; ++seen_) {
      const std::size_t part = seen_ / into_.front().size(), at = seen_ % into_.front().size();
      right_ = right_ && part < into_.size() && into_[part][at] == sent_[part][at];
    }
  }
  bool all_right() const noexcept { return right_ && seen_ == mesh::BytesOf(into_); }

 private:
  const mesh::SentParts& sent_;
  const mesh::ReceivedParts into_;
  std::size_t seen_ = 0;
  bool right_ = true;
};

// Whether memory stays as it is while both ends go on.
bool StaysUntouched(TransferEnds& ends, std::span<std::byte> memory) {
  std::fill(memory.begin(), memory.end(), std::byte{0x5a});
  ends.RunFor(300ms);
  return std::all_of(memory.begin(), memory.end(), [](std::byte each) { return each == std::byte{0x5a}; });
}

}  // namespace

#if !defined(KVM_HAVE_UCX)
TEST_CASE("Mesh transfer: over UCX", "[unit]") { KVM_SKIP("built without UCX (libucx-dev)"); }
#endif

TEST_CASE("Mesh transfer: messages and payloads of all sizes arrive byte for byte, both ways", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    std::uint64_t apart = 0;
    for (const std::size_t bytes : {0ul, 1ul, 4095ul, 4096ul, 65536ul, 524288ul, 524289ul, (std::size_t{9} << 20) + 7}) {
      Exchange(ends, ends.left, ends.right, bytes);
      Exchange(ends, ends.right, ends.left, bytes);
      if (bytes >= 4096) apart += bytes;
    }
    if (way != "tcp") {
      for (mesh::Transfer* transfer : {&ends.connecting(), &ends.accepting()}) {
        CHECK(transfer->bulk().sent_bytes == apart);
        CHECK(transfer->bulk().received_bytes == apart);
      }
    }
  }
}

TEST_CASE("Mesh transfer: a batch arrives in its order, also to a receiver that is slow", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    std::vector<std::vector<std::byte>> payloads;
    std::vector<Outgoing> batch;
    for (unsigned i = 0; i < 40; ++i) payloads.push_back(Pattern(i % 3 == 0 ? 100 : 70'000 * (i % 5 + 1), i));
    for (unsigned i = 0; i < 40; ++i) batch.push_back({std::to_string(i), {payloads[i]}});
    std::optional<Status> sent;
    ends.Start(ends.right->SendAll(batch, Soon()), [&](Status status) { sent = status; });
    ends.RunFor(200ms);
    for (unsigned i = 0; i < 40; ++i) {
      const auto received = ends.Wait(ReceiveOne(ends.left));
      KVM_REQUIRE_OK(received);
      CHECK(received->first == std::to_string(i));
      CHECK(received->second == payloads[i]);
    }
    ends.RunUntil([&] { return sent.has_value(); });
    KVM_REQUIRE_OK(*sent);
  }
}

TEST_CASE("Mesh transfer: a payload in parts arrives where its parts belong, and its bytes are there when they are told of", "[unit]") {
  // Enough parts for several calls of the kernel, and parts that no piece of UCX ends with.
  for (const std::size_t part_bytes : {std::size_t{100}, std::size_t{65536}, (std::size_t{1} << 20) + 5}) {
    for (const std::string& way : test::TransferWays()) {
      INFO(way << ", parts of " << part_bytes);
      TransferEnds ends(way);
      const std::size_t parts = part_bytes > 65536 ? 5 : 90;
      const std::vector<std::byte> payload = Pattern(parts * part_bytes, 7);
      std::vector<std::byte> memory(payload.size());
      mesh::Outgoing out{"in parts", {}};
      std::vector<std::span<std::byte>> into;
      // Where they belong is the other way round.
      for (std::size_t i = 0; i < parts; ++i) {
        out.payload.push_back(std::span(payload).subspan(i * part_bytes, part_bytes));
        into.push_back(std::span(memory).subspan((parts - 1 - i) * part_bytes, part_bytes));
      }
      CheckedArrivals arrivals(out.payload, into);
      std::optional<Status> sent;
      ends.Start(ends.left->SendAll(std::span(&out, 1), Soon()), [&](Status status) { sent = status; });
      const auto received = ends.Wait(ends.right->Receive(Soon()));
      KVM_REQUIRE_OK(received);
      REQUIRE(received->payload_bytes == payload.size());
      KVM_REQUIRE_OK(ends.Wait(ends.right->ReceiveParts(into, Soon(), &arrivals)));
      ends.RunUntil([&] { return sent.has_value(); });
      KVM_REQUIRE_OK(*sent);
      arrivals.Arrived(payload.size());
      CHECK(arrivals.all_right());
      // The connection is where it should be.
      Exchange(ends, ends.right, ends.left, 65536);
    }
  }
}

TEST_CASE("Mesh transfer: connections do not use BBR unless they are told to", "[unit]") {
  boost::asio::io_context io;
  const auto of = [&](const std::string& congestion) {
    Result<std::unique_ptr<mesh::TcpTransfer>> tcp = mesh::TcpTransfer::Listen(io, "127.0.0.1:0", nullptr, congestion);
    return tcp ? (*tcp)->congestion() : tcp.error().message;
  };
  const std::string of_system = of(mesh::TcpTransfer::kSystemCongestion);
  CHECK(of("reno") == "reno");
  CHECK(of("no-such").find("no-such") != std::string::npos);
  const std::string automatic = of(mesh::TcpTransfer::kAutoCongestion);
  if (of_system.starts_with("bbr")) {
    CHECK((automatic == "cubic" || automatic == "reno"));
  } else {
    CHECK(automatic == of_system);
  }
}

TEST_CASE("Mesh transfer: a checksum of pieces is that of the whole, however it is cut", "[unit]") {
  mesh::RunningChecksum running;
  for (const std::size_t bytes : {1ul, 240ul, 241ul, 1024ul, 1025ul, 65536ul, 300'001ul}) {
    const std::vector<std::byte> block = Pattern(bytes, 3);
    for (const std::size_t cut : {1ul, 16ul, 255ul, 256ul, 1023ul, 65536ul, 1'000'000ul}) {
      for (std::size_t at = 0; at < bytes; at += cut) running.Add(std::span(block).subspan(at, std::min(cut, bytes - at)));
      CHECK(running.Take() == mesh::BlockChecksum(block));
    }
  }
  // Nodes agree whatever processors they have. By xxhash's header, for SSE2.
  CHECK(mesh::BlockChecksum(std::as_bytes(std::span("kvmd-mesh", 9))) == 0x4523c1bad21cc586ull);
  CHECK(mesh::BlockChecksum(Pattern(4096, 3)) == 0x37d684412afcf7e3ull);
}

TEST_CASE("Mesh transfer: a payload is taken in memory that grows with it", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const std::vector<std::byte> payload = Pattern((std::size_t{5} << 20) + 11, 1);
    std::optional<Status> sent;
    const std::string message = "summary";
    ends.Start(ends.left->Send(message, payload, Soon()), [&](Status status) { sent = status; });
    const auto received = ends.Wait(ends.right->Receive(Soon()));
    KVM_REQUIRE_OK(received);
    const auto taken = ends.Wait(ends.right->TakePayload(Soon()));
    KVM_REQUIRE_OK(taken);
    CHECK(std::equal(taken->begin(), taken->end(), payload.begin(), payload.end(),
                     [](char a, std::byte b) { return static_cast<std::byte>(a) == b; }));
    ends.RunUntil([&] { return sent.has_value(); });
    KVM_REQUIRE_OK(*sent);
  }
}

TEST_CASE("Mesh transfer: a payload that was not taken closes the channel", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const std::vector<std::byte> payload = Pattern(100'000, 1);
    std::optional<Status> sent;
    const std::string message = "one";
    ends.Start(ends.left->Send(message, payload, Soon()), [&](Status status) { sent = status; });
    KVM_REQUIRE_OK(ends.Wait(ends.right->Receive(Soon())));
    KVM_CHECK_ERROR(ends.Wait(ends.right->Receive(Soon())), Errc::kProtocol, "not expected");
    CHECK_FALSE(ends.right->open());
    ends.RunUntil([&] { return sent.has_value(); });
  }
}

TEST_CASE("Mesh transfer: a receiver that is too late leaves, and its memory is not written afterwards", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const std::vector<std::byte> payload = Pattern(std::size_t{64} << 20, 1);
    std::optional<Status> sent;
    const std::string message = "late";
    ends.Start(ends.left->Send(message, payload, Soon()), [&](Status status) { sent = status; });
    KVM_REQUIRE_OK(ends.Wait(ends.right->Receive(Soon())));
    std::vector<std::byte> into(payload.size());
    const Status arrived = ends.Wait(ends.right->ReceivePayload(into, std::chrono::steady_clock::now() + 1ms));
    KVM_CHECK_ERROR(arrived, Errc::kDeadlineExceeded, "too late");
    CHECK(StaysUntouched(ends, into));
    CHECK_FALSE(ends.right->open());
    ends.RunUntil([&] { return sent.has_value(); });
    CHECK_FALSE(*sent);
    CHECK_FALSE(ends.left->open());
  }
}

TEST_CASE("Mesh transfer: a receiver whose peer sends nothing leaves after the stall limit", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const auto received = ends.Wait(ends.right->Receive(mesh::Limits(Soon(), 50ms)));
    KVM_CHECK_ERROR(received, Errc::kDeadlineExceeded, "no progress");
  }
}

TEST_CASE("Mesh transfer: a sender whose peer takes nothing leaves after the stall limit", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    std::vector<std::byte> payload = Pattern(std::size_t{64} << 20, 1);
    const Status sent = ends.Wait(ends.left->Send("nobody", payload, mesh::Limits(Soon(), 200ms)));
    KVM_CHECK_ERROR(sent, Errc::kDeadlineExceeded, "no progress");
    CHECK_FALSE(ends.left->open());
    // The peer's end has an error, not bytes of something else.
    const auto received = ends.Wait(ReceiveOne(ends.right));
    CHECK_FALSE(received);
  }
}

TEST_CASE("Mesh transfer: the end of a peer ends what is under way, and the memory is free again", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const std::vector<std::byte> payload = Pattern(std::size_t{64} << 20, 1);
    std::optional<Status> sent, arrived;
    const std::string message = "cut off";
    ends.Start(ends.left->Send(message, payload, Soon()), [&](Status status) { sent = status; });
    KVM_REQUIRE_OK(ends.Wait(ends.right->Receive(Soon())));
    std::vector<std::byte> into(payload.size());
    ends.Start(ends.right->ReceivePayload(into, Soon()), [&](Status status) { arrived = status; });
    // Some bytes have come.
    ends.RunUntil([&] { return into[100] == payload[100] && into[101] == payload[101]; });
    CHECK_FALSE(arrived);
    ends.left->Close();
    ends.RunUntil([&] { return sent.has_value() && arrived.has_value(); });
    CHECK_FALSE(*sent);
    KVM_CHECK_ERROR(*arrived, Errc::kUnavailable, "receive a payload");
    CHECK(StaysUntouched(ends, into));
  }
}

TEST_CASE("Mesh transfer: a close after a send loses nothing that was sent", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    const std::vector<std::byte> payload = Pattern(3'000'000, 7);
    std::optional<Status> sent;
    std::optional<bool> same;
    const std::string message = "last";
    ends.Start(ends.left->Send(message, payload, Soon()), [&](Status status) {
      sent = status;
      ends.left->Close();
    });
    ends.Start(ReceiveOne(ends.right), [&](const auto& received) { same = received && received->second == payload; });
    ends.RunUntil([&] { return sent.has_value() && same.has_value(); });
    KVM_REQUIRE_OK(*sent);
    CHECK(*same);
  }
}

TEST_CASE("Mesh transfer: payloads and messages over the limits are refused by the sender", "[unit]") {
  for (const std::string& way : test::TransferWays()) {
    INFO(way);
    TransferEnds ends(way);
    std::byte one{};
    const std::span<const std::byte> huge(&one, mesh::kMaxPayloadBytes + 1);
    KVM_CHECK_ERROR(ends.Wait(ends.left->Send("huge", huge, Soon())), Errc::kInvalidArgument, "over the limit");
    CHECK_FALSE(ends.left->open());
  }
}
