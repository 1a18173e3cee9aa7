#include "daemon/system/notify_queue.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>

#include "daemon/system/log.h"
#include "daemon/system/work_meter.h"
#include "kvm/error.h"

namespace kvm::daemon {

void NotifyQueue::Send(Lane lane, std::string text, const std::string& name, int fd) { Put(lane, {std::move(text), name, fd, {}, {}}); }

void NotifyQueue::SendOwned(Lane lane, std::string text, const std::string& name, UniqueFd fd) {
  Item item{std::move(text), name, fd.get(), std::move(fd), {}};
  Put(lane, std::move(item));
}

void NotifyQueue::Put(Lane lane, Item item) {
  if (!lanes_.contains(lane) && !full_ && TrySend(item) == Outcome::kSent) return;
  const bool first = waiting_ == 0;
  PutLast(lanes_[lane], std::move(item));
  if (first && on_waiting_) on_waiting_();
}

void NotifyQueue::PutLast(Waiting& lane, Item item) {
  lane.items.push_back(std::move(item));
  ++waiting_;
  if (const std::string& name = lane.items.back().name; !name.empty()) lane.by_name[name] = std::prev(lane.items.end());
}

bool NotifyQueue::Cancel(Lane lane, const std::string& name) {
  const auto found = lanes_.find(lane);
  if (found == lanes_.end()) return false;
  Waiting& waiting = found->second;
  const auto item = waiting.by_name.find(name);
  if (item == waiting.by_name.end()) return false;
  waiting.items.erase(item->second);
  waiting.by_name.erase(item);
  --waiting_;
  if (waiting.items.empty()) lanes_.erase(found);
  return true;
}

void NotifyQueue::After(Lane lane, std::function<void()> then) {
  if (!lanes_.contains(lane)) return then();
  Item item;
  item.then = std::move(then);
  PutLast(lanes_[lane], std::move(item));
}

void NotifyQueue::AfterAll(const std::function<void()>& then) {
  if (lanes_.empty()) return then();
  const auto left = std::make_shared<std::size_t>(lanes_.size());
  for (auto& [lane, waiting] : lanes_) {
    Item item;
    item.then = [left, then] {
      if (--*left == 0) then();
    };
    PutLast(waiting, std::move(item));
  }
}

bool NotifyQueue::Feed(std::size_t most) {
  full_ = false;
  for (; !lanes_.empty() && most > 0; --most) {
    // kvmd's own first: they are few, and what others have stored refers to them.
    auto lane = lanes_.find(kOwnLane);
    if (lane == lanes_.end()) lane = lanes_.lower_bound(next_);
    if (lane == lanes_.end()) lane = lanes_.begin();
    std::list<Item>& items = lane->second.items;
    if (!items.front().then && TrySend(items.front()) == Outcome::kFull) return false;
    const Item sent = std::move(items.front());
    items.pop_front();
    lane->second.by_name.erase(sent.name);
    --waiting_;
    next_ = lane->first == kOwnLane ? next_ : lane->first + 1;
    if (items.empty()) lanes_.erase(lane);
    if (sent.then) sent.then();  // may put in more
  }
  return lanes_.empty();
}

bool NotifyQueue::Connect() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.empty() || path_.size() >= sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // abstract name
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
  // Connected, so that it polls writable when the other end takes more.
  if (!socket || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) return false;
  socket_ = std::move(socket);
  return true;
}

// What can't be sent for another reason than a full socket is lost, and so is what a next kvmd
// would have had of it.
NotifyQueue::Outcome NotifyQueue::TrySend(const Item& item) {
  Spend(kSystemCallUnits);
  for (int tries = 0; tries < 2; ++tries) {
    if (!socket_ && !Connect()) break;
    iovec text{const_cast<char*>(item.text.data()), item.text.size()};
    msghdr message{};
    message.msg_iov = &text;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    if (item.fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &item.fd, sizeof(item.fd));
    }
    if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return Outcome::kSent;
    // The kernel has no room for it now, or kvmd's user has too many descriptors in flight.
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ETOOMANYREFS) {
      full_ = true;
      return Outcome::kFull;
    }
    socket_.Reset();  // the service manager has made its socket anew
  }
  if (!item.name.empty())
    LogLimited(LogLevel::kWarn, "state_not_stored", {{"name", item.name}, {"reason", SystemError("service manager").ToString()}});
  return Outcome::kSent;
}

}  // namespace kvm::daemon
