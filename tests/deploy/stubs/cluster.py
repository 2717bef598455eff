"""What an API server and its Deployment controller would do with one Deployment, as far as deploy.sh can see it."""

from __future__ import annotations

import json

APP = "mlflow-live"
REVISION = "deployment.kubernetes.io/revision"


def image_of(template):
    return next(c["image"] for c in template["spec"]["containers"] if c["name"] == "api")


class Cluster:
    """Reads and changes `state`, the world. Revisions are the ReplicaSets; the one with the highest number is live."""

    def __init__(self, state):
        self.state = state

    # ------------------------------------------------------------------------------------------ objects

    def key(self, manifest):
        return f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"

    def missing_namespace(self, manifest):
        space = manifest["metadata"].get("namespace")
        return space if space and space not in self.state["namespaces"] else None

    def differs(self, manifest):
        return json.dumps(self.state["objects"].get(self.key(manifest)), sort_keys=True) != json.dumps(
            manifest, sort_keys=True
        )

    def apply(self, manifest):
        if manifest["kind"] == "Namespace":
            self.state["namespaces"][manifest["metadata"]["name"]] = manifest["metadata"].get("labels", {})
        manifest = self._merged(manifest)
        changed = self.differs(manifest)
        self.state["objects"][self.key(manifest)] = manifest
        if changed and self.key(manifest) == f"deployment/{APP}":
            self._release(manifest["spec"]["template"], manifest["metadata"].get("annotations", {}))

    def _merged(self, manifest):
        """A revision that is applied again comes with the server's defaults, which were there before."""
        before = self.state["objects"].get(self.key(manifest))
        if before is None or "minReadySeconds" not in manifest.get("spec", {}) or manifest["kind"] != "Deployment":
            return manifest
        known = next((r for r in self.state["revisions"] if r["template"] == manifest["spec"]["template"]), None)
        if known is None:
            return manifest
        merged = json.loads(json.dumps(before))
        merged["spec"]["template"] = manifest["spec"]["template"]
        merged["metadata"]["annotations"] = manifest["metadata"]["annotations"]
        return merged

    def annotate(self, name, key, value):
        revision = next(r for r in self.state["revisions"] if f"{APP}-{r['hash']}" == name)
        revision.setdefault("marks", {})[key] = value

    def delete(self, kind, name):
        self.state["objects"].pop(f"{kind}/{name}", None)
        if kind == "configmap":
            self.state["configmaps"].pop(name, None)
        if kind == "namespace":
            self.state["namespaces"].pop(name, None)
            self.state["configmaps"].clear()
        if (kind, name) == ("deployment", APP):
            self.state["revisions"] = []

    # ------------------------------------------------------------------------------------------ releases

    def live(self):
        return max(self.state["revisions"], key=lambda r: r["revision"], default=None)

    def _release(self, template, annotations):
        state = self.state
        state["generation"] += 1
        number = max((r["revision"] for r in state["revisions"]), default=0)
        same = next((r for r in state["revisions"] if r["template"] == template), None)
        if same is not None:
            state["stale_deadline"] = state["stale_after_rollback"]
        else:
            same = {"template": template, "ready": 0, "hash": f"h{len(state['revisions']) + 1}", "revision": 0}
            state["revisions"].append(same)
        if same["revision"] != number or not number:
            same["revision"] = number + 1
        same["annotations"] = annotations
        state["polls"] = 2

    def trouble(self, revision):
        """Why pods of `revision` cannot start, or None."""
        image = image_of(revision["template"])
        return next((reason for part, reason in self.state["bad"].items() if part in image), None)

    def crashes(self):
        return bool(self.live()) and self.trouble(self.live()) == "CrashLoopBackOff"

    def settle(self):
        """One step of the controllers; each look at the Deployment makes one."""
        live = self.live()
        if self.state["polls"] > 0:
            self.state["polls"] -= 1
        elif live and not self.trouble(live):
            for revision in self.state["revisions"]:
                revision["ready"] = int(revision is live)

    # ------------------------------------------------------------------------------------------ what kubectl gets

    def get(self, kind, name):
        """A list of objects, or None if the one that is named is not there."""
        makers = {
            "deployment": self._deployments,
            "replicasets": self._replica_sets,
            "pods": self._pods,
            "endpointslices": self._slices,
            "nodes": self._nodes,
        }
        if kind in makers:
            return makers[kind]() or ([] if name is None else None)
        if kind == "replicaset":
            return [one for one in self._replica_sets() if one["metadata"]["name"] == name] or None
        if kind == "namespace":
            there = self.state["namespaces"].get(name)
            return None if there is None else [{"kind": "Namespace", "metadata": {"name": name, "labels": there}}]
        if kind == "configmap":
            return [self.state["configmaps"][name]] if name in self.state["configmaps"] else None
        if kind == "secret":
            return [{"kind": "Secret", "metadata": {"name": name}}] if name in self.state["secrets"] else None
        if kind == "daemonsets":
            return [{"metadata": {"name": n}} for n in self.state["daemonsets"]]
        if kind == "persistentvolumeclaims,secrets":
            return [{"kind": k, "metadata": {"name": n}} for k, n in self.state["kept"]]
        return []

    def _deployments(self):
        live, state = self.live(), self.state
        if not live:
            return []
        self.settle()
        waiting = state["polls"] > 0
        total = sum(r["ready"] for r in state["revisions"] if r is not live) + 1
        ready = sum(r["ready"] for r in state["revisions"])
        reason = "ReplicaSetUpdated" if ready < total else "NewReplicaSetAvailable"
        if state["stale_deadline"] > 0 or (state["deadline_exceeded"] and self.trouble(live)):
            state["stale_deadline"] -= 1
            reason, total = "ProgressDeadlineExceeded", 2
        manifest = state["objects"][f"deployment/{APP}"]
        annotations = {**live["annotations"], REVISION: str(live["revision"]), **state["gitops"]}
        metadata = {
            "name": APP,
            "generation": state["generation"],
            "annotations": annotations,
            "labels": manifest["metadata"].get("labels", {}),
        }
        metadata["managedFields"] = [{"manager": "deploy"}]
        status = {"observedGeneration": state["generation"] - waiting, "updatedReplicas": 1, "replicas": total}
        status |= {"readyReplicas": ready, "availableReplicas": ready} if ready else {}
        status["conditions"] = [
            {"type": "Available", "reason": "MinimumReplicasAvailable"},
            {"type": "Progressing", "reason": reason},
        ]
        return [
            {
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {
                    "replicas": 1,
                    "strategy": {"type": "RollingUpdate"},
                    **manifest["spec"],
                    "template": live["template"],
                },
                "status": status,
            }
        ]

    def _replica_sets(self):
        return [self._replica_set(revision) for revision in self.state["revisions"]]

    def _replica_set(self, revision):
        template = json.loads(json.dumps(revision["template"]))
        template["metadata"]["labels"]["pod-template-hash"] = revision["hash"]
        marks = {**revision["annotations"], **revision.get("marks", {}), REVISION: str(revision["revision"])}
        return {
            "kind": "ReplicaSet",
            "metadata": {"name": f"{APP}-{revision['hash']}", "annotations": marks},
            "spec": {"template": template},
            "status": {"readyReplicas": revision["ready"]} if revision["ready"] else {},
        }

    def _pods(self):
        pods = [self._pod(r) for r in self.state["revisions"] if r["ready"] or r is self.live()]
        if self.state["terminating"]:
            old = self._pod(min(self.state["revisions"], key=lambda r: r["revision"]))
            old["metadata"] |= {"name": f"{APP}-old", "deletionTimestamp": "2026-11-21T10:00:00Z"}
            pods.insert(0, old)
        return pods

    def _pod(self, revision):
        image, trouble = image_of(revision["template"]), self.trouble(revision)
        status = {
            "name": "api",
            "ready": bool(revision["ready"]),
            "image": image,
            "imageID": "",
            "state": {"running": {}},
        }
        conditions = []
        if revision["ready"]:
            status["imageID"] = self._image_id(image)
        elif trouble:
            message = (
                f'Back-off pulling image "{image}"'
                if "Image" in trouble
                else "back-off 10s restarting failed container=api"
            )
            status["state"] = {"waiting": {"reason": trouble, "message": message}}
            conditions = [{"type": "PodScheduled", "status": "True"}]
        phase = "Running" if revision["ready"] else "Pending"
        return {
            "metadata": {"name": f"{APP}-{revision['hash']}-x"},
            "status": {"phase": phase, "containerStatuses": [status], "conditions": conditions},
        }

    def _image_id(self, image):
        form = self.state["image_id"]
        if form == "registry" and "@" in image:
            return image
        known = self.state["images"].get(image, {"id": "sha256:unknown"})
        return form.replace("ID", known["id"]) if form != "registry" else known["id"]

    def _slices(self):
        ready = sum(r["ready"] for r in self.state["revisions"]) if self.state["endpoints"] else 0
        return [{"endpoints": [{"conditions": {"ready": True}} for _ in range(ready)]}]

    def _nodes(self):
        return [{"status": {"images": [{"names": [f"docker.io/library/{ref}"]} for ref in self.state["nodes"]]}}]

    def events(self):
        live = self.live()
        reason = self.trouble(live) if live else None
        return [f"5s          Warning   Failed   pod/{APP}-x   Error: {reason}"] if reason else []
