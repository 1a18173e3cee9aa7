// What kvmd-mesh makes of etcd's messages and of entries, which any process may have written, and
// which members it keeps.
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "client/mesh/log/event_log.h"
#include "client/mesh/membership/etcd_members.h"
#include "client/mesh/membership/etcd_messages.h"
#include "client/mesh/membership/etcd_settings.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using mesh::EtcdMembers;
using mesh::EtcdPair;
using mesh::EtcdSettings;
using mesh::Member;
using mesh::ParseEtcdEntry;
using mesh::ParseEtcdList;
using mesh::ParseEtcdPutAnswer;
using mesh::ParseEtcdUrl;
using mesh::ParseEtcdWatchMessage;
using Time = EtcdMembers::Time;

boost::json::object Json(const std::string& text) { return boost::json::parse(text).as_object(); }

std::string Value(const std::string& node, const std::string& address, const std::string& domain = "uid:7") {
  return mesh::EncodeEtcdEntry({{node, address}, domain, 5});
}

EtcdPair Put(const std::string& node, const std::string& address = "127.0.0.1:7600") {
  return {mesh::EtcdKey("/p/", "uid:7", node), Value(node, address), 1, false};
}

EtcdPair Deleted(const std::string& node) { return {mesh::EtcdKey("/p/", "uid:7", node), "", 2, true}; }

std::vector<std::string> Names(const EtcdMembers& members) {
  std::vector<std::string> out;
  for (const Member& member : members.list()) out.push_back(member.node);
  return out;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("etcd messages: base64 is read as etcd writes it, and nothing else is", "[unit]") {
  for (const std::string text : {"", "a", "ab", "abc", "/kvmd-mesh/uid:7/a", "\xff\x00\x01"}) {
    const auto back = mesh::DecodeBase64(mesh::EncodeBase64(text));
    KVM_REQUIRE_OK(back);
    CHECK(*back == text);
  }
  CHECK(mesh::EncodeBase64("/k/a") == "L2svYQ==");
  for (const char* wrong : {"L2svYQ=", "L2svYQ", "L2 vYQ==", "L2svY===", "====", "L2s\nYQ==", "=2svYQ==", "L2-_YQ=="}) {
    CAPTURE(wrong);
    CHECK_FALSE(mesh::DecodeBase64(wrong));
  }
}

TEST_CASE("etcd messages: numbers come as strings or as numbers, and a missing one is 0", "[unit]") {
  const auto number = [](const std::string& text) { return mesh::EtcdNumber(Json(text), "n"); };
  CHECK(number(R"({"n":"18446744073709551615"})").value() == ~std::uint64_t{0});
  CHECK(number(R"({"n":5})").value() == 5);
  CHECK(number("{}").value() == 0);
  for (const char* wrong : {R"({"n":"5x"})", R"({"n":""})", R"({"n":-5})", R"({"n":"-5"})", R"({"n":"18446744073709551616"})",
                            R"({"n":5.5})", R"({"n":null})", R"({"n":[]})"}) {
    CAPTURE(wrong);
    CHECK_FALSE(number(wrong));
  }
}

TEST_CASE("etcd entry: what a node writes is read by others", "[unit]") {
  const auto entry = ParseEtcdEntry(Value("a", "[::1]:7600"), false);
  KVM_REQUIRE_OK(entry);
  CHECK(entry->member == Member{"a", "[::1]:7600"});
  CHECK(entry->domain == "uid:7");
  CHECK(entry->instance == 5);
  CHECK(mesh::EtcdKey("/p/", "uid:7", "a/b") == "/p/uid:7/a%2Fb");
}

TEST_CASE("etcd entry: the first address that can be used is", "[unit]") {
  const std::string value = R"({"node":"a","domain":"d","addresses":[7,"nonsense","0.0.0.0:1","127.0.0.1:0","224.0.0.1:5",)"
                            R"("192.0.2.1:7600","127.0.0.1:7600"],"instance":"1","later":{"x":[1]}})";
  CHECK(ParseEtcdEntry(value, true).value().member.address == "192.0.2.1:7600");
  // Without encryption those of other machines can't.
  CHECK(ParseEtcdEntry(value, false).value().member.address == "127.0.0.1:7600");
}

TEST_CASE("etcd entry: anything else is refused, with a reason", "[unit]") {
  const std::string good = R"({"node":"a","domain":"d","addresses":["127.0.0.1:1"],"instance":"1"})";
  KVM_REQUIRE_OK(ParseEtcdEntry(good, false));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string out = good;
    return out.replace(out.find(from), from.size(), to);
  };
  for (const std::string& wrong : {std::string(),
                                   std::string("{"),
                                   std::string("[]"),
                                   std::string("\xff\xfe"),
                                   good.substr(0, 40),
                                   with(R"("a")", R"("")"),
                                   with(R"("a")", R"("a b")"),
                                   with(R"("a")", R"("a=b")"),
                                   with(R"("a")", R"("disk")"),
                                   with(R"("a")", "\"" + std::string(64, 'a') + "\""),
                                   with(R"("a")", "5"),
                                   with(R"("d")", R"("")"),
                                   with(R"("d")", "\"" + std::string(256, 'd') + "\""),
                                   with(R"("127.0.0.1:1")", ""),
                                   with(R"("127.0.0.1:1")", R"("example.org:1")"),
                                   with(R"("127.0.0.1:1")", R"("192.0.2.1:1")"),
                                   with(R"(["127.0.0.1:1"])", R"("127.0.0.1:1")"),
                                   with(R"("127.0.0.1:1")", "\"" + std::string(65, '1') + "\""),
                                   with(R"("127.0.0.1:1")", R"("x:1","x:1","x:1","x:1","x:1","x:1","x:1","x:1","127.0.0.1:1")"),
                                   with(R"("1"})", R"("x"})"),
                                   with(R"("1"})", R"("1","more":")" + std::string(5000, 'x') + "\"}"),
                                   std::string(4000, '[')}) {
    CAPTURE(wrong.substr(0, 120));
    KVM_CHECK_ERROR(ParseEtcdEntry(wrong, false), Errc::kProtocol, "");
  }
}

TEST_CASE("etcd list: what is no list is refused as a whole", "[unit]") {
  const std::string header = R"("header":{"revision":"5","cluster_id":"9"})";
  const auto list = ParseEtcdList(Json("{" + header + R"(,"kvs":[{"key":"L2svYQ==","value":"djE=","mod_revision":"3"}],"more":true})"));
  KVM_REQUIRE_OK(list);
  REQUIRE(list->pairs.size() == 1);
  CHECK(list->pairs[0].key == "/k/a");
  CHECK(list->pairs[0].value == "v1");
  CHECK(list->pairs[0].modified == 3);
  CHECK(list->revision == 5);
  CHECK(list->cluster == 9);
  CHECK(list->more);
  KVM_REQUIRE_OK(ParseEtcdList(Json("{" + header + "}")));
  for (const std::string& wrong :
       {std::string("{}"), std::string(R"({"header":{}})"), std::string(R"({"header":[]})"), std::string(R"({"header":{"revision":"x"}})"),
        "{" + header + R"(,"kvs":{}})", "{" + header + R"(,"kvs":[5]})", "{" + header + R"(,"kvs":[{}]})",
        "{" + header + R"(,"kvs":[{"key":"!!!!"}]})", "{" + header + R"(,"kvs":[{"key":"L2svYQ==","value":"!"}]})",
        "{" + header + R"(,"kvs":[{"key":"L2svYQ==","mod_revision":{}}]})"}) {
    CAPTURE(wrong);
    KVM_CHECK_ERROR(ParseEtcdList(Json(wrong)), Errc::kProtocol, "");
  }
}

TEST_CASE("etcd watch: events, a compaction and errors are told apart", "[unit]") {
  const std::string header = R"("header":{"revision":"5","cluster_id":"9"})";
  const auto parse = [](const std::string& text) { return ParseEtcdWatchMessage(Json(text)); };
  CHECK(parse(R"({"result":{)" + header + R"(,"created":true}})").value().created);
  const auto events = parse(R"({"result":{)" + header +
                            R"(,"events":[{"kv":{"key":"L2svYQ==","value":"djE=","mod_revision":"4"}},)"
                            R"({"type":"DELETE","kv":{"key":"L2svYQ==","mod_revision":"5"}}]}})");
  KVM_REQUIRE_OK(events);
  REQUIRE(events->events.size() == 2);
  CHECK_FALSE(events->events[0].deleted);
  CHECK(events->events[0].value == "v1");
  CHECK(events->events[1].deleted);
  CHECK(events->events[1].modified == 5);
  const auto compacted = parse(R"({"result":{"header":{"cluster_id":"9"},"canceled":true,"compact_revision":"12"}})");
  KVM_REQUIRE_OK(compacted);
  CHECK(compacted->canceled);
  CHECK(compacted->compacted == 12);
  KVM_CHECK_ERROR(parse(R"({"error":{"grpc_code":14,"message":"etcdserver: no leader"}})"), Errc::kUnavailable, "no leader");
  KVM_CHECK_ERROR(parse("{}"), Errc::kUnavailable, "no result");
  for (const std::string& wrong :
       {R"({"result":{)" + header + R"(,"events":5}})", R"({"result":{)" + header + R"(,"events":[5]}})",
        R"({"result":{)" + header + R"(,"events":[{"kv":[]}]}})", R"({"result":{)" + header + R"(,"events":[{}]}})"}) {
    CAPTURE(wrong);
    KVM_CHECK_ERROR(parse(wrong), Errc::kProtocol, "");
  }
}

TEST_CASE("etcd transaction: an answer says whether the entry was put, and else the present one", "[unit]") {
  CHECK(ParseEtcdPutAnswer(Json(R"({"succeeded":true})")).value().put);
  const auto taken =
      ParseEtcdPutAnswer(Json(R"({"responses":[{"response_range":{"kvs":[{"key":"L2svYQ==","value":"djE=","mod_revision":"3"}]}}]})"));
  KVM_REQUIRE_OK(taken);
  CHECK_FALSE(taken->put);
  REQUIRE(taken->present);
  CHECK(taken->present->modified == 3);
  const auto gone = ParseEtcdPutAnswer(Json(R"({"responses":[{"response_range":{}}]})"));
  KVM_REQUIRE_OK(gone);
  CHECK_FALSE(gone->present);
  for (const char* wrong : {"{}", R"({"responses":5})", R"({"responses":[]})", R"({"responses":[5]})",
                            R"({"responses":[{"response_put":{}}]})", R"({"responses":[{"response_range":{"kvs":[7]}}]})"}) {
    CAPTURE(wrong);
    KVM_CHECK_ERROR(ParseEtcdPutAnswer(Json(wrong)), Errc::kProtocol, "");
  }
}

TEST_CASE("etcd members: those that vanish leave at once, and while etcd may have lost leases after a while", "[unit]") {
  EtcdMembers members("/p/", "uid:7", "a", false);
  const Time start{};
  CHECK(members.Replace({Put("a"), Put("b"), Put("c"), Put("d")}, false, start));
  CHECK(Names(members) == Words{"b", "c", "d"});  // without this node itself
  CHECK(members.Apply(Deleted("b"), start));
  CHECK(Names(members) == Words{"c", "d"});
  CHECK_FALSE(members.NextDeparture());

  members.KeepUntil(start + 10s);
  CHECK_FALSE(members.Apply(Deleted("c"), start + 1s));
  CHECK_FALSE(members.Replace({}, false, start + 2s));
  CHECK(Names(members) == Words{"c", "d"});
  CHECK(members.leaving() == 2);
  CHECK(members.NextDeparture() == start + 10s);
  CHECK_FALSE(members.Depart(start + 9s));
  // d is back; c is not.
  CHECK_FALSE(members.Apply(Put("d"), start + 9s));
  CHECK(members.Depart(start + 10s));
  CHECK(Names(members) == Words{"d"});
  CHECK(members.Apply(Deleted("d"), start + 10s));
}

TEST_CASE("etcd members: one that is leaving is kept longer if etcd is lost again meanwhile", "[unit]") {
  EtcdMembers members("/p/", "uid:7", "a", false);
  const Time start{};
  members.Replace({Put("b")}, false, start);
  members.KeepUntil(start + 10s);
  members.Replace({}, false, start + 1s);
  members.KeepUntil(start + 30s);
  CHECK_FALSE(members.Depart(start + 29s));
  CHECK(members.Depart(start + 30s));
}

TEST_CASE("etcd members: an entry that can't be used is left out, and its node keeps the address that it had", "[unit]") {
  EtcdMembers members("/p/", "uid:7", "a", false);
  const Time now{};
  EtcdPair junk = Put("b");
  CHECK(members.Apply(junk, now));
  junk.value = "junk";
  CHECK_FALSE(members.Apply(junk, now));
  CHECK(Names(members) == Words{"b"});
  EtcdPair foreign = Put("c");
  foreign.value = Value("c", "127.0.0.1:1", "uid:8");
  CHECK_FALSE(members.Apply(foreign, now));
  foreign.value = Value("d", "127.0.0.1:1");
  CHECK_FALSE(members.Apply(foreign, now));
  CHECK_FALSE(members.Apply({std::string(100'000, 'k'), "junk", 1, false}, now));
  CHECK_FALSE(members.Replace({junk}, false, now));
  CHECK(Names(members) == Words{"b"});
  CHECK(members.Apply(Put("b", "127.0.0.1:7700"), now));
  CHECK(members.list()[0].address == "127.0.0.1:7700");
}

TEST_CASE("etcd members: their number is bounded, and room is used once there is some", "[unit]") {
  EtcdMembers members("/p/", "uid:7", "a", false);
  const Time now{};
  std::vector<EtcdPair> many;
  for (std::size_t i = 0; i < EtcdMembers::kMaxMembers + 10; ++i) many.push_back(Put("n" + std::to_string(i)));
  members.Replace(many, true, now);
  CHECK(members.list().size() == EtcdMembers::kMaxMembers);
  CHECK(members.left_out());
  CHECK_FALSE(members.Apply(Put("late"), now));
  many.resize(5);
  members.Replace(many, false, now);
  CHECK(members.list().size() == 5);
  CHECK_FALSE(members.left_out());
  CHECK(members.Apply(Put("late"), now));
}

TEST_CASE("etcd settings: addresses of endpoints are read, and what is none is refused", "[unit]") {
  const auto check = [](const std::string& url, const std::string& host, const std::string& port, bool tls) {
    CAPTURE(url);
    const auto endpoint = ParseEtcdUrl(url);
    KVM_REQUIRE_OK(endpoint);
    CHECK(endpoint->host == host);
    CHECK(endpoint->port == port);
    CHECK(endpoint->tls == tls);
  };
  check("http://127.0.0.1:2379", "127.0.0.1", "2379", false);
  check("https://etcd.example.org/", "etcd.example.org", "2379", true);
  check("http://[::1]:99", "::1", "99", false);
  check("https://[2001:db8::1]", "2001:db8::1", "2379", true);
  for (const char* wrong : {"", "127.0.0.1:2379", "ftp://x:1", "http://", "http://:2379", "http://x:0", "http://x:65536", "http://x:1x",
                            "http://x:", "http://x:1/path", "http://u:p@x:1", "http://x y:1", "http://::1:5", "http://[x]:5",
                            "http://x:1?a", "http://x\r\n:1"}) {
    CAPTURE(wrong);
    KVM_CHECK_ERROR(ParseEtcdUrl(wrong), Errc::kInvalidArgument, "http");
  }
}

TEST_CASE("etcd settings: those that contradict each other are refused", "[unit]") {
  EtcdSettings good;
  good.endpoints = {"https://etcd.example.org:2379", "http://127.0.0.1:2379"};
  KVM_REQUIRE_OK(CheckEtcdSettings(good, false));
  KVM_REQUIRE_OK(CheckEtcdSettings(EtcdSettings(), false));
  const auto refused = [&](auto change, const char* why) {
    EtcdSettings settings = good;
    change(settings);
    KVM_CHECK_ERROR(CheckEtcdSettings(settings, false), Errc::kInvalidArgument, why);
  };
  refused([](EtcdSettings& s) { s.endpoints = {}, s.authority = "ca.pem"; }, "there is no --etcd");
  refused([](EtcdSettings& s) { s.endpoints = {}, s.advertise = "127.0.0.1:1"; }, "there is no --etcd");
  refused([](EtcdSettings& s) { s.endpoints.push_back("x"); }, "--etcd:");
  refused([](EtcdSettings& s) { s.endpoints.assign(17, "http://127.0.0.1:1"); }, "at most");
  refused([](EtcdSettings& s) { s.endpoints = {"http://127.0.0.1:1"}, s.authority = "ca.pem"; }, "https://");
  refused([](EtcdSettings& s) { s.certificate = "a.pem"; }, "both of them");
  refused([](EtcdSettings& s) { s.prefix = ""; }, "--etcd-prefix");
  refused([](EtcdSettings& s) { s.prefix = "a b"; }, "--etcd-prefix");
  refused([](EtcdSettings& s) { s.lease_ttl_s = 1; }, "--etcd-lease-ttl");
  // A password goes over the loopback and over TLS only.
  refused([](EtcdSettings& s) { s.endpoints = {"http://192.0.2.1:1"}, s.credentials = "file"; }, "unencrypted");
  EtcdSettings local = good;
  local.credentials = "file";
  KVM_REQUIRE_OK(CheckEtcdSettings(local, false));
}
