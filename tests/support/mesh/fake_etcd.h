// As much of etcd's JSON gateway as kvmd-mesh uses, in this process: leases that do not end by
// themselves, one map of keys, watches. A test may have the next request of a path answered with
// any bytes instead.
#pragma once

#include <atomic>
#include <boost/json/object.hpp>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm::test {

class FakeEtcd {
 public:
  // Sent instead of an answer; then the connection is closed, or left open without another byte.
  struct Trick {
    std::string bytes;
    bool hang = false;
  };

  FakeEtcd();
  ~FakeEtcd();

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

  // For the next request of this path; several are used one after another. For "/v3/watch" the
  // bytes may also follow an answer that began well: see Line and StreamHeader.
  void Next(const std::string& path, Trick trick);
  bool Used(const std::string& path);     // whether all tricks for it have been
  int Requests(const std::string& path);  // so far
  // Requests need a token that only this user gets.
  void WantCredentials(const std::string& user, const std::string& password);
  void ForgetTokens();

  void Put(const std::string& key, const std::string& value);
  void Delete(const std::string& key);
  std::map<std::string, std::string> Entries();
  void EndLeases();  // all of them, with their keys
  void Compact();    // up to now
  // Another etcd, without data, whose revisions begin anew.
  void Replace();
  void CutWatches();

  static std::string Answer(const std::string& body, const std::string& status = "200 OK");
  static std::string StreamHeader();  // of an answer in chunks
  static std::string Chunk(const std::string& text);

 private:
  struct Entry {
    std::string value;
    std::uint64_t created = 0, modified = 0, lease = 0;
  };
  struct Event {
    std::uint64_t revision = 0;
    std::string key, value;
    bool deleted = false;
  };

  void Accept();
  void Serve(int socket);
  // Empty: the connection ends.
  std::string Reply(const std::string& path, const boost::json::object& request, const std::string& token);
  void Watch(int socket, const boost::json::object& request);
  boost::json::object Header() const;
  boost::json::object Range(const std::string& begin, const std::string& end, std::uint64_t limit) const;
  boost::json::object Transaction(const boost::json::object& request);
  void Change(const std::string& key, const std::string& value, std::uint64_t lease, bool deleted);
  void EndLease(std::uint64_t id);

  UniqueFd listener_;
  unsigned port_ = 0;
  std::mutex mutex_;
  std::map<std::string, std::deque<Trick>> tricks_;
  std::map<std::string, int> requests_;
  std::map<std::string, Entry> entries_;
  std::map<std::uint64_t, std::uint64_t> leases_;  // to their times
  std::vector<Event> events_;
  std::string user_, password_, token_;
  std::uint64_t revision_ = 1, compacted_ = 0, cluster_ = 7, next_lease_ = 1001;
  int watches_cut_ = 0, tokens_ = 0;
  std::atomic<bool> stop_{false};
  std::vector<std::jthread> threads_;
  std::jthread acceptor_;
};

}  // namespace kvm::test
