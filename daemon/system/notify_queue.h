// NotifyQueue: what is still to be said to the service manager, and sent as fast as it listens.
//
// ServiceManager puts messages in; Server feeds the socket when it takes more. A service manager
// that needs milliseconds for each descriptor, as PID 1 does with a long store, never keeps kvmd's
// thread.
//
// Messages have lanes, one for each user and one for kvmd itself (kOwnLane). Within a lane they go
// out in order, so at any moment the store holds what kvmd would have left if it had died a little
// earlier; no lane waits for another one's length, since each has its turn. What must not happen
// before the store knows of it waits in the lane, too (After).
//
// Invariant: a message waits only while what it stores is kept. One that is not needed any more is
// taken back (Cancel), so the queue is as long as what kvmd keeps and what the store still has to
// drop.
//
// Owns its socket, and nothing that is stored. Single-threaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "proto/base/unique_fd.h"

namespace kvm::daemon {

class NotifyQueue {
 public:
  using Lane = std::uint32_t;  // a user
  static constexpr Lane kOwnLane = ~Lane{0};

  // `path`: NOTIFY_SOCKET; '@' begins an abstract name.
  explicit NotifyQueue(std::string path) : path_(std::move(path)) {}

  // Sends it at once if nothing of its lane waits and the socket takes it; else it waits. `fd`:
  // goes with it, and stays open until the message has been sent or taken back; -1: none. `name`:
  // of what is stored, for Cancel.
  void Send(Lane lane, std::string text, const std::string& name = "", int fd = -1);
  // The same with a descriptor that the queue closes.
  void SendOwned(Lane lane, std::string text, const std::string& name, UniqueFd fd);
  // Takes back the message that waits to store `name`. False: there is none, or it has been sent.
  bool Cancel(Lane lane, const std::string& name);
  // Runs `then` when everything of the lane so far has been sent: at once if nothing waits.
  void After(Lane lane, std::function<void()> then);

  // The same of all lanes.
  void AfterAll(const std::function<void()>& then);

  // Sends up to `most` messages. False: something is left, for when the socket takes more, or for
  // the next call.
  bool Feed(std::size_t most);
  // Whether the last Feed or Send has stopped because the socket is full; fd() then polls writable
  // later.
  bool full() const noexcept { return full_; }
  std::size_t waiting() const noexcept { return waiting_; }
  int fd() const noexcept { return socket_.get(); }  // -1: not made yet
  // Called when there is something to feed after there was nothing.
  void OnWaiting(std::function<void()> call) { on_waiting_ = std::move(call); }

 private:
  struct Item {
    std::string text, name;
    int fd = -1;
    UniqueFd owned;
    std::function<void()> then;  // instead of a message
  };
  struct Waiting {
    std::list<Item> items;
    // Messages that store something
    std::unordered_map<std::string, std::list<Item>::iterator> by_name;
  };
  enum class Outcome { kSent, kFull };

  void Put(Lane lane, Item item);
  void PutLast(Waiting& lane, Item item);
  Outcome TrySend(const Item& item);
  bool Connect();

  const std::string path_;
  UniqueFd socket_;
  std::function<void()> on_waiting_;
  std::map<Lane, Waiting> lanes_;  // those with something that waits
  Lane next_ = 0;                  // whose turn it is
  std::size_t waiting_ = 0;
  bool full_ = false;
};

}  // namespace kvm::daemon
