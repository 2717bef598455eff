"""As much of kubectl's jsonpath as deploy.sh uses. A test holds it against the real kubectl."""

import json
import re

STEP = re.compile(
    r"""\.(?P<name>(?:\\.|[^.\[\\])+)|\[(?P<index>\*|\d+)\]|\[\?\(@\.(?P<key>[^=]+)=="(?P<value>[^"]*)"\)\]"""
)


def found(path, node):
    """All that `path` leads to; what is not there is left out."""
    nodes = [node]
    for step in STEP.finditer(path):
        name, index, key = step["name"], step["index"], step["key"]
        if name:
            name = name.replace("\\", "")
            nodes = [n[name] for n in nodes if isinstance(n, dict) and n.get(name) is not None]
            continue
        items = [item for n in nodes if isinstance(n, list) for item in n]
        if key:
            nodes = [item for item in items if str(item.get(key)) == step["value"]]
        else:
            nodes = items if index == "*" else items[int(index) :][:1]
    return nodes


def text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)


def rendered(template, node):
    """What ``-o jsonpath=template`` prints of `node`."""
    parts = re.split(r"(\{[^{}]*\})", template)
    return _run(parts, node)


def _run(parts, node):
    out = ""
    while parts:
        part = parts.pop(0)
        if part == "{end}":
            break
        if part.startswith("{range "):
            body = _body(parts)
            out += "".join(_run(list(body), item) for item in found(part[7:-1], node))
        elif part.startswith('{"'):
            out += json.loads(part[1:-1])
        elif part.startswith("{"):
            out += " ".join(text(value) for value in found(part[1:-1], node))
        else:
            out += part
    return out


def _body(parts):
    body, depth = [], 1
    while parts:
        part = parts.pop(0)
        depth += part.startswith("{range ") - (part == "{end}")
        if not depth:
            return body
        body.append(part)
    return body
