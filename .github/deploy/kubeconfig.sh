#!/usr/bin/env bash
# Writes KUBECONFIG with one context, called as the argument says, for a cluster that trusts the tokens of this workflow:
# KUBE_SERVER (its URL), KUBE_CA (its certificate, PEM) and KUBE_AUDIENCE (whom a token is for; the URL if it is empty).
set -euo pipefail

readonly NAME=${1:?usage: kubeconfig.sh CONTEXT}

umask 077
mkdir -p "$(dirname "${KUBECONFIG:?}")"
printf '%s\n' "${KUBE_CA:?}" >"$KUBECONFIG.ca"
kubectl config set-cluster "$NAME" --server "${KUBE_SERVER:?}" --embed-certs --certificate-authority "$KUBECONFIG.ca"
kubectl config set-context "$NAME" --cluster "$NAME" --user workflow
kubectl config use-context "$NAME"
# Last, because from now on kubectl asks for a token. It lives for five minutes, and a roll-out may take longer.
kubectl config set-credentials workflow --exec-api-version client.authentication.k8s.io/v1 --exec-interactive-mode Never \
    --exec-command "$PWD/.github/deploy/token.sh" --exec-arg "${KUBE_AUDIENCE:-$KUBE_SERVER}"
