"""deploy.sh and deploy.ps1 as facts of one shape, to be compared: what they accept, call and say, and how they end."""

from __future__ import annotations

import re
from collections.abc import Iterable

SAYING = ("fail", "refuse", "warn", "note", "passed", "say", "row")
QUIET = {"''", '""'}


def joined(source: str) -> list[str]:
    """Lines of bash, continuations made one."""
    return re.sub(r"\s*\\\n\s*", " ", source).split("\n")


def closing(source: str, start: int) -> int:
    """The index behind the bracket that closes the one at `start`."""
    pairs = {"(": ")", "{": "}"}
    depth, at = 0, start
    while at < len(source):
        if source[at] == "\\":
            at += 1
        elif source[at] == source[start]:
            depth += 1
        elif source[at] == pairs[source[start]]:
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return at


def bash_word(source: str, start: int) -> tuple[str, int]:
    """One word from `start`, its expansions as "<>", and the index behind it."""
    out, at, quoted = [], start, ""
    while at < len(source):
        sign = source[at]
        if quoted == "'" and sign != "'":
            out.append(sign)
        elif sign == quoted:
            quoted = ""
        elif not quoted and sign in "\"'":
            quoted = sign
        elif not quoted and sign in " \t\n;&|<>)":
            break
        elif sign == "\\":
            at += 1
            out.append(source[at])
        elif sign == "$" and (found := re.compile(r"\$(\w+|[*@?#$!-])").match(source, at)):
            out.append("<>")
            at = found.end() - 1
        elif source.startswith(("$(", "${"), at):
            out.append("<>")
            at = closing(source, at + 1) - 1
        else:
            out.append(sign)
        at += 1
    return "".join(out), at


def bash_words(source: str, start: int) -> list[str]:
    """The words of a command from `start` to its end."""
    words: list[str] = []
    at = start
    while at < len(source) and source[at] not in ";&|)\n" and not re.compile(r"[0-9]*[<>]").match(source, at):
        word, end = bash_word(source, at)
        if end == at:
            break
        words.append(word)
        at = end
        while at < len(source) and source[at] == " ":
            at += 1
    return words


# --- what is called --------------------------------------------------------------------------------------------------

TWO_WORDS = {
    "get",
    "auth",
    "config",
    "rollout",
    "delete",
    "annotate",
    "buildx",
    "image",
    "imagetools",
    "images",
    "load",
}
NOT_COUNTED = {"--request-timeout", "--context", "--namespace"}  # added to every call
TOOLS = ("kubectl", "docker", "git", "trivy", "kind", "k3d", "minikube")
ONE_WORD = {"trivy", "kind", "minikube"}
BASH_CALLS = {  # where a command begins, and the words that it begins with
    r'(?:kubectl_ask|"\$\{KN?\[@\]\}"|set --(?= apply )) ': ["kubectl"],
    r'(?<![\w./"])kubectl (?=(?:kustomize|config|version)\b)': ["kubectl"],
    r'(?:"\$DOCKER"|set --(?= build )) ': ["docker"],
    r'set -- "\$@" (?=--(?:provenance|build-arg))': ["docker", "build"],
    r"(?<![\w./-])trivy_run ": ["trivy"],
    r"(?<![\w./\"'-])git (?=rev-parse|add|write-tree)": ["git"],
    r"set -- (?=kind |k3d |minikube )": [],
}


def code(source: str) -> str:
    """deploy.sh without comments and help, a command a line."""
    helped = source.index("cat <<'HELP'"), source.index("\nHELP\n")
    source = source[: helped[0]] + source[helped[1] :]
    return "\n".join(joined(re.sub(r"(?m)(^|[ \t])#[ \t].*$", "", source)))


def signature(tool: str, words: list[str]) -> tuple[str, set[str]]:
    """A command, such as "kubectl get pods", and the names of its options."""
    plain = [word for word in words if word not in ("", ".") and not word.startswith(("-", "<>"))]
    two = tool not in ONE_WORD and plain and plain[0] in TWO_WORDS
    names = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return " ".join([tool, *(word.partition("/")[0] if "<>" in word else word for word in plain[: 2 if two else 1])]), (
        names - NOT_COUNTED
    )


def collected(commands: Iterable[tuple[str, list[str]]]) -> dict[str, set[str]]:
    """Each command with the options that it is given anywhere."""
    found: dict[str, set[str]] = {}
    for tool, words in commands:
        name, names = signature(tool, words)
        if name != tool:
            found.setdefault(name, set()).update(names)
    return found


def bash_calls(source: str) -> dict[str, set[str]]:
    text = code(source)
    commands: list[tuple[str, list[str]]] = []
    for pattern, start in BASH_CALLS.items():
        for match in re.finditer(pattern, text):
            tool, *words = [*start, *bash_words(text, match.end())]
            commands.append((tool, words))
    return collected(commands)


# --- what is said ----------------------------------------------------------------------------------------------------

OPTION_NAMES = {"--dry-run": "-WhatIf", "--help": "Get-Help"}


def pascal(option: str) -> str:
    """`--skip-build` as deploy.ps1 has it: `-SkipBuild`."""
    return OPTION_NAMES.get(option, "-" + "".join(part.capitalize() for part in option[2:].split("-")))


def options(source: str) -> list[str]:
    return re.findall(r"^  (--[a-z-]+)", section(source, "Options"), re.M)


def section(source: str, title: str) -> str:
    """A table of deploy.sh's help."""
    return source.split(f"\n{title}\n")[1].split("\n\n")[0].split("\nHELP\n")[0]


def skeleton(text: str, known: list[str]) -> str:
    """A message without what is put into it, in PowerShell's terms."""
    for option in known:
        text = re.sub(rf"(?<![\w-]){option}(?![\w-])", pascal(option), text)
    text = text.replace("…", "...").replace("./deploy.sh", "deploy.ps1").replace("deploy.sh", "deploy.ps1")
    text = text.replace("mlflow-live", "<>").replace("--Namespace", "-n")
    text = re.sub(r"\{\d+(:[^}]*)?\}", "<>", text)
    text = re.sub(r"(<>\s*)+", "<> ", text).strip()
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"^(<>|[\s:;,./-])+|(<>|[\s:;,.])+$", "", text)


def bash_messages(source: str) -> set[str]:
    """All that deploy.sh says to its user: arguments of `fail`, `row` and the like, and reasons."""
    text, known = code(source), options(source)
    said: set[str] = set()
    for match in re.finditer(
        rf"(?:^|[;&|{{)!]|\bthen|\belse|\bdo)[ ]*(?:{'|'.join(SAYING)}) (?=[\"'\w$<])", text, re.M
    ):
        said.update(bash_words(text, match.end()))
    for match in re.finditer(r"\b(?:WHY|REASON)=", text):
        said.add(bash_word(text, match.end())[0])
    return {skeleton(message, known) for message in said} - {""}
