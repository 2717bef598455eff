"""deploy.sh and deploy.ps1 are one program in two languages: they accept, call and say the same and end the same way.

Every comparison is a function of both texts, so that a change in one of them alone can be tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import parity
import pytest
from powershell import ROOT, SCRIPT, facts, needs_grammar, parsed

pytestmark = needs_grammar

BASH = (ROOT / "deploy.sh").read_text(encoding="utf-8")
POWERSHELL = SCRIPT.read_text(encoding="utf-8")
TITLES = ("Verbs", "Options", "Environment", "Stages", "Exit codes")
LISTS = {"With", "Severity"}  # of words separated by commas
ONLY_POWERSHELL = {"Verb", "Rest"}  # the verb, which bash takes by position, and what nobody asked for
Both = tuple[str, str, dict[str, Any]]  # deploy.sh, deploy.ps1, and what the grammar says of it


def help_of(both: Both) -> Iterator[str]:
    """Lines of the tables of the help that differ: verbs, options, environment, stages, exit codes."""
    known = parity.options(both[0])
    for title in TITLES:
        ours = [translated(line, known) for line in parity.section(both[0], title).splitlines()]
        theirs = [" ".join(line.split()) for line in parity.section(both[1], title).splitlines()]
        yield from sorted(set(ours) ^ set(theirs))


def translated(line: str, known: list[str]) -> str:
    """A line of bash's help in PowerShell's terms."""
    for option in sorted(known, key=len, reverse=True):
        line = re.sub(rf"(?<![\w-]){option}(?![\w-])", parity.pascal(option), line)
    return " ".join(line.replace("Get-Help", "-?").split())


def options(both: Both) -> Iterator[str]:
    """Options of one that the other lacks."""
    wanted = {parity.pascal(option) for option in parity.options(both[0])} - {"-WhatIf", "Get-Help"}
    found = {f"-{parameter['name']}" for parameter in both[2]["parameters"] if parameter["name"] not in ONLY_POWERSHELL}
    yield from sorted(wanted ^ found)
    if "SupportsShouldProcess" not in "".join(both[2]["attributes"]):
        yield "-WhatIf"


def defaults(both: Both) -> Iterator[str]:
    """Options with another default."""
    names = {"Env": "ENVIRONMENT", "ToRevision": "TO_REVISION"}
    for parameter in both[2]["parameters"]:
        name = names.get(parameter["name"], parameter["name"].upper())
        found = re.search(rf"^(?:[\w='/,-]* )*{name}=(\S*)", both[0], re.M)
        if parameter["default"] and found and found[1].strip("'") != ",".join(parameter["default"]):
            yield f"{parameter['name']}: {found[1]}, {parameter['default']}"


def environment(both: Both) -> Iterator[str]:
    """Variables of the environment that only one looks at."""
    columns = re.findall(r"^  ([A-Z_]+(?:, [A-Z_]+)*)", parity.section(both[0], "Environment"), re.M)
    wanted = {name for column in columns for name in column.split(", ")}
    looked_at = {
        variable["name"][4:] for variable in both[2]["variables"] if variable["name"].lower().startswith("env:")
    }
    yield from sorted(name for name in wanted if name not in looked_at and f"'{name}'" not in both[1])


def stage_codes(both: Both) -> Iterator[str]:
    """Stages with another exit code."""
    body = both[0].split("stage_code()")[1].split("esac")[0]
    ours = {n: c for names, c in re.findall(r"^ +([a-z |-]+)\) echo (\d+)", body, re.M) for n in names.split(" | ")}
    default = re.findall(r"\*\) echo (\d+)", body)[0]
    ours |= {"preflight": default, "usage": re.findall(r"refuse\(\).*?exit (\d+)", both[0], re.S)[0]}
    theirs = dict(table_of(both[2], "StageCode"))
    yield from (f"{name}: {ours.get(name)}, {theirs.get(name)}" for name in differing(ours, theirs))


def table_of(script: dict[str, Any], name: str) -> Iterator[tuple[str, str]]:
    (table,) = [table for table in script["tables"] if table["name"] == name]
    yield from ((key, words[0]) for key, words in table["entries"])


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def constants(both: Both) -> Iterator[str]:
    """Constants of bash that PowerShell has not, or with another value. Its questions (P_...) are compared by what
    they ask for."""
    theirs = {name.lower(): "".join(words) for name, words in both[2]["constants"].items()}
    for line in re.findall(r"^readonly (\w+=\S+)", both[0], re.M):
        name, _, value = line.partition("=")
        if name.startswith("P_") or "{" in value:
            continue
        value = re.sub(r"\$\w+", "<>", value.strip('"'))
        if theirs.get(name.replace("_", "").lower()) != value:
            yield f"{name}: {value}, {theirs.get(name.replace('_', '').lower())}"


def settings(both: Both) -> Iterator[str]:
    """Settings from the environment with another default."""
    ours = dict(re.findall(r"\$\{(DEPLOY_\w+|DOCKER|CTR):-(\w+)\}", both[0]))
    calls = [call["named"] for call in both[2]["commands"] if call["name"] == "Get-Setting"]
    theirs = {named["Name"][0]: named.get("Default", [""])[0] for named in calls}
    yield from (f"{name}: {ours[name]}, {theirs.get(name)}" for name in ours if ours[name] != theirs.get(name))


def patterns(both: Both) -> Iterator[str]:
    """What option values must look like."""
    body = both[0].split("set_option()")[1].split("\n}\n")[0]
    ours = set(re.findall(r"'(\^[^']*\$)'", body))
    ours.add(f"^({'|'.join(re.findall(r'^  ([a-z]+) ', parity.section(both[0], 'Verbs'), re.M))})$")
    theirs = {s["text"] for s in both[2]["strings"] if s["function"] == "Initialize-Option" and s["text"][:1] == "^"}
    yield from sorted(ours ^ theirs)


def report(both: Both) -> Iterator[str]:
    """Keys of the object of --json, and their order."""
    first = re.findall(r'"(\w+)":%d', both[0].split("report()")[1].split("\n}\n")[0])
    ours = [*first, *re.findall(r"local keys='([^']*)'", both[0])[0].split()]
    theirs = [key for table in both[2]["tables"] if table["function"] == "Write-Report" for key, _ in table["entries"]]
    if ours != theirs:
        yield f"{ours}, {theirs}"


def known_words(both: Both) -> Iterator[str]:
    """Names that the cluster uses: of networks that enforce policies, and why a container does not start."""
    networks = re.findall(r"^  for name in ([a-z -]+); do$", both[0], re.M)[0].split()
    theirs = both[2]["constants"]
    yield from sorted(set(networks) ^ set(theirs["Enforced"]))
    reasons = re.findall(r"/(\(ErrImage.*?\.\*)/", both[0])[0]
    if reasons != "".join(theirs["NotStarting"]):
        yield reasons


# Said by one of them alone, and why.
ONLY_BASH_SAYS = {
    "what follows it is missing, or there is no such option": "PowerShell itself wants a value for each parameter",
    "settings.env names files of it: kubectl -n <> create secret generic <> --from-file=": "PowerShell: in two parts",
    "bash": "a row with bash's version",
}
ONLY_POWERSHELL_SAYS = {
    "settings.env names files of it": "the first of two parts",
    "pwsh": "a row with PowerShell's version",
    "git diff --no-index": "Windows has no diff, but git has one",
    "FAIL rollback": "what PowerShell throws in the middle of one",
    "left behind": "what PowerShell throws while it cleans up",
    "needed, or how to mend it": "bash: printf",
    "== rollback<> (<> )": "bash: printf",
    "differs": "bash: sed",
    "revision <> commit": "bash: awk",
    "would apply": "bash: awk",
}
SAYING = {"Exit-Stage", "Exit-Usage", "Add-Row", "Write-Note", "Write-Pass", "Write-Alarm", "Write-Line"}
WORDS = re.compile(r"[a-z]+ [a-z]+|[a-z]{4}")


def messages(both: Both) -> Iterator[str]:
    """What only one of them says to its user, without what is put into the texts."""
    known = parity.options(both[0])
    ours = parity.bash_messages(both[0])
    theirs = {parity.skeleton(string["text"], known): string for string in both[2]["strings"]}
    said = {text for text, string in theirs.items() if string["command"] in SAYING and WORDS.search(text)}
    yield from sorted(f"deploy.sh: {text}" for text in ours - set(theirs) - set(ONLY_BASH_SAYS) if WORDS.search(text))
    yield from sorted(f"deploy.ps1: {text}" for text in said - ours - set(ONLY_POWERSHELL_SAYS))


RUN_BY = {"Invoke-Native", "Invoke-Announced", "Invoke-Quiet", "Invoke-Long", "Write-Announcement"}
KUBECTL = {"Invoke-Kubectl": "kubectl", "Get-Resource": "kubectl", "Get-GitLine": "git", "Invoke-Trivy": "trivy"}
WRAPPERS = RUN_BY | {"Invoke-Kubectl", "Get-Resource", "Get-GitLine"}
ONLY_BASH_CALLS: dict[str, str] = {}
ONLY_POWERSHELL_CALLS: dict[str, str] = {}
# Given by way of "$@" in bash, which is not followed.
BY_ARGUMENTS = {"trivy image": {"--input"}, "kubectl logs": {"--previous"}}
LOADERS = ("kind", "k3d", "minikube")


def powershell_calls(script: dict[str, Any]) -> dict[str, set[str]]:
    """As `parity.bash_calls`. A command may be put together in a variable before it is run."""
    commands: list[tuple[str, list[str]]] = []
    for call in script["commands"]:
        argument = next((name for name in ("Command", "Argument") if name in call["raw"]), "")
        if call["name"] not in RUN_BY | KUBECTL.keys() or call["function"] in WRAPPERS or not argument:
            continue
        for text, words in alternatives(script, call["function"], call["raw"][argument]):
            words += ["-o"] if call["name"] == "Get-Resource" else []
            commands += told_apart(tool_of(call["name"], text, words), words)
    return parity.collected((tool, words) for tool, words in commands if tool in parity.TOOLS)


def alternatives(script: dict[str, Any], function: str, raw: list[str]) -> list[tuple[str, list[str]]]:
    """Texts and words of an argument, once for each value that the variables in it are given in that function."""
    found: list[tuple[str, list[str]]] = [(raw[0], [])]
    for word in raw[1:]:
        values: list[tuple[str, list[str]]] = []
        for where, name, operator, text, parts in script["assignments"]:
            if (where, f"<${name}>") != (function, word) or word in parts:
                continue
            if operator == "=":
                values += alternatives(script, function, [text, *parts])
            else:
                values = [(f"{old} {text}", [*words, *parts]) for old, words in values]
        plain = word if not word.startswith("<") else "<>"
        found = [(f"{a} {b}", x + y) for a, x in found for b, y in values or [("", [plain])]]
    return found


def tool_of(name: str, text: str, words: list[str]) -> str:
    if name in KUBECTL:
        return KUBECTL[name]
    if re.search(r"\$Run\.(Here|Cluster)\b", text):
        return "kubectl"
    return "docker" if "$Run.Docker" in text else words[0]


def told_apart(tool: str, words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """One command, or several that were assigned to one variable."""
    starts = [
        at
        for at, word in enumerate(words)
        if (at == 0 and word == tool)
        or (word in LOADERS and words[at + 1 : at + 2] in (["load"], ["image"], ["--profile"]))
    ]
    if not starts:
        yield tool, words
        return
    for start, end in pairwise([*starts, len(words)]):
        yield words[start], words[start + 1 : end]


ROWS_OF_ITS_SHELL = {"ok bash", "ok pwsh"}


def splatted_rows(script: dict[str, Any], function: str, name: str) -> Iterator[str]:
    """Rows whose status a function finds out before it adds them."""
    (check,) = [
        "".join(words)
        for table in script["tables"]
        if (table["function"], table["name"]) == (function, name)
        for key, words in table["entries"]
        if key == "Check"
    ]
    texts = {string["text"] for string in script["strings"] if string["function"] == function}
    yield from (f"{status} {check}" for status in texts & {"ok", "warn", "FAIL"})


def rows(both: Both) -> Iterator[str]:
    """Rows of the preflight that only one has: "FAIL docker", "warn lock"."""
    text, ours = parity.code(both[0]), set()
    for match in re.finditer(r"(?<![\w-])row (?=[\"'\w$])", text):
        status, check, *_ = parity.bash_words(text, match.end())
        ours.add(f"{status} {check}")
    theirs: set[str] = set()
    for call in [call for call in both[2]["commands"] if call["name"] == "Add-Row"]:
        if call["splatted"]:
            theirs.update(splatted_rows(both[2], call["function"], call["splatted"][0]))
        else:
            theirs.add(f"{''.join(call['named']['Status'])} {''.join(call['named']['Check'])}")
    yield from sorted((ours ^ theirs) - ROWS_OF_ITS_SHELL)


def calls(both: Both) -> Iterator[str]:
    """Commands and options that only one gives to kubectl, docker, trivy, git and the like."""
    ours, theirs = parity.bash_calls(both[0]), powershell_calls(both[2])
    yield from sorted(f"deploy.sh: {call}" for call in ours.keys() - theirs.keys() - set(ONLY_BASH_CALLS))
    yield from sorted(f"deploy.ps1: {call}" for call in theirs.keys() - ours.keys() - set(ONLY_POWERSHELL_CALLS))
    for call in sorted(ours.keys() & theirs.keys()):
        if differ := (ours[call] ^ theirs[call]) - BY_ARGUMENTS.get(call, set()):
            yield f"{call}: {sorted(differ)}"


COMPARISONS = [
    help_of,
    options,
    defaults,
    environment,
    stage_codes,
    constants,
    settings,
    patterns,
    report,
    known_words,
    messages,
    rows,
    calls,
]


@pytest.fixture(scope="module")
def both() -> Both:
    return BASH, POWERSHELL, facts(SCRIPT)


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda comparison: comparison.__name__)
def test_both_are_the_same(both: Both, comparison: Any) -> None:
    assert list(comparison(both)) == []


# --- that a change in one of them alone is seen ----------------------------------------------------------------------

SH, PS1 = 0, 1
MUTATIONS = [
    ("stage_codes", SH, "scan) echo 30", "scan) echo 31"),
    ("stage_codes", PS1, "build = 20", "build = 21"),
    ("constants", SH, "MANAGER=deploy", "MANAGER=deployer"),
    ("constants", PS1, "$LocalPort = 8080", "$LocalPort = 8081"),
    ("constants", PS1, "trivy:0.74.0", "trivy:0.75.0"),
    ("constants", PS1, "-deploy-lock", "-lock"),
    ("options", SH, "\n  --skip-scan ", "\n  --skip-scans "),
    ("options", PS1, "[switch] $NoRollback", "[switch] $KeepFailed"),
    ("options", PS1, "SupportsShouldProcess, ", ""),
    ("defaults", PS1, "$Timeout = '300'", "$Timeout = '301'"),
    ("help_of", SH, "\n  143  interrupted", "\n  144  interrupted"),
    ("help_of", PS1, "\n  doctor    only", "\n  doctor    mainly"),
    ("environment", PS1, "'TRIVY_IMAGE'", "'TRIVY'"),
    ("settings", PS1, "-Default '30'", "-Default '31'"),
    ("patterns", PS1, "{0,127}", "{0,128}"),
    ("report", PS1, "duration_s", "seconds"),
    ("known_words", SH, "calico cilium", "calico"),
    ("known_words", PS1, "'CrashLoopBackOff|", "'"),
    ("messages", SH, "not together with --image", "never with --image"),
    ("messages", PS1, "only for rollback", "for rollback"),
    ("rows", SH, "row warn lock", "row FAIL lock"),
    ("rows", PS1, "-Status 'ok' -Check 'rights'", "-Status 'warn' -Check 'rights'"),
    ("rows", PS1, "-Check 'pull policy'", "-Check 'pulling'"),
    ("calls", SH, "--force-conflicts ", ""),
    ("calls", PS1, "'--ignore-unfixed', ", ""),
    ("calls", PS1, "'buildx', 'version'", "'version'"),
]


def test_a_change_in_one_of_them_is_seen(both: Both) -> None:
    """All of one file's at once, because they touch different things, and the grammar takes its time."""
    texts = [BASH, POWERSHELL]
    for _, which, old, new in MUTATIONS:
        assert old in texts[which], old
        texts[which] = texts[which].replace(old, new)
    (script,) = parsed(texts[PS1])
    assert {name for name, *_ in MUTATIONS} == {comparison.__name__ for comparison in COMPARISONS}
    for comparison in COMPARISONS:
        known = set(comparison(both))
        changed = {
            SH: set(comparison((texts[SH], POWERSHELL, both[2]))) - known,
            PS1: set(comparison((BASH, texts[PS1], script))) - known,
        }
        for which in changed:
            tried = [old for name, where, old, _ in MUTATIONS if (name, where) == (comparison.__name__, which)]
            assert len(changed[which]) >= len(tried), f"{comparison.__name__}: {tried}, {changed[which]}"
