// Wire messages: arbitrary bytes as a message of a client and of kvmd; what parses keeps its
// meaning when it is written and read again.
#include <google/protobuf/stubs/logging.h>

#include "proto/wire/wire.pb.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

template <class Message>
void RoundTrip(Bytes input) {
  Message message;
  if (!message.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  const std::string once = message.SerializeAsString();
  Message again;
  if (!again.ParseFromString(once)) Broken("a message that was written can be read");
  if (again.SerializeAsString() != once) Broken("a message read again is the same");
}

}  // namespace

void WireTarget(Bytes input) {
  const google::protobuf::LogSilencer quiet;  // it logs every string that is no UTF-8
  RoundTrip<kvmwire::ClientMessage>(input);
  RoundTrip<kvmwire::ServerMessage>(input);
}

std::vector<std::string> WireSeeds() {
  std::vector<std::string> out;
  kvmwire::ClientMessage client;
  client.set_request_id(1);
  client.mutable_hello()->set_protocol_version(1);
  client.mutable_hello()->set_client_name("worker");
  out.push_back(client.SerializeAsString());
  kvmwire::RegionDescriptor region;
  region.set_name("pool");
  region.set_fingerprint(std::string(32, 'f'));
  for (const std::uint32_t part : {0u, 1u, 0u, 1u, 0u}) region.add_shard(part);
  region.set_handle_kind(1);
  region.set_block_count(100);
  region.add_segments()->set_size_bytes(409600);
  region.add_parts()->set_chunk_bytes(4096);
  *client.mutable_register_region()->mutable_region() = region;
  out.push_back(client.SerializeAsString());
  client.mutable_publish()->set_records(std::string(80, 'r'));
  out.push_back(client.SerializeAsString());
  kvmwire::ServerMessage server;
  server.mutable_region_announce()->set_region(3);
  *server.mutable_region_announce()->mutable_descriptor_() = region;
  out.push_back(server.SerializeAsString());
  server.mutable_error()->set_message("no");
  out.push_back(server.SerializeAsString());
  return out;
}

}  // namespace kvm::fuzz
