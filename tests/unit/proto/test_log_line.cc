#include "proto/log/log_line.h"

#include <string>

#include "tests/catch.h"

using kvm::FormatLogLine;

TEST_CASE("Log line: values can't forge lines or fields", "[unit]") {
  CHECK(FormatLogLine("joined", {{"name", "worker-1"}, {"pid", 7}}) == "event=joined name=worker-1 pid=7");
  CHECK(FormatLogLine("joined", {{"name", "a\nevent=forged x=1"}}) == "event=joined name=\"a\\x0aevent=forged x=1\"");
  CHECK(FormatLogLine("joined", {{"name", "say \"hi\" \\"}}) == "event=joined name=\"say \\\"hi\\\" \\\\\"");
  CHECK(FormatLogLine("joined", {{"name", ""}}) == "event=joined name=\"\"");
  CHECK(FormatLogLine("joined", {{"name", "\x1b[2J\xff"}}) == "event=joined name=\"\\x1b[2J\\xff\"");
  CHECK(FormatLogLine("joined", {{"name", std::string(1000, 'x')}}).size() < 400);
}
