#!/usr/bin/env bash
# start: callers inside the cluster (load.py, in a pod of the image that is live).
# stop: ends them, shows what they saw, and fails if any request has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

kube() { kubectl --namespace mlflow-live "$@"; }

start() {
    local image
    image=$(kube get deployment mlflow-live --output jsonpath='{.spec.template.spec.containers[0].image}')
    kube create configmap load --from-file load.py --from-file ../../k8s/smoke/golden.request.json
    sed "s|image: live|image: $image|" load.yaml | kube create --filename -
    kube wait --for=condition=Ready pod --selector job-name=load --timeout=120s
}

stop() {
    kube exec job/load -- touch /tmp/stop
    if ! kube wait --for=condition=Complete job/load --timeout=60s; then
        kube logs job/load
        exit 1
    fi
    kube logs job/load
    kube delete job/load configmap/load
}

case ${1:-} in
    start | stop) "$1" ;;
    *) echo "usage: load.sh start|stop" >&2; exit 2 ;;
esac
