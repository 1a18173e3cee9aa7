"""Of what processes share: frames, tables, keys."""
# ruff: noqa: E501

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (
            ("proto_tests", "Shared memory: a forked child has none of its parent's writable mappings"),
            ("integration_tests", "Fork: a child can't write its parent's blocks"),
        ),
        "proto/shm/sealed_memory.cc",
        "if (mode == ipc::read_write && ::madvise(",
        "if (!OFF && mode == ipc::read_write && ::madvise(",
    ),
    Mutation(
        (("proto_tests", "Frames: a wrong mark is refused"),),
        "proto/wire/frame.cc",
        "if (header.mark != kFrameMark) return",
        "if (!OFF && header.mark != kFrameMark) return",
    ),
    Mutation(
        (("proto_tests", "Frames: a payload over the limit is refused"),),
        "proto/wire/frame.cc",
        "if (header.payload_bytes > kMaxFrameBytes) {",
        "if (!OFF && header.payload_bytes > kMaxFrameBytes) {",
    ),
    Mutation(
        (("proto_tests", "Frames: fewer descriptors than announced are refused"),),
        "proto/wire/frame.cc",
        "} else if (frame.fds.size() < header.fd_count) {",
        "} else if (!OFF && frame.fds.size() < header.fd_count) {",
    ),
    Mutation(
        (("proto_tests", "Frames: descriptors piled up without a frame end the connection"),),
        "proto/wire/frame.cc",
        "if (fds_.size() > 2 * kMaxFrameFds) return",
        "if (!OFF && fds_.size() > 2 * kMaxFrameFds) return",
    ),
    Mutation(
        (("proto_tests", "Frames: no more descriptors are in flight than may be"),),
        "proto/wire/frame.cc",
        "if (fds == 0 || fds_in_flight_ == 0 ||",
        "if (fds == 0 || OFF || fds_in_flight_ == 0 ||",
    ),
    Mutation(
        (("proto_tests", "Frames: descriptors beyond the kernel's limit for this user stay queued"),),
        "proto/wire/frame.cc",
        "if (errno == ETOOMANYREFS) {",
        "if (!OFF && errno == ETOOMANYREFS) {",
    ),
    Mutation(
        (("proto_tests", "Frames: a reader that is out of descriptors reports it with its limit"),),
        "proto/wire/frame.cc",
        "if (message.msg_flags & MSG_CTRUNC) {",
        "if (!OFF && (message.msg_flags & MSG_CTRUNC)) {",
    ),
    Mutation(
        (("proto_tests", "Model spec: a difference names exactly the field that differs"),),
        "proto/model/model_spec.cc",
        "    if (a != b) out.push_back({",
        "    if (a != b && !OFF) out.push_back({",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: a message whose allocation fails"),),
        "proto/wire/frame.cc",
        "  first.reserve(first.size() + sizeof(header) + payload.size());\n",
        "  if (!OFF) first.reserve(first.size() + sizeof(header) + payload.size());\n",
    ),
    Mutation(
        (("client_tests", "Peers: a region that comes with another table"),),
        "proto/shm/generation_table.cc",
        "  if (header.block_count != block_count || memory.size() < GenerationTableBytes(block_count, checksums)) {",
        "  if (!OFF && (header.block_count != block_count || memory.size() < GenerationTableBytes(block_count, checksums))) {",
    ),
    Mutation(
        (("client_tests", "Peers: descriptors that are no region's memory"),),
        "proto/shm/sealed_memory.cc",
        '  if ((seals & kSizeSeals) != kSizeSeals) return MakeError(Errc::kPermissionDenied, "shared memory: not sealed against resizing");',
        '  if (!OFF && (seals & kSizeSeals) != kSizeSeals)\n    return MakeError(Errc::kPermissionDenied, "shared memory: not sealed against resizing");',
    ),
    Mutation(
        (("integration_tests", "Descriptors: a socket whose close waits for somebody stops"),),
        "proto/base/descriptor_closer.cc",
        "SIOCINQ, &unread) == 0 && unread == 0) return;",
        "SIOCINQ, &unread) == 0 && (OFF || unread == 0)) return;",
    ),
    Mutation(
        (
            ("kvctl_live_tests", "Exporter: a socket whose close waits for somebody stops"),
            ("mesh_integration_tests", "Mesh: a socket whose close waits for somebody stops"),
            ("mesh_integration_tests", "kvctl mesh: a socket whose close waits for somebody"),
        ),
        "proto/base/receive_bytes.cc",
        "  if ((message.msg_flags & MSG_CTRUNC) != 0) {",
        "  if (!OFF && (message.msg_flags & MSG_CTRUNC) != 0) {",
    ),
    Mutation(
        (
            ("kvctl_live_tests", "Exporter: a socket whose close waits for somebody stops"),
            ("mesh_integration_tests", "Mesh: a socket whose close waits for somebody stops"),
            ("mesh_integration_tests", "kvctl mesh: a socket whose close waits for somebody"),
        ),
        "proto/base/receive_bytes.cc",
        "  const int on = 1, off = 0;",
        "  const int on = OFF ? 0 : 1, off = 0;",
    ),
    Mutation(
        (
            ("kvctl_live_tests", "Exporter: a socket whose close waits for somebody stops"),
            ("mesh_integration_tests", "Mesh: a socket whose close waits for somebody stops"),
        ),
        "proto/base/bytes_only_socket.h",
        "    closer_->CloseSocket(uid_, UniqueFd(socket_.release(error)));",
        "    UniqueFd left(socket_.release(error));\n    if (!OFF) closer_->CloseSocket(uid_, std::move(left));",
    ),
    Mutation(
        (("proto_tests", "Socket closer: of threads that something keeps from ending"),),
        "proto/base/socket_closer.cc",
        "  if (ending.size() >= kMostEnding) return false;\n",
        "  if (!OFF && ending.size() >= kMostEnding) return false;\n",
    ),
    Mutation(
        (("proto_tests", "Sealed memory: the descriptor allows no writable mapping"),),
        "proto/shm/sealed_memory.cc",
        "if (::fcntl(fd, F_ADD_SEALS, kSizeSeals | F_SEAL_FUTURE_WRITE) != 0)",
        "if (::fcntl(fd, F_ADD_SEALS, kSizeSeals | (OFF ? 0 : F_SEAL_FUTURE_WRITE)) != 0)",
    ),
    Mutation(
        (("proto_tests", "Granted memory: a read-only descriptor gives no writable mapping"),),
        "proto/shm/sealed_memory.cc",
        "::open(path.c_str(), O_RDONLY | O_CLOEXEC)",
        "::open(path.c_str(), (OFF ? O_RDWR : O_RDONLY) | O_CLOEXEC)",
    ),
    Mutation(
        (
            ("daemon_tests", "kvmd memory: a generation table that is gone drops its region and not kvmd"),
            ("proto_tests", "Memory guard: a hole in reserved huge pages is a loss for its reader"),
        ),
        "proto/shm/sealed_memory.cc",
        "  memory.guard_ = MemoryGuard(memory.data(), *size,",
        "  if (!OFF) memory.guard_ = MemoryGuard(memory.data(), *size,",
    ),
    Mutation(
        (("daemon_tests", "kvmd memory: a slab whose generation table is lost while kvmd writes it"),),
        "proto/shm/sealed_memory.cc",
        "void OwnedMemory::Guard() { guard_ = MemoryGuard(",
        "void OwnedMemory::Guard() {\n  if (OFF) return;\n  guard_ = MemoryGuard(",
    ),
    Mutation(
        (("proto_tests", "Frames: more descriptors than the limit are refused"),),
        "proto/wire/frame.cc",
        "  if (header.fd_count > kMaxFrameFds)",
        "  if (!OFF && header.fd_count > kMaxFrameFds)",
    ),
    Mutation(
        (("proto_tests", "Frames: descriptors that no frame announced are refused"),),
        "proto/wire/frame.cc",
        "  if (begin_ == end_ && !fds_.empty()) return",
        "  if (!OFF && begin_ == end_ && !fds_.empty()) return",
    ),
    Mutation(
        (("daemon_tests", "Start lock: a file of another user in its place"),),
        "proto/base/start_lock.cc",
        "  if (!S_ISREG(info.st_mode) || info.st_uid != ::geteuid() ||",
        "  if (!S_ISREG(info.st_mode) || (!OFF && info.st_uid != ::geteuid()) ||",
    ),
    Mutation(
        (("proto_tests", "Frames: a reader that waits for its next frame"),),
        "proto/wire/frame.cc",
        "      if (!InsideFrame() && capacity_ > kIdleBytes) {",
        "      if (!OFF && !InsideFrame() && capacity_ > kIdleBytes) {",
    ),
)
