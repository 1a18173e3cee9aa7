// Running kvctl as a user does, in a directory of its own, and reading what it prints.
#pragma once

#include <stdlib.h>
#include <sys/wait.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include <filesystem>
#include <fstream>
#include <string>

#include "client/kvctl/process/child_process.h"
#include "tests/catch.h"
#include "tests/support/process/read_file.h"

namespace kvm::test {

// A program that is built next to the tests.
inline std::string ProgramBeside(const std::string& name) { return std::filesystem::path(*ctl::OwnBinary()).parent_path() / name; }
inline std::string Kvctl() { return ProgramBeside("kvctl"); }

// A directory for one test. It is also the TMPDIR of the programs that the test runs, so that files
// left there are found.
class Sandbox {
 public:
  Sandbox() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvctl-test-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
    std::filesystem::create_directory(path_ / "tmp");
  }
  ~Sandbox() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  struct Output {
    int code = -1;
    std::string out, err;

    boost::json::value Json() const {
      boost::json::error_code error;
      boost::json::value value = boost::json::parse(out, error);
      INFO(out);
      REQUIRE_FALSE(error);
      return value;
    }
  };

  // `arguments` and `environment` ("NAME=value …") as a shell reads them.
  Output Run(const std::string& arguments, const std::string& environment = "") const { return RunBeside("kvctl", arguments, environment); }
  Output RunBeside(const std::string& program, const std::string& arguments, const std::string& environment = "") const {
    const std::string command = "TMPDIR=" + Tmp().string() + " " + environment + " " + ProgramBeside(program) + " " + arguments + " >" +
                                (path_ / "out").string() + " 2>" + (path_ / "err").string();
    const int status = ::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(path_ / "out"), ReadFile(path_ / "err")};
  }

  std::filesystem::path Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
    return path_ / name;
  }
  std::filesystem::path Tmp() const { return path_ / "tmp"; }
  const std::filesystem::path& path() const { return path_; }
  bool NothingLeft() const { return std::filesystem::is_empty(Tmp()); }

 private:
  std::filesystem::path path_;
};

// Members of a JSON object; the test fails if there is no such member.
inline std::int64_t Number(const boost::json::value& value, const char* name) {
  INFO(name);
  const boost::json::value* member = value.as_object().if_contains(name);
  REQUIRE(member != nullptr);
  return member->to_number<std::int64_t>();
}

inline std::string Text(const boost::json::value& value, const char* name) {
  INFO(name);
  const boost::json::value* member = value.as_object().if_contains(name);
  REQUIRE(member != nullptr);
  return std::string(member->as_string());
}

}  // namespace kvm::test
