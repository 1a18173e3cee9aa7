#include "client/kvctl/page/page_chart.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

// In the chart's own units; the page stretches it to the width that there is.
constexpr double kWidth = 600, kHeight = 120;
constexpr const char* kNothing = "<p class=none>No curve yet: it needs a second look at kvmd, by this page or by a scrape.</p>";

std::string Number(double value) { return FormatFixed(value, 1); }

std::string Begin(const std::string& title) {
  return "<svg viewBox=\"0 0 600 120\" preserveAspectRatio=none role=img aria-label=\"" + title + "\">";
}

// Each interval has the place of its time; the newest is at the right.
class Places {
 public:
  explicit Places(const std::deque<Interval>& intervals) : intervals_(intervals) {
    for (const Interval& interval : intervals) seconds_ += interval.seconds;
  }
  // Calls visit(interval, left, width).
  template <class Visit>
  void ForEach(Visit&& visit) const {
    double at = 0;
    for (const Interval& interval : intervals_) {
      const double width = kWidth * interval.seconds / seconds_;
      visit(interval, at, width);
      at += width;
    }
  }
  std::string Legend() const {
    return "<p class=axis><span>" + HumanSeconds(static_cast<std::uint64_t>(seconds_)) + " ago</span><span>now</span></p>";
  }

 private:
  const std::deque<Interval>& intervals_;
  double seconds_ = 0;
};

std::uint64_t Misses(const Interval& interval) { return std::accumulate(interval.misses.begin(), interval.misses.end(), std::uint64_t{0}); }

}  // namespace

std::string HitChart(const std::deque<Interval>& intervals) {
  if (intervals.empty()) return kNothing;
  const Places places(intervals);
  std::string lines, path;
  for (const double share : {0.25, 0.5, 0.75}) {
    const std::string y = Number(kHeight * (1 - share));
    lines += "<path class=grid d=\"M0 " + y + "H600\"/>";
  }
  // A time without lookups is a gap.
  bool drawn = false;
  places.ForEach([&](const Interval& interval, double left, double width) {
    if (interval.keys_looked_up == 0) {
      drawn = false;
      return;
    }
    const double found =
        static_cast<double>(std::min(interval.keys_found, interval.keys_looked_up)) / static_cast<double>(interval.keys_looked_up);
    const std::string y = Number(kHeight * (1 - found));
    path += (drawn ? "L" : "M") + Number(left) + " " + y + "H" + Number(left + width);
    drawn = true;
  });
  return "<div class=chart><p class=scale><span>100 %</span><span>50 %</span><span>0 %</span></p>" +
         Begin("Share of looked-up blocks that were found") + lines + "<path class=found d=\"" + path + "\"/></svg></div>" +
         places.Legend();
}

std::string MissChart(const std::deque<Interval>& intervals) {
  if (intervals.empty()) return kNothing;
  const Places places(intervals);
  double most = 0;
  for (const Interval& interval : intervals) most = std::max(most, static_cast<double>(Misses(interval)) / interval.seconds);
  std::string bars;
  places.ForEach([&](const Interval& interval, double left, double width) {
    double top = kHeight;
    for (std::size_t i = 0; i < kMissReasons.size(); ++i) {
      if (interval.misses[i] == 0) continue;
      const double height = kHeight * static_cast<double>(interval.misses[i]) / interval.seconds / most;
      top -= height;
      bars += "<rect class=m" + std::to_string(i) + " x=" + Number(left) + " y=" + Number(top) + " width=" + Number(width) +
              " height=" + Number(height) + "></rect>";
    }
  });
  return "<div class=chart><p class=scale><span>" + HumanCount(static_cast<std::uint64_t>(std::llround(most))) +
         "/s</span><span>0</span></p>" + Begin("Lookups that ended early, by reason") + bars + "</svg></div>" + places.Legend();
}

}  // namespace kvm::ctl
