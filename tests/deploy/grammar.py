"""What a PowerShell file says, by tree-sitter's grammar of it; for the tests, which have no PowerShell to ask.

Run with the Python of .venv-tools: reads a JSON list of sources and prints a list of one object for each.
Interpolations in strings become "<>"; names keep their case.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

PLAIN = {"generic_token", "command_parameter", "integer_literal", "real_literal"}
COMPUTED = {"variable", "member_access", "element_access", "invokation_expression", "command", "sub_expression"}
ESCAPES = {"`n": "\n", "`t": "\t", "`r": "\r", "``": "`", '`"': '"', '""': '"', "`$": "$", "`e": "\033", "`0": "\0"}


def text(node: Node) -> str:
    return (node.text or b"").decode()


def under(node: Node, *types: str) -> Iterator[Node]:
    """Nodes of these types in and below `node`, in the order of the text."""
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found.type in types:
            yield found
        waiting.extend(reversed(found.children))


PARENTS: dict[int, Node] = {}  # of every node of the tree at hand: `Node.parent` goes down from the root each time


NODES: dict[str, list[Node]] = {}  # of that tree by their types, in the order of the text


def everywhere(*types: str) -> list[Node]:
    return [node for kind in types for node in NODES.get(kind, [])]


def parent_of(node: Node) -> Node | None:
    return PARENTS.get(node.id)


def above(node: Node, *types: str) -> Node | None:
    parent = parent_of(node)
    while parent is not None and parent.type not in types:
        parent = parent_of(parent)
    return parent


def line(node: Node) -> int:
    return node.start_point.row + 1


def child(node: Node | None, *path: str) -> Node | None:
    for kind in path:
        node = next((found for found in node.children if found.type == kind), None) if node else None
    return node


def function_of(node: Node) -> str:
    """The function that `node` stands in; "" for the script itself."""
    found = above(node, "function_statement")
    return text(child(found, "function_name") or found) if found else ""


def said(node: Node) -> str:
    """What a string literal stands for, its interpolations as "<>"."""
    (kind,) = node.children
    raw = text(kind)
    if "here" in kind.type:
        start, end = raw.index("\n") + 1, raw.rindex("\n")
    else:
        start, end = 1, len(raw) - 1
    if kind.type.startswith("verbatim"):
        return raw[start:end] if "here" in kind.type else raw[start:end].replace("''", "'")
    return expanded(kind, raw, start, end)


def expanded(node: Node, raw: str, start: int, end: int) -> str:
    """An expandable string from `start` to `end`; offsets are those of the ASCII text."""
    base, parts = node.start_byte, []
    for part in [found for found in node.children if found.is_named]:
        first, last = part.start_byte - base, part.end_byte - base
        first += len(text(part)) - len(text(part).lstrip())
        parts += [unescaped(raw[start:first]), "<>"]
        start = last
    return "".join([*parts, unescaped(raw[start:end])])


def unescaped(part: str) -> str:
    out, at = [], 0
    while at < len(part):
        pair = part[at : at + 2]
        if pair in ESCAPES or pair.startswith("`"):
            out.append(ESCAPES.get(pair, pair[1:]))
            at += 2
        else:
            out.append(part[at])
            at += 1
    return "".join(out)


def words(node: Node, names: bool = False) -> list[str]:
    """The words of an argument or an array, in their order; "<>" for each that is not a literal, or, with `names`,
    "<$x>" for a variable."""
    if names and node.type == "variable":
        return [f"<{text(node).strip()}>"]
    if node.type == "string_literal":
        return [said(node)]
    if node.type in PLAIN:
        return [text(node).strip()]
    if node.type in COMPUTED:
        return ["<>"]
    return [word for found in node.children if found.is_named for word in words(found, names)]


def parameters(block: Node | None) -> list[dict[str, Any]]:
    found = []
    for parameter in under(block, "script_parameter") if block else ():
        name = child(parameter, "variable")
        attributes = child(parameter, "attribute_list")
        default = child(parameter, "script_parameter_default")
        found.append(
            {
                "name": text(name).strip()[1:] if name else "",
                "attributes": text(attributes) if attributes else "",
                "words": words(attributes) if attributes else [],
                "default": words(default) if default else None,
            }
        )
    return found


def functions() -> list[dict[str, Any]]:
    return [
        {
            "name": text(child(found, "function_name") or found),
            "line": line(found),
            "lines": found.end_point.row - found.start_point.row + 1,
            "parameters": parameters(child(found, "script_block", "param_block") or child(found, "param_block")),
            "attributes": [
                text(attribute)
                for block in under(found, "param_block")
                for attribute in block.children
                if attribute.type == "attribute_list"
                and function_of(block) == text(child(found, "function_name") or found)
            ],
        }
        for found in everywhere("function_statement")
    ]


def command(node: Node) -> dict[str, Any]:
    """A call: its named parameters with their words, how many go by position, and what is splatted."""
    named: dict[str, list[str]] = {}
    raw: dict[str, list[str]] = {}
    positional: list[list[str]] = []
    splatted: list[str] = []
    last = ""
    elements = child(node, "command_elements")
    for element in [found for found in elements.children if found.is_named] if elements else ():
        if element.type in ("command_argument_sep", "redirection"):
            continue
        if element.type == "command_parameter":
            last = text(element).strip()[1:]
            named[last] = []
        elif re.fullmatch(r"@\w+", text(element).strip()):
            splatted.append(text(element).strip()[1:])
        elif last and not named[last]:
            named[last], raw[last] = words(element) or ["<>"], [text(element), *words(element, names=True)]
        else:
            positional.append(words(element) or ["<>"])
    name = child(node, "command_name") or child(node, "command_name_expr") or node
    operator = child(node, "command_invokation_operator")
    return {
        "name": text(name).strip(),
        "operator": text(operator).strip() if operator else "",
        "function": function_of(node),
        "line": line(node),
        "named": named,
        "raw": raw,
        "positional": positional,
        "splatted": splatted,
    }


def strings() -> Iterator[dict[str, Any]]:
    """Every string that stands by itself; what is added up (`'a' + $b`) is one string."""
    for node in everywhere("string_literal"):
        if above(node, "expandable_string_literal", "expandable_here_string_literal", "attribute"):
            continue
        call = above(node, "command")
        name = child(call, "command_name")
        yield {
            "text": added(node),
            "raw": text(node),
            "function": function_of(node),
            "line": line(node),
            "command": text(name).strip() if name else "",
        }


def added(node: Node) -> str:
    """What a string is part of, if it is added to others."""
    whole, sum_of = node, None
    while (parent := parent_of(whole)) and (parent.child_count == 1 or parent.type == "additive_expression"):
        whole = parent
        sum_of = whole if whole.type == "additive_expression" and whole.child_count > 1 else sum_of
    return "".join(words(sum_of)) if sum_of else said(node)


def variables() -> Iterator[dict[str, Any]]:
    for node in everywhere("variable"):
        name = text(node).strip()[1:].strip("{}")
        yield {"name": name, "function": function_of(node), "line": line(node), "assigned": is_assigned(node)}


def is_assigned(node: Node) -> bool:
    """Whether this is where a variable gets its value; `$x.y = 1` and `$x[1] = 1` use x."""
    parent = parent_of(node)
    if parent is not None and parent.type == "script_parameter":
        return True
    if parent is not None and parent.type == "foreach_statement":
        return next(found for found in parent.children if found.type == "variable") == node
    while parent is not None and parent.type not in ("left_assignment_expression", "pipeline", "member_access"):
        if parent.type in ("element_access", "invokation_expression", "sub_expression", "expandable_string_literal"):
            return False
        parent = parent_of(parent)
    return parent is not None and parent.type == "left_assignment_expression"


def tables() -> Iterator[dict[str, Any]]:
    for node in everywhere("hash_literal_expression"):
        entries = []
        for entry in under(node, "hash_entry"):
            if above(entry, "hash_literal_expression") == node:
                key, value = [found for found in entry.children if found.is_named][:2]
                entries.append([text(key).strip().strip("'\""), words(value)])
        assignment = above(node, "assignment_expression", "command", "function_statement")
        left = child(assignment, "left_assignment_expression") if assignment else None
        name = text(left).strip().split("$")[-1] if left else ""
        yield {"name": name, "function": function_of(node), "line": line(node), "entries": entries}


def assignments() -> Iterator[list[Any]]:
    """[function, variable, operator, text, words] of everything assigned to a plain variable of a function, and of
    what `foreach` goes through."""
    for node in everywhere("foreach_statement"):
        name, value = child(node, "variable"), child(node, "pipeline")
        if name is not None and value is not None:
            yield [function_of(node), text(name).strip()[1:], "=", text(value), words(value, names=True)]
    for node in everywhere("assignment_expression"):
        left = child(node, "left_assignment_expression")
        value = [found for found in node.children if found.type != "comment"][-1]
        name = text(left).strip().lstrip("$") if left else ""
        if name.isidentifier() and function_of(node):
            operator = text(child(node, "assignement_operator") or node).strip()
            yield [function_of(node), name, operator, text(value), words(value, names=True)]


def constants() -> dict[str, list[str]]:
    """What is assigned outside of functions, and only there."""
    found = {}
    for node in everywhere("assignment_expression"):
        left = child(node, "left_assignment_expression")
        value = [found for found in node.children if found.type != "comment"][-1]
        if left is not None and not function_of(node) and not above(node, "script_block_expression"):
            found[text(left).strip().split("$")[-1].removeprefix("script:")] = words(value)
    return found


def facts(source: str) -> dict[str, Any]:
    tree = Parser(Language(tree_sitter_powershell.language())).parse(source.encode()).root_node
    PARENTS.clear()
    NODES.clear()
    waiting, errors = [tree], []
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            errors.append([line(node), text(node)[:80]])
        NODES.setdefault(node.type, []).append(node)
        children = node.children
        PARENTS.update((found.id, node) for found in children)
        waiting.extend(reversed(children))
    block = child(tree, "param_block")
    return {
        "errors": errors,
        "comments": [text(node) for node in everywhere("comment")],
        "attributes": [text(node) for node in block.children if node.type == "attribute_list"] if block else [],
        "parameters": parameters(block),
        "functions": functions(),
        "commands": [command(node) for node in everywhere("command")],
        "strings": list(strings()),
        "variables": list(variables()),
        "tables": list(tables()),
        "constants": constants(),
        "assignments": list(assignments()),
        "catches": [
            [line(node), not any(found.is_named for found in body.children)]
            for node in everywhere("catch_clause")
            if (body := child(node, "statement_block"))
        ],
    }


if __name__ == "__main__":
    print(json.dumps([facts(source) for source in json.load(sys.stdin)]))
