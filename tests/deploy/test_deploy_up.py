"""./deploy.sh up, when all is well: each target, the second run, another folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import cloned, git
from driver import NEW_WORLD, Driver, install
from stubs.service import DIGEST

STAGES = ["preflight", "build", "scan", "deploy", "roll-out", "health", "smoke"]
READS = {"version", "config", "api-resources", "auth", "get", "kustomize", "diff"}


def stages(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("== ")]


def written(outcome) -> list[list[str]]:
    """Calls that change a cluster, an image or a registry."""
    found = []
    for call in outcome.calls:
        words = [word for word in call if not word.startswith("-") and word not in ("kind-dev", "mlflow-live")]
        if (
            call[0] == "kubectl"
            and words[1] not in READS
            and "--dry-run=server" not in call
            and "port-forward" not in call
        ):
            found.append(call)
        if call[0] in ("kind", "k3d", "minikube", "ctr") or (
            call[0] == "docker" and call[1] in ("build", "push", "run", "pull")
        ):
            found.append(call)
    return found


def test_from_a_clean_clone_to_a_tested_service(driver: Driver) -> None:
    outcome = driver.run()

    commit = git(driver.checkout, "rev-parse", "HEAD")
    assert outcome.code == 0, outcome.text
    assert stages(outcome.out) == STAGES
    assert outcome.err == ""
    assert driver.live_image == f"mlflow-live:{commit[:12]}"
    assert f"iris version 1 ({DIGEST}) by commit {commit}" in outcome.out
    assert "kubectl --context kind-dev --namespace mlflow-live port-forward service/mlflow-live 8080:80" in outcome.out
    (build,) = outcome.called("docker", "build", "--target", "serve")
    assert {"VERSION=1.0.0", f"GIT_COMMIT={commit}", "--provenance=false", "--sbom=false"} <= set(build)
    annotations = driver.world["objects"]["deployment/mlflow-live"]["metadata"]["annotations"]
    assert annotations["mlflow-live/commit"] == commit
    assert commit in annotations["kubernetes.io/change-cause"]


def test_announces_each_command_that_changes_something(driver: Driver) -> None:
    outcome = driver.run()
    for call in written(outcome):
        words = [word for word in call if not word.startswith(("--request-timeout", str(driver.temp)))]
        if "--help" in words or words[:2] == ["kubectl", "delete"] or "delete" in words:
            continue
        assert all(word in outcome.out for word in words), call


def test_the_curl_line_at_the_end_works(driver: Driver) -> None:
    """With the port that kubectl gives it, because here 8080 may be taken."""
    out = driver.run().out
    line = next(line for line in out.splitlines() if line.startswith("  $ curl")).removeprefix("  $ ")
    forward = next(
        line for line in out.splitlines() if "port-forward service" in line and "8080:80" in line
    ).removeprefix("  $ ")
    program = subprocess.Popen(
        ["bash", "-c", "exec " + forward.replace("8080:80", ":80")],
        env=driver.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        port = program.stdout.readline().split("127.0.0.1:")[1].split(" ")[0]
        done = subprocess.run(
            ["bash", "-c", line.replace("8080", port)],
            env=driver.environment,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        program.terminate()
        program.communicate()
    assert '"class_name":"setosa"' in done.stdout


def test_a_second_run_changes_nothing_and_says_so(driver: Driver) -> None:
    driver.run()
    before = len(driver.world["revisions"]), driver.world["generation"]
    outcome = driver.run()

    assert outcome.code == 0
    assert outcome.out.count("unchanged") == 3  # build, load, deploy
    lock = [call for call in written(outcome) if "lock.yaml" not in call[-1] and "mlflow-live-deploy-lock" not in call]
    assert lock == []
    assert before == (len(driver.world["revisions"]), driver.world["generation"])
    assert stages(outcome.out) == STAGES


def test_a_registry_gets_it_and_it_is_deployed_by_digest(driver: Driver) -> None:
    driver.world.update(context="cloud", server="https://cloud.example:443")
    with_registry = ["--registry", "r.test/team", "--context", "cloud", "--env", "staging"]
    finds_every_registry(driver)
    outcome = driver.run(*with_registry)
    assert outcome.code == 0, outcome.text
    ref = f"r.test/team/mlflow-live:{git(driver.checkout, 'rev-parse', 'HEAD')[:12]}"
    assert outcome.called("docker", "push", ref)
    assert driver.live_image == "r.test/team/mlflow-live@" + driver.world["registry"][ref]["digest"]

    outcome = driver.run(*with_registry)
    assert outcome.code == 0, outcome.text
    assert f"unchanged: {ref} is there already" in outcome.out
    assert not outcome.called("docker", "push", ref)


def finds_every_registry(driver: Driver) -> None:
    """A curl that finds every registry, and is the real one for everything else."""
    folder = driver.home / "bin"
    shutil.copytree(driver.environment["PATH"], folder, symlinks=True)
    (folder / "curl").unlink()
    real = shutil.which("curl")
    (folder / "curl").write_text(f'#!/bin/bash\n[[ "$*" != */v2/ ]] || {{ printf 200; exit 0; }}\nexec "{real}" "$@"\n')
    (folder / "curl").chmod(0o755)
    driver.environment["PATH"] = str(folder)


@pytest.mark.parametrize(
    ("context", "target", "words"),
    [
        ("kind-dev", "kind", ["kind", "load", "image-archive", "--name", "dev"]),
        ("k3d-lab", "k3d", ["k3d", "image", "import", "--cluster", "lab"]),
        ("minikube", "minikube", ["minikube", "--profile", "minikube", "image", "load"]),
        ("default", "ctr", ["ctr", "--namespace", "k8s.io", "images", "import"]),
        ("docker-desktop", "docker-desktop", []),
    ],
)
def test_a_cluster_without_a_registry_is_given_the_image(
    driver: Driver, context: str, target: str, words: list[str]
) -> None:
    driver.world.update(context=context)
    outcome = driver.run("--skip-scan", *(["--target", target] if target == "ctr" else []))
    assert outcome.code == 0, outcome.text
    loads = [call for call in outcome.calls if call[0] in ("kind", "k3d", "minikube", "ctr")]
    assert [call[0] for call in loads] == words[:1]
    assert not words or set(words) <= set(loads[0])
    assert not [call for call in outcome.calls if call[:2] == ["docker", "push"]]


@pytest.mark.parametrize(
    "form", ["ID", "docker://ID", "docker.io/library/import-2026-11-21@sha256:" + "ab" * 32, "sha256:" + "cd" * 32]
)
def test_pods_of_a_loaded_image_are_known_in_every_form_of_their_id(driver: Driver, form: str) -> None:
    driver.world.update(image_id=form)
    assert driver.run("--skip-scan").code == 0


def test_dockers_own_id_must_be_that_of_the_image_that_was_built(driver: Driver) -> None:
    driver.world.update(context="docker-desktop", image_id="docker-pullable://mlflow-live@sha256:" + "ab" * 32)
    outcome = driver.run("--skip-scan")
    assert outcome.code == 60
    assert "runs docker-pullable://" in outcome.err


def test_another_digest_in_the_pods_fails_the_smoke_test(driver: Driver) -> None:
    (image,) = driver.images_pushed("good")
    driver.world.update(image_id="r.test/mlflow-live@sha256:" + "ab" * 32)
    outcome = driver.run("--image", image, "--skip-scan")
    assert outcome.code == 60
    assert f"not {image}" in outcome.err


def test_the_platforms_manifest_of_an_index_will_do(driver: Driver) -> None:
    (image,) = driver.images_pushed("good")
    child = "sha256:" + "ab" * 32
    driver.world["registry"]["r.test/mlflow-live:good"]["children"] = [child]
    driver.world.update(image_id=f"r.test/mlflow-live@{child}")
    assert driver.run("--image", image, "--skip-scan").code == 0


def test_an_image_by_its_tag_is_deployed_by_its_digest_and_tested_for_its_commit(driver: Driver) -> None:
    (image,) = driver.images_pushed("good")
    outcome = driver.run("--image", "r.test/mlflow-live:good", "--skip-scan", "--json")
    assert driver.live_image == image
    assert outcome.json["commit"] == "good"
    assert not outcome.called("docker", "build")


def test_a_tree_that_is_not_clean_gets_a_tag_of_its_own(driver: Driver, tmp_path: Path) -> None:
    driver.checkout = cloned(tmp_path / "dirty")
    commit = git(driver.checkout, "rev-parse", "HEAD")
    tags = set()
    for content in ("one", "two", "one"):
        (driver.checkout / "new file").write_text(content)
        (driver.checkout / "Dockerfile").write_text(f"FROM scratch # {content}\n")
        outcome = driver.run("--skip-scan")
        assert outcome.code == 0, outcome.text
        assert driver.live_image.startswith(f"mlflow-live:{commit[:12]}-dirty.")
        assert driver.world["revisions"][-1]["annotations"]["mlflow-live/commit"] == f"{commit}-dirty"
        tags.add(driver.live_image)
    assert len(tags) == 2
    assert sorted(git(driver.checkout, "status", "--porcelain").split("\n")) == ['?? "new file"', "M Dockerfile"]
    assert "dangling" not in git(driver.checkout, "fsck", "--dangling", "--no-progress")


def test_works_from_any_folder_and_through_a_link(driver: Driver, tmp_path: Path) -> None:
    link = tmp_path / "the deploy command"
    link.symlink_to(driver.checkout / "deploy.sh")
    assert driver.run("--skip-scan", cwd=Path("/"), script=link).code == 0


def test_components_and_their_images(driver: Driver) -> None:
    outcome = driver.run("--with", "mlflow", "--skip-scan")
    assert outcome.code == 0, outcome.text
    tag = git(driver.checkout, "rev-parse", "HEAD")[:12]
    assert driver.world["nodes"] == [f"mlflow-live:{tag}", f"mlflow-live-mlflow:{tag}"]
    assert outcome.called("kubectl", "status", "statefulset/postgres")
    assert "secret mlflow-passwords" not in outcome.out or "made in the cluster" in outcome.out


def test_a_namespace_of_ones_own(driver: Driver) -> None:
    outcome = driver.run("--namespace", "mine", "--skip-scan", "--json")
    assert outcome.code == 0, outcome.text
    assert outcome.json["namespace"] == "mine"
    assert list(driver.world["namespaces"]) == ["mine"]


def test_trivys_container_sees_an_archive_and_no_socket(driver: Driver, tmp_path: Path) -> None:
    driver.environment["PATH"] = str(install(tmp_path / "bin", ("kubectl", "docker", "kind")))
    outcome = driver.run()
    assert outcome.code == 0, outcome.text
    runs = outcome.called("docker", "run")
    assert len(runs) == 4
    assert not any("docker.sock" in word for call in runs for word in call)
    assert (driver.checkout / "build/deploy/mlflow-live.cdx.json").exists()
    assert not (driver.checkout / "build/deploy/image.tar").exists()


def test_an_old_pod_that_is_still_ending_does_not_fail_the_smoke_test(driver: Driver) -> None:
    driver.run("--skip-scan")
    driver.world.update(terminating=1)
    outcome = driver.run("--skip-scan")
    assert outcome.code == 0, outcome.text
    assert "again: the live service is of commit of-the-old-pod" in outcome.out


def test_a_port_forward_that_dies_is_made_again(driver: Driver) -> None:
    driver.world.update(drops=1)
    driver.fault("kubectl", "port-forward", stderr="error: lost connection to pod")
    outcome = driver.run("--skip-scan")
    assert outcome.code == 0, outcome.text
    assert outcome.out.count("again:") == 2


def test_a_dry_run_changes_nothing(driver: Driver) -> None:
    for _ in range(2):  # without the namespace, and with it
        outcome = driver.run("--dry-run", "--env", "local")
        assert outcome.code == 0, outcome.text
        assert list(written(outcome)) == []
        assert "would build mlflow-live:" in outcome.out
        assert "Dry run: nothing was built, and nothing changed." in outcome.out
        driver.world["namespaces"]["mlflow-live"] = {}
    assert outcome.called("kubectl", "diff")
    assert outcome.called("kubectl", "--dry-run=server")


def test_a_dry_run_needs_no_cluster(driver: Driver) -> None:
    driver.world.update(reachable=False)
    outcome = driver.run("--dry-run")
    assert outcome.code == 0, outcome.text
    assert "no cluster answers" in outcome.out
    assert driver.world == NEW_WORLD | {"reachable": False}
