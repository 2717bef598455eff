"""What the user sees: progress on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

from serving.bundle import Compilation
from training.evaluation import Trial
from training.family import Family
from training.gate import Metrics, Verdict


@dataclass(frozen=True)
class Outcome:
    """How training a family ended, in short."""

    family: str
    version: str  # empty where none was registered
    allowed: bool  # whether it may go live
    promoted: str  # to which alias, or why to none
    metrics: Metrics  # those that the gate asked for
    seconds: float


class Report:
    """Everything that training says about one family."""

    def __init__(self, console: Console, family: Family) -> None:
        self._console = console
        self._family = family

    def progress(self) -> Progress:
        """A bar over all folds of all candidates; gone when it is done, and nothing where there is no terminal."""
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("folds"),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)

    def busy(self, what: str) -> Status:
        """A spinner while something takes its time; nothing where there is no terminal."""
        return self._console.status(f"{self._family.name}: {what} ...")

    def candidates(self, trials: Sequence[Trial], best: Trial) -> None:
        """The candidates side by side; the best is marked. Nothing of one that was not tried."""
        if not best.folds:
            return
        common = {name: v for name, v in best.params.items() if all(t.params.get(name) == v for t in trials)}
        folds = self._family.folds
        how = f"{folds}-fold cross-validation" if folds else "judged on a part of the training rows"
        title = ", ".join([how, *(f"{n} {v}" for n, v in common.items())])
        table = Table(title=title, title_justify="left", title_style="")
        table.add_column("")
        columns = [name for name in best.params if name not in common and all(name in t.params for t in trials)]
        own = [", ".join(f"{n} {v}" for n, v in t.params.items() if n not in {*columns, *common}) for t in trials]
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        if any(own):
            table.add_column("with")
        for rule in self._family.rules:
            table.add_column(rule.metric, justify="right", overflow="fold", min_width=len("0.9667 ± 0.021"))
        for trial, words in zip(trials, own, strict=True):
            values = (*(str(trial.params[name]) for name in columns), *([words] if any(own) else []))
            scores = (f"{trial.metrics[r.metric]:.4f} ± {trial.spread(r.metric):.3f}" for r in self._family.rules)
            chosen = trial is best
            table.add_row("best" if chosen else "", *values, *scores, style="bold green" if chosen else "")
        self._console.print()
        self._console.print(table)

    def holdout(self, metrics: Metrics, rows: int) -> None:
        """The best, refitted, on rows that no candidate has seen."""
        shown = ", ".join(f"{rule.metric} {metrics[rule.metric]:.4f}" for rule in self._family.rules)
        self._line(f"Holdout, {rows} rows: {shown}")

    def about(self, words: str) -> None:
        """What to know of the model before it is used: weights, precision, agreement."""
        self._line(f"[bold]{escape(words)}")

    def compiled(self, outcome: Compilation | str) -> None:
        """What serves it: kernels, or scikit-learn itself."""
        if isinstance(outcome, str):
            self._line(f"Not compiled: {escape(outcome)}")
            return
        how = "the same bits as scikit-learn" if outcome.exact else f"within {outcome.tolerance:g} of scikit-learn"
        faster = outcome.native_s["1"] / outcome.compiled_s["1"]
        self._line(f"Compiled: {how} on {outcome.rows} rows, {faster:.0f} times as fast for one")

    def verdict(self, verdict: Verdict) -> None:
        """What the gate looked at."""
        self._line("[bold]Gate: " + ("[green]passed" if verdict.passed else "[red]refused"))
        for check in verdict.checks:
            self._line(f"  {'[green]ok  [/]' if check.passed else '[red]no  [/]'} {escape(check.text)}")

    def end(self, sentence: str, places: Mapping[str, str]) -> None:
        """How it ended, and where to look."""
        self._console.print()
        self._line(f"[bold]{escape(sentence)}")
        for name, place in places.items():
            self._line(f"  {name:<12} {escape(place)}")

    @staticmethod
    def summary(console: Console, outcomes: Sequence[Outcome]) -> None:
        """All families in one table."""
        table = Table(title="All families", title_justify="left", title_style="")
        for name in ("family", "version", "promoted", "metrics on the holdout", "seconds"):
            table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
        for outcome in outcomes:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
            texts = map(escape, (outcome.family, outcome.version, outcome.promoted, metrics))
            table.add_row(*texts, f"{outcome.seconds:.0f}", style="" if outcome.allowed else "red")
        console.print()
        console.print(table)

    def _line(self, text: str) -> None:
        # Never broken in the middle: an id or a path must be whole to be copied.
        self._console.print(text, soft_wrap=True, highlight=False)
