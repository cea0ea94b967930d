"""What pytest is given instead of its loop: a fork for every change, in which its tests run."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import signal
import time
from itertools import groupby
from typing import NoReturn

import hypothesis
import mutmut.mutation.trampoline as trampoline
import pytest
from mutmut.utils.format_utils import mangled_name_from_mutant_name

from tests.mutation.suites import test_files

#: As mutmut counts them.
SURVIVED, KILLED, NO_TESTS, TIMEOUT = 0, 1, 33, 36
#: A change that makes a loop endless, or a list: so much it may use before it counts as noticed.
CPU_S, MEMORY_BYTES = 30, 4 << 30
#: One that waits for ever: so often what its module's tests took as they are, and so much more.
WALL_TIMES, WALL_MORE_S = 3, 30
#: What hypothesis tries of each property: the first examples notice nearly all that any would.
EXAMPLES = 20


def module_of(name: str) -> str:
    """The module that a change is in."""
    return name.rpartition(".")[0]


class Trying:
    """Tries changes; `codes` says what became of each."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._failed = False
        self._wall_s = 0
        self.codes: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure is what is looked for."""
        self._failed = self._failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """For each module runs its tests as they are, then with each change."""
        if session.testsfailed:
            raise session.Interrupted("tests could not be collected: remove mutants/, try again")
        _hasten(session.items)
        gc.collect()
        gc.freeze()
        for module, names in groupby(self._names, module_of):
            files = test_files(module)
            items = [item for item in session.items if item.nodeid.partition("::")[0] in files]
            began, reaching = time.monotonic(), self._reaching(items)
            self._wall_s = WALL_MORE_S + int(WALL_TIMES * (time.monotonic() - began))
            for name in names:
                self.codes[name] = self._try(reaching, name)
                if self.codes[name] in (SURVIVED, NO_TESTS):
                    what = "survives" if self.codes[name] == SURVIVED else "is reached by no test"
                    print(f"{name} {what}", flush=True)
            print(f"{module} in {time.monotonic() - began:.0f} s", flush=True)
        return True

    def _reaching(self, items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
        """By function the tests that reach it, the quickest first.

        They run in a fork: what they remember of functions that are unchanged stays there.
        """
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(self._learned(items), pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            learned: list[tuple[float, int, bool, set[str]]] = pickle.load(pipe)
        os.waitpid(pid, 0)
        reaching: dict[str, list[pytest.Item]] = {}
        for _, number, failed, functions in sorted(learned, key=lambda one: one[:2]):
            if failed:
                print(f"{items[number].nodeid} fails as it is and is left out", flush=True)
                continue
            for function in functions:
                reaching.setdefault(function, []).append(items[number])
        return reaching

    def _learned(self, items: list[pytest.Item]) -> list[tuple[float, int, bool, set[str]]]:
        reached: set[str] = set()
        # mutmut's own record walks the stack at every call.
        trampoline.record_trampoline_hit = lambda name, caller=None: reached.add(name)
        trampoline.set_mutant_under_test("stats")
        _quiet()
        learned = []
        for number, item in enumerate(items):
            reached.clear()
            began = time.process_time()
            failed = self._fails([item])
            learned.append((time.process_time() - began, number, failed, set(reached)))
        return learned

    def _try(self, reaching: dict[str, list[pytest.Item]], name: str) -> int:
        items = reaching.get(mangled_name_from_mutant_name(name))
        if not items:
            return NO_TESTS
        pid = os.fork()
        if pid == 0:
            self._in_fork(items, name)
        # From outside: pytest's own limit uses the only alarm there is, and a test that was told to
        # end may still wait for a thread that never does.
        ended = os.pidfd_open(pid)
        if not select.select([ended], [], [], self._wall_s)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        return TIMEOUT if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _in_fork(self, items: list[pytest.Item], name: str) -> NoReturn:
        code = KILLED
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            _quiet()
            # A disk that a test had mounted when it was ended is in nobody's way.
            at = items[0].config._tmp_path_factory  # type: ignore[attr-defined]
            at._given_basetemp = at._given_basetemp / str(os.getpid())
            trampoline.set_mutant_under_test(name)
            code = KILLED if self._fails(items) else SURVIVED
        finally:
            os._exit(code)

    def _fails(self, items: list[pytest.Item]) -> bool:
        self._failed = False
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                return True
        return False


def _quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _hasten(items: list[pytest.Item]) -> None:
    """The same few examples of each property in every fork, and none of them made smaller."""
    for item in items:
        test = getattr(item, "obj", None)
        if getattr(test, "is_hypothesis_test", False):
            test = getattr(test, "__func__", test)
            known = test._hypothesis_internal_use_settings or hypothesis.settings.default
            test._hypothesis_internal_use_settings = hypothesis.settings(
                known,
                max_examples=min(EXAMPLES, known.max_examples),
                deadline=None,
                database=None,
                derandomize=True,
                phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            )
