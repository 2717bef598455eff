#!/usr/bin/env bash
# Deploys what is live already, and fails unless nothing changes.
set -euo pipefail

state() {
    kubectl --namespace mlflow-live get deployment mlflow-live --output jsonpath='{.metadata.generation}{"\n"}'
    kubectl --namespace mlflow-live get replicasets --output name
}

before=$(state)
said=${RUNNER_TEMP:?}/unchanged.txt
.github/e2e/deploy.sh up --skip-scan | tee "$said"
grep --quiet 'unchanged: the cluster has all of it already' "$said"
diff <(echo "$before") <(state)
