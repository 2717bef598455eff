#!/usr/bin/env bash
# ./deploy.sh with these arguments, on the cluster of cluster.sh; TARGET says how it gets the image.
set -euo pipefail

case ${TARGET:?} in
    kind) target=(--target kind) ;;
    registry) target=(--target registry --registry localhost:5001) ;;
    *) echo "TARGET is kind or registry, not $TARGET" >&2; exit 2 ;;
esac
exec ./deploy.sh "$@" --context kind-mlflow-live --yes "${target[@]}"
