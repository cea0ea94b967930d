"""``python -m tests.mutation 'dataplane.chain*'``: changes that no test notices.

mutmut makes the changes and shows them; it would start pytest anew for each. Here the tests are
collected once, and each change is tried in a fork, by those tests of its module that reach it,
quickest first. What was found stands where mutmut keeps it: `mutmut show NAME` and
`mutmut results` know it.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from mutmut.__main__ import copy_also_copy_files, copy_src_dir, create_mutants
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.utils.file_utils import setup_source_paths, walk_mutatable_files

from tests.mutation.suites import test_files
from tests.mutation.trying import KILLED, NO_TESTS, SURVIVED, TIMEOUT, Trying, module_of

Files = Mapping[Path, SourceFileMutationData]


def main() -> int:
    """Try them; exit status 1 if any survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="changes, as patterns")
    parser.add_argument("--sample", type=int, default=0, help="at most so many of each module")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    asked = parser.parse_args()
    files = _made()
    chosen = _chosen(files, asked.names, asked.sample, asked.seed)
    trying = Trying(chosen)
    status = _run(trying, sorted({file for name in chosen for file in test_files(module_of(name))}))
    for data in files.values():
        data.exit_code_by_key |= {
            name: code for name, code in trying.codes.items() if name in data.exit_code_by_key
        }
        data.save()
    return _tell(trying.codes, len(chosen)) or status


def _made() -> Files:
    """Every change of every file, made where mutmut makes them."""
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        copy_src_dir()
        copy_also_copy_files()
        create_mutants(1)
    setup_source_paths()
    files = {path: SourceFileMutationData(path=path) for path in walk_mutatable_files()}
    for data in files.values():
        data.load()
    return files


def _chosen(files: Files, patterns: list[str], most: int, seed: int) -> list[str]:
    chosen: list[str] = []
    for data in files.values():
        of_module = [
            name
            for name in data.exit_code_by_key
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        ]
        if most and len(of_module) > most:
            drawn = random.Random(seed).sample(range(len(of_module)), most)
            of_module = [of_module[number] for number in sorted(drawn)]
        chosen += of_module
    return chosen


def _run(trying: Trying, tests: list[str]) -> int:
    os.environ["PY_IGNORE_IMPORTMISMATCH"] = "1"
    root = Path.cwd()
    os.chdir("mutants")
    with tempfile.TemporaryDirectory("", "mutants-", ignore_cleanup_errors=True) as place:
        how = ("--rootdir=.", "-q", "-s", "--tb=no", "--no-header", "--disable-warnings")
        args = [*how, f"--basetemp={place}", *config().pytest_add_cli_args, *tests]
        status = pytest.main(args, plugins=[trying])
    os.chdir(root)
    return int(status)


def _tell(codes: Mapping[str, int], chosen: int) -> int:
    by_module: dict[str, list[int]] = defaultdict(list)
    for name, code in codes.items():
        by_module[module_of(name)].append(code)
    for module, found in by_module.items():
        noticed = sum(found.count(code) for code in (KILLED, TIMEOUT))
        print(
            f"{module:<28} {len(found):>4} tried {noticed:>4} noticed "
            f"{found.count(SURVIVED):>3} survive {found.count(NO_TESTS):>3} reached by no test"
        )
    print(f"{len(codes)} of {chosen} changes tried")
    return int(any(code == SURVIVED for code in codes.values()))


if __name__ == "__main__":
    sys.exit(main())
