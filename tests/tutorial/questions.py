#!/usr/bin/env python3
"""The ten questions of docs/OPERATIONS.md: each command, against a live kvmd, prints what the page shows.

    questions.py --source DIR --bin DIR         DIR has kvmd and kvctl

A kvmd with a host cache serves a replay of the chat workload by two workers, as the page says. Of each line that the
page shows, numbers, keys and sizes may differ, and nothing else: its words have to be a line of the command's output.
A line with … stands for any.
"""

import argparse
import json
import pathlib
import re
import subprocess
import tempfile
import time

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PATIENCE_S = 120


def shape(line):
    """The line's words; numbers, keys, sizes, times and the run's names stand for any of their kind."""
    line = re.sub(r"\breplay-[\d-]+", "#", line)
    line = re.sub(r"\b(B|KiB|MiB|GiB)\b", "SIZE", line)
    line = re.sub(r"\b(published|absent|stale)\b$", "STATE", line)
    words = ["#" if re.search(r"\d", word) or word == "-" else word for word in line.split()]
    # "0 s", "1 min" of an age, and "1 slab", "2 slabs".
    return re.sub(r"\b(\w{3,})s\b", r"\1", " ".join(words))


def blocks(page):
    """[the text of each block of output] of the page's section.

    Not those with a kind: tests/package/deb.py has the block `journal`, and `gpus` needs two GPUs.
    """
    section = page[page.index("\n## Ten questions") : page.index("\n## Watch")]
    return [text for kind, text in FENCE.findall(section) if not kind]


def check_table(page):
    """The table in front names ten questions, each with a command that the question's own text has."""
    section = page[page.index("\n## Ten questions") : page.index("\n## Watch")]
    head, *answers = section.split("\n### ")
    rows = re.findall(r"^\| \[(.*?)\]\(#\S+\) \| `(.*?)`", head, re.M)
    assert [question for question, _ in rows] == [each.split("\n", 1)[0] for each in answers], rows
    assert len(rows) == 10, rows
    for (question, command), answer in zip(rows, answers, strict=True):
        assert f"`{command.split(' --')[0]}" in answer, f"{question}: its text has no {command}"


def missing(shown, said):
    """The lines of a block that the output has not."""
    shapes = {shape(line) for line in said.splitlines()}
    lines = [line for line in shown.splitlines() if line.strip() and "…" not in line and not line.startswith("$")]
    assert lines, shown
    return [line for line in lines if shape(line) not in shapes]


class Node:
    def __init__(self, folder, programs):
        self.folder, self.programs, self.socket = folder, programs, folder / "kvmd.sock"
        self.log = open(folder / "log", "w")  # noqa: SIM115 (stop() closes it)
        self.processes = []
        self.doctor = ""  # what kvctl doctor last said while both workers were there

    def start(self, program, *arguments):
        self.processes.append(
            subprocess.Popen(
                [self.programs / program, *arguments], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
            )
        )

    def serve(self):
        """A kvmd with a host cache, and two workers that serve the chat workload."""
        self.start("kvmd", "--socket", self.socket, "--host-cache", "256M", "--log-level", "warn")
        self.eventually("kvmd's health", lambda: "" if (answer := self.kvctl("status"))[0] == 0 else answer[1])
        replay = ("--workload", "chat", "--requests", "1000000", "--workers", "2", "--pool-blocks", "4000")
        options = ("--block-bytes", "4096", "--backend", "host", "--model-id", "org/chat")
        self.start("kvctl", "--socket", self.socket, "replay", *replay, *options)

    def kvctl(self, *arguments):
        done = subprocess.run(
            [self.programs / "kvctl", "--socket", self.socket, *arguments], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def eventually(self, what, lack):
        """Waits until ``lack`` returns no text of what is not so yet."""
        deadline = time.monotonic() + PATIENCE_S
        while missing := lack():
            assert time.monotonic() < deadline, (
                f"{what} did not come about in {PATIENCE_S} s:\n{missing}\n{(self.folder / 'log').read_text()}"
            )
            time.sleep(0.1)

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)
        self.log.close()


def lacks(node):
    """What is missing until the host cache is full and both workers have a line in every table; empty: nothing."""
    code, said = node.kvctl("status", "--json")
    if code != 0:
        return said
    domains = json.loads(said)["domains"]
    cache = domains[0]["host_cache"] if domains else {}
    hot = json.loads(node.kvctl("hot", "--json")[1])["prefixes"]
    if cache.get("evicted", 0) > 0 and cache.get("hits", 0) > 0 and len(hot) > 3:
        return ""
    if cache.get("evicted", 0) > 0 and domains[0]["clients"] > 2:
        node.doctor = node.kvctl("doctor")[1]
    return f"{len(hot)} hot prefixes, host cache: {cache}, {said}\n{node.doctor}"


def main():
    parser = argparse.ArgumentParser()
    for name in ("source", "bin"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    page = (arguments.source / "docs/OPERATIONS.md").read_text()
    check_table(page)
    shown = blocks(page)
    tokens = ",".join(str(each) for each in range(1, 2049))
    wrong_configuration = "# kvmd.toml\nmax-entries = 5\n" + "\n" * 6 + "max-entris = 5\n"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "kvmd.toml").write_text(wrong_configuration)
        node = Node(folder, arguments.bin.resolve())
        try:
            node.serve()
            node.eventually("a full host cache and hot prefixes", lambda: lacks(node))
            asked = [
                ("is it up", 0, ("status",)),
                ("is it helping", 0, ("stat", "--interval", "0.5", "--count", "2")),
                ("who uses it", 0, ("top", "--count", "1", "--interval", "1")),
                ("what is hot", 0, ("hot",)),
                ("why was this prompt a miss", 0, ("explain", "--model", "org/chat", "--tokens", tokens)),
                ("why were the last ones", 0, ("explain", "--last")),
                ("who fills the host cache", 0, ("cache",)),
                ("an admin makes room", 0, ("evict", "--model", "org/chat")),
                ("may I restart it", 3, ("drain",)),
                (
                    "what will the next version break",
                    1,
                    ("config", "check", "--kvmd", str(node.programs / "kvmd"), str(folder / "kvmd.toml")),
                ),
            ]
            assert len(asked) == len(shown), f"the page has {len(shown)} blocks of output, the test {len(asked)}"
            wrong = []
            for (question, expected, command), block in zip(asked, shown, strict=True):
                code, said = node.kvctl(*command)
                said = said.replace(str(folder), "/etc/kvmd")
                if code != expected:
                    wrong.append(f"{question}: exit code {code}, not {expected}\n{said}")
                wrong += [
                    f"{question}: the page has\n  {line}\nand not so the command:\n{said}"
                    for line in missing(block, said)
                ]
            assert missing("published by a tool that is not there", "nothing of the kind") != []
            print(*wrong, sep="\n")
            if wrong:
                raise SystemExit(1)
            print(f"{len(asked)} commands print what the page shows")
        finally:
            node.stop()


if __name__ == "__main__":
    main()
