"""The table over all kinds of models: what it says of one, and that it asks the code of prepare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import estimators, report
from benchmarks.estimators import Case
from serving.bundle import Compilation
from serving.compile import proof

HERE = report.Conditions("A CPU", 2, "Linux", "3.11.7", 1, 0.0, 7.2, 0.1)
EXACT = Compilation(11_000, 0.0, 0.0, {"1": 5e-3, "1000": 9e-3}, {"1": 2e-5, "1000": 3e-3})
CLOSE = Compilation(10_300, 2.2e-16, 1e-9, {"1": 4e-4, "1000": 6e-4}, {"1": 1e-4, "1000": 5e-4})


@pytest.fixture
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "ROWS", 600)
    monkeypatch.setattr(proof, "CUTS", ((1, 10), (2, 3), (17, 2)))


def test_a_line_says_how_close_and_how_much_faster() -> None:
    exact = estimators.cells(Case("Forest", "iris", None), EXACT)
    assert exact == ["Forest", "iris", "exact", "11,000", "5,000 µs", "20 µs", "250 ×", "9 ms", "3 ms", "3 ×"]
    assert estimators.cells(Case("SVC", "iris", None), CLOSE)[2] == "2e-16 of 1e-09"


def test_the_page_lines_its_columns_up_and_gives_reasons() -> None:
    outcomes = [
        (Case("Forest", "iris", None), (EXACT, None)),
        (Case("SVC", "iris, texts", None), (CLOSE, None)),
        (Case("Own", "iris", None), (None, "there is no kernel")),
    ]
    page = estimators.document(outcomes, HERE)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "- Own, iris: there is no kernel\n" in page
    assert "A CPU, 2 cores" in page


def test_a_page_without_native_models_has_no_such_section() -> None:
    assert "## Native" not in estimators.document([(Case("Forest", "iris", None), (EXACT, None))], HERE)


def test_models_are_chosen_by_words_of_their_names() -> None:
    every = estimators.cases()
    assert len({(case.name, case.data) for case in every}) == len(every) == len(estimators.chosen(""))
    assert {case.name for case in estimators.chosen("ridge, adaboost")} == {"Ridge", "AdaBoostClassifier"}
    with pytest.raises(SystemExit, match="'forrest', which no model is called"):
        estimators.chosen("ridge,forrest")


@pytest.mark.parametrize("name", sorted({case.data for case in estimators.cases()}))
def test_rows_are_sent_as_json_writes_them(name: str) -> None:
    rows, targets = estimators.data(name)
    assert len(rows) == len(targets)
    sent = estimators.as_sent(rows[:50])
    values = [value for row in sent for value in (row.values() if isinstance(row, dict) else row)]
    assert all(value is None or value == value for value in values)
    assert (None in values) == name.endswith("with gaps")
    assert not any(isinstance(value, np.generic) for value in values)


@pytest.mark.usefixtures("_few_rows")
def test_a_model_goes_through_the_code_of_prepare() -> None:
    compilation, native = estimators.measured(Case("tree", "iris, texts", estimators.new("DecisionTreeClassifier")))
    assert native is None
    assert compilation is not None
    assert compilation.exact
    assert compilation.rows > 600
    assert set(compilation.native_s) == set(compilation.compiled_s) == {"1", "1000"}


@pytest.mark.usefixtures("_few_rows")
def test_what_stays_native_says_why() -> None:
    compilation, native = estimators.measured(Case("ada", "iris, texts", estimators.new("AdaBoostClassifier")))
    assert compilation is None
    assert native is not None
    assert "AdaBoostClassifier" in native


@pytest.mark.usefixtures("_few_rows")
@pytest.mark.parametrize(("only", "written"), [("ridge", False), ("", True)], ids=["some", "all"])
def test_the_page_is_written_for_all_models_only(
    only: str, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ridge = estimators.chosen("ridge")
    monkeypatch.setattr(estimators, "cases", lambda: ridge)
    monkeypatch.setattr(estimators, "DOCUMENT", tmp_path / "ESTIMATORS.md")
    monkeypatch.setenv("ONLY", only)
    estimators.main()
    assert "| Ridge " in capsys.readouterr().out
    assert (tmp_path / "ESTIMATORS.md").is_file() == written
