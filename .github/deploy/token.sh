#!/usr/bin/env bash
# What kubectl calls for its credentials: a token of GitHub for this workflow, made out to the audience that is the argument.
set -euo pipefail

curl --silent --show-error --fail --get --data-urlencode "audience=${1:?usage: token.sh AUDIENCE}" \
    --header "Authorization: bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL" |
    jq '{apiVersion: "client.authentication.k8s.io/v1", kind: "ExecCredential", status: {token: .value}}'
