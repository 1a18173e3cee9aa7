// The file of a mesh process's socket for workers: which one it replaces, and which it does not.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "client/mesh/node/serving/worker_socket.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh_request.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using mesh::WorkerSocket;

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  return address;
}

UniqueFd Listening(const std::string& path, int backlog) {
  const sockaddr_un address = AddressOf(path);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(socket.get(), backlog) == 0);
  return socket;
}

ino_t InodeOf(const std::string& path) {
  struct stat info {};
  REQUIRE(::lstat(path.c_str(), &info) == 0);
  return info.st_ino;
}

}  // namespace

TEST_CASE("Mesh worker socket: the file of a process that has ended is replaced, and removed at the end", "[unit]") {
  const test::TempDir dir;
  const std::string path = dir / "mesh.sock";
  Listening(path, 1).Reset();
  boost::asio::io_context io;
  {
    WorkerSocket socket(io);
    KVM_REQUIRE_OK(socket.Listen(path));
    struct stat info {};
    REQUIRE(::lstat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
  }
  CHECK(::access(path.c_str(), F_OK) != 0);
  CHECK(::access((path + ".lock").c_str(), F_OK) != 0);
}

TEST_CASE("Mesh worker socket: a process that listens keeps its file, even if its backlog is full", "[unit]") {
  const test::TempDir dir;
  const std::string path = dir / "mesh.sock";
  const UniqueFd listener = Listening(path, 0);
  const ino_t before = InodeOf(path);
  boost::asio::io_context io;
  {
    WorkerSocket socket(io);
    KVM_CHECK_ERROR(socket.Listen(path), Errc::kAlreadyExists, "another kvmd-mesh listens");
  }
  std::vector<UniqueFd> waiting;
  const sockaddr_un address = AddressOf(path);
  for (;;) {
    waiting.emplace_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) break;
    REQUIRE(waiting.size() < 64);
  }
  REQUIRE(errno == EAGAIN);
  WorkerSocket socket(io);
  KVM_CHECK_ERROR(socket.Listen(path), Errc::kAlreadyExists, "another kvmd-mesh listens");
  CHECK(InodeOf(path) == before);
}

// Where connect()'s EAGAIN is taken for an absent kvmd-mesh, the answer is that there is none:
// seen.
TEST_CASE("Mesh worker socket: a client waits while its queue is full", "[unit]") {
  const test::TempDir dir;
  const std::string path = dir / "mesh.sock";
  const UniqueFd listener = Listening(path, 0);
  const sockaddr_un address = AddressOf(path);
  std::vector<UniqueFd> waiting;
  for (;;) {
    waiting.emplace_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) break;
    REQUIRE(waiting.size() < 64);
  }
  kvmmesh::LocalMessage question;
  question.mutable_status_query();
  const auto ask = [&](std::chrono::milliseconds within) {
    return mesh::AskMesh(path, question, std::chrono::steady_clock::now() + within, nullptr);
  };
  KVM_CHECK_ERROR(ask(std::chrono::milliseconds(20)), Errc::kDeadlineExceeded, "");
  // Room comes, and with it an answer: that the connection is closed.
  std::thread accepting([&] {
    for (std::size_t left = waiting.size(); left > 0; --left) UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)).Reset();
  });
  KVM_CHECK_ERROR(ask(std::chrono::seconds(60)), Errc::kUnavailable, "kvmd-mesh");
  accepting.join();
  KVM_CHECK_ERROR(mesh::AskMesh(path + "x", question, std::chrono::steady_clock::now() + std::chrono::seconds(60), nullptr),
                  Errc::kUnavailable, "no kvmd-mesh");
}

TEST_CASE("Mesh worker socket: a file that is no stream socket stays", "[unit]") {
  const test::TempDir dir;
  boost::asio::io_context io;
  const std::string notes = dir / "notes.txt";
  std::ofstream(notes) << "important";
  {
    WorkerSocket socket(io);
    KVM_CHECK_ERROR(socket.Listen(notes), Errc::kAlreadyExists, "not a socket");
  }
  std::string text;
  std::ifstream(notes) >> text;
  CHECK(text == "important");
  // Of a process that takes datagrams, as systemd's journal does: connect says EPROTOTYPE.
  const std::string datagrams = dir / "datagrams.sock";
  const sockaddr_un address = AddressOf(datagrams);
  const UniqueFd journal(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(journal.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const ino_t before = InodeOf(datagrams);
  WorkerSocket socket(io);
  KVM_CHECK_ERROR(socket.Listen(datagrams), Errc::kSystem, "exists, connect");
  CHECK(InodeOf(datagrams) == before);
}

TEST_CASE("Mesh worker socket: what another process has put in its place is not removed at the end", "[unit]") {
  const test::TempDir dir;
  const std::string path = dir / "mesh.sock";
  boost::asio::io_context io;
  UniqueFd other;
  {
    WorkerSocket socket(io);
    KVM_REQUIRE_OK(socket.Listen(path));
    REQUIRE(::unlink(path.c_str()) == 0);
    other = Listening(path, 1);
  }
  CHECK(::access(path.c_str(), F_OK) == 0);
}
