// kvctl exporter in front of a real kvmd with workers: scrapes over its sockets, and what they say.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <regex>
#include <sstream>
#include <string>

#include "client/kvctl/exporter/listening_sockets.h"
#include "client/kvctl/process/child_process.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/process/lingering_socket.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;

// A connection that the test speaks HTTP over, or half of it.
class Connection {
 public:
  static Connection ToPath(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof(address.sun_path));
    std::memcpy(address.sun_path, path.c_str(), path.size());
    return Connection(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  }
  static Connection ToPort(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return Connection(AF_INET, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  }
  bool open() const { return connected_; }

  void Send(const std::string& bytes) {
    for (std::size_t sent = 0; sent < bytes.size();) {
      const ssize_t size = ::send(socket_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      // The exporter ends the connection as soon as it has seen that a request is too long.
      if (size < 0 && (errno == EPIPE || errno == ECONNRESET)) return;
      REQUIRE(size > 0);
      sent += static_cast<std::size_t>(size);
    }
  }
  // One byte, with a descriptor.
  void SendWith(int fd, int flags = 0) { REQUIRE(SendRaw(socket_.get(), "G", {fd}, flags) == 1); }
  // To the end of the connection.
  std::string ReadAll() {
    std::string all(65536, '\0');
    std::string out;
    for (ssize_t size; (size = ::recv(socket_.get(), all.data(), all.size(), 0)) > 0;) out.append(all, 0, static_cast<std::size_t>(size));
    return out;
  }
  std::string Get(const std::string& target, const std::string& method = "GET", const std::string& host = "kvmd") {
    Send(method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n");
    return ReadAll();
  }

 private:
  Connection(int family, const sockaddr* address, socklen_t size) : socket_(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    REQUIRE(socket_);
    timeval patience{10, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    connected_ = ::connect(socket_.get(), address, size) == 0;
  }
  UniqueFd socket_;
  bool connected_ = false;
};

std::string BodyOf(const std::string& response) {
  const std::size_t end = response.find("\r\n\r\n");
  REQUIRE(end != response.npos);
  return response.substr(end + 4);
}

// The sum of a metric's series whose labels contain `labels`; none if there is no such series.
std::optional<double> Value(const std::string& text, const std::string& metric, const std::string& labels = "") {
  std::istringstream lines(text);
  std::optional<double> sum;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t name_end = line.find_first_of("{ ");
    if (line.substr(0, name_end) != metric || line.find(labels) == line.npos) continue;
    sum = sum.value_or(0) + std::stod(line.substr(line.rfind(' ') + 1));
  }
  return sum;
}

// kvctl exporter beside a kvmd.
struct Exporter {
  explicit Exporter(const KvmdProcess& kvmd, std::vector<std::string> options = {}) : path(kvmd.dir() / "exporter.sock") {
    options.insert(options.begin(), {"exporter", "--socket", kvmd.socket()});
    Result<ctl::ChildProcess> started = ctl::ChildProcess::Start(Kvctl(), options, {.log_path = log});
    KVM_REQUIRE_OK(started);
    process = std::move(*started);
    REQUIRE(Eventually([&] { return Connection::ToPath(path).open(); }));
  }
  std::string Scrape() const {
    const std::string response = Connection::ToPath(path).Get("/metrics");
    INFO(response);
    CHECK(response.starts_with("HTTP/1.1 200 OK\r\n"));
    CHECK(response.find("text/plain; version=0.0.4") != response.npos);
    return BodyOf(response);
  }
  // Of its TCP socket.
  std::uint16_t Port() const {
    // It listens before it says so.
    std::string said;
    std::smatch match;
    REQUIRE(Eventually([&] {
      said = ReadFile(log);
      return std::regex_search(said, match, std::regex("http://127.0.0.1:(\\d+)"));
    }));
    return static_cast<std::uint16_t>(std::stoi(match[1]));
  }

  Sandbox sandbox;
  std::string path, log = sandbox.path() / "exporter.log";
  ctl::ChildProcess process;
};

std::unique_ptr<Worker> StartWorker(const KvmdProcess& kvmd, const std::string& name) {
  Result<std::unique_ptr<Worker>> worker = Worker::Start({.socket = kvmd.socket(), .name = name});
  KVM_REQUIRE_OK(worker);
  return std::move(*worker);
}

}  // namespace

TEST_CASE("Exporter: counters and gauges follow what workers do", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  const std::string before = exporter.Scrape();
  CHECK(Value(before, "kvmd_up") == 1.0);
  CHECK(Value(before, "kvmd_clients") == std::nullopt);  // no domain was made for the exporter
  auto first = StartWorker(kvmd, "first"), second = StartWorker(kvmd, "second");
  first->Publish("a:8", 0);
  KVM_REQUIRE_OK(first->Flush());
  const std::vector<BlockKey> keys = second->Keys("a:8,b:2");
  const ImportCheck imported = second->Import(second->Find("a:8,b:2"), keys, 0);
  REQUIRE(imported.valid == 8);
  std::string text;
  // Workers report four times a second, and kvmd writes rows at its tick.
  CHECK(Eventually([&] {
    text = exporter.Scrape();
    return Value(text, "kvmd_imported_blocks_total", "source=\"worker\"") == 8.0;
  }));
  INFO(text);
  CHECK(Value(text, "kvmd_clients") == 2.0);
  CHECK(Value(text, "kvmd_registry_blocks") == 8.0);
  CHECK(Value(text, "kvmd_indexed_blocks_total") == 8.0);
  CHECK(Value(text, "kvmd_published_blocks_total") == 8.0);
  CHECK(Value(text, "kvmd_lookup_keys_total", "result=\"found\"") == 8.0);
  CHECK(Value(text, "kvmd_lookup_keys_total", "result=\"missed\"") == 2.0);
  CHECK(Value(text, "kvmd_imported_bytes_total") == 8 * 4096.0);
  CHECK(Value(text, "kvmd_device_imported_bytes_total", "from=\"host\",to=\"host\"") == 8 * 4096.0);
  CHECK(Value(text, "kvmd_pool_regions", "owner=\"worker\"") == 2.0);
  CHECK(Value(text, "kvmd_pool_blocks", "device=\"host\",path=\"host_memfd\"") == 128.0);
  CHECK(Value(text, "kvmd_pool_indexed_blocks", "model=\"" + first->model().spec.model_id + "\"") == 8.0);
  second->DropClient();
  CHECK(Eventually([&] { return Value(exporter.Scrape(), "kvmd_clients") == 1.0; }));
  // The sums keep what those have done that have left.
  CHECK(Value(exporter.Scrape(), "kvmd_imported_blocks_total") == 8.0);
}

TEST_CASE("Exporter: says that kvmd is down, and goes on with the next kvmd", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  const std::string first = exporter.Scrape();
  REQUIRE(Value(first, "kvmd_start_time_seconds").has_value());
  kvmd.Kill();
  const std::string down = exporter.Scrape();
  CHECK(Value(down, "kvmd_up") == 0.0);
  CHECK(Value(down, "kvmd_start_time_seconds") == std::nullopt);
  kvmd.Start();
  const std::string again = exporter.Scrape();
  CHECK(Value(again, "kvmd_up") == 1.0);
  CHECK(Value(again, "kvmd_start_time_seconds") > Value(first, "kvmd_start_time_seconds"));
  const std::string log = ReadFile(exporter.log);
  INFO(log);
  CHECK(log.find("can't reach kvmd") != log.npos);
  CHECK(log.find("kvmd answers again") != log.npos);
}

TEST_CASE("Exporter: its socket file has the mode that is asked for, and goes at its end", "[integration]") {
  KvmdProcess kvmd;
  Exporter exporter(kvmd, {"--listen-mode", "0600"});
  struct stat info {};
  REQUIRE(::stat(exporter.path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  ::kill(exporter.process.pid(), SIGTERM);
  REQUIRE(exporter.process.WaitFor(10s));
  CHECK(exporter.process.Succeeded());
  CHECK(::stat(exporter.path.c_str(), &info) != 0);
}

TEST_CASE("Exporter: serves a loopback address of TCP as well, if asked", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd, {"--listen-tcp", "127.0.0.1:0"});
  const std::string response = Connection::ToPort(exporter.Port()).Get("/metrics?name[]=kvmd_up", "GET", "127.0.0.1");
  CHECK(Value(BodyOf(response), "kvmd_up") == 1.0);
}

TEST_CASE("Exporter: its page names keys to those who may open its socket, and not over TCP", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd, {"--listen-tcp", "127.0.0.1:0"});
  auto seeker = StartWorker(kvmd, "seeker");
  REQUIRE(seeker->Find("a:1").empty());
  const std::string digits = seeker->Keys("a:1")[0].ToHex().substr(0, 12);
  CHECK(Eventually([&] { return Connection::ToPath(exporter.path).Get("/").find(digits) != std::string::npos; }));
  const std::string by_tcp = Connection::ToPort(exporter.Port()).Get("/", "GET", "127.0.0.1");
  CHECK(by_tcp.find("seeker") != std::string::npos);
  CHECK(by_tcp.find(digits) == std::string::npos);
}

TEST_CASE("Exporter: over TCP a foreign page's host name is not answered, a proxy's is if it is named", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd, {"--listen-tcp", "127.0.0.1:0", "--allow-host", "metrics.example"});
  const auto get = [&](const std::string& host) { return Connection::ToPort(exporter.Port()).Get("/metrics", "GET", host); };
  const std::string refused = get("page.example:9464");
  CHECK(refused.starts_with("HTTP/1.1 421 "));
  CHECK(refused.find("kvmd_up") == refused.npos);
  CHECK(get("").starts_with("HTTP/1.1 421 "));
  CHECK(get("localhost:9464").starts_with("HTTP/1.1 200 "));
  CHECK(get("Metrics.Example").starts_with("HTTP/1.1 200 "));
  Connection nameless = Connection::ToPort(exporter.Port());
  nameless.Send("GET /metrics HTTP/1.0\r\n\r\n");
  CHECK(nameless.ReadAll().find(" 421 ") != std::string::npos);
}

TEST_CASE("Exporter: over its socket, which a port may be forwarded to, a foreign page's host name is not answered", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd, {"--allow-host", "metrics.example"});
  const auto get = [&](const std::string& host) { return Connection::ToPath(exporter.path).Get("/", "GET", host); };
  CHECK(get("page.example:9464").starts_with("HTTP/1.1 421 "));
  for (const char* host : {"", "kvmd", "localhost:9464", "127.0.0.1:9464", "metrics.example"}) {
    INFO(host);
    CHECK(get(host).starts_with("HTTP/1.1 200 "));
  }
}

TEST_CASE("Exporter: other paths, methods and bytes are answered as HTTP says, and it goes on", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  const auto answer = [&](const std::string& target, const std::string& method = "GET") {
    return Connection::ToPath(exporter.path).Get(target, method);
  };
  CHECK(answer("/").find("href=\"/metrics\"") != std::string::npos);
  CHECK(answer("/").find("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-") !=
        std::string::npos);
  CHECK(answer("/metrics/").starts_with("HTTP/1.1 404 "));
  CHECK(answer("/../etc/passwd").starts_with("HTTP/1.1 404 "));
  CHECK(answer("/metrics", "DELETE").starts_with("HTTP/1.1 405 "));
  const std::string head = answer("/metrics", "HEAD");
  CHECK(head.starts_with("HTTP/1.1 200 OK\r\n"));
  CHECK(head.find("Content-Length: 0") == head.npos);
  CHECK(BodyOf(head).empty());
  for (const std::string& bad : {std::string("\r\n\r\n\x16\x03\x01"), "GET /metrics HTTP/1.1\r\n" + std::string(100'000, 'x') + "\r\n\r\n",
                                 std::string("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")}) {
    Connection connection = Connection::ToPath(exporter.path);
    connection.Send(bad);
    connection.ReadAll();
  }
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
}

TEST_CASE("Exporter: connections that say nothing hold up no other", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  std::vector<Connection> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(Connection::ToPath(exporter.path));
  silent[0].Send("GET /metr");
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
  // On one connection, one request after the other.
  Connection kept = Connection::ToPath(exporter.path);
  kept.Send("GET / HTTP/1.1\r\nHost: kvmd\r\n\r\n");
  const std::string both = kept.Get("/metrics");
  CHECK(both.find("href=\"/metrics\"") != both.npos);
  CHECK(both.find("\nkvmd_up 1\n") != both.npos);
}

// Where no connection ends for the next one, the 65th is closed at once, and for half a minute no
// client can ask: seen.
TEST_CASE("Exporter: as many connections as there may be, silent or not reading, keep no other out", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  std::vector<Connection> silent;
  for (int i = 0; i < 80; ++i) silent.push_back(Connection::ToPath(exporter.path));
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
  std::vector<Connection> deaf;
  std::string requests;
  for (int i = 0; i < 64; ++i) requests += "GET / HTTP/1.1\r\nHost: kvmd\r\n\r\n";
  for (int i = 0; i < 80; ++i) {
    deaf.push_back(Connection::ToPath(exporter.path));
    deaf.back().Send(requests);
  }
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
}

// The exporter gets the last descriptor of that socket. Where ReceiveBytes does not look before it
// reads, the exporter waits in the first two sections; where urgent bytes do not come in their
// order (ReceiveInOrder), in the third; and where BytesOnlySocket::close closes by itself, in the
// others: seen.
TEST_CASE("Exporter: a socket whose close waits for somebody stops no other client", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  LingeringSocket lingering;
  StoppedProcess stopped(exporter.process.pid());
  std::optional<Connection> hostile = Connection::ToPath(exporter.path);
  SECTION("in a request") { hostile->SendWith(lingering.socket.get()); }
  SECTION("behind a request") {
    hostile->Send("GET / HTTP/1.1\r\nHost: kvmd\r\n\r\n");
    hostile->SendWith(lingering.socket.get());
  }
  SECTION("with an urgent byte") {
    hostile->SendWith(lingering.socket.get(), MSG_OOB);
    hostile->Send("GET / HTTP/1.1\r\nHost: kvmd\r\n\r\n");  // with it, the kernel drops that byte
  }
  SECTION("behind what ends the connection") {
    hostile->Send("GET /metrics HTTP/1.1\r\n" + std::string(10'000, 'x'));
    hostile->SendWith(lingering.socket.get());
  }
  SECTION("behind a request that asks for the end of the connection") {
    hostile->Send("GET / HTTP/1.1\r\nHost: kvmd\r\nConnection: close\r\n\r\n");
    hostile->SendWith(lingering.socket.get());
  }
  lingering.socket.Reset();
  hostile.reset();
  stopped.Resume();
  for (int i = 0; i < 3; ++i) CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
}

// Where the exporter does not start its SocketCloser, each waits for the first one: seen.
TEST_CASE("Exporter: connections with descriptors leave none in it, though one's can't be closed", "[integration]") {
  KvmdProcess kvmd;
  const Exporter exporter(kvmd);
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);
  const int before = test::OpenFds(exporter.process.pid());
  LingeringSocket lingering;
  {
    StoppedProcess stopped(exporter.process.pid());
    Connection::ToPath(exporter.path).SendWith(lingering.socket.get());
    lingering.socket.Reset();
    stopped.Resume();
  }
  const UniqueFd any(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (int i = 0; i < 50; ++i) Connection::ToPath(exporter.path).SendWith(any.get());
  CHECK(Value(exporter.Scrape(), "kvmd_up") == 1.0);  // by now it has accepted all of them
  CHECK(Eventually([&] { return test::OpenFds(exporter.process.pid()) <= before; }));
}

// Where HttpServer closes the socket that it listens on itself, it waits: seen.
TEST_CASE("Exporter: a socket whose close waits for somebody keeps no exporter from ending", "[integration]") {
  KvmdProcess kvmd;
  Exporter exporter(kvmd);
  LingeringSocket lingering;
  StoppedProcess stopped(exporter.process.pid());
  std::vector<Connection> waiting;
  for (int i = 0; i < 60; ++i) waiting.push_back(Connection::ToPath(exporter.path));
  waiting.back().SendWith(lingering.socket.get());
  lingering.socket.Reset();
  REQUIRE(::kill(exporter.process.pid(), SIGTERM) == 0);
  stopped.Resume();
  CHECK(exporter.process.WaitFor(30s));
}

TEST_CASE("Exporter: takes the sockets that the service manager passes, and opens none itself", "[integration]") {
  KvmdProcess kvmd;
  const std::string path = kvmd.dir() / "passed.sock";
  ctl::ListeningSockets ours;
  KVM_REQUIRE_OK(ours.ListenOnPath(path, "0600"));
  std::vector<UniqueFd> sockets = ours.TakeSockets();
  const Sandbox sandbox;
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    ::dup2(sockets.front().get(), 3);
    ::fcntl(3, F_SETFD, 0);  // dup2 leaves it as it is if it was 3 before
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", "1", 1);
    ::execl(Kvctl().c_str(), "kvctl", "exporter", "--socket", kvmd.socket().c_str(), nullptr);
    ::_exit(127);
  }
  const std::string text = BodyOf(Connection::ToPath(path).Get("/metrics"));
  CHECK(Value(text, "kvmd_up") == 1.0);
  CHECK_FALSE(Connection::ToPath(kvmd.dir() / "exporter.sock").open());
  ::kill(pid, SIGTERM);
  int status = 0;
  CHECK(::waitpid(pid, &status, 0) == pid);
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("Exporter: a descriptor that does not listen is refused as a passed socket", "[integration]") {
  const Sandbox sandbox;
  const auto refused = sandbox.Run("exporter 3</dev/null", "LISTEN_FDS=1 LISTEN_PID=1 exec sh -c 'LISTEN_PID=$$ exec \"$0\" \"$@\"'");
  CHECK(refused.code == 1);
  CHECK(refused.err.find("descriptor 3") != std::string::npos);
}

TEST_CASE("Exporter: promtool finds nothing wrong with the metrics", "[integration]") {
  if (::system("command -v promtool >/dev/null") != 0) KVM_SKIP("no promtool here (scripts/install_deps.sh --metrics)");
  KvmdProcess kvmd({"--host-cache", "64M"});
  auto worker = StartWorker(kvmd, "worker");
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  const Sandbox sandbox;
  const auto once = sandbox.Run("exporter --once --socket " + kvmd.socket());
  REQUIRE(once.code == 0);
  CHECK(Value(once.out, "kvmd_pool_regions").has_value());
  const std::string file = sandbox.Write("metrics", once.out);
  const std::string said = sandbox.path() / "said";
  CHECK(::system(("promtool check metrics <" + file + " >" + said + " 2>&1").c_str()) == 0);
  CHECK(ReadFile(said).empty());
}
