#!/usr/bin/env python3
"""Runs docs/TUTORIAL.md: each command, in the page's order, in one shell, in an empty home directory.

    run.py --source DIR --build DIR --python PYTHON     PYTHON has the package; its build, and DIR, stand for the page's
    run.py --source DIR --from-nothing                  builds by the page's own commands, which takes minutes
    --vllm PYTHON    one with the package and vLLM, for the blocks "sh vllm"; without it they are left out, and said so
    --show           print what each block says

Blocks of the page: `sh` are commands; `sh build` are those that compile for minutes, and `sh vllm` those that need
vLLM; `LANGUAGE FILE` is saved as FILE; `output` is what the commands before it print on standard output. In that, any
run of spaces stands for any other, and … for any text in a line. Exit code 77: it can't run here.
"""

import argparse
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

BLOCK = re.compile(r"^```(\S[^\n]*)\n(.*?)^```$", re.M | re.S)
MARK = "@@@@ block "
PATIENCE_S = 1200
PORT = 9464


def blocks(page):
    """(info string, text) of each fenced block."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page)]


def pattern(expected):
    """A regular expression for what a block `output` allows."""
    made = [re.escape(part) for part in re.split(r"(…| +)", expected.strip())]
    for place in range(1, len(made), 2):
        made[place] = ".*" if made[place] == "…" else " +"
    return re.compile("".join(made) + r"\s*")


def script_of(page, from_nothing, vllm):
    """(the shell's script, {number of a block of commands: what it has to print}, how many were left out)."""
    lines, expected, left_out, last = ["set -eu"], {}, 0, None
    for number, (info, text) in enumerate(blocks(page)):
        kind, _, rest = info.partition(" ")
        if kind == "output":
            if last is not None:
                expected[last] = text
        elif kind != "sh":
            assert rest, f"a block {info!r} has no file's name"
            lines.append(f"cat >{rest} <<'END_OF_FILE'\n{text}END_OF_FILE")
        elif (rest == "build" and not from_nothing) or (rest == "vllm" and not vllm):
            left_out += rest == "vllm"
            last = None
        else:
            assert rest in ("", "build", "vllm"), info
            lines.append(f"echo '{MARK}{number}'\n{text}")
            last = number
    return "\n".join(lines) + "\n", expected, left_out


def with_free_port(script):
    """The script with another port than the page's where something else listens on that one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
            return script
        except OSError:
            probe.bind(("127.0.0.1", 0))
            return script.replace(str(PORT), str(probe.getsockname()[1]))


def stand_in(folder, source, build, python):
    """A tree in which the page's build seems to have run: the sources, and this build as build/release."""
    for entry in source.iterdir():
        if entry.name != "build":
            (folder / entry.name).symlink_to(entry)
    (folder / "build").mkdir()
    (folder / "build/release").symlink_to(build)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    program.chmod(0o755)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--python")
    parser.add_argument("--vllm")
    for name in ("from-nothing", "show"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    for program in ("curl", "pkg-config", "c++"):
        if shutil.which(program) is None:
            print(f"SKIPPED: no {program} here")
            sys.exit(77)
    source = arguments.source.resolve()
    python = arguments.vllm or arguments.python
    page = (source / "docs/TUTORIAL.md").read_text()
    script, expected, left_out = script_of(page, arguments.from_nothing, arguments.vllm)
    script = with_free_port(script)
    home = pathlib.Path(tempfile.mkdtemp())
    environment = {**os.environ, "HOME": str(home), "KVM": str(source)}
    for name in ("KVMD_SOCKET", "KVMD_BINARY", "DESTDIR", "PYTHONPATH"):
        environment.pop(name, None)
    try:
        if not arguments.from_nothing:
            clone = home / "clone"
            clone.mkdir()
            stand_in(clone, source, arguments.build.resolve(), python)
            environment["KVM"] = str(clone)
            (home / "kvm-tutorial/env/bin").mkdir(parents=True)
            (home / "kvm-tutorial/env/bin/python").symlink_to(clone / "python")
        said, log = home / "said", home / "log"
        with open(said, "w") as out, open(log, "w") as errors:
            # A session of its own: what a failed page leaves running ends with it.
            shell = subprocess.Popen(
                ["bash", "-c", script],
                cwd=source,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
            try:
                shell.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                print(f"not at its end after {PATIENCE_S} s")
            finally:
                subprocess.run(["pkill", "-KILL", "-s", str(shell.pid)])
                shell.wait()
        found = {
            int(number): text
            for number, text in re.findall(rf"^{MARK}(\d+)\n(.*?)(?=^{MARK}|\Z)", said.read_text(), re.M | re.S)
        }
        wrong = []
        for number, text in found.items():
            if arguments.show:
                print(f"--- {blocks(page)[number][1]}{text}", end="")
            if number in expected and not pattern(expected[number]).fullmatch(text):
                wrong.append(f"after\n{blocks(page)[number][1]}the page has\n{expected[number]}and it was\n{text}")
        print(*wrong, sep="\n", end="")
        if shell.returncode != 0 or wrong:
            last = blocks(page)[max(found)][1] if found else script
            print(f"the shell ended with {shell.returncode} in\n{last}\n{log.read_text(errors='replace')[-3000:]}")
            for each in sorted((home / "kvm-tutorial").glob("*.err")):
                print(f"{each.name}: {each.read_text(errors='replace')[-2000:]}")
            sys.exit(1)
        assert not (home / "kvm-tutorial").exists(), "the page leaves files"
        print(f"{len(found)} blocks of commands ran")
        if left_out:
            print(f"{left_out} blocks were left out: they need vLLM (--vllm)")
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
