// kvctl top.
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <iostream>
#include <string>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/live/live.h"
#include "client/kvctl/live/status_feed.h"
#include "client/kvctl/live/top_page.h"
#include "client/kvctl/process/interrupt.h"

namespace kvm::ctl {
namespace {

constexpr std::size_t kDefaultLines = 24;

std::string TimeOfDay() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char text[16];
  std::strftime(text, sizeof(text), "%H:%M:%S", &local);
  return text;
}

std::size_t LinesOfTerminal() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 ? size.ws_row : kDefaultLines;
}

// A page of its own beside what the terminal showed before. Each drawing is one write over the last
// one, without a blank page in between, so that nothing flickers.
class Screen {
 public:
  Screen() { std::cout << "\x1b[?1049h\x1b[?25l" << std::flush; }
  ~Screen() { std::cout << "\x1b[?25h\x1b[?1049l" << std::flush; }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  void Draw(const std::vector<std::string>& lines) {
    std::string page = "\x1b[H";
    for (std::size_t i = 0; i < lines.size(); ++i) page += (i == 0 ? "" : "\r\n") + lines[i] + "\x1b[K";
    std::cout << page << "\x1b[J" << std::flush;
  }
};

}  // namespace

int RunTop(const CommonOptions& common, const LiveOptions& options) {
  if (common.json) return RunStat(common, options);
  StatusFeed feed(common, options.interval_s);
  if (Status begun = feed.Begin(); !begun) return Fail(begun.error());
  CatchInterrupts();
  std::optional<Screen> screen;
  if (::isatty(STDOUT_FILENO) == 1) screen.emplace();
  if (screen)
    screen->Draw(
        {"kvmd " + feed.status().server_version() + ": the first figures come after " + FormatFixed(options.interval_s, 1) + " s"});
  for (std::uint64_t page = 0; (options.count == 0 || page < options.count) && std::cout.good() && feed.Wait(); ++page) {
    const Result<Activity> activity = feed.Next();
    std::vector<std::string> lines;
    if (activity) {
      lines = TopPage(feed.status(), *activity, TimeOfDay(), screen ? LinesOfTerminal() : 0);
    } else {
      lines = {Fit(TimeOfDay() + " " + Printable(activity.error().ToString()), kPageColumns)};
    }
    if (screen) {
      screen->Draw(lines);
      continue;
    }
    if (page > 0) std::cout << '\n';
    for (const std::string& line : lines) std::cout << line << '\n';
    std::cout << std::flush;
  }
  return Interrupted() && !screen ? kInterrupted : kHealthy;
}

}  // namespace kvm::ctl
