// How many connections kvmd takes, of all and of one user.
#include "daemon/server/connection_quota.h"
#include "tests/catch.h"
#include "tests/support/kvmd/server_runner.h"

namespace kvm::daemon {
namespace {

using test::ServerRunner;
using test::WireClient;

TEST_CASE("kvmd connections: a user has a quota, all users together another, and closed connections leave both", "[unit]") {
  Config config;
  config.max_clients = 5;
  config.max_clients_per_user = 2;
  ConnectionQuota quota(config);
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_CHECK_ERROR(quota.Add(1000), Errc::kResourceExhausted, "too many clients of user 1000: the limit is 2 (--max-clients-per-user)");
  KVM_REQUIRE_OK(quota.Add(1001));
  KVM_REQUIRE_OK(quota.Add(1001));
  KVM_REQUIRE_OK(quota.Add(0));
  CHECK(quota.total() == 5);
  KVM_CHECK_ERROR(quota.Add(1002), Errc::kResourceExhausted, "too many clients: the limit is 5 (--max-clients)");
  quota.Remove(1000);
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_CHECK_ERROR(quota.Add(1000), Errc::kResourceExhausted, "--max-clients");
  quota.Remove(1002);  // has none
  CHECK(quota.total() == 5);
}

TEST_CASE("kvmd connections: without a quota of its own a user has a quarter, at least 64", "[unit]") {
  Config config;
  CHECK(ConnectionQuota(config).per_user() == 256);
  config.max_clients = 100;
  CHECK(ConnectionQuota(config).per_user() == 64);
  config.max_clients_per_user = 7;
  CHECK(ConnectionQuota(config).per_user() == 7);
}

TEST_CASE("kvmd: a connection above the user's limit is told the option, and there is room once another one ends", "[unit]") {
  Config config;
  config.max_clients_per_user = 2;
  const ServerRunner server(config);
  WireClient first = server.Join("1"), second = server.Join("2");
  CHECK(server.Connect().ReadGoodbye().find("--max-clients-per-user") != std::string::npos);
  CHECK(first.QueryStatus().has_value());
  second.Close();
  CHECK(test::Eventually([&] { return server.Connect().Hello().has_value(); }));
  const Result<kvmwire::StatusReply> status = first.QueryStatus();
  KVM_REQUIRE_OK(status);
  CHECK(status->rejected_connections() >= 1);
}

}  // namespace
}  // namespace kvm::daemon
