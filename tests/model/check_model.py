#!/usr/bin/env python3
"""Checks the model of the protocol (*.pml) exhaustively with spin, and that the check can fail.

As it is, no reachable state may break the property, every statement must be reached, and there must be enough states
for that to be meaningful. If any single defence or assumption is taken out, a counterexample must be found. One must
also be found for each claim that an expected event never happens. Exit status 77: spin or a C compiler is missing.

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

FOLDER = pathlib.Path(__file__).parent
DEPTH = 10_000
MEMORY_MB = 1500


@dataclasses.dataclass
class Case:
    name: str
    model: str  # the file
    define: str  # NAME or NAME VALUE; empty: nothing
    why: str
    least_states: int = 0  # of a case that holds; 0: a counterexample must be found
    unreached: str = "never"  # statements that such a case does not reach, a regular expression


def taken_out(name: str, why: str, model: str = "region") -> Case:
    return Case(f"{model}: {name}", model, name, why)


def claim(name: str, where: str, never: str, model: str = "region") -> Case:
    return Case(f"{model}: {name}", model, f"{where} ({never})", "the opposite does happen")


CASES = [
    Case("region", "region", "", "a worker's region", least_states=1_000_000),
    # kvmd loses no slot for ever.
    Case("host_cache", "host_cache", "", "a slot of the host cache", least_states=20_000, unreached=r"odd\[\w+\] = 0"),
    # The second check alone decides: generations never come back. The first one saves copies that
    # would be thrown away.
    Case("region: NO_FIRST_CHECK", "region", "NO_FIRST_CHECK", "the second check is enough", least_states=1_000_000),
    taken_out("NO_ODD_AT_UNREGISTER", "ownership ends without an odd generation"),
    taken_out("END_WITHOUT_BIT", "a write that was under way at the end of ownership finishes after it"),
    taken_out("BEGIN_AFTER_END", "a write begins after the end of ownership"),
    taken_out("NO_SECOND_CHECK", "no importer checks the generation after the copy"),
    taken_out("OVERWRITE_BEFORE_BEGIN", "bytes change before the generation is odd"),
    taken_out("FINISH_BEFORE_LANDED", "readable before the GPU is done"),
    taken_out("FINISH_WITHOUT_CAS", "an older write makes a newer one's block readable"),
    taken_out("ODD_NOT_ADVANCED", "two writes own one odd value"),
    taken_out("ADOPT_BEFORE_DEATH", "the connection has ended, the process has not"),
    taken_out("FORK_KEEPS_MAPPING", "a child writes after its parent's death"),
    taken_out("NEW_TABLE_AT_ADOPTION", "importers go on with the dead owner's table"),
    taken_out("GENERATIONS_START_OVER", "an adopting worker formats the table: generations come back"),
    taken_out("ROW_WITHOUT_EPOCH", "a row names another region than when the entry was made"),
    taken_out("ASSUME_PIDFD_WAITS_FOR_GPU", "stores of a dead process's GPU land after the pidfd has fired"),
    taken_out("ASSUME_WRITES_LAND_IN_ORDER", "an older write's bytes land after a newer write's"),
    taken_out("NO_SECOND_CHECK", "the same in the host cache", "host_cache"),
    taken_out("EVICTED_STAYS_READABLE", "a slot is granted while its generation is even", "host_cache"),
    taken_out(
        "SLOT_REUSED_BEFORE_WRITER_GONE", "the slot of a void grant is granted while its writer may copy", "host_cache"
    ),
    taken_out("RESTART_FREES_SLOTS", "a restarted kvmd takes a slot that is odd for a free one", "host_cache"),
    taken_out("FORK_KEEPS_MAPPING", "a writer's child writes after its death", "host_cache"),
    taken_out("ASSUME_PIDFD_WAITS_FOR_GPU", "a dead writer's GPU copies on", "host_cache"),
    claim("no copy is ever validated", "NEVER", "true"),
    claim("no copy is ever torn", "NEVER_COPIED", "half[0] != half[1]"),
    claim("no copy is validated after an adoption, of what the dead owner published", "NEVER", "adopted && k < 3"),
    claim("no copy is validated of a block that an adopting worker published", "NEVER", "adopted && k == 3"),
    claim("no copy is validated of another region's block in the same row", "NEVER", "!adopted && k == 3"),
    claim("no block is ever adopted", "NEVER_ADOPTED", "true"),
    claim("no copy is validated after kvmd's restart, by the old registry", "NEVER", "from_first && registry == 1"),
    claim("no copy is validated after kvmd's restart, by the new registry", "NEVER", "!from_first"),
    claim("no copy is validated of a block that was written anew", "NEVER", "k == 2"),
    claim("no copy is validated of a slot that was granted again", "NEVER", "k == 2", "host_cache"),
    claim("no copy is validated of a slot after kvmd's restart", "NEVER", "!from_first", "host_cache"),
]


class CheckError(Exception):
    pass


def run(command: list[str], folder: pathlib.Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise CheckError(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return output


def build(case: Case, folder: pathlib.Path, flags: list[str]) -> None:
    for file in FOLDER.glob("*.pml"):
        shutil.copy(file, folder)
    # In a file: spin passes its options on through a shell.
    define = f"#define {case.define}\n" if case.define else ""
    (folder / "case.pml").write_text(f'{define}#include "{case.model}.pml"\n')
    run(["spin", "-a", "case.pml"], folder)
    run([compiler(), "-w", f"-DMEMLIM={MEMORY_MB}", *flags, "-o", "pan", "pan.c"], folder)


def compiler() -> str:
    return os.environ.get("CC") or "gcc"


def number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if not found:
        raise CheckError(f"no '{pattern}' in what the search says:\n{output}")
    return int(found.group(1))


def check(case: Case) -> str:
    with tempfile.TemporaryDirectory(prefix="kvm-model-") as name:
        folder = pathlib.Path(name)
        build(case, folder, ["-DSAFETY", "-O2" if case.least_states else "-O0"])
        # -E: blocked processes are not errors.
        output = run(["./pan", "-E", f"-m{DEPTH}"], folder)
    states = number(r"(\d+) states, stored", output)
    errors = number(r"errors: (\d+)", output)
    if case.least_states == 0:
        if errors == 0:
            raise CheckError(f"{case.name}: no counterexample in {states} states, though {case.why}")
        if "assertion violated" not in output:
            raise CheckError(f"{case.name}: an error that is not of the property:\n{output}")
        return f"counterexample found ({states} states)"
    if errors != 0:
        raise CheckError(f"{case.name}: {errors} errors; see check_model.py --show '{case.name}'\n{output}")
    if "Search not completed" in output or "max search depth too small" in output:
        raise CheckError(f"{case.name}: the search was cut short:\n{output}")
    unreached = [line.strip() for line in output.splitlines() if re.match(r"\s+\S+:\d+, state \d+", line)]
    unreached = [line for line in unreached if "-end-" not in line and not re.search(case.unreached, line)]
    if unreached:
        raise CheckError(f"{case.name}: statements that nothing reaches:\n  " + "\n  ".join(unreached))
    if states < case.least_states:
        raise CheckError(f"{case.name}: {states} states are too few to mean anything, expected {case.least_states}")
    return f"errors: 0 in all {states} states, every statement reached"


def show(case: Case) -> None:
    with tempfile.TemporaryDirectory(prefix="kvm-model-") as name:
        folder = pathlib.Path(name)
        build(case, folder, ["-DSAFETY", "-DBFS"])
        print(run(["./pan", "-E", f"-m{DEPTH}"], folder).splitlines()[0])
        trail = (folder / "case.pml.trail").exists()
        print(run(["spin", "-t", "-p", "-g", "-l", "case.pml"], folder) if trail else "no counterexample")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", metavar="NAME", help="the counterexample of one case")
    arguments = parser.parse_args()
    for tool in ("spin", compiler()):
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
            except CheckError as failure:
                failed += 1
                print(f"FAILED {failure}")
    print(f"{len(CASES) - failed} of {len(CASES)} cases as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
