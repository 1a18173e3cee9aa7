#include "tests/support/worker/remote_worker.h"

#include <grp.h>
#include <unistd.h>

#include <iostream>
#include <sstream>
#include <thread>

#include "tests/catch.h"
#include "tests/support/process/child_main.h"

namespace kvm::test {
namespace {

constexpr std::chrono::seconds kPatience{30};

std::vector<std::string> Words(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

void Answer(const std::string& text) { std::cout << text << std::endl; }

void AnswerStatus(const Status& status) { Answer(status ? "ok" : "error " + status.error().ToString()); }

// The one lease that a worker has; it ends before its client.
Lease& Held() {
  static Lease lease;
  return lease;
}

// One command; false ends the process.
bool Serve(Worker& worker, const std::vector<std::string>& words) {
  const std::string& verb = words.front();
  if (verb == "publish") {
    worker.Publish(words[1], static_cast<std::uint32_t>(std::stoul(words[2])));
    // It may only now notice that kvmd was away.
    Status flushed = worker.Flush();
    for (const Deadline deadline = After(kPatience); !flushed && flushed.error().code == Errc::kUnavailable && After({}) < deadline;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      flushed = worker.Flush();
    }
    AnswerStatus(flushed);
  } else if (verb == "publish-deferred") {
    Answer("ok " + std::to_string(worker.Publish(words[1], static_cast<std::uint32_t>(std::stoul(words[2]))).deferred));
  } else if (verb == "find") {
    Answer("ok " + std::to_string(worker.Find(words[1]).size()));
  } else if (verb == "import") {
    const ImportCheck check = worker.FindAndImport(words[1], static_cast<std::uint32_t>(std::stoul(words[2])));
    Answer("ok " + std::to_string(check.matched) + " " + std::to_string(check.valid) + " " + std::to_string(check.wrong));
  } else if (verb == "begin") {
    const auto first = static_cast<std::uint32_t>(std::stoul(words[1]));
    for (std::uint32_t i = 0; i < std::stoul(words[2]); ++i) worker.region().BeginWrite(first + i);
    Answer("ok");
  } else if (verb == "allocate") {
    static std::vector<std::shared_ptr<Region>> more;
    RegionOptions region;
    region.name = words[1];
    region.geometry = worker.region().geometry();
    const Result<std::shared_ptr<Region>> made = worker.client().AllocateRegion(worker.model(), region, After(kPatience));
    if (made) more.push_back(*made);
    AnswerStatus(made ? Status() : Status(made.error()));
  } else if (verb == "hold") {
    Result<Lease> lease = worker.client().AcquireLease(worker.Find(words[1]), std::chrono::milliseconds(std::stol(words[2])),
                                                       After(std::chrono::seconds(10)));
    Answer(lease ? "ok " + std::to_string(lease->blocks()) : "error " + lease.error().ToString());
    if (lease) Held() = std::move(*lease);
  } else if (verb == "mark") {
    static ComputingMark mark;
    mark = worker.client().MarkComputing(worker.Keys(words[1]), std::chrono::milliseconds(std::stol(words[2])));
    AnswerStatus(mark.Wait(After(kPatience)));
  } else if (verb == "release") {
    Held().Release();
    Answer("ok");
  } else if (verb == "unregister") {
    AnswerStatus(worker.region().Unregister(After(std::chrono::seconds(5))));
  } else if (verb == "wait-connected") {
    AnswerStatus(worker.client().WaitConnected(After(kPatience)));
  } else {
    return false;
  }
  return true;
}

int Main(const std::vector<std::string>& arguments) {
  WorkerOptions options;
  options.socket = arguments.at(0);
  options.name = arguments.at(1);
  options.blocks = static_cast<std::uint32_t>(std::stoul(arguments.at(2)));
  options.block_bytes = std::stoull(arguments.at(3));
  const auto uid = static_cast<uid_t>(std::stoul(arguments.at(4)));
  options.verify_one_in = static_cast<std::uint32_t>(std::stoul(arguments.at(5)));
  if (uid != 0 && (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0)) {
    Answer("error can't become user " + arguments.at(4));
    return 1;
  }
  Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
  Answer(worker ? "ok" : "error " + worker.error().ToString());
  if (!worker) return 1;
  for (std::string line; std::getline(std::cin, line);) {
    const std::vector<std::string> words = Words(line);
    if (words.empty() || !Serve(**worker, words)) break;
  }
  return 0;
}

const ChildMain kRegistered("worker", Main);

}  // namespace

RemoteWorker::RemoteWorker(const WorkerOptions& options, unsigned uid)
    : process_(
          ChildProcess::Self("worker", {options.socket, options.name, std::to_string(options.blocks), std::to_string(options.block_bytes),
                                        std::to_string(uid), std::to_string(options.verify_one_in)})) {
  const std::optional<std::string> started = process_.ReadLine(kPatience);
  INFO("worker process: " << started.value_or("no answer"));
  REQUIRE(started == "ok");
}

std::vector<std::string> RemoteWorker::Ask(const std::string& line) {
  INFO("worker process, asked: " << line);
  REQUIRE(process_.WriteLine(line));
  const std::optional<std::string> answer = process_.ReadLine(kPatience);
  INFO("answered: " << answer.value_or("nothing"));
  REQUIRE(answer.has_value());
  std::vector<std::string> words = Words(*answer);
  REQUIRE_FALSE(words.empty());
  REQUIRE(words.front() == "ok");
  return words;
}

void RemoteWorker::Publish(const std::string& prompt, std::uint32_t first_block) {
  Ask("publish " + prompt + " " + std::to_string(first_block));
}

std::size_t RemoteWorker::PublishDeferred(const std::string& prompt, std::uint32_t first_block) {
  return std::stoul(Ask("publish-deferred " + prompt + " " + std::to_string(first_block)).at(1));
}

std::size_t RemoteWorker::Find(const std::string& prompt) { return std::stoul(Ask("find " + prompt).at(1)); }

RemoteImport RemoteWorker::Import(const std::string& prompt, std::uint32_t first_block) {
  const std::vector<std::string> words = Ask("import " + prompt + " " + std::to_string(first_block));
  return {std::stoul(words.at(1)), std::stoul(words.at(2)), std::stoul(words.at(3))};
}

void RemoteWorker::BeginWrites(std::uint32_t first_block, std::uint32_t count) {
  Ask("begin " + std::to_string(first_block) + " " + std::to_string(count));
}

std::size_t RemoteWorker::AcquireLease(const std::string& prompt, std::chrono::milliseconds ttl) {
  return std::stoul(Ask("hold " + prompt + " " + std::to_string(ttl.count())).at(1));
}

void RemoteWorker::Mark(const std::string& prompt, std::chrono::milliseconds ttl) {
  Ask("mark " + prompt + " " + std::to_string(ttl.count()));
}

void RemoteWorker::Release() { Ask("release"); }

void RemoteWorker::Allocate(const std::string& name) { Ask("allocate " + name); }

void RemoteWorker::Unregister() { Ask("unregister"); }

void RemoteWorker::WaitConnected() { Ask("wait-connected"); }

}  // namespace kvm::test
