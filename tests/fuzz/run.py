"""Fuzzes the codecs and the chunk reader with atheris: ``python -m tests.fuzz.run [--seconds 180] [TARGET …]``.

Each target gets its share of the time in a process of its own, two at a time. What is new is kept below
``.fuzz/<target>/``; a finding is printed with the file that shows it, and the exit code is 1. Copy that file to
``tests/fuzz/corpus/<target>/finding-…``, and mend what it shows: ``make test`` replays the corpus.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

CORPUS: Final = Path(__file__).parent / "corpus"
GROWN: Final = Path(".fuzz")
AT_ONCE: Final = 2
MEMORY_MB: Final = 1500
"""Most memory that a target may take; h5py, numpy and what they load take 200."""

SLOW_S: Final = 5
"""Longest that one input may take."""


class Outcome(NamedTuple):
    """How a target fared. ``edges`` : branches of our code that were reached."""

    target: str
    executions: int
    per_second: int
    edges: int
    found: str


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Fuzz in this process; it ends it."""
    import atheris

    os.environ["HALTERE_KERNEL_CHECKED"] = "1"  # an access out of bounds is a finding, not luck
    with atheris.instrument_imports(include=["haltere"]):
        from .targets import TARGETS
    TARGETS[target](b"")  # what is loaded late may take long, and mustn't be instrumented if it is compiled
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def fuzz(target: str, seconds: float) -> Outcome:
    """Fuzz a target for so long, in a process of its own."""
    grown, findings = GROWN / target, GROWN / "findings" / target
    for folder in (grown, findings):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SLOW_S}",
        f"-artifact_prefix={findings}/",
        "-max_len=65536",
        "-len_control=20",
        "-print_final_stats=1",
        str(grown),
        str(CORPUS / target),
    ]
    command = [sys.executable, "-m", "tests.fuzz.run", "--only", target, *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr

    def last(pattern: str) -> int:
        return int((re.findall(pattern, said) or ["0"])[-1])

    return Outcome(
        target,
        last(r"number_of_executed_units: (\d+)"),
        last(r"average_exec_per_sec: +(\d+)"),
        last(r" cov: (\d+)"),
        _finding(said) if done.returncode else "",
    )


def _finding(said: str) -> str:
    lines = said.splitlines()
    errors = [line for line in lines if "ERROR: libFuzzer" in line or re.match(r"\s*[\w.]+(Error|Exception)\b", line)]
    shown = re.findall(r"Test unit written to (\S+)", said)
    return f"{(shown or ['no file'])[-1]}: {' / '.join(errors[:2] or lines[-3:])}"


def main() -> int:
    """Fuzz what is asked for, and print a table."""
    if sys.argv[1:2] == ["--only"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
        return 0
    targets = sorted(folder.name for folder in CORPUS.iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(targets)}; by default all")
    parser.add_argument("--seconds", type=float, default=180, help="in all (default: 180)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier calls have found to be new")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(targets):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    if find_spec("atheris") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"fuzz: skipped, atheris isn't installed (Python {version}; it comes as a wheel for 3.11 to 3.13)")
        return 0
    if asked.fresh:
        shutil.rmtree(GROWN, ignore_errors=True)
    chosen = asked.targets or targets
    share = max(asked.seconds * AT_ONCE / len(chosen), 2)
    print(f"{'target':<18}{'executions':>12}{'per second':>12}{'edges':>8}  finding")
    outcomes = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for one in pool.map(lambda target: fuzz(target, share), chosen):
            outcomes.append(one)
            print(f"{one.target:<18}{one.executions:>12}{one.per_second:>12}{one.edges:>8}  {one.found}", flush=True)
    findings = [one for one in outcomes if one.found]
    print(f"{sum(one.executions for one in outcomes)} executions, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
