#!/usr/bin/env python3
"""Fails when a document names what is not there: a relative link, an anchor, a file, or a function or class.

    check_docs.py --source DIR     README.md, the documents of the root and of docs/; docs/OPERATIONS.md has each counter
                                   of a client once, and a row with each event of the logs of kvmd and kvmd-mesh
    check_docs.py --options KVMD   docs/OPERATIONS.md has a row with each option of this kvmd, and with no other
    check_docs.py --self-test      that each rule can fail

A text in backticks counts as a path if it begins with one of the tree's folders or include folders, and as a name of
the code if it is written Class::Member. `a/{b,c}.h` stands for both files, `*` for any name. check_comments.py has the
words that no document may use; CHANGELOG.md is exempt, since it names old ones. Prints one line per finding and exits 1
if there are any.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

from check_comments import WORDS, instead

FOLDERS = ("proto", "cuda", "daemon", "client", "tests", "docs", "scripts", "systemd", ".ci")
# How documents write paths besides from the root: includes, and a test by its folder.
ROOTS = {
    "kvm": ("proto/include", "cuda/include"),
    "kvclient": ("client/include", "client/python"),
    **dict.fromkeys(("unit", "integration", "fault", "gpu", "fuzz", "python", "model", "layers"), ("tests",)),
    "internals": ("docs",),
}
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".py", ".proto", ".pml"}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
ANCHOR = re.compile(r'<a id="([^"]+)">')
PATH = re.compile(r"^[\w.*{},/-]+$")
LOG_CALL = re.compile(r"\b(?:Log|LogLimited|LogEvent|LogException|LogRefused|LogLine)\(([^{;]*)")
EVENT = re.compile(r'"([a-z]+(?:_[a-z]+)*)"')
MEMBER = re.compile(r"^[A-Z]\w*(::~?\w+)+(\(.*\))?$")


def documents(root):
    """Every document that a reader is led to."""
    yield from sorted(root.glob("*.md"))
    yield from sorted((root / "docs").rglob("*.md"))
    yield from sorted((root / "client").rglob("README.md"))


def alternatives(path):
    """`a/{b,c}.h` as both paths."""
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        return [path]
    return [
        each
        for option in match[1].split(",")
        for each in alternatives(path[: match.start()] + option + path[match.end() :])
    ]


def exists(root, path):
    """Whether a path, from the root or from one of ROOTS, names something."""
    top = path.split("/", 1)[0]
    places = [root] if top in FOLDERS else []
    places += [root / folder for folder in ROOTS.get(top, ())]
    return any(any(place.glob(path.rstrip("/"))) for place in places)


def looks_like_path(text):
    """Whether a text in backticks is meant as a path of this repository."""
    if "/" not in text or PATH.match(text) is None:
        return False
    first, last = text.split("/", 1)[0], text.rsplit("/", 1)[1]
    return first in FOLDERS or (first in ROOTS and "." in last)


def slug(heading):
    """The anchor that a heading gets."""
    plain = re.sub(r"[`*]|<[^>]*>", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(text):
    """All anchors of a document."""
    plain = FENCE.sub("", text)
    return {slug(each) for each in HEADING.findall(plain)} | set(ANCHOR.findall(plain))


class Sources:
    """The text of all sources, asked for names."""

    def __init__(self, root):
        self._texts = []
        for folder in ("proto", "cuda", "daemon", "client"):
            for path in sorted((root / folder).rglob("*")):
                if path.suffix in SUFFIXES:
                    self._texts.append(path.read_text(encoding="utf-8", errors="replace"))
        self._all = "\n".join(self._texts)
        self._known = {}

    def has(self, name):
        """Whether ``Class::Member`` is written out somewhere, or Member in the body of Class."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name):
        owner, member = name.split("::")[-2:]
        if f"{owner}::{member}" in self._all:
            return True
        declared = re.compile(rf"\b(?:class|struct|enum class|namespace) {re.escape(owner)}\b[^;{{]*{{")
        used = re.compile(rf"(?<!\w){re.escape(member)}\b")
        for text in self._texts:
            for match in declared.finditer(text):
                end = text.find("\n}", match.end())
                if used.search(text, match.end(), end if end >= 0 else len(text)):
                    return True
        return False


def check(root):
    """One line for each thing that a document names and that is not there."""
    sources = Sources(root)
    for document in documents(root):
        name = document.relative_to(root).as_posix()
        text = document.read_text(encoding="utf-8")
        prose = FENCE.sub("", text)
        for target in LINK.findall(CODE.sub("", prose)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.parent / path) if path else document
            if not file.exists():
                yield f"{name}: links to {target}, which is not there"
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                yield f"{name}: links to {target}, which has no such heading"
        if name == "CHANGELOG.md":
            continue
        for code in CODE.findall(prose):
            if looks_like_path(code):
                for path in alternatives(code):
                    if not exists(root, path):
                        yield f"{name}: names {path}, which is not there"
            elif MEMBER.match(code) and not sources.has(code.split("(", 1)[0]):
                yield f"{name}: names {code}, which no source has"
        for word in WORDS.findall(CODE.sub("", prose)):
            yield f'{name}: says "{word}"; write {instead(word)}'


def check_options(text, usage):
    """One line for each option that kvmd's usage or the tables of OPERATIONS.md lack."""
    actual = set(re.findall(r"^\s+(?:-\w,)?(--[\w-]+)", usage, re.MULTILINE))
    rows = re.findall(r"^\| (`--.*?) \|", text, re.MULTILINE)
    listed = [option for row in rows for option in re.findall(r"`(--[\w-]+)", row)]
    for option in sorted(actual - set(listed)):
        yield f"docs/OPERATIONS.md: lacks {option}"
    for option in sorted(set(listed) - actual - {"--domain-mode"}):
        yield f"docs/OPERATIONS.md: has {option}, which kvmd has not"
    for option in sorted({each for each in listed if listed.count(each) > 1} - {"--domain-mode"}):
        yield f"docs/OPERATIONS.md: has {option} twice"


def check_counters(text, header):
    """One line for each counter of kvclient/stats.h that OPERATIONS.md lacks, and for each that it has too many: what kvmd
    is told are rows, the rest stands in the sentence behind them.
    """
    counters = re.findall(r"^  (REPORTED|COUNTED|CURRENT)\((\w+), \"", header, re.MULTILINE)
    table, _, rest = text.partition("### Counters of a client\n")[2].partition("\nThe worker itself sees")
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE)
    named = re.findall(r"`([a-z]+_[a-z_]+)`", rest.partition("Beside counters")[0])
    for found, kinds in ((rows, ("REPORTED",)), (named, ("COUNTED", "CURRENT"))):
        expected = [name for kind, name in counters if kind in kinds]
        for name in expected:
            if found.count(name) != 1:
                yield f"docs/OPERATIONS.md: has the client's counter {name} {found.count(name)} times"
        for name in sorted(set(found) - set(expected)):
            yield f"docs/OPERATIONS.md: has {name}, which kvclient/stats.h has not as such"


def check_events(text, program, sources):
    """One line for each event that ``sources`` of this program log and that OPERATIONS.md has no row of, and for each row
    of an event that none logs.
    """
    logged = {event for source in sources for call in LOG_CALL.findall(source) for event in EVENT.findall(call)}
    parts = re.split(r"^### ", text.partition("\n## Log events\n")[2].partition("\n## ")[0], flags=re.MULTILINE)
    mine = [part for part in parts if part.startswith("kvmd-mesh\n") == (program == "kvmd-mesh")]
    rows = {
        event
        for part in mine
        for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        for event in CODE.findall(row)
    }
    for event in sorted(logged - rows):
        yield f"docs/OPERATIONS.md: has no row of the event {event} of {program}"
    for event in sorted(rows - logged):
        yield f"docs/OPERATIONS.md: has a row of {event}, which {program} does not log"


SELF_TEST = {
    "docs/good.md": (
        "# A [b](bad.md) `c`: d\n[x](bad.md) [y](#a-b-c-d) `proto/wire/a.h` `proto/{wire/a,b}.h` `kvm/c.h` `Host::Run` `std::move`\n"
        "```\n`proto/none.h` stow\n```\nhttps `/run/kvmd` `unit/*.cc`",
        None,
    ),
    "docs/bad.md": ("# Heading", None),
    "README.md": ("[x](docs/none.md)", "links to docs/none.md"),
    "docs/anchor.md": ("[x](bad.md#other)", "links to bad.md#other"),
    "docs/path.md": ("`daemon/none.cc`", "names daemon/none.cc"),
    "docs/two.md": ("`proto/{b,none}.h`", "names proto/none.h"),
    "docs/include.md": ("`kvm/none.h`", "names kvm/none.h"),
    "docs/member.md": ("`Host::Walk()`", "names Host::Walk(), which no source has"),
    "docs/word.md": ("The heir takes it.", 'says "heir"'),
    "CHANGELOG.md": ("`daemon/gone.cc` stow", None),
    "docs/other.md": ("`Other::Run`", "names Other::Run, which no source has"),
    "proto/wire/a.h": ("struct Host {\n  void Run();\n};\nstruct Other {\n};", None),
    "proto/b.h": ("", None),
    "proto/include/kvm/c.h": ("", None),
    "tests/unit/d.cc": ("", None),
}


def self_test():
    """What the check misses of a tree with one fault of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, (text, _) in SELF_TEST.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        found = list(check(root))
    for name, (_, expected) in SELF_TEST.items():
        if expected is not None and not any(line.startswith(name) and expected in line for line in found):
            yield f"self-test: {name} was not reported"
    if len(found) != sum(expected is not None for _, expected in SELF_TEST.values()):
        yield "self-test: reported " + "; ".join(found)
    counters = list(
        check_counters(
            "### Counters of a client\n| a | `a_b` | x |\n| | `c_d` | x |\n\nThe worker itself sees `e_f`, `g_h`.\nBeside counters `i_j`",
            '  REPORTED(a_b, "x") \\\n  REPORTED(k_l, "x") \\\n  COUNTED(e_f, "x") \\\n  CURRENT(m_n, "x")',
        )
    )
    if [line.partition(": has ")[2][:25] for line in counters] != [
        "the client's counter k_l ",
        "c_d, which kvclient/stats",
        "the client's counter m_n ",
        "g_h, which kvclient/stats",
    ]:
        yield "self-test: of counters, reported " + "; ".join(counters)
    events = list(
        check_events(
            "\n## Log events\n### kvmd itself\n| `a_b`, `c` | x |\n| `gone` | x |\n### kvmd-mesh\n| `m` | x |\n## Alerts\n| `z` |",
            "kvmd",
            [
                'Log(kInfo, "a_b", {{"key", "v"}});',
                'LogLimited(x, y ? "c" : "d_e",\n  {{"key", 1}});',
                'Log("A b c", {});',
            ],
        )
    )
    if [line.partition(": has ")[2] for line in events] != [
        "no row of the event d_e of kvmd",
        "a row of gone, which kvmd does not log",
    ]:
        yield "self-test: of events, reported " + "; ".join(events)
    options = list(
        check_options("| `--a N` | 1 |\n| `--a` | |\n| `--c` | |", "Usage\n  -a,--a UINT  x\n  --b  --no option\n")
    )
    if [line.rsplit(": ", 1)[1] for line in options] != ["lacks --b", "has --c, which kvmd has not", "has --a twice"]:
        yield "self-test: of options, reported " + "; ".join(options)


def main():
    parser = argparse.ArgumentParser(description="Fails when a document names what is not there.")
    parser.add_argument("--source", type=pathlib.Path, help="root of the tree")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--options", type=pathlib.Path, metavar="KVMD", help="with --source: kvmd's binary")
    arguments = parser.parse_args()
    findings = list(self_test()) if arguments.self_test else []
    if arguments.options is not None:
        usage = subprocess.run([arguments.options, "--help"], capture_output=True, text=True, check=True).stdout
        findings += check_options((arguments.source / "docs/OPERATIONS.md").read_text(encoding="utf-8"), usage)
    elif arguments.source is not None:
        findings += check(arguments.source.resolve())
        operations = (arguments.source / "docs/OPERATIONS.md").read_text(encoding="utf-8")
        findings += check_counters(
            operations, (arguments.source / "client/include/kvclient/stats.h").read_text(encoding="utf-8")
        )
        for program, folder in (("kvmd", "daemon"), ("kvmd-mesh", "client/mesh")):
            paths = [
                path
                for each in (folder, "proto/log")  # both programs log by it
                for path in sorted((arguments.source / each).rglob("*"))
                if path.suffix in SUFFIXES
            ]
            sources = [path.read_text(encoding="utf-8") for path in paths]
            findings += check_events(operations, program, sources)
    for line in findings:
        print(line, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
