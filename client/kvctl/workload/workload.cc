#include "client/kvctl/workload/workload.h"

#include <algorithm>
#include <array>

#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

// A prompt under construction: text is named by (content, length), blocks by everything up to their
// end.
class Prompt {
 public:
  explicit Prompt(std::uint32_t block_tokens) : block_tokens_(block_tokens) {}

  // Appends `tokens` tokens of the text named `content`.
  void Append(std::uint64_t content, std::uint64_t tokens) {
    tokens_ += tokens;
    std::uint64_t offset = 0;
    while (offset < tokens) {
      const std::uint64_t taken = std::min<std::uint64_t>(block_tokens_ - filled_, tokens - offset);
      chain_ = Mix(Mix(chain_, content), Mix(offset, taken));
      offset += taken;
      filled_ += taken;
      if (filled_ < block_tokens_) continue;
      full_.push_back(Id());
      filled_ = 0;
    }
  }

  std::uint64_t tokens() const noexcept { return tokens_; }

  std::vector<std::uint64_t> Ids() const {
    std::vector<std::uint64_t> ids = full_;
    if (filled_ > 0) ids.push_back(Id());
    return ids;
  }

 private:
  // Traces are read by tools that keep numbers as doubles, so ids stay below 2^53.
  std::uint64_t Id() const noexcept { return chain_ >> 11; }

  std::uint32_t block_tokens_;
  std::uint64_t tokens_ = 0, filled_ = 0, chain_ = 0;
  std::vector<std::uint64_t> full_;
};

// The classes of texts; a text's name is its class and a number.
enum class Text : std::uint64_t { kSystem = 1, kMessage, kAnswer, kTemplate, kDocument, kQuestion, kTools, kTask, kToolOutput };
std::uint64_t Name(const WorkloadOptions& options, Text text, std::uint64_t number) {
  return Mix(Mix(options.seed, static_cast<std::uint64_t>(text)), number);
}

// A random length. Lengths of human and generated text are skewed: many are short, few are long.
std::uint64_t SkewedTokens(SplitMix& random, std::uint64_t mean, std::uint64_t least, std::uint64_t most) {
  return std::clamp(random.Skewed(mean), least, most);
}

// Draws ranks of [0, n), with a probability proportional to 1 / (rank + 1).
class Zipf {
 public:
  explicit Zipf(std::size_t n) {
    double sum = 0;
    for (std::size_t rank = 0; rank < n; ++rank) cumulative_.push_back(sum += 1.0 / static_cast<double>(rank + 1));
  }
  std::size_t Draw(SplitMix& random) const {
    const double at = random.Unit() * cumulative_.back();
    const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
    return std::min(static_cast<std::size_t>(found - cumulative_.begin()), cumulative_.size() - 1);
  }

 private:
  std::vector<double> cumulative_;
};

// A conversation or task, which goes on over several requests; a bounded number of them is active
// at a time.
struct Thread {
  Prompt prompt;
  std::uint64_t number = 0;
  std::uint64_t turns_left = 0;
  std::uint64_t steps = 0;
};

class Generator {
 public:
  explicit Generator(const WorkloadOptions& options) : options_(options), random_(Mix(options.seed, 0x5EED)) {}

  std::vector<Request> Run() {
    std::vector<Request> requests;
    requests.reserve(options_.requests);
    std::uint64_t now_us = 0;
    while (requests.size() < options_.requests) {
      Request request;
      switch (options_.workload) {
        case Workload::kChat: request = Chat(); break;
        case Workload::kRag: request = Rag(); break;
        case Workload::kAgents: request = Agents(); break;
      }
      request.timestamp_us = now_us;
      now_us += random_.Skewed(kMeanGapUs);
      requests.push_back(std::move(request));
    }
    return requests;
  }

 private:
  static constexpr std::size_t kConversations = 64, kSystemPrompts = 4, kTemplates = 6, kDocuments = 400, kTasks = 32, kAgentKinds = 5;
  static constexpr std::uint64_t kMeanGapUs = 50'000;       // between two requests of the node
  static constexpr std::uint64_t kContextTokens = 120'000;  // a thread that would exceed it ends

  Request Make(const Prompt& prompt, std::uint64_t output_tokens) const { return {0, prompt.tokens(), output_tokens, prompt.Ids()}; }

  // The thread of the next request: an existing one, or a new one that `begin` makes in a free or
  // finished place.
  template <class Begin>
  Thread& Continue(std::size_t most, Begin begin) {
    const std::size_t at = random_.Below(most);
    if (at >= threads_.size()) {
      threads_.push_back(begin());
      return threads_.back();
    }
    Thread& thread = threads_[at];
    if (thread.turns_left == 0 || thread.prompt.tokens() > kContextTokens) thread = begin();
    return thread;
  }

  Request Chat() {
    Thread& thread = Continue(kConversations, [&] {
      Thread fresh{Prompt(options_.block_tokens), next_number_++, random_.Between(2, 12), 0};
      const std::uint64_t system = random_.Below(kSystemPrompts);
      fresh.prompt.Append(Name(options_, Text::kSystem, system), 300 + 500 * system);
      return fresh;
    });
    const std::uint64_t turn = Mix(thread.number, thread.steps++);
    thread.turns_left--;
    thread.prompt.Append(Name(options_, Text::kMessage, turn), SkewedTokens(random_, 600, 10, 8000));
    const std::uint64_t answer = SkewedTokens(random_, 350, 5, 4000);
    Request request = Make(thread.prompt, answer);
    thread.prompt.Append(Name(options_, Text::kAnswer, turn), answer);
    return request;
  }

  Request Rag() {
    Prompt prompt(options_.block_tokens);
    const std::uint64_t chosen = random_.Below(kTemplates);
    prompt.Append(Name(options_, Text::kTemplate, chosen), 700 + 350 * chosen);
    std::array<std::uint64_t, 3> documents;
    for (std::uint64_t& document : documents) document = documents_.Draw(random_);
    // Retrievers sort documents by score, and popular ones score high for most questions.
    std::sort(documents.begin(), documents.end());
    const auto last = std::unique(documents.begin(), documents.end());
    for (auto it = documents.begin(); it != last; ++it) {
      prompt.Append(Name(options_, Text::kDocument, *it), 900 + Mix(options_.seed, *it) % 4000);
    }
    prompt.Append(Name(options_, Text::kQuestion, next_number_++), SkewedTokens(random_, 60, 8, 600));
    return Make(prompt, SkewedTokens(random_, 250, 10, 2000));
  }

  Request Agents() {
    Thread& thread = Continue(kTasks, [&] {
      Thread fresh{Prompt(options_.block_tokens), next_number_++, random_.Between(3, 15), 0};
      const std::uint64_t kind = random_.Below(kAgentKinds);
      fresh.prompt.Append(Name(options_, Text::kTools, kind), 6000 + 2500 * kind);
      fresh.prompt.Append(Name(options_, Text::kTask, fresh.number), SkewedTokens(random_, 400, 30, 4000));
      return fresh;
    });
    const std::uint64_t step = Mix(thread.number, thread.steps++);
    thread.turns_left--;
    const std::uint64_t call = SkewedTokens(random_, 150, 20, 1500);
    Request request = Make(thread.prompt, call);
    thread.prompt.Append(Name(options_, Text::kAnswer, step), call);
    thread.prompt.Append(Name(options_, Text::kToolOutput, step), SkewedTokens(random_, 1200, 40, 12'000));
    return request;
  }

  const WorkloadOptions options_;
  SplitMix random_;
  Zipf documents_{kDocuments};
  std::vector<Thread> threads_;
  std::uint64_t next_number_ = 0;
};

constexpr std::array<std::pair<std::string_view, Workload>, 3> kNames = {
    {{"chat", Workload::kChat}, {"rag", Workload::kRag}, {"agents", Workload::kAgents}}};

}  // namespace

std::optional<Workload> WorkloadFromName(std::string_view name) noexcept {
  for (const auto& [known, workload] : kNames) {
    if (known == name) return workload;
  }
  return std::nullopt;
}

std::string_view WorkloadName(Workload workload) noexcept {
  for (const auto& [name, known] : kNames) {
    if (known == workload) return name;
  }
  return "?";
}

std::vector<Request> GenerateWorkload(const WorkloadOptions& options) { return Generator(options).Run(); }

}  // namespace kvm::ctl
