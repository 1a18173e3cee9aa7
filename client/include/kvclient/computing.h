// Blocks that are being computed: marks by which workers that meet the same prompt at the same time
// compute it once.
//
// A worker that is about to compute missing blocks marks their keys (Client::MarkComputing). Others
// see the mark when they look the keys up (FindOptions::computing, Match::being_computed), and may
// wait for the blocks, up to a bound that each chooses (Client::FindWaiting), or compute them. A
// mark is a hint and promises nothing: it ends with its time, its owner's connection or process, or
// when its owner ends it, whether or not the blocks have been published. kvmd bounds how many
// keys a client and a user may mark, and for how long. Any worker of the domain may mark any key;
// so a wait costs the bound at most, and after a wait in vain FindWaiting ignores that client's
// marks for a while.
//
// Of a prompt's keys, the first, the last and one in kMarkOneIn are marked, which the keys choose:
// a process that shares a part of the prompt sees a mark in it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvclient/types.h"

namespace kvm {

inline constexpr std::uint32_t kMarkOneIn = 16;

// The mark of the first missing block that has one, as a lookup saw it.
struct BeingComputed {
  // So many leading keys of the lookup will have blocks, once those of this mark are published: at
  // least one more than were found. In tokens: times the model's block_tokens
  std::size_t blocks = 0;
  std::chrono::milliseconds age{0};   // since the key was marked
  std::chrono::milliseconds left{0};  // until the mark ends by itself
  std::uint64_t client_id = 0;        // of the client that computes, as in kvctl clients
  bool own = false;                   // this client
};

// For how long FindWaiting waits for blocks that another client is computing.
struct WaitOptions {
  // How long to wait at most. Choose what computing the blocks would cost.
  std::chrono::milliseconds bound{0};
  // Wait only if that brings so many blocks more than are found.
  std::size_t min_blocks = 1;
};

// Made by Client::MarkComputing. Movable. Answered, Wait and End may be called from one thread at a
// time. It may outlive its Client.
class ComputingMark {
 public:
  ComputingMark() noexcept;  // marks nothing
  ~ComputingMark();          // ends the mark, without waiting
  ComputingMark(ComputingMark&&) noexcept;
  ComputingMark& operator=(ComputingMark&&) noexcept;  // ends the previous mark
  ComputingMark(const ComputingMark&) = delete;
  ComputingMark& operator=(const ComputingMark&) = delete;

  // Whether kvmd has answered, or never will. From then on lookups of all processes, this one too,
  // see who came first. Never waits.
  bool Answered() const noexcept;
  // Waits for that. kDeadlineExceeded. kUnavailable: not connected. kResourceExhausted: some keys
  // are not marked, the option named. kUnsupported: an older kvmd, or a forked child. kNotFound:
  // nothing was marked by this object, or it has ended.
  [[nodiscard]] Status Wait(Deadline deadline) const;
  // Ends the mark. Call it, or destroy the object, when the blocks are published or will not be.
  void End() noexcept;

  struct Impl;  // libkvclient's own
  explicit ComputingMark(std::shared_ptr<Impl> impl) noexcept;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvm
