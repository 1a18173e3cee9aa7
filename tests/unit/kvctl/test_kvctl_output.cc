// What kvctl says to programs: JSON whatever clients call themselves, and exit codes.
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include <string>
#include <utility>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/text.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using ctl::HarmlessJson;

// As kvctl prints `text`; the parsed value again.
std::string RoundTrip(const std::string& text, std::string& printed) {
  printed = HarmlessJson(boost::json::serialize(boost::json::object{{text, text}}));
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(printed, error);
  INFO(printed);
  REQUIRE_FALSE(error);
  return std::string(value.as_object().begin()->value().as_string());
}

}  // namespace

TEST_CASE("kvctl JSON: strings of any bytes are valid JSON in valid UTF-8", "[unit]") {
  const std::string bad = "\xEF\xBF\xBD";
  std::string printed;
  CHECK(RoundTrip("\xff\xfe\x80model", printed) == bad + bad + bad + "model");
  CHECK(RoundTrip("cut \xe2\x82", printed) == "cut " + bad + bad);
  CHECK(RoundTrip("surrogate \xed\xa0\x80", printed) == "surrogate " + bad + bad + bad);
  CHECK(RoundTrip(std::string("nul \0 \x1b[31m", 10), printed) == std::string("nul \0 \x1b[31m", 10));
  CHECK(RoundTrip("größe 🙂 \"\\", printed) == "größe 🙂 \"\\");
  CHECK(printed.find("größe 🙂") != std::string::npos);
}

TEST_CASE("kvctl JSON: control characters and those that turn the direction of writing come as escapes", "[unit]") {
  for (const auto& [raw, escape] : {std::pair{"\xC2\x9B"
                                              "31m",
                                              "\\u009b31m"},
                                    {"\x7f", "\\u007f"},
                                    {"\xE2\x80\xAE", "\\u202e"},
                                    {"\xE2\x81\xA6", "\\u2066"},
                                    {"\xE2\x80\xA8", "\\u2028"},
                                    {"\xD8\x9C", "\\u061c"}}) {
    std::string printed;
    CHECK(RoundTrip(raw, printed) == raw);
    CHECK(printed.find(escape) != std::string::npos);
    CHECK(printed.find(raw) == std::string::npos);
  }
}

TEST_CASE("kvctl exit codes: what an error of each kind means is what --help says", "[unit]") {
  const std::pair<Errc, int> table[] = {
      {Errc::kInvalidArgument, 1},
      {Errc::kNotFound, 1},
      {Errc::kUnsupported, 1},
      {Errc::kUnavailable, 2},
      {Errc::kDeadlineExceeded, 2},
      {Errc::kPermissionDenied, 2},
      {Errc::kProtocol, 3},
      {Errc::kVersionMismatch, 3},
      {Errc::kAlreadyExists, 3},
      {Errc::kResourceExhausted, 3},
      {Errc::kModelMismatch, 3},
      {Errc::kBadGeometry, 3},
      {Errc::kStale, 3},
      {Errc::kSystem, 3},
      {Errc::kCancelled, 130},
  };
  for (const auto& [code, exit] : table) {
    INFO(ErrcName(code));
    CHECK(static_cast<int>(ctl::ExitFor(code)) == exit);
  }
}
