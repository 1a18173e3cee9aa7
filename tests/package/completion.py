#!/usr/bin/env python3
"""The completion scripts of kvctl and kvmd-mesh, in the shells themselves: they offer what --help has.

    completion.py --shell bash|zsh|fish --kvctl KVCTL [--mesh KVMD_MESH]

Exit code 77: the shell is not here.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile

# Each sources the script (its first argument), completes the last of the words that follow, and
# prints what it offers, one a line.
ASKS = {
    "bash": [
        "bash",
        "--norc",
        "-c",
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); "_${1//-/_}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "bash",
    ],
    # Without its line editor: what the script gives to _describe, a word and its meaning, is what
    # would be offered.
    "zsh": [
        "zsh",
        "-fc",
        "compdef() {}; _files() { }; _describe() { [[ $1 == -o ]] && shift; print -rl -- ${${(P)2}%%:*} }; "
        'source "$1"; shift; words=("$@"); CURRENT=$#; "_${1//-/_}"',
        "zsh",
    ],
    "fish": ["fish", "--no-config", "-c", "source $argv[1]; complete -C (string join ' ' -- $argv[2..-1])"],
}


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Completion:
    def __init__(self, shell, script):
        self.shell, self.script = shell, script

    def offers(self, line):
        """What may stand at the end of the line."""
        words = line.split(" ")
        said = output(*ASKS[self.shell], self.script.name, *words)
        return {word for each in said.splitlines() if (word := each.split("\t")[0]) and word.startswith(words[-1])}


def options_of(program, *commands):
    names = re.findall(r"^ +(-\S+)", output(program, *commands, "--help"), re.MULTILINE)
    return {name for each in names for name in re.findall(r"--[\w-]+", each)}


def commands_of(program, *commands):
    listed = output(program, *commands, "--help").partition("Subcommands:\n")[2]
    return set(re.findall(r"^  ([a-z]\S*)", listed.split("\n\n")[0], re.MULTILINE))


def script_of(shell, *command):
    script = tempfile.NamedTemporaryFile("w", suffix=f".{shell}")  # noqa: SIM115 (the caller has it)
    script.write(output(*command))
    script.flush()
    return script


def check(what, found, expected):
    assert found == expected, f"{what}: offered {sorted(found)}, expected {sorted(expected)}"


def check_kvctl(shell, kvctl):
    completion = Completion(shell, script_of(shell, kvctl, "completion", shell))
    commands = commands_of(kvctl)
    assert {"status", "bench", "completion"} < commands
    check("commands", {each for each in completion.offers("kvctl ") if not each.startswith("-")}, commands)
    check("a command's beginning", completion.offers("kvctl doc"), {"doctor"})
    common = options_of(kvctl) - {"--help", "--version"}
    for command in sorted(commands):
        check(f"options of {command}", completion.offers(f"kvctl {command} --"), options_of(kvctl, command) | common)
    for command in sorted(commands_of(kvctl, "bench")):
        check(
            f"options of bench {command}",
            completion.offers(f"kvctl bench {command} --") & options_of(kvctl, "bench", command),
            options_of(kvctl, "bench", command),
        )
    check("an option's value is no command", completion.offers("kvctl --socket status doc"), {"doctor"})
    check("options between commands", completion.offers("kvctl --json ls --pre"), {"--prefix"})


def check_mesh(shell, mesh):
    completion = Completion(shell, script_of(shell, mesh, "--completion", shell))
    check("options of kvmd-mesh", completion.offers("kvmd-mesh --"), options_of(mesh))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shell", choices=ASKS, required=True)
    parser.add_argument("--kvctl", required=True)
    parser.add_argument("--mesh")
    arguments = parser.parse_args()
    if shutil.which(arguments.shell) is None:
        print(f"SKIPPED: no {arguments.shell} here")
        sys.exit(77)
    check_kvctl(arguments.shell, arguments.kvctl)
    if arguments.mesh:
        check_mesh(arguments.shell, arguments.mesh)


if __name__ == "__main__":
    main()
