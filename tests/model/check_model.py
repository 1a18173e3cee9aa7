#!/usr/bin/env python3
"""Checks the model of the protocol (protocol.pml) exhaustively with spin, and that it can fail.

As it is, no reachable state may break the property, every statement must be reached, and there must be enough states for
that to mean something. With any one defence or assumption taken out a counterexample must be found, and so it must be for
each claim that something that ought to happen never does. Exit status 77: spin or a C compiler is missing.

  check_model.py                    all of it
  check_model.py --show NAME        the shortest counterexample of one case, step by step
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

MODEL = pathlib.Path(__file__).with_name("protocol.pml")
DEPTH = 10_000
MEMORY_MB = 1500


@dataclasses.dataclass
class Case:
    name: str
    defines: list[str]
    why: str
    holds: bool = False  # no counterexample is expected
    least_states: int = 0  # of a case that holds


def taken_out(name: str, why: str, host_cache: bool = False) -> Case:
    return Case(("HOST_CACHE " if host_cache else "") + name, ["HOST_CACHE"] * host_cache + [name], why)


def claim(name: str, where: str, never: str, host_cache: bool = False) -> Case:
    return Case(f"claim: {name}", ["HOST_CACHE"] * host_cache + [f"{where} ({never})"], "the opposite does happen")


CASES = [
    Case("the protocol", [], "a worker's region", holds=True, least_states=1_000_000),
    Case("the protocol, host cache", ["HOST_CACHE"], "a slot of kvmd's", holds=True, least_states=20_000),
    # The second check alone decides: generations never come back. The first one saves copies that would be thrown away.
    Case("NO_FIRST_CHECK", ["NO_FIRST_CHECK"], "the second check is enough", holds=True, least_states=1_000_000),
    taken_out("NO_ODD_AT_UNREGISTER", "ownership ends without an odd generation"),
    taken_out("UNREGISTER_SKIPS_ODD", "a write that was under way at the end of ownership finishes after it"),
    taken_out("NO_SECOND_CHECK", "nobody looks at the generation after the copy"),
    taken_out("OVERWRITE_BEFORE_BEGIN", "bytes change before the generation is odd"),
    taken_out("FINISH_BEFORE_LANDED", "readable before the GPU is done"),
    taken_out("FINISH_WITHOUT_CAS", "an older write makes a newer one's block readable"),
    taken_out("ODD_NOT_ADVANCED", "two writes own one odd value"),
    taken_out("ADOPT_BEFORE_DEATH", "the connection has ended, the process has not"),
    taken_out("FORK_KEEPS_MAPPING", "a child writes after its parent's death"),
    taken_out("NEW_TABLE_AT_ADOPTION", "importers go on with the dead owner's table"),
    taken_out("GENERATIONS_START_OVER", "an heir formats the table: generations come back"),
    taken_out("ROW_WITHOUT_EPOCH", "a row names another region than when the entry was made"),
    taken_out("ASSUME_PIDFD_WAITS_FOR_GPU", "stores of a dead process's GPU land after the pidfd has fired"),
    taken_out("ASSUME_WRITES_LAND_IN_ORDER", "an older write's bytes land after a newer write's"),
    taken_out("NO_SECOND_CHECK", "the same in the host cache", host_cache=True),
    taken_out("EVICTED_STAYS_READABLE", "a slot is granted while its generation is even", host_cache=True),
    taken_out("SLOT_REUSED_BEFORE_WRITER_GONE", "the slot of a void grant is granted while its writer may copy", host_cache=True),
    taken_out("RESTART_FREES_SLOTS", "a restarted kvmd takes a slot that is odd for a free one", host_cache=True),
    taken_out("FORK_KEEPS_MAPPING", "a writer's child writes after its death", host_cache=True),
    taken_out("ASSUME_PIDFD_WAITS_FOR_GPU", "a dead writer's GPU copies on", host_cache=True),
    claim("no copy is ever validated", "NEVER", "true"),
    claim("no copy is ever torn", "NEVER_COPIED", "half[0] != half[1]"),
    claim("no copy is validated after an adoption, of what the dead owner published", "NEVER", "adopted && k < 3"),
    claim("no copy is validated of what an heir published", "NEVER", "adopted && k == 3"),
    claim("no copy is validated of a newcomer's in the same row", "NEVER", "!adopted && k == 3"),
    claim("no block is ever adopted", "NEVER_ADOPTED", "true"),
    claim("no copy is validated after kvmd's restart, by the old registry", "NEVER", "from_first && registry == 1"),
    claim("no copy is validated after kvmd's restart, by the new registry", "NEVER", "!from_first"),
    claim("no copy is validated of a block that was written anew", "NEVER", "k == 2"),
    claim("no copy is validated of a slot that was granted again", "NEVER", "k == 2", host_cache=True),
    claim("no copy is validated of a slot after kvmd's restart", "NEVER", "!from_first", host_cache=True),
]


class Failure(Exception):
    pass


def run(command: list[str], folder: pathlib.Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return output


def build(case: Case, folder: pathlib.Path, flags: list[str]) -> None:
    # Defines go before the source: spin passes options on through a shell.
    lines = [f"#define {define}\n" for define in case.defines]
    (folder / MODEL.name).write_text("".join(lines) + f'#line 1 "{MODEL.name}"\n' + MODEL.read_text())
    run(["spin", "-a", MODEL.name], folder)
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    run([compiler, "-O1", "-w", f"-DMEMLIM={MEMORY_MB}", *flags, "-o", "pan", "pan.c"], folder)


def number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if not found:
        raise Failure(f"no '{pattern}' in what the search says:\n{output}")
    return int(found.group(1))


def check(case: Case) -> str:
    with tempfile.TemporaryDirectory(prefix="kvm-model-") as name:
        folder = pathlib.Path(name)
        build(case, folder, ["-DSAFETY"])
        # -E: processes that stand still are not errors.
        output = run(["./pan", "-E", f"-m{DEPTH}"], folder)
    states = number(r"(\d+) states, stored", output)
    errors = number(r"errors: (\d+)", output)
    if not case.holds:
        if errors == 0:
            raise Failure(f"{case.name}: no counterexample in {states} states, though {case.why}")
        if "assertion violated" not in output:
            raise Failure(f"{case.name}: an error that is not of the property:\n{output}")
        return f"counterexample found ({states} states)"
    if errors != 0:
        raise Failure(f"{case.name}: {errors} errors; see check_model.py --show '{case.name}'\n{output}")
    if "Search not completed" in output or "max search depth too small" in output:
        raise Failure(f"{case.name}: the search was cut short:\n{output}")
    unreached = [line.strip() for line in output.splitlines() if re.match(r"\s+\S+:\d+, state \d+", line) and "-end-" not in line]
    if unreached:
        raise Failure(f"{case.name}: statements that nothing reaches:\n  " + "\n  ".join(unreached))
    if states < case.least_states:
        raise Failure(f"{case.name}: {states} states are too few to mean anything, expected {case.least_states}")
    return f"errors: 0 in all {states} states, every statement reached"


def show(case: Case) -> None:
    with tempfile.TemporaryDirectory(prefix="kvm-model-") as name:
        folder = pathlib.Path(name)
        build(case, folder, ["-DSAFETY", "-DBFS"])
        print(run(["./pan", "-E", f"-m{DEPTH}"], folder).splitlines()[0])
        trail = (folder / f"{MODEL.name}.trail").exists()
        print(run(["spin", "-t", "-p", "-g", "-l", MODEL.name], folder) if trail else "no counterexample")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", metavar="NAME", help="the counterexample of one case")
    arguments = parser.parse_args()
    for tool in ("spin", os.environ.get("CC") or "gcc"):
        if shutil.which(tool) is None:
            print(f"SKIPPED: {tool} is not installed (scripts/install_deps.sh installs it)")
            return 77
    if arguments.show:
        case = next((case for case in CASES if case.name == arguments.show), None)
        if case is None:
            parser.error("no such case; there are: " + ", ".join(case.name for case in CASES))
        show(case)
        return 0
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for case, outcome in [(case, pool.submit(check, case)) for case in CASES]:
            try:
                print(f"{case.name} ({case.why}): {outcome.result()}")
            except Failure as failure:
                failed += 1
                print(f"FAILED {failure}")
    print(f"{len(CASES) - failed} of {len(CASES)} cases as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
