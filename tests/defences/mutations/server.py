"""Of kvmd's sockets, its turns, its log and its service manager."""

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (("daemon_tests", "kvmd: when its process dies a client is removed"),),
        "daemon/server/session.cc",
        "  if (pidfd < 0) return;\n",
        "  if (pidfd < 0 || OFF) return;\n",
    ),
    Mutation(
        (("fault_tests", "Restart: blocks of a worker that died meanwhile"),),
        "daemon/system/service_manager.cc",
        'if (has_store_) queue_->Send(user, "FDSTORE=1',
        'if (has_store_ && !OFF) queue_->Send(user, "FDSTORE=1',
    ),
    Mutation(
        (("fault_tests", "Host cache restart: blocks of a dead worker"),),
        "daemon/system/service_manager.cc",
        'if (has_store_) queue_->SendOwned(user, "FDSTORE=1',
        'if (has_store_ && !OFF) queue_->SendOwned(user, "FDSTORE=1',
    ),
    Mutation(
        (("daemon_tests", "kvmd: clients that stall before the hello or inside a frame"),),
        "daemon/server/session.cc",
        "return !paused_ && !backlog_ && frame_began_ < now &&",
        "return !OFF && !paused_ && !backlog_ && frame_began_ < now &&",
    ),
    Mutation(
        (("daemon_tests", "kvmd: a connection above the user's limit is told the option"),),
        "daemon/server/connection_quota.cc",
        "user != of_user_.end() && user->second >= per_user_)",
        "!OFF && user != of_user_.end() && user->second >= per_user_)",
    ),
    Mutation(
        (("daemon_tests", "Turns: a user with one task waits for one turn"),),
        "daemon/server/fair_turns.cc",
        "      order_.push_back(id);",
        "      OFF ? order_.push_front(id) : order_.push_back(id);",
    ),
    Mutation(
        (("daemon_tests", "Turns: a debt makes its user pass"),),
        "daemon/server/fair_turns.cc",
        "user.credit = std::min(user.credit + kTurn, kTurn);",
        "user.credit = OFF ? kTurn : std::min(user.credit + kTurn, kTurn);",
    ),
    Mutation(
        (("daemon_tests", "Notify queue: what the service manager does not take waits"),),
        "daemon/system/notify_queue.cc",
        "      full_ = true;\n      return Outcome::kFull;",
        "      full_ = true;\n      return OFF ? Outcome::kSent : Outcome::kFull;",
    ),
    Mutation(
        (("daemon_tests", "Notify queue: a user with one message does not wait"),),
        "daemon/system/notify_queue.cc",
        "    next_ = lane->first == kOwnLane ? next_ : lane->first + 1;\n",
        "    next_ = OFF ? 0 : lane->first == kOwnLane ? next_ : lane->first + 1;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: regions that come and go"),),
        "daemon/system/notify_queue.cc",
        "  if (found == lanes_.end()) return false;\n",
        "  if (found == lanes_.end() || OFF) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: what a user's connections leave unread together"),),
        "daemon/server/session.cc",
        "  return !grown || !loads_.TooManyBytes(credentials_.uid);\n",
        "  return !grown || OFF || !loads_.TooManyBytes(credentials_.uid);\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: a client that sends and does not read"),),
        "daemon/server/session.cc",
        "return KeptWaiting() || writer_.queued_bytes() > kPauseBytes ||",
        "return KeptWaiting() || (!OFF && writer_.queued_bytes() > kPauseBytes) ||",
    ),
    Mutation(
        (("daemon_tests", "Log sink: a pipe without a reader stops no writer"),),
        "proto/log/log_sink.cc",
        "  if (at_once_) return WriteAll(state_->fd, line);\n",
        "  if (at_once_ || OFF) return WriteAll(state_->fd, line);\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: two thousand quick connects leave no client"),),
        "daemon/server/server.cc",
        "    quota.Remove(uid);\n    sessions.erase(id);",
        "    if (!OFF) quota.Remove(uid);\n    sessions.erase(id);",
    ),
    Mutation(
        (("daemon_lack_tests", "kvmd lack of memory: whichever allocation fails"),),
        "daemon/server/server.cc",
        "  if (failed) std::rethrow_exception(failed);",
        "  if (failed && !OFF) std::rethrow_exception(failed);",
    ),
    Mutation(
        (("daemon_tests", "Log sink: a pipe whose reader has gone"),),
        "proto/base/detached_thread.h",
        "::pthread_sigmask(SIG_SETMASK, &all, &before);",
        "::pthread_sigmask(OFF ? SIG_UNBLOCK : SIG_SETMASK, &all, &before);",
    ),
    Mutation(
        (("integration_tests", "Log: a reader of kvmd's help that has gone"),),
        "daemon/main.cc",
        "  std::signal(SIGPIPE, SIG_IGN);\n",
        "  if (!OFF) std::signal(SIGPIPE, SIG_IGN);\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: of many that connect and drop"),),
        "daemon/server/acceptor.cc",
        "  while (count < kAtOnce) {",
        "  while (OFF || count < kAtOnce) {",
    ),
    Mutation(
        (("daemon_tests", "kvmd: of many that connect and drop"),),
        "daemon/server/acceptor.cc",
        "    if (!HasGone(socket.get())) {",
        "    if (OFF || !HasGone(socket.get())) {",
    ),
    Mutation(
        (("integration_tests", "Descriptors: a socket whose close waits for somebody stops"),),
        "daemon/server/session.cc",
        "    if (fd && !MayBeMemory(fd.get())) return MakeError",
        "    if (!OFF && fd && !MayBeMemory(fd.get())) return MakeError",
    ),
    Mutation(
        (("integration_tests", "Descriptors: from a user whose sockets can't be closed"),),
        "daemon/server/server.cc",
        "  if (closer.Behind(uid)) return",
        "  if (!OFF && closer.Behind(uid)) return",
    ),
    Mutation(
        (("integration_tests", "Descriptors: a socket whose close waits for somebody stops"),),
        "daemon/server/acceptor.cc",
        "    ReceiveInOrder(socket.get());\n",
        "    if (!OFF) ReceiveInOrder(socket.get());\n",
    ),
    Mutation(
        (("integration_tests", "Descriptors: a socket whose close waits for somebody keeps"),),
        "daemon/server/server.cc",
        "  closer.Close(kNoUser, UniqueFd(acceptor.release(ignored)));\n",
        "  UniqueFd left(acceptor.release(ignored));\n  if (!OFF) closer.Close(kNoUser, std::move(left));\n",
    ),
    Mutation(
        (("integration_tests", "Descriptors: a socket whose close waits for somebody keeps"),),
        "daemon/server/server.cc",
        "    if (socket) closer.CloseSocket(uid, std::move(socket));\n",
        "    if (socket && !OFF) closer.CloseSocket(uid, std::move(socket));\n",
    ),
    Mutation(
        (("integration_tests", "Descriptors: connections that are refused leave none"),),
        "daemon/server/server.cc",
        "    closer.StartForSockets();\n",
        "    if (!OFF) closer.StartForSockets();\n",
    ),
    Mutation(
        (("daemon_tests", "Fields: a frame full of them"),),
        "daemon/server/session.cc",
        "  if (fields > kMaxFields) return",
        "  if (fields > kMaxFields && !OFF) return",
    ),
    Mutation(
        (("daemon_tests", "Fields: those of a message, its body and a descriptor"),),
        "daemon/broker/field_count.cc",
        "      if (field == descriptor) Walk(",
        "      if (field == descriptor && !OFF) Walk(",
    ),
    Mutation(
        (("daemon_tests", "Memory freer: a kvmd that drops a domain for another one"),),
        "daemon/server/server.cc",
        " &memory_freer),",
        " OFF ? nullptr : &memory_freer),",
    ),
)
