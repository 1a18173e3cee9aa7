#include "tests/support/kvmd/supervisor.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>

#include "tests/catch.h"
#include "tests/support/process/eventually.h"

namespace kvm::test {
namespace {

constexpr int kFirstPassedFd = 3;
constexpr int kOutOfTheWay = 2000;  // passed descriptors wait above those that the child overwrites

sockaddr_un Address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return address;
}

UniqueFd Bound(const std::string& path, int type) {
  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  REQUIRE(socket);
  const sockaddr_un address = Address(path);
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return socket;
}

bool SameFile(int a, int b) {
  return ::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_FILE, static_cast<unsigned long>(a), static_cast<unsigned long>(b)) == 0;
}

UniqueFd Duplicate(int fd, int from = 0) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, from)); }

}  // namespace

Supervisor::Supervisor(std::vector<std::string> options, std::vector<std::string> environment)
    : options_(std::move(options)), environment_(std::move(environment)) {
  listening_ = Bound(socket(), SOCK_STREAM);
  REQUIRE(::listen(listening_.get(), 1024) == 0);
  notify_ = Bound(dir() / "notify", SOCK_DGRAM);
  wake_.Reset(::eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { Listen(); });
  Start();
}

Supervisor::~Supervisor() {
  Kill();
  const std::uint64_t one = 1;
  // The thread would never end
  if (::write(wake_.get(), &one, sizeof(one)) != sizeof(one)) std::abort();
  thread_.join();
}

void Supervisor::Listen() {
  for (;;) {
    pollfd wait[2] = {{notify_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    ::poll(wait, 2, -1);
    if (wait[1].revents != 0) return;
    char text[4096];
    iovec bytes{text, sizeof(text)};
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = ::recvmsg(notify_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0) continue;
    std::vector<UniqueFd> fds;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      for (std::size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        fds.emplace_back(fd);
      }
    }
    HandleDatagram(std::string(text, static_cast<std::size_t>(got)), std::move(fds));
  }
}

void Supervisor::HandleDatagram(const std::string& text, std::vector<UniqueFd> fds) {
  bool store = false, remove = false;
  std::string name;
  std::istringstream lines(text);
  const std::lock_guard lock(mutex_);
  for (std::string line; std::getline(lines, line);) {
    ++heard_[line];
    store = store || line == "FDSTORE=1";
    remove = remove || line == "FDSTOREREMOVE=1";
    if (line.starts_with("FDNAME=")) name = line.substr(7);
  }
  // As systemd: a file that is stored is not stored again under another name.
  const auto same = [&](const auto& other) { return SameFile(other.second.get(), fds.front().get()); };
  if (store && fds.size() == 1 && std::none_of(stored_.begin(), stored_.end(), same)) stored_[name] = std::move(fds.front());
  if (remove) stored_.erase(name);
}

void Supervisor::Start() {
  const std::size_t ready = Heard("READY=1");
  StartUnwatched();
  const bool is_ready = Eventually([&] { return Heard("READY=1") > ready || !running(); }, std::chrono::seconds(60)) && running();
  INFO("kvmd " << (running() ? "runs" : "has ended") << ", its log:\n" << Log());
  REQUIRE(is_ready);
}

void Supervisor::HearAll() {
  const std::string own = "HEARD";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  (dir() / "notify").copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd sender(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::size_t before = Heard(own);
  REQUIRE(::sendto(sender.get(), own.data(), own.size(), 0, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) > 0);
  REQUIRE(Eventually([&] { return Heard(own) > before; }));
}

void Supervisor::StartUnwatched() {
  HearAll();
  std::vector<std::string> names{"kvmd.socket"};
  std::vector<UniqueFd> held;
  held.push_back(Duplicate(listening_.get(), kOutOfTheWay));
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, fd] : stored_) {
      names.push_back(name);
      held.push_back(Duplicate(fd.get(), kOutOfTheWay));
    }
  }
  std::vector<int> fds;
  for (const UniqueFd& fd : held) fds.push_back(fd.get());
  Exec(names, fds);
}

void Supervisor::Exec(const std::vector<std::string>& names, const std::vector<int>& fds) const {
  const std::vector<std::string> arguments = home_.CommandLine(options_);
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ":") + name;
  std::vector<std::string> environment{"NOTIFY_SOCKET=" + (dir() / "notify"), "LISTEN_FDS=" + std::to_string(fds.size()),
                                       "LISTEN_FDNAMES=" + joined};
  environment.insert(environment.end(), environment_.begin(), environment_.end());
  char pid_variable[32] = "LISTEN_PID=";
  std::vector<char*> argv, envp{pid_variable};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  for (const std::string& variable : environment) envp.push_back(const_cast<char*>(variable.c_str()));
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  const UniqueFd log(::open(home_.log_path().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  REQUIRE(log);
  const_cast<pid_t&>(pid_) = ::fork();
  REQUIRE(pid_ >= 0);
  if (pid_ > 0) return;
  // Between fork and exec: system calls only.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(log.get(), STDERR_FILENO);
  for (std::size_t i = 0; i < fds.size(); ++i) ::dup2(fds[i], kFirstPassedFd + static_cast<int>(i));
  char digits[16];
  int count = 0;
  for (pid_t rest = ::getpid(); rest > 0; rest /= 10) digits[count++] = static_cast<char>('0' + rest % 10);
  char* end = pid_variable + std::strlen(pid_variable);
  while (count > 0) *end++ = digits[--count];
  ::execve(argv[0], argv.data(), envp.data());
  ::_exit(127);
}

bool Supervisor::running() {
  if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
  return pid_ > 0;
}

void Supervisor::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void Supervisor::Signal(int signal) const { ::kill(pid_, signal); }

int Supervisor::Stop() {
  Signal(SIGTERM);
  int status = 0;
  const bool ended = Eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; });
  if (!ended) return -1;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::vector<std::string> Supervisor::Stored() const {
  std::vector<std::string> names;
  const std::lock_guard lock(mutex_);
  for (const auto& [name, fd] : stored_) names.push_back(name);
  return names;
}

void Supervisor::Put(const std::string& name, int fd) {
  const std::lock_guard lock(mutex_);
  stored_[name] = Duplicate(fd);
}

void Supervisor::Forget() {
  HearAll();
  const std::lock_guard lock(mutex_);
  stored_.clear();
}

std::size_t Supervisor::Heard(const std::string& line) const {
  const std::lock_guard lock(mutex_);
  const auto found = heard_.find(line);
  return found == heard_.end() ? 0 : found->second;
}

}  // namespace kvm::test
