#!/usr/bin/env bash
# A cluster of kind called mlflow-live, and a plain registry that both this machine and its node know as localhost:5001.
# Needs NODE_IMAGE and REGISTRY_IMAGE.
set -euo pipefail

readonly NAME=mlflow-live
readonly REGISTRY=localhost:5001

docker run --detach --name registry --publish 127.0.0.1:5001:5000 "$REGISTRY_IMAGE" >/dev/null
kind create cluster --name "$NAME" --image "$NODE_IMAGE" --wait 180s

# In the node, localhost is the node: containerd learns where that registry really is.
for node in $(kind get nodes --name "$NAME"); do
    docker exec "$node" mkdir -p "/etc/containerd/certs.d/$REGISTRY"
    docker exec --interactive "$node" cp /dev/stdin "/etc/containerd/certs.d/$REGISTRY/hosts.toml" \
        <<<'[host."http://registry:5000"]'
done
docker network connect kind registry
