// How many fields a message has, before it is parsed.
#include <string>

#include "daemon/broker/field_count.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/wire.pb.h"
#include "tests/catch.h"
#include "tests/support/data/wire_schema.h"

using kvm::daemon::CountFields;
using kvm::daemon::kMaxFields;
using kvm::test::WireBytes;

TEST_CASE("Fields: those of a message, its body and a descriptor in it count", "[unit]") {
  kvmwire::ClientMessage message;
  CHECK(CountFields(message.SerializeAsString()) == 0);
  message.set_request_id(7);
  message.mutable_ping();
  CHECK(CountFields(message.SerializeAsString()) == 2);
  const auto fill = [](kvmwire::RegionDescriptor& descriptor) {
    descriptor.set_name("pool");
    for (int i = 0; i < 10; ++i) descriptor.add_parts()->set_count(1);  // whose fields do not count
    descriptor.add_segments()->set_handle(std::string(64, 'x'));
  };
  const std::size_t expected = 1 + 1 + 1 + (1 + 10 + 1);
  fill(*message.mutable_register_region()->mutable_region());
  CHECK(CountFields(message.SerializeAsString()) == expected);
  fill(*message.mutable_allocate_memory()->mutable_for_region());
  CHECK(CountFields(message.SerializeAsString()) == expected);
  fill(*message.mutable_adopt_region()->mutable_expected());
  CHECK(CountFields(message.SerializeAsString()) == expected);
}

TEST_CASE("Fields: the largest messages that there may be have few enough", "[unit]") {
  kvmwire::ClientMessage message;
  message.set_request_id(7);
  for (std::size_t i = 0; i < kvm::kMaxLeaseBatch; ++i) message.mutable_acquire_lease()->add_sources()->set_block(1);
  CHECK(CountFields(message.SerializeAsString()) < kMaxFields);
  // Each byte of which could begin a field.
  message.mutable_publish()->set_records(std::string(40 * kvm::kMaxPublishBatch, '\n'));
  CHECK(CountFields(message.SerializeAsString()) < 10);
}

TEST_CASE("Fields: the count ends beyond the limit, and where a message can't be read", "[unit]") {
  std::string inner;
  for (std::size_t i = 0; i < 3 * kMaxFields; ++i) inner += WireBytes(9, "");
  for (const int body : {int{kvmwire::ClientMessage::kPingFieldNumber}, int{kvmwire::ClientMessage::kStatsReportFieldNumber}, 5000})
    CHECK(CountFields(WireBytes(body, inner)) == kMaxFields + 1);
  CHECK(CountFields(inner) == kMaxFields + 1);
  const std::string whole = WireBytes(kvmwire::ClientMessage::kPingFieldNumber, WireBytes(500, "unheard of"));
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) CHECK(CountFields(whole.substr(0, bytes)) <= 2);
  CHECK(CountFields(std::string(100, '\xff')) == 0);
}
