"""The benchmark: a parent that computes nothing, and one child process for each variant of a model.

The children take turns: each round asks every variant for a step, in an order that changes from round to round, and
only one works at a time. Ratios are taken within a round, so that a machine that slows down slows all variants. The
children start under glibc's default allocator and go on under the tuned one, if both are asked for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import correctness, environment
from .allocator import stages
from .child import Child
from .result import BenchResult
from .settings import DTYPES, Settings
from .summary import row, turn_order
from .variants import VARIANTS

if TYPE_CHECKING:
    from .trial import Answer

__all__ = ["Progress", "run", "run_settings"]

REFERENCE = "eager"  # the variant that the others are compared with
WARM_UP_S = 1.0  # of untimed steps, that of the correctness check among them
TURN_S = 0.25  # of steps in a round; after the others' turns a short one alone would be timed on cold caches

Progress = Callable[[str, int, int], None]  # is told what is done now, how many units of work are done, and of how many


def run(
    *, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None, **settings: Any
) -> BenchResult:
    """Benchmarks fused ResNets against stock PyTorch: ``run(models=["resnet18"], batch=8, rounds=3).rows``.

    ``settings`` are the fields of :class:`Settings`. ``on_rows`` is called with the result so far when that changes.
    Ctrl-C ends the run: the rows of the rounds done so far are returned, marked ``interrupted``. Raises ValueError or
    ImportError for what cannot be run, BenchError where a variant fails or computes something else than stock PyTorch.
    """
    return run_settings(Settings(**settings), progress, on_rows)


def run_settings(
    settings: Settings, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None
) -> BenchResult:
    """As :func:`run`, for settings that are checked already."""
    result = BenchResult(environment=environment.request(settings))
    steps = _Steps(settings, progress)
    end = inf if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    series_left = len(settings.models) * len(settings.allocators)
    try:
        with ExitStack() as stack:
            races = [
                stack.enter_context(_Race(settings, model, allocators, steps))
                for model in settings.models
                for allocators in stages(settings.allocators)
            ]
            for race, following in zip_longest(races, races[1:]):
                with race:
                    race.prepare(following)
                    result.environment |= race.facts
                    result.environment.setdefault("correctness", []).append(race.check())
                    for allocator in race.allocators:
                        try:
                            race.run(allocator, (end - time.monotonic()) / series_left)
                        finally:  # a race that was interrupted has rows too
                            series_left -= 1
                            result.rows += race.rows()
                            if on_rows:
                                on_rows(result)
    except KeyboardInterrupt:
        result.interrupted = True
        if on_rows:
            on_rows(result)
    return result


class _Steps:
    """Counts units of work: a start, a check, a warm-up or a timed step of one child."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        starts, races = len(stages(settings.allocators)), len(settings.allocators)
        units = 2 * starts + (1 + settings.rounds) * races
        self.total = len(settings.models) * len(settings.compared) * units
        self.done = 0
        self.progress = progress

    def begin(self, doing: str) -> None:
        if self.progress:
            self.progress(doing, self.done, self.total)
        self.done += 1


class _Race:
    """The variants of one model, each in its child process, which starts under the first of ``allocators``.

    The children live no longer than the ``with`` block. Those that compile do so beside those of the race before, when
    nothing is timed, and the others start then. Their checks come after: beside a compiler their threads would wait for
    each other.
    """

    def __init__(self, settings: Settings, model: str, allocators: Sequence[str], steps: _Steps) -> None:
        self.settings, self.model, self.allocators, self.steps = settings, model, allocators, steps
        self.allocator = allocators[0]
        self.jobs = {variant: settings.job(model, variant) for variant in settings.compared}
        self.children: dict[str, Child] = {}
        self.starting: list[str] = []  # of the children, those that have not said that they are ready
        self.facts: dict[str, Any] = {}  # what a child says of where it runs
        self.answers: dict[str, Answer] = {}
        self.saved_bytes: dict[str, int | None] = {}
        self.peak_bytes: dict[str, int] = {}
        self.rounds: list[dict[str, float]] = []  # of each complete round: step time in ms by variant
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))  # of the answers

    def __enter__(self) -> _Race:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def prepare(self, following: _Race | None) -> None:
        """Has each child compute what :meth:`check` compares, and those of ``following`` that compile.

        The others of ``following`` start, beside its compilers. None is at work afterwards.
        """
        races = [race for race in (self, following) if race]
        for race in races:
            race._start(compiling=True)
        self._start(compiling=False)
        for race in races:
            if race is following:
                race._start(compiling=False)
            race._receive_answers(compiling=True)
        self._receive_answers(compiling=False)

    def check(self) -> dict[str, Any]:
        """Compares all variants with eager stock PyTorch; the errors and limits, or BenchError."""
        answers, self.answers = self.answers, {}
        reference = answers.pop(REFERENCE) if REFERENCE in answers else self._reference()
        errors = {v: correctness.errors(answers[v], reference) for v in self.jobs if v in answers}
        limits = correctness.limits(errors, DTYPES[self.settings.dtype])
        correctness.refuse_wrong(self.model, errors, limits)
        return {"model": self.model, "allocator": self.allocator, "relative_errors": errors, "limits": limits}

    def run(self, allocator: str, share_s: float) -> None:
        """Times a series of rounds under ``allocator``, after the first none that would end beyond ``share_s``."""
        start = time.monotonic()
        self._warm_up(allocator)
        for index in range(self.settings.rounds):
            round_start = time.monotonic()
            self.rounds.append(self._round(index))
            now = time.monotonic()
            if now - start + (now - round_start) > share_s:
                self.steps.done += (self.settings.rounds - len(self.rounds)) * len(self.jobs)
                break

    def rows(self) -> list[dict[str, Any]]:
        """A row for each variant, from the complete rounds; none before the first."""
        if not self.rounds:
            return []
        stock = [variant for variant in self.jobs if VARIANTS[variant].is_stock]
        return [
            row(job, self.allocator, self.rounds, stock, self.saved_bytes[variant], self.peak_bytes[variant])
            for variant, job in self.jobs.items()
        ]

    def _start(self, compiling: bool) -> None:
        """Starts the children that compile, or the others, if they do not run yet; a compiler goes to work at once."""
        for variant in self._variants(compiling):
            if variant not in self.children:
                self.children[variant] = self._stack.enter_context(Child(self.jobs[variant], self.allocator))
                self.starting.append(variant)
                if compiling:
                    self._ask_for_answer(variant)

    def _receive_starts(self) -> None:
        """Waits until every child is ready."""
        for variant in self.starting:
            self._begin("start", variant)
            self.facts = self.children[variant].receive()
        self.starting.clear()

    def _ask_for_answer(self, variant: str) -> None:
        self.children[variant].send(do="check", path=str(self._answer_path(variant)))

    def _receive_answers(self, compiling: bool) -> None:
        """Waits for the answers of those that compile, or has the others give theirs one after the other."""
        self._receive_starts()
        for variant in self._variants(compiling):
            if variant not in self.answers:
                if not compiling:
                    self._ask_for_answer(variant)
                self._begin("check", variant)
                self.saved_bytes[variant] = self.children[variant].receive()["saved_activation_bytes"]
                self.answers[variant] = _load(self._answer_path(variant))

    def _variants(self, compiling: bool) -> list[str]:
        return [variant for variant in self.jobs if VARIANTS[variant].compiles == compiling]

    def _reference(self) -> Answer:
        """The answer of a variant that does not take part."""
        with Child(self.settings.job(self.model, REFERENCE), self.allocator) as child:
            child.receive()
            child.ask("check", path=str(self._answer_path(REFERENCE)))
        return _load(self._answer_path(REFERENCE))

    def _answer_path(self, variant: str) -> Path:
        return self._folder / f"{variant}.pt"

    def _warm_up(self, allocator: str) -> None:
        """Brings every variant to its usual pace under ``allocator``."""
        goes_on = allocator != self.allocator
        self.allocator, self.rounds, self.peak_bytes = allocator, [], {}
        for variant in self.jobs:
            self._begin("warm-up", variant)
            if goes_on:
                self.children[variant].ask("allocator", name=allocator)
            self.children[variant].ask("warm_up", at_least_s=WARM_UP_S)

    def _round(self, index: int) -> dict[str, float]:
        """A step of each variant, in ms."""
        variants = list(self.jobs)
        times: dict[str, float] = {}
        for place in turn_order(len(variants), index):
            variant = variants[place]
            self._begin(f"round {index + 1}", variant)
            reply = self.children[variant].ask("step", at_least_s=TURN_S)
            times[variant] = reply["step_ms"]
            self.peak_bytes[variant] = max(reply["peak_bytes"], self.peak_bytes.get(variant, 0))
        return times

    def _begin(self, doing: str, variant: str) -> None:
        self.steps.begin(f"{self.model}, {self.allocator} allocator: {doing}, {variant}")


def _load(path: Path) -> Answer:
    import torch

    answer: Answer = torch.load(path)
    return answer
