#!/usr/bin/env bash
# Deploys an image that ends at once. That must fail with the code of the roll-out, and leave live what was live.
set -euo pipefail

readonly ROLL_OUT=50
readonly IMAGE=localhost:5001/mlflow-live:broken

live() {
    kubectl --namespace mlflow-live get deployment mlflow-live \
        --output jsonpath='{.spec.template.spec.containers[?(@.name=="api")].image}{"\n"}'
}

before=$(live)
docker build --quiet --provenance=false --tag "$IMAGE" --build-arg BASE="$before" - <<'DOCKERFILE'
ARG BASE
FROM ${BASE}
CMD ["python", "-c", "raise SystemExit('broken on purpose')"]
DOCKERFILE
if [[ ${TARGET:?} == kind ]]; then
    docker save --output "${RUNNER_TEMP:?}/broken.tar" "$IMAGE"
    kind load image-archive --name mlflow-live "$RUNNER_TEMP/broken.tar"
else
    docker push --quiet "$IMAGE"
fi

status=0
.github/e2e/deploy.sh up --image "$IMAGE" --skip-scan || status=$?
if [[ $status != "$ROLL_OUT" ]]; then
    echo "deploy.sh ended with $status, not with $ROLL_OUT" >&2
    exit 1
fi
diff <(echo "$before") <(live)
.github/e2e/deploy.sh status
