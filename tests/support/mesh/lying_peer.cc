#include "tests/support/mesh/lying_peer.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <span>

#include "client/mesh/memory/checksum.h"
#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/mesh/loopback.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {
namespace {

bool ReceiveAll(int socket, void* to, std::size_t bytes, const std::atomic<bool>& stop) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    pollfd waiting{socket, POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0) {
      if (stop) return false;
      continue;
    }
    const ssize_t got = ::recv(socket, at, bytes, 0);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace

LyingPeer::LyingPeer(std::string node, std::string domain, std::vector<BlockKey> claimed, Lie lie)
    : node_(std::move(node)), domain_(std::move(domain)), lie_(std::move(lie)), listener_(ListenOnLoopback()), port_(PortOf(listener_)) {
  summary_.Update({claimed.begin(), claimed.end()});
  acceptor_ = std::jthread([this] { Accept(); });
}

LyingPeer::~LyingPeer() {
  stop_ = true;
  acceptor_.join();
}

PeerAnswer EndOf(const kvmmesh::Fetch& fetch) {
  PeerAnswer out;
  out.message.mutable_end()->set_request(fetch.request());
  out.message.mutable_end()->set_reason(kvmmesh::FetchEnd::COMPLETE);
  return out;
}

std::vector<PeerAnswer> HonestAnswer(const kvmmesh::Fetch& fetch) {
  std::vector<PeerAnswer> out;
  const std::size_t keys = mesh::DecodeKeys(fetch.keys()).value().size();
  for (std::uint32_t index = 0; index < keys; ++index) out.push_back(HonestBlock(fetch, index));
  out.push_back(EndOf(fetch));
  return out;
}

std::string LyingPeer::as_peer() const { return node_ + "=127.0.0.1:" + std::to_string(port_); }

void LyingPeer::Accept() {
  while (!stop_) {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0) continue;
    const int socket = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (socket >= 0) threads_.emplace_back([this, socket] { Serve(socket); });
  }
}

bool LyingPeer::Send(int socket, const PeerAnswer& answer) const {
  const std::string body = answer.message.SerializeAsString();
  const mesh::MeshHeaderBytes header = mesh::EncodeMeshHeader({static_cast<std::uint32_t>(body.size()), answer.payload.size()});
  std::string bytes(reinterpret_cast<const char*>(header.data()), header.size());
  bytes += body + answer.payload;
  const std::size_t step = answer.step_bytes == 0 ? bytes.size() : answer.step_bytes;
  for (std::size_t sent = 0; sent < bytes.size();) {
    if (answer.step_bytes != 0) std::this_thread::sleep_for(answer.pause);
    const std::size_t next = std::min(step, bytes.size() - sent);
    if (stop_ || ::send(socket, bytes.data() + sent, next, MSG_NOSIGNAL) != static_cast<ssize_t>(next)) return false;
    sent += next;
  }
  return true;
}

void LyingPeer::Serve(int socket) {
  const UniqueFd closes(socket);
  for (;;) {
    mesh::MeshHeaderBytes header{};
    if (!ReceiveAll(socket, header.data(), header.size(), stop_)) return;
    const auto lengths = mesh::DecodeMeshHeader(header);
    if (!lengths || lengths->payload_bytes != 0) return;
    std::string body(lengths->message_bytes, '\0');
    kvmmesh::PeerMessage asked;
    if (!ReceiveAll(socket, body.data(), body.size(), stop_) || !asked.ParseFromString(body)) return;
    if (asked.has_fetch()) {
      ++fetches_;
      for (const PeerAnswer& answer : lie_(asked.fetch()))
        if (!Send(socket, answer)) return;
    } else if (asked.has_summary_query() && asked.summary_query().disk() && disk_answer_) {
      ++summaries_;
      if (!Send(socket, *disk_answer_)) return;
    } else if (asked.has_summary_query() && summary_answer_) {
      ++summaries_;
      if (!Send(socket, *summary_answer_)) return;
    } else {
      PeerAnswer answer;
      answer.message = Answer(asked, answer.payload);
      if (!Send(socket, answer)) return;
      if (asked.has_summary_query()) ++summaries_;
    }
    if (closes_after_answers_ && !asked.has_hello()) return;
  }
}

kvmmesh::PeerMessage LyingPeer::Answer(const kvmmesh::PeerMessage& asked, std::string& payload) const {
  kvmmesh::PeerMessage out;
  if (asked.has_hello()) {
    out.mutable_hello()->set_version(mesh::kMeshVersion);
    out.mutable_hello()->set_node(node_);
    out.mutable_hello()->set_domain(domain_);
    return out;
  }
  const mesh::SummaryImage image = summary_.Answer(asked.summary_query().epoch(), asked.summary_query().sequence());
  out.mutable_summary()->set_epoch(image.epoch);
  out.mutable_summary()->set_sequence(image.sequence);
  out.mutable_summary()->set_snapshot(image.snapshot);
  out.mutable_summary()->set_buckets(image.buckets);
  out.mutable_summary()->set_keys(image.keys);
  payload = image.payload;
  return out;
}

PeerAnswer HonestBlocks(const kvmmesh::Fetch& fetch, std::uint32_t index, std::uint32_t count) {
  PeerAnswer out;
  const std::vector<BlockKey> keys = mesh::DecodeKeys(fetch.keys()).value();
  const std::uint64_t bytes = fetch.shape().block_bytes();
  out.payload.resize(bytes * count);
  kvmmesh::FetchedBlocks& blocks = *out.message.mutable_blocks();
  blocks.set_request(fetch.request());
  blocks.set_index(index);
  blocks.set_keys(mesh::EncodeKeys(std::span(keys).subspan(index, count)));
  blocks.set_bytes(bytes);
  const std::span<std::byte> payload = std::as_writable_bytes(std::span(out.payload));
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::span<std::byte> block = payload.subspan(i * bytes, bytes);
    FillContent(keys[index + i], 0, block.data(), block.size());
    blocks.add_checksums(mesh::BlockChecksum(block));
  }
  return out;
}

}  // namespace kvm::test
