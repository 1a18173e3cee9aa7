#include "proto/base/cgroup_paths.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "proto/base/text_files.h"

namespace kvm {
namespace {

namespace fs = std::filesystem;

// The most groups that a search for a group of unknown name looks at.
constexpr std::size_t kMostLookedAt = 20'000;

struct Membership {
  CgroupVersion version;
  std::string path;
};

struct Mount {
  std::vector<std::string> root;  // the group that it begins at
  std::string point;
};

std::vector<std::string> Components(std::string_view path) {
  std::vector<std::string> out;
  for (const std::string_view part : SplitText(path, '/')) {
    if (!part.empty()) out.emplace_back(part);
  }
  return out;
}

// mountinfo writes space, tab, newline and backslash as \ooo.
std::string Unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](std::size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool Lists(std::string_view options, std::string_view wanted) {
  const auto parts = SplitText(options, ',');
  return std::find(parts.begin(), parts.end(), wanted) != parts.end();
}

// A controller belongs to one hierarchy: v1's if one of its lines names the controller, else v2's.
std::optional<Membership> MembershipIn(std::string_view text) {
  std::optional<Membership> unified;
  for (const std::string_view line : SplitText(text, '\n')) {
    const std::size_t first = line.find(':'), second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string path(line.substr(second + 1));
    if (Lists(controllers, "memory")) return Membership{CgroupVersion::kV1, path};
    if (line.substr(0, first) == "0" && controllers.empty()) unified = Membership{CgroupVersion::kV2, path};
  }
  return unified;
}

// ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS; mounts that show
// most come first.
std::vector<Mount> MountsIn(std::string_view text, CgroupVersion version) {
  std::vector<Mount> mounts;
  for (const std::string_view line : SplitText(text, '\n')) {
    const std::vector<std::string_view> fields = SplitText(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 6 || fields.end() - dash < 4) continue;
    const bool wanted = version == CgroupVersion::kV2 ? dash[1] == "cgroup2" : dash[1] == "cgroup" && Lists(dash[3], "memory");
    if (wanted) mounts.push_back({Components(Unescape(fields[3])), Unescape(fields[4])});
  }
  const auto above = [](const Mount& mount) { return std::count(mount.root.begin(), mount.root.end(), ".."); };
  std::stable_sort(mounts.begin(), mounts.end(), [&](const Mount& a, const Mount& b) {
    return std::pair(-above(a), a.root.size()) < std::pair(-above(b), b.root.size());
  });
  return mounts;
}

std::string Join(const std::vector<std::string>& groups) {
  std::string out;
  for (const std::string& group : groups) out += "/" + group;
  return out;
}

// Every group has this file; a directory without it belongs to a mount that is covered by another
// one.
bool IsGroup(const std::string& path) {
  std::error_code error;
  return fs::exists(path + "/cgroup.procs", error);
}

bool HoldsThisProcess(const std::string& group) {
  const std::string pid = std::to_string(::getpid());
  for (const char* list : {"/cgroup.procs", "/cgroup.threads"}) {
    const Result<std::string> text = ReadTextFile(group + list);
    if (!text) continue;
    const auto lines = SplitText(*text, '\n');
    if (std::find(lines.begin(), lines.end(), pid) != lines.end()) return true;
  }
  return false;
}

// Finds the group of this process: it lies `depth` groups of unknown names below `at`, and then
// `rest` below those.
std::optional<std::vector<std::string>> SearchBelow(const std::string& at, std::size_t depth, const std::vector<std::string>& rest,
                                                    std::size_t& left) {
  if (depth == 0) return HoldsThisProcess(at + Join(rest)) ? std::optional(rest) : std::nullopt;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(at, fs::directory_options::skip_permission_denied, error)) {
    std::error_code ignored;
    if (!entry.is_directory(ignored) || entry.is_symlink(ignored)) continue;
    if (left == 0) return std::nullopt;
    --left;
    if (auto found = SearchBelow(entry.path().string(), depth - 1, rest, left)) {
      found->insert(found->begin(), entry.path().filename().string());
      return found;
    }
  }
  return std::nullopt;
}

// The path from the root of `mount` to `own`. Empty if `own` does not lie inside the mount.
std::optional<std::vector<std::string>> Below(const std::string& root, const Mount& mount, const std::vector<std::string>& own) {
  const auto [in_mount, in_own] = std::mismatch(mount.root.begin(), mount.root.end(), own.begin(), own.end());
  const std::vector<std::string> rest(in_own, own.end());
  if (std::find(rest.begin(), rest.end(), "..") != rest.end()) return std::nullopt;
  if (in_mount == mount.root.end()) return IsGroup(root + mount.point + Join(rest)) ? std::optional(rest) : std::nullopt;
  if (!std::all_of(in_mount, mount.root.end(), [](const std::string& part) { return part == ".."; })) return std::nullopt;
  std::size_t left = kMostLookedAt;
  return SearchBelow(root + mount.point, static_cast<std::size_t>(mount.root.end() - in_mount), rest, left);
}

// In the first namespace the root is the whole machine; in any other it is a group.
bool InFirstNamespace(const std::string& root) {
  std::error_code error;
  return fs::read_symlink(root + "/proc/self/ns/cgroup", error) == "cgroup:[4026531835]" && !error;
}

}  // namespace

Result<std::optional<CgroupPath>> FindMemoryCgroup(const std::string& root) {
  const Result<std::string> groups = ReadTextFile(root + "/proc/self/cgroup"), mountinfo = ReadTextFile(root + "/proc/self/mountinfo");
  if (!groups) {
    // A kernel without control groups has no such file; a process without /proc can't know.
    if (groups.error().code == Errc::kNotFound && mountinfo) return std::optional<CgroupPath>();
    return MakeError(Errc::kSystem, "which control group limits this process can't be told: " + groups.error().ToString());
  }
  const std::optional<Membership> membership = MembershipIn(*groups);
  if (!membership) return std::optional<CgroupPath>();
  const std::vector<std::string> own = Components(membership->path);
  if (own.empty() && InFirstNamespace(root)) return std::optional<CgroupPath>();
  if (!mountinfo) return MakeError(Errc::kSystem, "where control groups are mounted can't be told: " + mountinfo.error().ToString());
  for (const Mount& mount : MountsIn(*mountinfo, membership->version)) {
    if (auto below = Below(root, mount, own)) return std::optional(CgroupPath{membership->version, mount.point, std::move(*below)});
  }
  return MakeError(Errc::kUnsupported, "the memory limit of control group " + membership->path + " can't be told: no mount of " +
                                           (membership->version == CgroupVersion::kV2 ? "cgroup2" : "cgroup (memory)") + " shows it here");
}

}  // namespace kvm
