#include "daemon/system/config_check.h"

#include <algorithm>
#include <sstream>
#include <tuple>

namespace kvm::daemon {
namespace {

// A key with its value, over several lines if the value is a list.
struct Statement {
  unsigned line = 0;
  std::string section;  // its title as it stands in the file, "[domain.NAME]"; empty: none
  std::string key;
  std::string text;  // with the ends of its lines
};

struct SectionTitle {
  std::string title;
  unsigned line = 0;
};

std::string Trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\r";
  const std::size_t begin = text.find_first_not_of(kSpace);
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// As CLI11 reads a file.
struct Parts {
  std::vector<Statement> statements;
  std::vector<SectionTitle> sections;
};

Parts Split(const std::string& text) {
  Parts parts;
  std::istringstream input(text);
  std::string raw, section;
  for (unsigned at = 1; std::getline(input, raw); ++at) {
    const std::string line = Trimmed(raw);
    if (line.empty() || line.front() == '#' || line.front() == ';') continue;
    if (line.front() == '[' && line.back() == ']') {
      section = line;
      parts.sections.push_back({line, at});
      continue;
    }
    const std::size_t equals = line.find('=');
    Statement statement{at, section, Trimmed(line.substr(0, equals)), line + "\n"};
    std::erase(statement.key, '"');
    std::string value = equals == line.npos ? "" : Trimmed(line.substr(equals + 1, line.find('#', equals) - equals - 1));
    if (value.size() > 1 && value.front() == '[') {
      for (; value.back() != ']' && std::getline(input, raw); ++at) {
        value += Trimmed(raw);
        statement.text += raw + "\n";
      }
    }
    parts.statements.push_back(std::move(statement));
  }
  return parts;
}

// The statements as a file, without those that `leave_out` names.
template <class LeaveOut>
std::string Joined(const Parts& parts, LeaveOut&& leave_out) {
  std::string text;
  const auto add = [&](const std::string& title) {
    for (const Statement& statement : parts.statements) {
      if (statement.section == title && !leave_out(statement)) text += statement.text;
    }
  };
  add("");
  for (const SectionTitle& each : parts.sections) {
    if (leave_out(Statement{each.line, each.title, "", ""})) continue;
    text += each.title + "\n";
    add(each.title);
  }
  return text;
}

// "--max-entries: Value …" is split into "max-entries" and "Value …".
ConfigFault FaultFrom(const std::string& said) {
  const std::size_t colon = said.find(": ");
  ConfigFault fault;
  if (colon != said.npos && (said.starts_with("--") || said.starts_with('['))) {
    fault.option = said.starts_with("--") ? said.substr(2, colon - 2) : said.substr(0, colon);
    fault.what = said.substr(colon + 2);
  } else {
    fault.what = said;
  }
  return fault;
}

// Faults of statements by themselves; what is said of a section's key names the section first.
void CheckEach(const Parts& parts, const std::function<std::string(const std::string&)>& fault_of, std::vector<ConfigFault>& faults) {
  for (const Statement& statement : parts.statements) {
    std::string alone = statement.text;
    if (!statement.section.empty()) {
      const bool names_someone = statement.key == "uids" || statement.key == "gids";
      alone = statement.section + "\n" + (names_someone ? "" : "uids = [1]\n") + statement.text;
    }
    const std::string said = fault_of(alone);
    if (said.empty()) continue;
    ConfigFault fault = FaultFrom(said);
    // Of a wrong title every key would say the same.
    if (!statement.section.empty() && said == fault_of(statement.section + "\nuids = [1]\n")) continue;
    if (fault.option.starts_with('[')) fault = FaultFrom(fault.what);
    faults.push_back({statement.line, (statement.section.empty() ? "" : statement.section + " ") + statement.key, fault.what});
  }
}

}  // namespace

std::vector<ConfigFault> FaultsOf(const std::string& text, const std::function<std::string(const std::string& text)>& fault_of) {
  const Parts parts = Split(text);
  std::vector<ConfigFault> faults;
  CheckEach(parts, fault_of, faults);
  // Then those of several statements together: a key that is there twice, a domain without users.
  std::vector<unsigned> left_out;
  left_out.reserve(faults.size());
  for (const ConfigFault& fault : faults) left_out.push_back(fault.line);
  std::vector<std::string> sections_left_out;
  const auto leave_out = [&](const Statement& statement) {
    return std::count(left_out.begin(), left_out.end(), statement.line) > 0 ||
           std::count(sections_left_out.begin(), sections_left_out.end(), statement.section) > 0;
  };
  for (;;) {
    const std::string said = fault_of(Joined(parts, leave_out));
    if (said.empty()) break;
    ConfigFault fault = FaultFrom(said);
    for (const SectionTitle& section : parts.sections) {
      if (section.title == fault.option) fault.line = section.line;
    }
    if (fault.line != 0) {
      // Where keys of it are wrong, what it lacks without them is no fault of its own.
      const bool named =
          std::any_of(faults.begin(), faults.end(), [&](const ConfigFault& each) { return each.option.starts_with(fault.option + " "); });
      sections_left_out.push_back(fault.option);
      if (named) continue;
    } else {
      for (const Statement& statement : parts.statements) {
        if (statement.section.empty() && statement.key == fault.option && !leave_out(statement)) fault.line = statement.line;
      }
      left_out.push_back(fault.line);
    }
    faults.push_back(fault);
    if (fault.line == 0) break;
  }
  std::sort(faults.begin(), faults.end(),
            [](const ConfigFault& a, const ConfigFault& b) { return std::tie(a.line, a.option) < std::tie(b.line, b.option); });
  return faults;
}

}  // namespace kvm::daemon
