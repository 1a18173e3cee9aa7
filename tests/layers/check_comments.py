#!/usr/bin/env python3
"""Fails when a comment is longer than 100 columns, or uses a word that an outsider can't read as the field does.

    check_comments.py --source DIR   every source file, script and build file of the tree
    check_comments.py --self-test    that each rule can fail

Reads comments, Python's docstrings and the names of C++ tests, not code: identifiers, strings and quoted text may use
any word. check_docs.py has the same rule for documents. Prints one line per finding and exits 1 if there are any.
"""

import argparse
import io
import pathlib
import re
import sys
import tempfile
import tokenize

COLUMNS = 100
FOLDERS = ("proto", "cuda", "daemon", "client", "tests", "scripts", "systemd", ".ci")
SLASHES = {".h", ".cc", ".cu", ".cuh", ".proto"}
HASHES = {".sh", ".cmake", ".toml", ".in", ".socket", ".conf"}
# Each word with what it leaves open, and what to write instead.
UNWANTED = {
    r"stow\w*": "store, offload",
    r"tiers?": "host cache",
    r"whoever": "the client, process or caller that is meant",
    r"nobody(?:'s)?": "no process, no client",
    r"heirs?": "the next owner",
    r"newcomers?": "a new client or region",
    r"what is there": "what is meant",
    r"the kvmd before": "the previous kvmd",
    r"giv(?:es?|en|ing) (?:\w+ )?up|gave (?:\w+ )?up": "free, drop, end, stop",
    r"let(?:s|ting)? go": "unmap, release, free",
    r"behind the back": "on a background thread, without asking",
}
WORDS = re.compile(r"\b(" + "|".join(UNWANTED) + r")\b", re.IGNORECASE)
CODE = re.compile(r"`[^`]*`|\"[\w ]*\"|\w*[_:]\w[\w:]*|\b[a-z]+[A-Z]\w*|\b[A-Z]\w*[a-z][A-Z]\w*")
# A string is skipped, so that // inside of one is no comment.
STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
RAW_STRING = re.compile(r'R"(\w*)\(.*?\)\1"', re.DOTALL)
TEST_NAME = re.compile(r'^TEST_CASE\(\s*"([^"]*)"', re.MULTILINE)
# Tools read these, not people.
DIRECTIVE = re.compile(r"NOLINT|clang-format o|noqa|type: ignore|pyright:|shellcheck |^#!")


def sources(root):
    """Every file whose comments are read."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            named = path.name in ("CMakeLists.txt", "run") or path.suffix in SLASHES | HASHES | {".py"}
            if named and path.is_file() and "__pycache__" not in path.parts:
                yield path
    if (root / "CMakeLists.txt").is_file():
        yield root / "CMakeLists.txt"


def slash_comments(text):
    """(offset, text) of the comments and test names of a C++ or Protobuf file."""
    text = RAW_STRING.sub(lambda match: '"' + re.sub(r"[^\n]", " ", match[0][2:-1]) + '"', text)
    for match in STRING_OR_COMMENT.finditer(text):
        if match[0][0] == "/":
            yield match.start(), match[0]
    for match in TEST_NAME.finditer(text):
        yield match.start(1), match[1]


def python_comments(text):
    """(offset, text) of a Python file's comments and docstrings."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    first = True  # a string is a docstring where a statement could begin
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and first):
            yield starts[token.start[0] - 1] + token.start[1], token.string
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            first = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def hash_comments(text):
    """(offset, text) of the comments of a script or build file: a mark at the begin of a line or behind white space."""
    for match in re.finditer(r"(?:^|(?<=\s))#[^\n]*", text, re.MULTILINE):
        yield match.start(), match[0]


def comments(path, text):
    """The comments of a file, by its kind."""
    if path.suffix in SLASHES:
        return slash_comments(text)
    return python_comments(text) if path.suffix == ".py" else hash_comments(text)


def check(root):
    """One line for each comment that breaks a rule."""
    own = pathlib.Path(__file__).name
    for path in sources(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        wide = set()
        for offset, comment in comments(path, text):
            line = text.count("\n", 0, offset)
            if path.name != own:
                for word in WORDS.findall(CODE.sub("", comment)):
                    yield f'{name}:{line + 1}: says "{word}"; write {instead(word)}'
            # As /*own=*/ in a call
            inside = comment.startswith("/*") and not lines[line].lstrip().startswith("/*")
            if comment[0] in "/#" and not inside and not DIRECTIVE.search(comment):
                wide.update(line + i for i in range(comment.count("\n") + 1) if len(lines[line + i]) > COLUMNS)
        for line in sorted(wide):
            yield f"{name}:{line + 1}: a comment of more than {COLUMNS} columns"


def instead(word):
    """What to write in place of an unwanted word."""
    return next(better for pattern, better in UNWANTED.items() if re.fullmatch(pattern, word, re.IGNORECASE))


LONG = "word " * 25
SELF_TEST = {
    "proto/good.h": (
        '// The next owner, `heir`, and GiveUp().\nint heir;  // tiers_\nconst char* a = "nobody // stow";\n'
        f'const char* b = R"(nobody // {LONG})";\nint c;  // NOLINT(x): {LONG}\n',
        None,
    ),
    "proto/word.h": ("// The heir takes it.\n", 'says "heir"'),
    "proto/trailing.h": ("int a;  // nobody's\n", 'says "nobody'),
    "proto/two.h": ("/* Given\n   up. gives it up */\n", 'says "gives it up"'),
    "proto/long.h": (f"// {LONG}\n", "more than 100 columns"),
    "proto/behind.cc": (f"int a;  // {LONG}\n", "more than 100 columns"),
    "tests/unit/name.cc": ('TEST_CASE("Host: whoever asks waits", "[unit]") {}\n', 'says "whoever"'),
    "tests/unit/code.cc": ('TEST_CASE("Host: waits", "[unit]") { Say("nobody"); }\n', None),
    "client/good.py": (f'"""Docs."""\nA = """nobody {LONG}"""\n', None),
    "client/doc.py": ('def f():\n    """For whoever asks."""\n', 'says "whoever"'),
    "client/comment.py": ("a = 1  # lets go of it\n", 'says "lets go"'),
    "scripts/good.sh": (f'#!/bin/sh {LONG}\necho "$# nobody"\n', None),
    "scripts/word.sh": ("# nobody reads it\n", 'says "nobody"'),
    "CMakeLists.txt": ("set(a b) # the kvmd before\n", 'says "the kvmd before"'),
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


def main():
    parser = argparse.ArgumentParser(description="Fails when a comment is too long or uses private words.")
    parser.add_argument("--source", type=pathlib.Path, help="root of the tree")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    findings = list(self_test()) if arguments.self_test else []
    if arguments.source is not None:
        findings += check(arguments.source.resolve())
    for line in findings:
        print(line, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
