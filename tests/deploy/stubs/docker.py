"""The docker of the tests: images are entries of the world, with the commit that they were built with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stubs import trivy
from stubs.state import WORLD, call, option, say


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def build(argv: list[str]) -> int:
    if "--help" in argv:
        print("Usage:  docker build [OPTIONS] PATH | URL | -\n      --provenance string\n      --sbom string")
        return 0
    arguments = dict(argv[i + 1].split("=", 1) for i, word in enumerate(argv) if word == "--build-arg")
    ref = option(argv, "--tag")
    content = json.dumps([option(argv, "--target"), arguments], sort_keys=True)
    WORLD["images"][ref] = {"id": sha(content), "commit": arguments["GIT_COMMIT"], "digest": sha("m" + content)}
    say(f"#1 building {ref}")
    return 0


def push(ref: str) -> int:
    WORLD["registry"][ref] = WORLD["images"][ref]
    digest = WORLD["images"][ref]["digest"]
    print(
        f"The push refers to repository [{ref.rpartition(':')[0]}]\n"
        f"{ref.rpartition(':')[2]}: digest: {digest} size: 1234"
    )
    return 0


def published(ref: str) -> dict[str, Any] | None:
    """What the registry has under `ref`, a tag or a digest."""
    if "@" in ref:
        name, _, digest = ref.partition("@")
        return next((i for r, i in WORLD["registry"].items() if i["digest"] == digest and r.startswith(name)), None)
    return WORLD["registry"].get(ref)


def imagetools(argv: list[str]) -> int:
    ref = argv[0] if argv[0] != "--raw" else argv[1]
    image = published(ref)
    if not image:
        say(f"ERROR: {ref}: not found")
        return 1
    if "--format" in argv:
        print(json.dumps({"config": {"Labels": {"org.opencontainers.image.revision": image["commit"]}}}))
    elif "--raw" in argv:
        print(json.dumps({"manifests": [{"digest": digest} for digest in image.get("children", [])]}))
    else:
        print(f"Name:      {ref}\nMediaType: application/vnd.oci.image.manifest.v1+json\nDigest:    {image['digest']}")
    return 0


def inspect(argv: list[str]) -> int:
    ref = argv[-1]
    image = WORLD["images"].get(ref) or ({"id": sha(ref)} if ref in WORLD["pulled"] else None)
    if not image:
        say(f"Error response from daemon: No such image: {ref}")
        return 1
    name = ref.rpartition(":")[0]
    print(image["id"] if ".Id" in " ".join(argv) else f"{name}@{image.get('digest')}")
    return 0


def trivied(argv: list[str]) -> int:
    """Trivy in its container: what it calls /scan is the folder that is mounted there."""
    folder = option(argv, "--volume").removesuffix(":/scan")
    image = next(i for i, word in enumerate(argv) if word.startswith("aquasec/"))
    return trivy.main([word.replace("/scan", folder) for word in argv[image + 1 :]])


def main(argv: list[str]) -> int:
    call("docker", argv)
    match argv:
        case ["version", *_]:
            print("28.2.2, engine 20.10.24")
        case ["buildx", "version"]:
            print("github.com/docker/buildx v0.29.1 abc")
        case ["build", *rest]:
            return build(rest)
        case ["push", ref]:
            return push(ref)
        case ["pull", *_, ref]:
            WORLD["pulled"].append(ref)
        case ["buildx", "imagetools", "inspect", *rest]:
            return imagetools(rest)
        case ["image", "inspect", *rest]:
            return inspect(rest)
        case ["save", "-o", file, ref]:
            Path(file).write_text(ref)
        case ["info", *_]:
            print("/nowhere")
        case ["run", *rest]:
            return trivied(rest)
        case _:
            say(f"stub docker: {argv}")
            return 125
    return 0
