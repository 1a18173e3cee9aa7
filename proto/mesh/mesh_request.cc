#include "proto/mesh/mesh_request.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "proto/base/descriptor_closer.h"
#include "proto/base/receive_bytes.h"
#include "proto/base/socket_peer.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;

struct Patience {
  std::chrono::steady_clock::time_point deadline;
  bool (*interrupted)();

  bool OverWith() const { return std::chrono::steady_clock::now() >= deadline || (interrupted != nullptr && interrupted()); }
};

constexpr milliseconds kQuestionInterval{50};  // how often an interrupted thread notices
constexpr milliseconds kFullPause{4};

Error TooLate() { return MakeError(Errc::kDeadlineExceeded, "kvmd-mesh did not answer in time"); }

// While more wait to be accepted than may, the kernel says EAGAIN, and nothing tells when there is
// room again.
Result<UniqueFd> Connect(const std::string& path, const Patience& patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return MakeError(Errc::kInvalidArgument, "the path of kvmd-mesh's socket is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("socket");
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EAGAIN) {
      Error error = SystemError("no kvmd-mesh on " + path);
      error.code = Errc::kUnavailable;
      return error;
    }
    if (patience.OverWith()) return TooLate();
    std::this_thread::sleep_for(kFullPause);
  }
  return socket;
}

Status WaitFor(int socket, short events, const Patience& patience) {
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(patience.deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0 || (patience.interrupted != nullptr && patience.interrupted())) return TooLate();
    pollfd waiting{socket, events, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(std::min(left, kQuestionInterval).count()));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return SystemError("poll");
  }
}

// Moves all of `bytes` with `move`, a send or recv.
template <class Bytes, class Move>
Status MoveAll(int socket, short events, Bytes bytes, const Patience& patience, Move move) {
  while (!bytes.empty()) {
    const ssize_t moved = move(socket, bytes);
    if (moved > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(moved));
    } else if (moved == 0) {
      return MakeError(Errc::kUnavailable, "kvmd-mesh has closed the connection");
    } else if (errno == EAGAIN) {
      if (Status ready = WaitFor(socket, events, patience); !ready) return ready;
    } else if (errno == EBADMSG) {
      return MakeError(Errc::kProtocol, "kvmd-mesh has sent descriptors");
    } else if (errno != EINTR) {
      Error error = SystemError("kvmd-mesh's socket");
      error.code = Errc::kUnavailable;
      return error;
    }
  }
  return {};
}

Status SendAll(int socket, std::span<const std::byte> bytes, const Patience& patience) {
  return MoveAll(socket, POLLOUT, bytes, patience,
                 [](int to, std::span<const std::byte> rest) { return ::send(to, rest.data(), rest.size(), MSG_NOSIGNAL); });
}

Status ReceiveAll(int socket, std::span<std::byte> bytes, const Patience& patience) {
  return MoveAll(socket, POLLIN, bytes, patience, [](int from, std::span<std::byte> rest) { return ReceiveBytes(from, rest); });
}

// Who listens on the socket may be another user's process, for one that asks for all users.
DescriptorCloser& Closer() {
  static DescriptorCloser closer;
  return closer;
}

Status Send(int socket, const kvmmesh::LocalMessage& request, const Patience& patience) {
  const std::string bytes = request.SerializeAsString();
  if (bytes.size() > kMaxMessageBytes) return MakeError(Errc::kInvalidArgument, "the request to kvmd-mesh is too long");
  const MeshHeaderBytes header = EncodeMeshHeader({static_cast<std::uint32_t>(bytes.size()), 0});
  if (Status sent = SendAll(socket, header, patience); !sent) return sent;
  return SendAll(socket, std::as_bytes(std::span(bytes)), patience);
}

Result<kvmmesh::LocalMessage> Receive(int socket, const Patience& patience) {
  MeshHeaderBytes header{};
  if (Status received = ReceiveAll(socket, header, patience); !received) return received.error();
  const Result<MeshFrameHeader> lengths = DecodeMeshHeader(header);
  if (!lengths) return lengths.error();
  std::string bytes(lengths->message_bytes, '\0');
  if (Status received = ReceiveAll(socket, std::as_writable_bytes(std::span(bytes)), patience); !received) return received.error();
  kvmmesh::LocalMessage answer;
  if (lengths->payload_bytes != 0 || !answer.ParseFromString(bytes)) return MakeError(Errc::kProtocol, "kvmd-mesh's answer is not valid");
  return answer;
}

// A request that was sent, or why it was not.
class Asked {
 public:
  // Where the socket's queue is full, it waits no longer than `to_connect` says.
  Asked(const std::string& path, const kvmmesh::LocalMessage& request, const Patience& to_connect, const Patience& patience) {
    Result<UniqueFd> socket = Connect(path, to_connect);
    if (!socket) {
      sent_ = socket.error();
      return;
    }
    socket_ = std::move(*socket);
    uid_ = PeerUserOf(socket_.get());
    ReceiveInOrder(socket_.get());
    sent_ = Closer().Behind(uid_) ? MakeError(Errc::kUnavailable, "kvmd-mesh sends descriptors that can't be closed")
                                  : Send(socket_.get(), request, patience);
  }
  Asked(Asked&&) noexcept = default;
  Asked& operator=(Asked&&) = delete;
  ~Asked() {
    if (socket_) Closer().CloseSocket(uid_, std::move(socket_));
  }

  Result<kvmmesh::LocalMessage> Answer(const Patience& patience) const {
    if (!sent_) return sent_.error();
    return Receive(socket_.get(), patience);
  }

 private:
  UniqueFd socket_;
  std::uint32_t uid_ = kNoUser;
  Status sent_;
};

}  // namespace

Result<kvmmesh::LocalMessage> AskMesh(const std::string& socket_path, const kvmmesh::LocalMessage& request,
                                      std::chrono::steady_clock::time_point deadline, bool (*interrupted)()) {
  const Patience patience{deadline, interrupted};
  return Asked(socket_path, request, patience, patience).Answer(patience);
}

std::vector<Result<kvmmesh::LocalMessage>> AskMeshes(std::span<const std::string> socket_paths, const kvmmesh::LocalMessage& request,
                                                     std::chrono::steady_clock::time_point deadline) {
  const Patience patience{deadline, nullptr}, none{std::chrono::steady_clock::time_point::min(), nullptr};
  std::vector<Asked> asked;
  asked.reserve(socket_paths.size());
  for (const std::string& path : socket_paths) asked.emplace_back(path, request, none, patience);
  std::vector<Result<kvmmesh::LocalMessage>> answers;
  answers.reserve(asked.size());
  // What has come by the deadline is read after it, too.
  for (const Asked& each : asked) answers.push_back(each.Answer(patience));
  return answers;
}

}  // namespace kvm::mesh
