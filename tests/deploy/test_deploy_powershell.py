"""deploy.ps1 and its Pester tests as texts: the grammar, and the rules that keep a script right which cannot run here.

What PSScriptAnalyzer asks by default is asked here too, as far as a grammar can tell: only CI has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from powershell import (
    APPROVED_VERBS,
    AUTOMATIC,
    CMDLETS,
    PESTER,
    PREFERENCES,
    ROOT,
    SCRIPT,
    facts,
    needs_grammar,
    parsed,
)

pytestmark = needs_grammar

FUNCTION_LINES, LINE_LENGTH = 45, 130
CHANGES_STATE = {"New", "Set", "Remove", "Start", "Stop", "Restart", "Reset", "Update"}  # PSUseShouldProcessForState...
ENDS_IN_S = ("Status",)
NOT_TO_BE_ASSIGNED = AUTOMATIC - PREFERENCES - {"null"} | {"event", "sender", "profile", "shellid", "this", "foreach"}
COMMON = {"ErrorAction", "WhatIf", "Confirm", "Verbose", "Debug", "WarningAction", "InformationAction", "OutVariable"}
TEXT = SCRIPT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return facts(SCRIPT)


def functions(script: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {function["name"]: function for function in script["functions"]}


# --- as a text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SCRIPT, PESTER], ids=lambda path: path.name)
def test_the_grammar_accepts_it(path: Path) -> None:
    assert facts(path)["errors"] == []


@pytest.mark.parametrize("path", [SCRIPT, PESTER, ROOT / "PSScriptAnalyzerSettings.psd1"], ids=lambda path: path.name)
def test_ascii_short_lines_and_nothing_at_their_ends(path: Path) -> None:
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    wrong = [number for number, line in enumerate(text.split("\n"), 1) if line != line.rstrip() or "\t" in line]
    assert wrong == []
    jsonpath = re.compile(r"'\{.*\}'")  # what kubectl is asked for stays in one piece
    long = [n for n, line in enumerate(text.split("\n"), 1) if len(line) > LINE_LENGTH and not jsonpath.search(line)]
    assert long == []


def test_it_says_what_it_needs_and_is_strict() -> None:
    assert re.search(r"^#Requires -Version 7\.2$", TEXT, re.M)
    assert re.search(r"^Set-StrictMode -Version (3\.0|Latest)$", TEXT, re.M)
    assert re.search(r"^\$ErrorActionPreference = 'Stop'$", TEXT, re.M)


# --- rules: each names what breaks it --------------------------------------------------------------------------------


def misnamed(script: dict[str, Any]) -> Iterator[str]:
    """Approved verb, one noun in the singular."""
    for name in functions(script):
        verb, _, noun = name.partition("-")
        plural = re.fullmatch(r"\w+[^s]s", noun) and not noun.endswith(ENDS_IN_S)
        if verb not in APPROVED_VERBS or plural or not re.fullmatch(r"[A-Z]\w+", noun):
            yield name


def too_long(script: dict[str, Any]) -> Iterator[str]:
    for function in script["functions"]:
        if function["lines"] > FUNCTION_LINES:
            yield f"{function['name']} has {function['lines']} lines"


def uncalled(script: dict[str, Any]) -> Iterator[str]:
    """Functions that nothing calls by name; `"Test-$What"` and tables of names call none."""
    called = {call["name"] for call in script["commands"] if call["name"] != call["function"]}
    yield from sorted(set(functions(script)) - called)


def unknown_commands(script: dict[str, Any]) -> Iterator[str]:
    """What is neither ours nor a cmdlet of the list: aliases, misspelt names, programs past the wrapper."""
    for call in script["commands"]:
        if re.match(r"\d", call["name"]):  # to the grammar, `foreach ($n in 1..3)` calls something
            continue
        if call["operator"] == "" and call["name"] not in CMDLETS and call["name"] not in functions(script):
            yield f"{call['line']}: {call['name']}"


def by_position(script: dict[str, Any]) -> Iterator[str]:
    """Arguments without the name of their parameter."""
    for call in script["commands"]:
        if call["operator"] == "" and call["positional"]:
            yield f"{call['line']}: {call['name']} {call['positional']}"


def unknown_parameters(script: dict[str, Any]) -> Iterator[str]:
    ours = functions(script)
    for call in script["commands"]:
        if call["name"] in ours:
            known = {parameter["name"] for parameter in ours[call["name"]]["parameters"]} | COMMON
            yield from (f"{call['line']}: {call['name']} -{name}" for name in call["named"] if name not in known)


def missing_parameters(script: dict[str, Any]) -> Iterator[str]:
    """Calls without a mandatory parameter: PowerShell would ask for it, and CI would hang."""
    ours = functions(script)
    for call in script["commands"]:
        for parameter in ours.get(call["name"], {}).get("parameters", []):
            given = parameter["name"] in call["named"] or call["splatted"]
            if "Mandatory" in parameter["attributes"] and not given:
                yield f"{call['line']}: {call['name']} without -{parameter['name']}"


def variables(script: dict[str, Any]) -> Iterator[tuple[str, str, str, bool, int]]:
    """(scope, name, function, assigned, line) of all but `$env:`; names in small letters."""
    for variable in script["variables"]:
        scope, _, name = variable["name"].rpartition(":")
        if scope.lower() != "env":
            yield scope.lower(), name.lower(), variable["function"], variable["assigned"], variable["line"]


def unassigned(script: dict[str, Any]) -> Iterator[str]:
    """Used, but neither assigned in the same function or in the script, nor a parameter, nor automatic."""
    seen = list(variables(script))
    shared = {name for scope, name, function, assigned, _ in seen if assigned and (scope == "script" or not function)}
    local = {(function, name) for _, name, function, assigned, _ in seen if assigned}
    for scope, name, function, assigned, line in seen:
        known = name in shared or (not scope and (function, name) in local) or name in AUTOMATIC | PREFERENCES
        if not assigned and not known:
            yield f"{line}: ${name}"


def unused(script: dict[str, Any]) -> Iterator[str]:
    """Assigned, or a parameter, and never looked at. A variable that is splatted is looked at."""
    seen = list(variables(script))
    splatted = {(call["function"], name.lower()) for call in script["commands"] for name in call["splatted"]}
    anywhere = {name for _, name, _, assigned, _ in seen if not assigned}
    local = {(function, name) for _, name, function, assigned, _ in seen if not assigned} | splatted
    for scope, name, function, assigned, line in seen:
        used = name in anywhere if scope == "script" or not function else (function, name) in local
        if assigned and not used and name not in PREFERENCES | {"null"}:
            yield f"{line}: ${name}"


def assigned_to_automatic(script: dict[str, Any]) -> Iterator[str]:
    for _, name, _, assigned, line in variables(script):
        if assigned and name in NOT_TO_BE_ASSIGNED:
            yield f"{line}: ${name}"


def global_variables(script: dict[str, Any]) -> Iterator[str]:
    yield from (f"{line}: ${name}" for scope, name, _, _, line in variables(script) if scope == "global")


def empty_catches(script: dict[str, Any]) -> Iterator[str]:
    yield from (str(line) for line, empty in script["catches"] if empty)


def names_run_into_text(script: dict[str, Any]) -> Iterator[str]:
    """`"$name: text"` asks for a variable of the drive "name", and `"$names[0]"` prints all of them."""
    pattern = re.compile(r"(?<!`)\$(?!script:|env:|using:)\w+(:(?!:)|\[[\w$-]+\])|(?<!`)\$(script|env):\w+(:|\[)")
    for string in script["strings"]:
        raw = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", "", string["raw"])
        if raw.startswith(('"', '@"')) and pattern.search(raw):
            yield f"{string['line']}: {string['raw']}"


def constants_in_double_quotes(script: dict[str, Any]) -> Iterator[str]:
    """Where nothing is to be expanded, a later `$` should not be either."""
    for string in script["strings"]:
        if re.fullmatch(r'"[^$`\']*"', string["raw"]):
            yield f"{string['line']}: {string['raw']}"


def without_should_process(script: dict[str, Any]) -> Iterator[str]:
    """PSUseShouldProcessForStateChangingFunctions: such verbs declare it, or are not those verbs."""
    for name, function in functions(script).items():
        if name.partition("-")[0] in CHANGES_STATE and "SupportsShouldProcess" not in "".join(function["attributes"]):
            yield name


def passwords(script: dict[str, Any]) -> Iterator[str]:
    holders = [script, *script["functions"]]
    names = [parameter["name"] for holder in holders for parameter in holder["parameters"]]
    yield from (name for name in names if re.search(r"passw|passphrase|credential|secretvalue", name, re.IGNORECASE))


RULES = (
    misnamed,
    too_long,
    uncalled,
    unknown_commands,
    by_position,
    unknown_parameters,
    missing_parameters,
    unassigned,
    unused,
    assigned_to_automatic,
    global_variables,
    empty_catches,
    names_run_into_text,
    constants_in_double_quotes,
    without_should_process,
    passwords,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing_breaks_a_rule(script: dict[str, Any], rule: Any) -> None:
    assert list(rule(script)) == []


TRIPS = {
    "misnamed": "function Do-Thing { }; function Get-Things { }",
    "too_long": "function Get-Thing {\n" + "Get-Thing\n" * 50 + "}",
    "uncalled": "function Get-Thing { Get-Thing }",
    "unknown_commands": "ls\nWrite-Host -Object 1\nInvoke-Expression -Command 'x'\nkubectl get pods\n",
    "by_position": "Get-Item 'x'",
    "unknown_parameters": "function Get-Thing {\nparam([string] $Name)\n$Name\n}\nGet-Thing -Nmae 'x'",
    "missing_parameters": "function Get-Thing {\nparam([Parameter(Mandatory)] [string] $Name)\n$Name\n}\nGet-Thing",
    "unassigned": "function Get-Thing { $thing }\nGet-Thing",
    "unused": "function Get-Thing {\nparam($Name)\n$thing = 1\n}\nGet-Thing",
    "assigned_to_automatic": "$matches = 1\nforeach ($input in 1) { $input }",
    "global_variables": "$global:x = 1",
    "empty_catches": "try { Get-Item -Path 'x' } catch { }",
    "names_run_into_text": '$x = 1\n"$x: $script:y: $x[0]"',
    "constants_in_double_quotes": 'Get-Item -Path "x"',
    "without_should_process": "function Set-Thing { }",
    "passwords": "param([string] $Password)\n$Password",
}


def test_each_rule_can_be_broken() -> None:
    assert set(TRIPS) == {rule.__name__ for rule in RULES}
    broken = dict(zip(TRIPS, parsed(*TRIPS.values()), strict=True))
    assert [name for name, script in broken.items() if script["errors"]] == []
    assert [rule.__name__ for rule in RULES if not list(rule(broken[rule.__name__]))] == []


def test_the_grammar_sees_what_is_no_powershell() -> None:
    sources = ["if ($x) {", "Get-Item -Path 'x", "foreach ($x of $y) { }", "$x = @{ a = 1"]
    assert [source for source, found in zip(sources, parsed(*sources), strict=True) if not found["errors"]] == []


# --- parameters and help ---------------------------------------------------------------------------------------------


def help_sections() -> dict[str, str]:
    """Of the comment-based help: "PARAMETER Verb" and the like, with their texts."""
    (comment,) = re.findall(r"^<#$(.*?)^#>$", TEXT, re.M | re.S)
    parts = re.split(r"^ *\.([A-Z]+(?: \w+)?)$", comment, flags=re.M)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_it_is_an_advanced_script_that_can_be_asked_what_if(script: dict[str, Any]) -> None:
    assert "SupportsShouldProcess" in "".join(script["attributes"])
    assert re.search(r"\$PSCmdlet\.ShouldProcess\(|\$WhatIfPreference\b", TEXT)


def test_the_help_has_every_parameter_and_no_other(script: dict[str, Any]) -> None:
    sections = help_sections()
    assert {"SYNOPSIS", "DESCRIPTION", "EXAMPLE"} <= set(sections)
    documented = {name.split()[1] for name in sections if name.startswith("PARAMETER ")}
    assert documented == {parameter["name"] for parameter in script["parameters"]}
    assert [name for name, text in sections.items() if not text] == []


def test_every_parameter_has_a_type_and_switches_no_default(script: dict[str, Any]) -> None:
    for parameter in [*script["parameters"], *(p for f in script["functions"] for p in f["parameters"])]:
        assert re.search(r"\[[\w.\[\]]+\]$", parameter["attributes"]), parameter
        assert "[switch]" not in parameter["attributes"] or parameter["default"] is None, parameter
        assert "Mandatory" not in parameter["attributes"] or parameter["default"] is None, parameter


# --- programs --------------------------------------------------------------------------------------------------------


def test_programs_are_run_in_one_place(script: dict[str, Any]) -> None:
    """Where their codes are looked at. Another way would not be named in full, and fail as an unknown command."""
    run = {(call["function"], call["name"]) for call in script["commands"] if call["operator"]}
    assert run == {("Invoke-Native", "$program"), ("Use-Environment", "$Script")}
    started = {call["function"] for call in script["commands"] if call["name"] in ("Start-Process", "Start-Job")}
    assert started == {"Open-Forward"}
    assert not re.search(r"\[(System\.)?Diagnostics\.Process\]::", TEXT)


# --- the tests that only CI runs -------------------------------------------------------------------------------------


def test_the_pester_tests_keep_to_names_of_their_own(script: dict[str, Any]) -> None:
    """What they put in the place of deploy.ps1's functions runs in the scope of deploy.ps1."""
    pester = facts(PESTER)
    assert set(functions(pester)) & set(functions(script)) == set()
    assert list(misnamed(pester)) == []
    words = {"BeforeAll", "BeforeEach", "Describe", "It", "Should"}
    known = set(functions(pester)) | CMDLETS | words | {"Set-Alias"}
    assert {call["name"] for call in pester["commands"] if not call["operator"]} - known == set()
    assigned = {name for scope, name, _, _, _ in variables(pester) if scope == "script"}
    assert assigned == {"world"}


def test_what_the_pester_tests_replace_is_there_with_the_same_parameters(script: dict[str, Any]) -> None:
    ours, theirs = functions(script), functions(facts(PESTER))
    aliases = dict(re.findall(r"Set-Alias -Name '([\w-]+)' -Value '([\w-]+)'", PESTER.read_text(encoding="utf-8")))
    assert set(aliases) == {"Invoke-Native", "Open-Forward", "Invoke-WebRequest", "Test-Tool"}
    for name, stand_in in aliases.items():
        named = {parameter["name"] for parameter in theirs[stand_in]["parameters"]}
        if name in ours:
            assert named == {parameter["name"] for parameter in ours[name]["parameters"]}, name
    asked = [table for table in script["tables"] if table["function"] == "Test-Answer" and table["name"] == "request"]
    keys = {key for table in asked for key, _ in table["entries"]}
    keys |= set(re.findall(r"\$request\['(\w+)'\]", TEXT))
    assert keys == {parameter["name"] for parameter in theirs["Invoke-WorldRequest"]["parameters"]}


def test_nothing_is_hidden_or_compared_the_wrong_way_round() -> None:
    code = re.sub(r"<#.*?#>|^\s*#.*$", "", TEXT, flags=re.M | re.S)
    wrong = {
        r"-(?:c|i)?(?:eq|ne) \$null": "$null belongs on the left",
        r"ErrorAction\s+(?:SilentlyContinue|Ignore)[^\n]*\b(?:Remove-Item|Invoke-)": "what fails must be seen",
        r"\|\s*Out-Null": "slow: $null = ...",
        r"\bif \(\$\w+ = ": "an assignment",
        r"\bif \([^)]* [<>] ": "a redirection",
        r"ConvertTo-SecureString|-AsPlainText": "a password",
        r"\[Environment\]::Exit": "ends a session that dot-sources it",
    }
    assert {why: re.findall(pattern, code) for pattern, why in wrong.items() if re.search(pattern, code)} == {}
