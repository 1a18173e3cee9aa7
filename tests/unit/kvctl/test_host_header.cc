#include "client/kvctl/exporter/host_header.h"
#include "tests/catch.h"

using kvm::ctl::HostIsAllowed;

TEST_CASE("Host header: addresses and localhost are allowed, with and without a port", "[unit]") {
  for (const char* host : {"127.0.0.1", "127.0.0.1:9464", "[::1]", "[::1]:9464", "::1", "localhost", "LocalHost:1", "10.0.0.3:80"}) {
    INFO(host);
    CHECK(HostIsAllowed(host, {}));
  }
}

TEST_CASE("Host header: a name is refused unless it was named", "[unit]") {
  for (const char* host :
       {"", ":9464", "page.example", "page.example:9464", "localhost.page.example", "127.0.0.1.page.example", "[page]"}) {
    INFO(host);
    CHECK_FALSE(HostIsAllowed(host, {"metrics.example"}));
  }
  CHECK(HostIsAllowed("METRICS.example:443", {"metrics.example"}));
}
