#!/usr/bin/env bash
# mlflow-live to Kubernetes with one command, and back again: ./deploy.sh --help
#
# Written for bash 3.2, which macOS has; it needs kubectl, git, curl, diff and, to build, Docker, but neither jq nor Python.
# deploy.ps1 is the same in PowerShell: a test compares the tables of `usage` in both.
#
# Every command that may take a while runs in the background and is waited for, so that a signal is answered at once.
# However the script ends, `finish` (the EXIT trap) puts things right: children, rollback, lock, temporary folder, report.
#
# Of "all", shellcheck's wish for braces around every name is left out (SC2250), and its notes that `set -e` is off in
# conditions and that codes are masked (SC2310, SC2311, SC2312): functions return their code and callers look at it;
# `set -e` and the ERR trap are there only for what nobody thought of. And it takes for dead (SC2317) what only traps and
# `"$VERB"` call.
# shellcheck enable=all disable=SC2250,SC2310,SC2311,SC2312,SC2317
set -Eeuo pipefail
shopt -s inherit_errexit 2>/dev/null || true # bash 4.4

usage() {
  cat <<'HELP'
mlflow-live to Kubernetes with one command, and back again.

  ./deploy.sh [VERB] [OPTION ...]

Verbs
  up        build, scan, deploy, wait and test; on failure say why and roll back (default)
  status    image, digest, commit, revision, pods, live model version and lock; 0 if healthy, else 50
  rollback  back to the revision before, or to --to-revision N, and test
  smoke     test what is live; 0 if it answers as it must, else 60
  doctor    only the preflight: what is missing, and how to mend it
  down      delete what `up` made, after asking

Options
  --env NAME            local, staging or production (local)
  --context NAME        context of kubectl (the current one); needed, or --yes, if the cluster is not a local one
  --namespace NAME      instead of the environment's own
  --registry REF        HOST[:PORT][/PATH] to push to and to deploy from
  --image REF           deploy this image; nothing is built
  --tag TAG             instead of the commit's
  --target NAME         auto, kind, k3d, minikube, docker-desktop, registry or ctr: how the cluster gets the image (auto)
  --with NAME           components of k8s/components, separated by commas
  --skip-build          the image is there already
  --skip-scan           no Trivy
  --severity LIST       findings that stop the scan (CRITICAL,HIGH)
  --dry-run             check, render and compare; build and change nothing
  --no-rollback         leave a failed release as it is
  --to-revision N       for rollback
  --timeout SECONDS     for the roll-out, and again for a rollback (300)
  --yes                 ask nothing, and take a cluster that is not local
  --json                one JSON object on stdout at the end, everything else on stderr
  --help                this

Environment
  PYTHON_IMAGE, NATIVE  build arguments (see docs/DEPLOYMENT.md)
  TRIVY_IMAGE           Trivy's container, used where Trivy is not installed
  DOCKER                the docker command (docker)
  CTR                   the ctr command of --target ctr, such as "sudo k3s ctr" (ctr)
  DEPLOY_POLL_S         seconds between two looks at the cluster (1)
  DEPLOY_STUCK_S        how long a pod may be stuck (no image, crash loop) and the service have no ready pod (30)
  DEPLOY_SMOKE_S        how long the smoke test tries again while old pods are ending (60)
  NO_COLOR              no colours

Stages
  preflight build scan deploy roll-out health smoke

Exit codes
  0    done
  2    usage
  10   preflight
  20   build, push or load
  30   scan
  40   deploy: the cluster refuses, or another deployment holds the lock
  50   roll-out or health
  60   smoke
  70   the rollback failed too
  130  interrupted (SIGINT)
  143  interrupted (SIGTERM, SIGHUP)

A rollback that works keeps the code of the stage that failed. An interruption before the smoke test has passed rolls back as
well; a second one stops waiting for it. What is written stays in build/deploy: Trivy's report and the SBOM.
HELP
}

stage_code() { # STAGE: the exit code if it fails
  case $1 in
    build) echo 20 ;;
    scan) echo 30 ;;
    deploy) echo 40 ;;
    roll-out | health) echo 50 ;;
    smoke) echo 60 ;;
    rollback) echo 70 ;;
    *) echo 10 ;;
  esac
}

readonly APP=mlflow-live
readonly SELECTOR="app.kubernetes.io/name=$APP,app.kubernetes.io/instance=$APP"
readonly LOCK=$APP-deploy-lock
readonly MANAGER=deploy
readonly LOCAL_PORT=8080 # of the line that shows how to reach the service
readonly DISK_MB=5000    # both images, their layers and an archive of one
readonly TRIVY_DEFAULT=aquasec/trivy:0.74.0@sha256:62b1e65e8869bc4b4c6aa4fa2b21595256c7c2f6018a9d9ad61caf87187c1969
readonly POLL_S=${DEPLOY_POLL_S:-1} STUCK_S=${DEPLOY_STUCK_S:-30} SMOKE_S=${DEPLOY_SMOKE_S:-60}

# What kubectl is asked for. Names and reasons never hold a "|"; messages come last.
readonly P_DEPLOYMENT='{.metadata.generation}|{.status.observedGeneration}|{.spec.replicas}|{.status.updatedReplicas}|{.status.replicas}|{.status.availableReplicas}|{.status.readyReplicas}|{.status.conditions[?(@.type=="Progressing")].reason}|{.status.conditions[?(@.type=="ReplicaFailure")].message}'
readonly P_RELEASE='{.metadata.annotations.deployment\.kubernetes\.io/revision}|{.metadata.annotations.mlflow-live/commit}|{.spec.template.spec.containers[?(@.name=="api")].image}'
readonly P_GITOPS='{.metadata.annotations.argocd\.argoproj\.io/tracking-id}|{.metadata.labels.argocd\.argoproj\.io/instance}|{.metadata.labels.app\.kubernetes\.io/managed-by}|{.metadata.labels.kustomize\.toolkit\.fluxcd\.io/name}|{.metadata.managedFields[*].manager}'
readonly P_REVISIONS='{range .items[*]}{.metadata.annotations.deployment\.kubernetes\.io/revision}|{.status.readyReplicas}|{.metadata.annotations.mlflow-live/commit}|{.spec.template.spec.containers[?(@.name=="api")].image}|{.metadata.annotations.mlflow-live/tested}|{.metadata.name}{"\n"}{end}'
# What a revision was, and what its Deployment is besides, as JSON, a line each.
readonly P_REVISION='{.metadata.annotations}{"\n"}{.spec.template}'
readonly P_FRAME='{.metadata.labels}{"\n"}{.spec.selector}{"\n"}{.spec.strategy}{"\n"}{.spec.minReadySeconds}{"\n"}{.spec.revisionHistoryLimit}{"\n"}{.spec.progressDeadlineSeconds}'
readonly P_PODS='{range .items[*]}{.metadata.name}|{.metadata.deletionTimestamp}|{.status.phase}|{.status.containerStatuses[?(@.name=="api")].ready}|{.status.containerStatuses[?(@.name=="api")].image}|{.status.containerStatuses[?(@.name=="api")].imageID}{"\n"}{end}'
readonly P_REASONS='{range .items[*]}{.metadata.deletionTimestamp}|{.metadata.name}|{range .status.initContainerStatuses[*]}{.state.waiting.reason} {.state.waiting.message} {.lastState.terminated.reason} {end}{range .status.containerStatuses[*]}{.state.waiting.reason} {.state.waiting.message} {.state.terminated.reason} {.lastState.terminated.reason} {end}{range .status.conditions[?(@.type=="PodScheduled")]}{.reason} {.message}{end}{"\n"}{end}'
readonly P_LOCK='{.metadata.resourceVersion}|{.data.expires}|{.data.since}|{.data.holder}'
readonly P_ENDPOINTS='{range .items[*].endpoints[*]}{.conditions.ready}{"\n"}{end}'

# ---------------------------------------------------------------------------------------------------- options

VERB=up ENVIRONMENT=local CONTEXT='' NAMESPACE='' REGISTRY='' IMAGE='' TAG='' TARGET=auto WITH='' SEVERITY=CRITICAL,HIGH
TO_REVISION='' TIMEOUT=300 SKIP_BUILD='' SKIP_SCAN='' DRY_RUN='' NO_ROLLBACK='' YES='' JSON=''
CONTEXT_GIVEN='' NAMESPACE_GIVEN=''
ROOT='' DOCKER=${DOCKER:-docker} BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''

# What happens on the way, for `finish` and the report.
STAGE=preflight REASON='' INTERRUPTED='' APPLIED='' LOCK_SINCE='' ROLLBACK=none REACHED='' TEMP='' ENDING=''
REVISION='' PREVIOUS='' DEPLOYED='' DIGEST='' IMAGE_ID='' COMMIT='' CLEAN='' URL='' MODEL='' ANSWER='' WHY=''
REPOSITORY='' TRACKING_DIGEST='' HOLDER='' FOUND='' PORT='' RETRY='' LIVE_IMAGE='' LIVE_COMMIT='' BLOCKED=''
K=(kubectl) # for files, whose objects name their namespace
KN=(kubectl) # for everything else

refuse() { # MESSAGE: ends with 2
  REASON=$1 STAGE=usage
  printf 'deploy.sh: %s\nTry ./deploy.sh --help.\n' "$1" >&2
  exit 2
}

parse() {
  local option value
  case ${1:-} in
    up | status | rollback | smoke | doctor | down) VERB=$1 && shift ;;
    *) ;;
  esac
  while [[ $# -gt 0 ]]; do
    option=$1 && shift
    case $option in
      --help | -h) usage && exit 0 ;;
      --skip-build) SKIP_BUILD=1 && continue ;;
      --skip-scan) SKIP_SCAN=1 && continue ;;
      --dry-run) DRY_RUN=1 && continue ;;
      --no-rollback) NO_ROLLBACK=1 && continue ;;
      --yes) YES=1 && continue ;;
      --json) JSON=1 && continue ;;
      --*=*) value=${option#*=} && option=${option%%=*} ;;
      --*) [[ $# -gt 0 ]] || refuse "$option: what follows it is missing, or there is no such option"
        value=$1 && shift ;;
      *) refuse "$option: there is no such verb; a verb comes first and is one of up, status, rollback, smoke, doctor, down" ;;
    esac
    [[ -n $value ]] || refuse "$option: empty"
    set_option "$option" "$value"
  done
  [[ -z $TO_REVISION || $VERB == rollback ]] || refuse "--to-revision: only for rollback"
  [[ -z $DRY_RUN || $VERB == up ]] || refuse "--dry-run: only for up"
  [[ -z $IMAGE || -z $TAG ]] || refuse "--tag: not together with --image, which names its own"
  [[ ,$WITH, != *,argocd,* ]] || refuse "--with argocd: that component is for Argo CD to apply (k8s/README.md)"
  [[ $TARGET != registry || -n $REGISTRY$IMAGE ]] || refuse "--target registry: needs --registry HOST[:PORT][/PATH]"
}

set_option() { # OPTION VALUE
  local names='^[a-z0-9]([a-z0-9-]*[a-z0-9])?$' list='^[a-z0-9-]+(,[a-z0-9-]+)*$' number='^[1-9][0-9]{0,5}$'
  local image='^[A-Za-z0-9][A-Za-z0-9._/:@-]*$' tag='^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$' severities='^[A-Z]+(,[A-Z]+)*$'
  case $1 in
    --env) must "$1" "$2" '^(local|staging|production)$' && ENVIRONMENT=$2 ;;
    --context) CONTEXT=$2 CONTEXT_GIVEN=1 ;;
    --namespace) must "$1" "$2" "$names" && NAMESPACE=$2 NAMESPACE_GIVEN=1 ;;
    --registry) must "$1" "$2" "$image" && REGISTRY=${2%/} ;;
    --image) must "$1" "$2" "$image" && IMAGE=$2 ;;
    --tag) must "$1" "$2" "$tag" && TAG=$2 ;;
    --target) must "$1" "$2" '^(auto|kind|k3d|minikube|docker-desktop|registry|ctr)$' && TARGET=$2 ;;
    --with) must "$1" "$2" "$list" && WITH=${WITH:+$WITH,}$2 ;;
    --severity) must "$1" "$2" "$severities" && SEVERITY=$2 ;;
    --to-revision) must "$1" "$2" "$number" && TO_REVISION=$2 ;;
    --timeout) must "$1" "$2" "$number" && TIMEOUT=$2 ;;
    *) refuse "$1: there is no such option" ;;
  esac
}

must() { # OPTION VALUE PATTERN
  [[ $2 =~ $3 ]] || refuse "$1 $2: must look like $3"
}

# ---------------------------------------------------------------------------------------------------- speaking

colours() {
  [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]] || return 0
  BOLD=$'\033[1m' RED=$'\033[31m' GREEN=$'\033[32m' YELLOW=$'\033[33m' PLAIN=$'\033[0m'
}

say() { printf '%s\n' "$*"; }
note() { printf '  %s\n' "$*"; }
passed() { printf '  %sok%s    %s\n' "$GREEN" "$PLAIN" "$*"; }
elapsed() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

stage() { # NAME
  STAGE=$1
  printf '\n%s== %s%s  (%s)\n' "$BOLD" "$1" "$PLAIN" "$(elapsed)"
}

warn() { # what fails or threatens to, in colour and not to be overlooked
  printf '%s%s%s\n' "$RED" "$*" "$PLAIN" >&2
}

fail() { # REASON: ends with the code of the stage; finish() does the rest
  REASON=$1
  warn "FAIL  $STAGE: $1"
  exit "$(stage_code "$STAGE")"
}

announce() { # COMMAND...: as it could be typed in this folder, but for the temporary one
  local word line='$' plain='^[][A-Za-z0-9_./:=@,+-]+$'
  for word in "$@"; do
    word=${word#"$TEMP/"}
    word=${word#"$ROOT/"}
    [[ $word =~ $plain ]] || word="'$word'"
    line="$line $word"
  done
  say "  $line"
}

json_string() { # TEXT: as JSON
  printf '%s' "$1" | LC_ALL=C awk 'BEGIN { ORS = ""; print "\"" }
    NR > 1 { print "\\n" }
    { gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); gsub(/\t/, "\\t"); gsub(/[[:cntrl:]]/, ""); print }
    END { print "\"" }'
}

report() { # CODE: the one object of --json
  [[ -n $JSON ]] || return 0
  local keys='verb stage reason image digest commit namespace context revision rollback url' key value
  printf '{"code":%d,"duration_s":%d' "$1" "$SECONDS" >&3
  for key in $keys; do
    case $key in
      verb) value=$VERB ;; stage) value=$STAGE ;; reason) value=$REASON ;; image) value=$DEPLOYED ;;
      digest) value=$DIGEST ;; commit) value=$COMMIT ;; namespace) value=$NAMESPACE ;; context) value=$CONTEXT ;;
      revision) value=$REVISION ;; rollback) value=$ROLLBACK ;; *) value=$URL ;;
    esac
    printf ',"%s":%s' "$key" "$(json_string "$value")" >&3
  done
  printf '}\n' >&3
}

# ---------------------------------------------------------------------------------------------------- running

attend() { # COMMAND...: in the background, so that a signal interrupts the waiting; its code
  "$@" &
  wait $!
}

run() { # COMMAND...: announced
  announce "$@"
  attend "$@"
}

nap() { # SECONDS
  attend sleep "$1" || true
}

ask() { # COMMAND...: ANSWER is what it prints; on failure WHY is its last complaint
  ANSWER='' WHY=''
  attend "$@" >"$TEMP/answer" 2>"$TEMP/error" && ANSWER=$(cat "$TEMP/answer") && return 0
  WHY=$(complaint "$TEMP/error")
  return 1
}

kubectl_ask() { ask "${KN[@]}" --request-timeout=20s "$@"; }

complaint() { # FILE: the line of it that says what went wrong
  local line
  line=$(grep -v -e '^E[0-9]' -e '^Warning:' -e '^[[:space:]]*$' "$1" | tail -n 1) || line=$(tail -n 1 "$1")
  printf '%s' "${line:-no message}"
}

run_long() { # WHAT COMMAND...: its output where someone looks on; else quiet, and the end of it when it fails
  local what=$1 code=0 started=$SECONDS pid
  shift
  announce "$@"
  if [[ -t 1 ]]; then
    attend "$@"
    return
  fi
  "$@" >"$TEMP/long" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    nap "$POLL_S"
    [[ $(((SECONDS - started) % 30)) -ne 0 || $SECONDS -eq $started ]] || note "$what: $((SECONDS - started)) s"
  done
  wait "$pid" || code=$?
  [[ $code -eq 0 ]] || tail -n 60 "$TEMP/long" | sed 's/^/  | /' >&2
  return "$code"
}

end_children() { # every background process of this shell
  local pids pid tries=0
  pids=$(jobs -p)
  [[ -n $pids ]] || return 0
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do
    while kill -0 "$pid" 2>/dev/null && [[ $tries -lt 100 ]]; do
      tries=$((tries + 1))
      sleep 0.05
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}

interrupted() { # CODE SIGNAL
  [[ -z $ENDING ]] || { INTERRUPTED=$1 ENDING=twice && return 0; }
  INTERRUPTED=$1 REASON="interrupted ($2) during $STAGE"
  exit "$1"
}

unexpected() { # LINE COMMAND
  [[ $BASH_SUBSHELL -eq 0 ]] || return 0
  exec 1>&8 2>&9
  [[ -n $REASON ]] || REASON="line $1 of deploy.sh failed: $2"
  warn "FAIL  $STAGE: $REASON"
  exit "$(stage_code "$STAGE")"
}

finish() { # whatever ended the script
  local code=$?
  trap - ERR
  set +e
  exec 1>&8 2>&9 # it may have come in the middle of a command whose output goes to a file
  ENDING=once
  end_children
  [[ -z $INTERRUPTED ]] || warn "$REASON"
  if [[ $code -ne 0 && -n $APPLIED ]]; then
    [[ -n $INTERRUPTED ]] || explain
    put_back || [[ -n $INTERRUPTED ]] || code=70
  fi
  [[ -z $INTERRUPTED ]] || code=$INTERRUPTED
  end_children
  unlock
  [[ -z $TEMP ]] || rm -rf "$TEMP"
  [[ $code -eq 0 || $code -eq 2 ]] || warn "ended with $code after $(elapsed)${REASON:+: $REASON}"
  report "$code"
  exit "$code"
}

# ---------------------------------------------------------------------------------------------------- checkout and overlay

describe_checkout() { # COMMIT, CLEAN and TAG, of the tree as it is; the index and the objects of the checkout stay untouched
  local head index objects tree
  head=$(git rev-parse HEAD 2>"$TEMP/error") || return 1
  index=$(git rev-parse --git-path index) objects=$(cd "$(git rev-parse --git-path objects)" && pwd)
  mkdir -p "$TEMP/objects"
  cp "$index" "$TEMP/index" 2>/dev/null || true
  tree=$(export GIT_INDEX_FILE="$TEMP/index" GIT_OBJECT_DIRECTORY="$TEMP/objects"
    export GIT_ALTERNATE_OBJECT_DIRECTORIES="$objects"
    git add -A . 2>"$TEMP/error" && git write-tree) || return 1
  COMMIT=$head CLEAN=1
  local tag=${head:0:12}
  if [[ $tree != "$(git rev-parse 'HEAD^{tree}')" ]]; then
    COMMIT=$head-dirty CLEAN='' tag=$tag-dirty.${tree:0:12}
  fi
  [[ ${NATIVE:-0} != 1 ]] || tag=$tag-native
  TAG=${TAG:-$tag}
}

version() { sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml; }

render() { # OUT [WRITER]: the manifests; WRITER prints more of the kustomization
  local overlay=$TEMP/overlay component separator=''
  mkdir -p "$overlay"
  ln -sfn "$ROOT/k8s" "$overlay/k8s" # kustomize takes no absolute paths
  {
    printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: ["k8s/overlays/%s"]\n' "$ENVIRONMENT"
    printf 'components: ['
    for component in ${WITH//,/ }; do
      printf '%s"k8s/components/%s"' "$separator" "$component"
      separator=', '
    done
    printf ']\n'
    [[ -z $NAMESPACE_GIVEN ]] || printf 'namespace: "%s"\n' "$NAMESPACE"
    [[ -z ${2:-} ]] || "$2"
  } >"$overlay/kustomization.yaml"
  attend kubectl kustomize --load-restrictor LoadRestrictionsNone "$overlay" >"$1" 2>"$TEMP/error"
}

release() { # what the release adds to the overlay
  local pinned="newTag: \"$TAG\"" tracking_pinned="newTag: \"$TAG\""
  [[ -z $DIGEST ]] || pinned="digest: \"$DIGEST\""
  [[ -z $TRACKING_DIGEST ]] || tracking_pinned="digest: \"$TRACKING_DIGEST\""
  cat <<YAML
images:
  - {name: $APP, newName: "$REPOSITORY", $pinned}
  - {name: $APP-mlflow, newName: "$REPOSITORY-mlflow", $tracking_pinned}
patches:
  - target: {kind: Deployment, name: $APP}
    patch: |-
      apiVersion: apps/v1
      kind: Deployment
      metadata:
        name: $APP
        annotations:
          $APP/commit: "$COMMIT"
          kubernetes.io/change-cause: "deploy.sh: commit $COMMIT ($ENVIRONMENT)"
YAML
}

objects() { # MANIFESTS: a line "kind|apiVersion|name|namespace" for each object
  awk '
    function flush() { if (kind != "") print kind "|" api "|" name "|" space; kind = api = name = space = ""; inside = 0 }
    /^---/ { flush(); next }
    /^[^ ]/ { inside = ($1 == "metadata:") }
    /^apiVersion: / { api = $2 }
    /^kind: / { kind = $2 }
    inside && /^  name: / { name = $2 }
    inside && /^  namespace: / { space = $2 }
    END { flush() }' "$1"
}

secrets() { # MANIFESTS: a line "required|NAME" or "optional|NAME" for each Secret that a workload reads
  awk '
    function indent(text) { match(text, /[^ -]/); return RSTART }
    function flush(    i, j, name, optional, depth, deeper) {
      if (kind ~ /^(Deployment|StatefulSet|Job|CronJob|DaemonSet)$/) for (i = 1; i <= n; i++) {
        if (line[i] !~ /^ *(- )?(secretName|secretKeyRef|secretRef|secret):/) continue
        if (line[i] ~ /secretName:/) continue # a line of the block "secret:", which is read as a whole
        depth = indent(line[i]); name = ""; optional = "required"
        for (j = i + 1; j <= n && indent(line[j]) > depth; j++) {
          deeper = line[j]
          if (deeper ~ /^ *(- )?(name|secretName): /) { sub(/^[^:]*: */, "", deeper); gsub(/"/, "", deeper); name = deeper }
          if (deeper ~ /^ *optional: true/) optional = "optional"
        }
        if (name != "") print optional "|" name
      }
      n = 0; kind = ""
    }
    /^---/ { flush(); next }
    /^kind: / { kind = $2 }
    { line[++n] = $0 }
    END { flush() }' "$1" | sort -u
}

rendered() { # KIND: whether an object of it is in the overlay
  grep -q "^$1|" "$TEMP/objects.txt"
}

needs_tracking() { grep -q -E "^ *(- )?image: \"?$APP-mlflow([:@\"]|\$)" "$TEMP/plain.yaml"; }

# ---------------------------------------------------------------------------------------------------- preflight

row() { # ok|warn|FAIL CHECK FOUND [HOW TO MEND IT]
  printf '%s\037%s\037%s\037%s\n' "$1" "$2" "$3" "${4:-}" >>"$TEMP/table"
}

show_table() {
  local status check found mend colour
  local width=5 wide=5
  while IFS=$'\037' read -r status check found mend; do
    [[ ${#check} -le $width ]] || width=${#check}
    [[ ${#found} -le $wide ]] || wide=${#found}
  done <"$TEMP/table"
  [[ $wide -le 60 ]] || wide=60
  printf "  %-4s  %-${width}s  %-${wide}s  %s\n" '' check found 'needed, or how to mend it'
  while IFS=$'\037' read -r status check found mend; do
    case $status in ok) colour=$GREEN ;; warn) colour=$YELLOW ;; *) colour=$RED ;; esac
    printf "  %s%-4s%s  %-${width}s  %-${wide}s  %s\n" "$colour" "$status" "$PLAIN" "$check" "$found" "$mend"
  done <"$TEMP/table"
}

first_number() { printf '%s' "$1" | sed -n '1s/^[^0-9]*\([0-9][0-9.]*\).*/\1/p'; }

tool_version() { # TOOL
  local version
  case $1 in
    kubectl) version=$(kubectl version --client 2>/dev/null) || version='' ;;
    *) version=$("$1" --version 2>/dev/null) || version='' ;;
  esac
  version=$(first_number "$version")
  printf '%s' "${version:-found}"
}

has() { command -v "$1" >/dev/null 2>&1; }

builds() { [[ $VERB == up || $VERB == doctor ]] && [[ -z $SKIP_BUILD && -z $IMAGE ]]; }
scans() { [[ $VERB == up || $VERB == doctor ]] && [[ -z $SKIP_SCAN ]]; }
loads() { [[ -z $IMAGE && $TARGET != registry ]]; }

check_tools() {
  local tool
  row ok bash "$BASH_VERSION"
  for tool in kubectl git curl diff; do
    if has "$tool"; then
      row ok "$tool" "$(tool_version "$tool")"
    else
      row FAIL "$tool" missing "install $tool; everything needs it"
    fi
  done
  for tool in kind k3d minikube; do
    [[ $TARGET == "$tool" && -z $IMAGE ]] || continue
    if has "$tool"; then
      row ok "$tool" found
    else
      row FAIL "$tool" missing "install $tool, or say --registry HOST[:PORT][/PATH]"
    fi
  done
}

check_docker() {
  builds || { loads && [[ $VERB == up || $VERB == doctor ]]; } || { scans && ! has trivy; } || return 0
  if ! has "$DOCKER"; then
    row FAIL docker missing "install Docker, or deploy an image that is there: --image REF --skip-scan"
    return 0
  fi
  if ask "$DOCKER" version --format '{{.Client.Version}}, engine {{.Server.Version}}'; then
    row ok docker "$ANSWER"
  else
    row FAIL docker "no engine" "start Docker ($WHY)"
  fi
  builds || return 0
  if ask "$DOCKER" buildx version; then
    row ok buildx "$(first_number "$ANSWER")"
  else
    row warn buildx missing "without it the build is slower, and --skip-build cannot resolve tags: install docker-buildx"
  fi
}

check_disk() {
  builds || return 0
  local where free
  where=$("$DOCKER" info --format '{{.DockerRootDir}}' 2>/dev/null) || where=''
  [[ -d $where ]] || where=$TEMP # the engine's disk is another machine's
  free=$(df -Pk "$where" | awk 'NR == 2 { print int($4 / 1024) }')
  if [[ $free -lt $((DISK_MB / 5)) ]]; then
    row FAIL disk "$free MB free" "$DISK_MB MB: docker system prune"
  elif [[ $free -lt $DISK_MB ]]; then
    row warn disk "$free MB free" "$DISK_MB MB if nothing is cached: docker system prune"
  else
    row ok disk "$free MB free"
  fi
}

check_checkout() {
  [[ $VERB == up || $VERB == doctor ]] || return 0
  if [[ -n $IMAGE ]]; then
    row ok image "$IMAGE"
    return 0
  fi
  if describe_checkout; then
    row ok commit "$TAG"
  elif [[ -n $TAG ]]; then
    COMMIT=unknown
    row warn commit "no git checkout" "the image will not know its commit"
  else
    row FAIL commit "$(complaint "$TEMP/error")" "clone it with git, or give --tag"
  fi
  if [[ ! -s $(smoke_file golden.request.json) || ! -s $(smoke_file golden.expected) ]]; then
    row FAIL "smoke files" missing "k8s/smoke has golden.request.json, golden.expected and bad.request.json"
  fi
}

check_overlay() {
  local component
  for component in ${WITH//,/ }; do
    [[ -d k8s/components/$component ]] || row FAIL overlay "no component $component" "--with: $(cd k8s/components && echo *)"
  done
  if ! render "$TEMP/plain.yaml"; then
    row FAIL overlay "does not render" "$(complaint "$TEMP/error")"
    return 1
  fi
  objects "$TEMP/plain.yaml" >"$TEMP/objects.txt"
  NAMESPACE=${NAMESPACE:-$(sed -n "s/^Deployment|[^|]*|$APP|//p" "$TEMP/objects.txt")}
  NAMESPACE=${NAMESPACE:-$APP}
  KN=("${K[@]}" --namespace "$NAMESPACE")
  row ok overlay "$ENVIRONMENT${WITH:+ with $WITH}: $(wc -l <"$TEMP/objects.txt" | tr -d ' ') objects"
  if [[ -n $IMAGE ]] && needs_tracking; then
    row FAIL image "$IMAGE" "component mlflow needs $APP-mlflow too: build both (no --image), or leave it out of --with"
  fi
}

context_is_local() {
  case $CONTEXT in
    kind-* | k3d-* | minikube | docker-desktop | docker-for-desktop | rancher-desktop | colima* | orbstack) return 0 ;;
    *) ;;
  esac
  local host=${1#*://}
  case $host in
    localhost | localhost[:/]* | 127.* | '[::1]'* | kubernetes.docker.internal* | host.docker.internal*) return 0 ;;
    *) return 1 ;;
  esac
}

choose_context() { # CONTEXT, K and, if auto, TARGET
  local context
  context=$(kubectl config current-context 2>/dev/null) || context=''
  CONTEXT=${CONTEXT:-$context}
  [[ -z $CONTEXT ]] || K=(kubectl --context "$CONTEXT")
  KN=("${K[@]}")
  [[ $TARGET == auto ]] || return 0
  TARGET=registry
  [[ -z $REGISTRY$IMAGE ]] || return 0
  case $CONTEXT in
    kind-*) TARGET=kind ;;
    k3d-*) TARGET=k3d ;;
    minikube) TARGET=minikube ;;
    docker-desktop | docker-for-desktop | rancher-desktop | colima* | orbstack) TARGET=docker-desktop ;;
    *) ;;
  esac
}

check_cluster() { # REACHED is set if it answers
  local server client minor theirs status=FAIL
  [[ -z $DRY_RUN ]] || status=warn
  server=$("${K[@]}" config view --minify -o 'jsonpath={.clusters[0].cluster.server}' 2>/dev/null) || server=''
  if [[ -n $CONTEXT_GIVEN && -z $server ]]; then
    row FAIL context "$CONTEXT does not exist" "one of: $(kubectl config get-contexts -o name 2>/dev/null | tr '\n' ' ')"
    return 0
  fi
  if ! context_is_local "$server" && [[ -z $CONTEXT_GIVEN$YES$DRY_RUN && $VERB != doctor && $VERB != status ]]; then
    row FAIL context "${CONTEXT:-none} is not local: ${server:-no server}" "say --context ${CONTEXT:-NAME}, or --yes, if you mean it"
    return 0
  fi
  if ! kubectl_ask version -o json || [[ $ANSWER != *serverVersion* ]]; then
    row "$status" context "${CONTEXT:-none}${CONTEXT:+ does not answer}" "start a cluster, or choose another (--context): ${WHY:-no server}"
    return 0
  fi
  REACHED=1
  row ok context "${CONTEXT:-in-cluster}${server:+ at $server}"
  client=$(sed -n 's/.*"gitVersion": "v\([0-9]*\.[0-9]*\).*/\1/p' "$TEMP/answer" | sed -n '1p')
  theirs=$(sed -n 's/.*"gitVersion": "v\([0-9]*\.[0-9]*\).*/\1/p' "$TEMP/answer" | sed -n '$p')
  minor=$((${client#*.} - ${theirs#*.}))
  if [[ $minor -ge -1 && $minor -le 1 ]]; then
    row ok "kubectl, cluster" "$client, $theirs"
  else
    row warn "kubectl, cluster" "$client, $theirs" "versions one minor apart are supported: install kubectl $theirs"
  fi
}

check_kinds() { # every kind of the overlay exists, and may be applied
  local kind api group resource denied='' count=0
  attend "${K[@]}" --request-timeout=20s api-resources --no-headers >"$TEMP/api" 2>"$TEMP/error" || true # one broken aggregated API is enough for a 1
  while IFS='|' read -r kind api; do
    group=''
    [[ $api != */* ]] || group=.${api%/*}
    resource=$(awk -v kind="$kind" -v api="$api" '$NF == kind && $(NF - 2) == api { print $1; exit }' "$TEMP/api")
    if [[ -z $resource ]]; then
      row FAIL "kind $kind" "$api is not in the cluster" "leave out $(component_of "$api" "$kind"), or install what brings its CRD"
      continue
    fi
    count=$((count + 1))
    kubectl_ask auth can-i patch "$resource$group" || denied="$denied $resource$group"
  done < <(cut -d '|' -f 1,2 "$TEMP/objects.txt" | sort -u)
  kubectl_ask auth can-i patch replicasets.apps || denied="$denied replicasets.apps"
  kubectl_ask auth can-i create configmaps || denied="$denied configmaps(create)"
  kubectl_ask auth can-i create pods --subresource=portforward || denied="$denied pods/portforward(create)"
  if [[ -n $denied ]]; then
    row FAIL rights "not allowed:$denied" "ask for them in namespace $NAMESPACE: kubectl auth can-i --list -n $NAMESPACE"
  else
    row ok rights "may apply all $count kinds"
  fi
}

component_of() { # APIVERSION KIND: the component that brings it
  local folder
  for folder in k8s/components/*/; do
    grep -q -s -r "^kind: $2\$" "$folder" && printf 'component %s' "$(basename "$folder")" && return 0
  done
  printf 'what renders %s' "$1"
}

check_namespace() {
  local wanted level
  if ! kubectl_ask get namespace "$NAMESPACE" -o 'jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}'; then
    case $WHY in
      *NotFound*) check_new_namespace ;;
      *) row warn namespace "$NAMESPACE: $WHY" "it could not be looked at" ;;
    esac
    return 0
  fi
  level=$ANSWER
  wanted=$(sed -n 's/^ *pod-security.kubernetes.io\/enforce: *//p' "$TEMP/plain.yaml" | sed -n '1p')
  if [[ -n $level && -n $wanted && $level != "$wanted" ]]; then
    row warn namespace "$NAMESPACE enforces pod security $level" "becomes $wanted: other pods in it may be refused from then on"
  else
    row ok namespace "$NAMESPACE"
  fi
}

check_new_namespace() {
  if rendered Namespace; then
    row ok namespace "$NAMESPACE does not exist yet"
  else
    row FAIL namespace "$NAMESPACE does not exist" "kubectl create namespace $NAMESPACE"
  fi
}

check_gitops() {
  local tracking instance managed flux managers
  kubectl_ask get deployment "$APP" --show-managed-fields -o "jsonpath=$P_GITOPS" || return 0
  IFS='|' read -r tracking instance managed flux managers <<<"$ANSWER"
  if [[ -n $tracking$instance || "$managed $managers" == *[aA]rgo[cC][dD]* ]]; then
    row FAIL gitops "Argo CD manages $APP${tracking:+ (${tracking%%:*})}" "$(gitops_way)"
  elif [[ -n $flux ]]; then
    row FAIL gitops "Flux manages $APP ($flux)" "$(gitops_way)"
  fi
}

gitops_way() {
  case $VERB in
    rollback) printf 'it would be undone at once: git revert the release in the repository that it follows' ;;
    down) printf 'it would be made again at once: delete the Application, or the overlay in the repository' ;;
    *) printf 'it would be undone at once: commit the new image digest to the repository that it follows' ;;
  esac
}

check_autoscaling() {
  rendered HorizontalPodAutoscaler || return 0
  if kubectl_ask get --raw /apis/metrics.k8s.io/v1beta1; then
    row ok "metrics server" found
  else
    row warn "metrics server" missing "the autoscaler stays at its minimum until metrics-server is installed"
  fi
}

check_policies() {
  rendered NetworkPolicy || return 0
  kubectl_ask get daemonsets --all-namespaces -o 'jsonpath={.items[*].metadata.name}' || ANSWER=''
  local found=$ANSWER name
  for name in calico cilium kindnet antrea weave canal kube-router ovn anetd azure-npm aws-node; do
    [[ $found != *"$name"* ]] || { row ok "network policies" "enforced by $name" && return 0; }
  done
  kubectl_ask version -o json || ANSWER=''
  [[ $ANSWER != *+k3s* && $ANSWER != *+rke2* ]] || { row ok "network policies" "enforced by k3s" && return 0; }
  row warn "network policies" "no network known to enforce them" "they are accepted and have no effect: install Calico or Cilium"
}

check_secrets() {
  local need name
  while IFS='|' read -r need name; do
    ! grep -q "^Secret|[^|]*|$name|" "$TEMP/objects.txt" || continue
    if kubectl_ask get secret "$name" -o name; then
      row ok "secret $name" found
    elif grep -q '^  - secrets$' "$TEMP/plain.yaml"; then # a Role of the overlay's: one of its workloads makes them
      row ok "secret $name" "made in the cluster"
    elif [[ $need == optional ]] && ! grep -q "/run/secrets/$name/" "$TEMP/plain.yaml"; then
      row ok "secret $name" "absent, not used"
    elif [[ $need == optional ]]; then
      row warn "secret $name" absent "settings.env names files of it: kubectl -n $NAMESPACE create secret generic $name --from-file=…"
    else
      row FAIL "secret $name" absent "kubectl -n $NAMESPACE create secret generic $name --from-file=…"
    fi
  done < <(secrets "$TEMP/plain.yaml")
}

check_registry() {
  [[ $VERB == up || $VERB == doctor ]] || return 0
  if [[ -z $IMAGE && $TARGET == registry && -z $REGISTRY ]]; then
    row FAIL registry "none" "say where this cluster takes images from: --registry HOST[:PORT][/PATH] (or --target kind, k3d, …)"
    return 0
  fi
  if loads; then
    row ok image "by $TARGET, no registry"
    if grep -q 'imagePullPolicy: Always' "$TEMP/plain.yaml" && [[ $TARGET != registry ]]; then
      row FAIL "pull policy" "Always" "overlay $ENVIRONMENT pulls at every start: --registry, or --env local"
    fi
    return 0
  fi
  [[ -z $IMAGE ]] || return 0
  local host=${REGISTRY%%/*} scheme
  case $host in *.* | *:* | localhost) ;; *) host=registry-1.docker.io ;; esac
  for scheme in https http; do
    ask curl -q -sS --noproxy localhost,127.0.0.1 -o /dev/null -w '%{http_code}' --max-time 10 "$scheme://$host/v2/" || true
    case $ANSWER in
      200 | 401 | 403) row ok registry "$scheme://$host" && return 0 ;;
      *) ;;
    esac
  done
  row FAIL registry "$host does not answer" "start it, or mend the name; docker login $host if it needs a password"
}

check_scanner() {
  scans || return 0
  if has trivy; then
    row ok trivy "$(tool_version trivy)"
  elif ask "$DOCKER" image inspect --format '{{.Id}}' "${TRIVY_IMAGE:-$TRIVY_DEFAULT}"; then
    row ok trivy "its container"
  elif has "$DOCKER" && [[ -z $DRY_RUN ]] && [[ $VERB == up ]] && attend "$DOCKER" pull -q "${TRIVY_IMAGE:-$TRIVY_DEFAULT}" >"$TEMP/answer" 2>"$TEMP/error"; then
    row ok trivy "its container, pulled"
  elif [[ -n $DRY_RUN || $VERB == doctor ]]; then
    row warn trivy missing "its container would be pulled: ${TRIVY_IMAGE:-$TRIVY_DEFAULT}; or --skip-scan"
  else
    row FAIL trivy missing "install Trivy, let Docker pull ${TRIVY_IMAGE:-$TRIVY_DEFAULT}, or say --skip-scan"
  fi
}

check_lock() {
  kubectl_ask get configmap "$LOCK" -o "jsonpath=$P_LOCK" || return 0
  row warn lock "held by ${ANSWER##*|}" "only one can deploy: wait for it"
}

preflight() { # the checks that the verb needs, in one table
  stage preflight
  : >"$TEMP/table"
  ! has kubectl || choose_context
  check_tools
  if has kubectl; then
    check_checkout
    check_docker
    check_disk
    check_overlay || true
    check_cluster
    [[ -z $REACHED || ! -s $TEMP/objects.txt ]] || check_in_cluster
    [[ ! -s $TEMP/objects.txt ]] || check_registry
    check_scanner
  fi
  if [[ $VERB == up || $VERB == doctor ]] || grep -q '^FAIL' "$TEMP/table"; then show_table; fi
  local failures
  failures=$(grep -c '^FAIL' "$TEMP/table") || return 0
  fail "$failures of the checks: $(awk -F '\037' '$1 == "FAIL" { printf "%s%s: %s", sep, $2, $3; sep = "; " }' "$TEMP/table")"
}

check_in_cluster() {
  [[ $VERB == smoke || $VERB == status ]] || check_gitops
  [[ $VERB == up || $VERB == doctor ]] || return 0
  check_kinds
  check_namespace
  check_secrets
  check_autoscaling
  check_policies
  check_lock
}

# ---------------------------------------------------------------------------------------------------- build and scan

build() {
  stage build
  if [[ -n $IMAGE ]]; then
    take_given_image
    return 0
  fi
  REPOSITORY=$APP
  [[ $TARGET != registry ]] || REPOSITORY=$REGISTRY/$APP
  provide serve "$REPOSITORY:$TAG"
  DIGEST=$FOUND
  if needs_tracking; then
    provide mlflow "$REPOSITORY-mlflow:$TAG"
    TRACKING_DIGEST=$FOUND
  fi
  [[ $TARGET == registry ]] || IMAGE_ID=$(image_id "$REPOSITORY:$TAG") || IMAGE_ID=''
  DEPLOYED=$REPOSITORY:$TAG
  [[ -z $DIGEST ]] || DEPLOYED=$REPOSITORY@$DIGEST
}

take_given_image() { # --image: by its digest if that can be found out
  local name=${IMAGE%@*} last
  last=${name##*/}
  REPOSITORY=$name TAG=latest
  [[ $last != *:* ]] || REPOSITORY=${name%:*} TAG=${last#*:}
  if [[ $IMAGE == *@* ]]; then
    DIGEST=${IMAGE#*@}
  elif resolve "$IMAGE"; then
    DIGEST=$FOUND
  else
    note "by its tag: its digest cannot be found out here ($WHY)"
  fi
  DEPLOYED=$REPOSITORY:$TAG COMMIT=unknown
  [[ -z $DIGEST ]] || DEPLOYED=$REPOSITORY@$DIGEST
  if ask "$DOCKER" buildx imagetools inspect "$DEPLOYED" --format '{{json .Image}}'; then
    COMMIT=$(printf '%s' "$ANSWER" | field org.opencontainers.image.revision) || COMMIT=unknown
    COMMIT=${COMMIT:-unknown}
  fi
  passed "nothing to build: $DEPLOYED"
}

resolve() { # REF: FOUND is its digest in the registry
  FOUND=''
  ask "$DOCKER" buildx imagetools inspect "$1" || return 1
  FOUND=$(printf '%s\n' "$ANSWER" | sed -n 's/^Digest: *\(sha256:[0-9a-f]*\).*/\1/p' | sed -n '1p')
  [[ -n $FOUND ]]
}

image_id() { "$DOCKER" image inspect --format '{{.Id}}' "$1" 2>/dev/null; }

provide() { # DOCKERFILE_TARGET REF: there for the cluster; FOUND is its digest, if a registry has it
  local there=''
  FOUND=''
  if [[ $TARGET == registry ]]; then
    resolve "$2" && there=1
  else
    image_id "$2" >/dev/null && there=1
  fi
  if [[ -n $SKIP_BUILD ]]; then
    [[ -n $there ]] || fail "$2 is not there (${WHY:-not in Docker}): leave out --skip-build"
    passed "not built: $2"
  elif [[ -n $there && -n $CLEAN && -z ${PYTHON_IMAGE:-} ]]; then
    passed "unchanged: $2 is there already"
  else
    build_image "$1" "$2" || fail "docker build of $2 failed"
    there=''
  fi
  if [[ $TARGET == registry ]]; then
    [[ -n $there ]] || push "$2"
  elif [[ -n $CLEAN ]] && on_every_node "$2"; then
    passed "unchanged: every node has $2"
  else
    load "$2"
  fi
}

build_image() { # DOCKERFILE_TARGET REF
  local help
  set -- build --target "$1" --tag "$2" --build-arg "VERSION=$(version)" --build-arg "GIT_COMMIT=$COMMIT"
  [[ -z ${PYTHON_IMAGE:-} ]] || set -- "$@" --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"
  [[ -z ${NATIVE:-} ]] || set -- "$@" --build-arg "NATIVE=$NATIVE"
  help=$("$DOCKER" build --help 2>/dev/null) || help=''
  # With attestations an image is an index, and clusters without a registry refuse what the archive of it lacks.
  [[ $help != *--provenance* ]] || set -- "$@" --provenance=false --sbom=false
  export DOCKER_BUILDKIT=1
  run_long build "$DOCKER" "$@" .
}

push() { # REF
  run_long push "$DOCKER" push "$1" || fail "docker push of $1 failed: is it the right registry, and are you logged in (docker login)?"
  resolve "$1" && return 0
  ask "$DOCKER" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" || fail "no digest of $1: $WHY"
  FOUND=$(printf '%s\n' "$ANSWER" | sed -n "s|^${1%:*}@||p" | sed -n '1p')
  [[ -n $FOUND ]] || fail "no digest of $1 after the push"
}

on_every_node() { # REF: nodes report the images that they have, most of the time
  [[ $TARGET != docker-desktop ]] || return 0
  kubectl_ask get nodes -o 'jsonpath={range .items[*]}{.status.images[*].names}{"\n"}{end}' || return 1
  [[ -n $ANSWER ]] && ! printf '%s\n' "$ANSWER" | grep -q -v -F "/$1\""
}

load() { # REF: into the nodes, as an archive: kind's own way fails with Docker's containerd store
  local archive=$TEMP/image.tar words
  if [[ $TARGET == docker-desktop ]]; then
    passed "the cluster shares Docker's images"
    return 0
  fi
  run "$DOCKER" save -o "$archive" "$1" || fail "docker save of $1 failed"
  case $TARGET in
    kind) set -- kind load image-archive "$archive" --name "${CONTEXT#kind-}" ;;
    k3d) set -- k3d image import --cluster "${CONTEXT#k3d-}" "$archive" ;;
    minikube) set -- minikube --profile "$CONTEXT" image load "$archive" ;;
    *) IFS=' ' read -r -a words <<<"${CTR:-ctr}"
      set -- "${words[@]}" --namespace k8s.io images import "$archive" ;;
  esac
  run_long load "$@" || fail "$TARGET did not take the image"
  rm -f "$archive"
}

scan() {
  stage scan
  if [[ -n $SKIP_SCAN ]]; then
    note "left out (--skip-scan)"
    return 0
  fi
  SCANS=$ROOT/build/deploy REPORTS=$ROOT/build/deploy
  has trivy || REPORTS=/scan
  mkdir -p "$SCANS"
  cp "$TEMP/release.yaml" "$SCANS/manifests.yaml"
  [[ ! -e .trivyignore.yaml ]] || cp .trivyignore.yaml "$SCANS/ignore.yaml"
  [[ -e .trivyignore.yaml ]] || : >"$SCANS/ignore.yaml"
  scan_image "$DEPLOYED" "$APP"
  if needs_tracking; then scan_image "$REPOSITORY-mlflow${TRACKING_DIGEST:+@}${TRACKING_DIGEST:-:$TAG}" "$APP-mlflow"; fi
  trivy_run config --severity "$SEVERITY" --exit-code 3 --ignorefile "$REPORTS/ignore.yaml" "$REPORTS/manifests.yaml" \
    || fail "$(verdict $?) in the manifests"
  passed "no finding of $SEVERITY; reports and SBOM are in build/deploy"
}

trivy_run() { # ARGUMENT...: Trivy, or its container, which gets an archive of the image and not Docker's socket
  if has trivy; then
    run_long trivy trivy "$@"
    return
  fi
  run_long trivy "$DOCKER" run --rm --user "$(id -u):$(id -g)" --volume "$SCANS:/scan" "${TRIVY_IMAGE:-$TRIVY_DEFAULT}" \
    --cache-dir /scan/cache "$@"
}

scan_image() { # REF NAME
  local report=$REPORTS/$2.trivy.json
  if has trivy; then
    set -- "$1" "$2" "$1"
  else
    image_id "$1" >/dev/null || run_long pull "$DOCKER" pull "$1" || fail "$1 cannot be pulled to scan it"
    run "$DOCKER" save -o "$SCANS/image.tar" "$1" || fail "docker save of $1 failed"
    set -- "$1" "$2" --input /scan/image.tar
  fi
  local ref=$1 name=$2
  shift 2
  trivy_run image --scanners vuln,secret --ignore-unfixed --list-all-pkgs --ignorefile "$REPORTS/ignore.yaml" \
    --format json --output "$report" "$@" || fail "Trivy could not scan $ref (no network for its database? --skip-scan goes on without)"
  rm -f "$SCANS/image.tar"
  trivy_run convert --format cyclonedx --output "$REPORTS/$name.cdx.json" "$report" || fail "Trivy wrote no SBOM of $ref"
  trivy_run convert --format table --severity "$SEVERITY" --exit-code 3 "$report" || fail "$(verdict $?) in $ref"
}

verdict() { # CODE of Trivy
  [[ $1 -eq 3 ]] && printf 'findings of %s' "$SEVERITY" && return 0
  printf 'Trivy failed (%d)' "$1"
}

# ---------------------------------------------------------------------------------------------------- lock

lock_object() { # NAME EXPIRES SINCE [RESOURCE_VERSION]
  cat <<YAML
apiVersion: v1
kind: ConfigMap
metadata:
  name: $1
  namespace: $NAMESPACE
  ${4:+resourceVersion: \"$4\"}
  labels:
    app.kubernetes.io/part-of: $APP
data:
  holder: "$HOLDER"
  since: "$3"
  expires: "$2"
YAML
}

server_time() { # NOW and NOW_S: of the API server, because the clocks of those who deploy may differ
  lock_object "$LOCK-clock-$$" 0 '' >"$TEMP/clock.yaml"
  kubectl_ask create --dry-run=server -f "$TEMP/clock.yaml" -o 'jsonpath={.metadata.creationTimestamp}' || fail "no lock can be made: $WHY"
  NOW=$ANSWER
  NOW_S=$(printf '%s\n' "$NOW" | awk -F '[-T:Z]' '{
    year = $1; month = $2 + 0; if (month <= 2) { year--; month += 12 }
    days = 365 * year + int(year / 4) - int(year / 100) + int(year / 400) + int((153 * (month - 3) + 2) / 5) + $3 - 1 - 719468
    printf "%.0f", days * 86400 + $4 * 3600 + $5 * 60 + $6 }')
}

lock() { # creating it is the test and the set
  local version expires since holder
  HOLDER="$(id -un)@${HOSTNAME:-unknown} pid $$"
  server_time
  expires=$((NOW_S + 2 * TIMEOUT + 2 * SMOKE_S + 300))
  LOCK_SINCE=$NOW # from here on, `unlock` looks whether it is ours
  lock_object "$LOCK" "$expires" "$NOW" >"$TEMP/lock.yaml"
  announce "${KN[@]}" create -f "$TEMP/lock.yaml"
  kubectl_ask create -f "$TEMP/lock.yaml" && return 0
  [[ $WHY == *AlreadyExists* ]] || fail "the lock cannot be made: $WHY"
  kubectl_ask get configmap "$LOCK" -o "jsonpath=$P_LOCK" || fail "the lock has just changed hands ($WHY): try again"
  IFS='|' read -r version expires since holder <<<"$ANSWER"
  if [[ ${expires:-0} -gt $NOW_S ]] && ! gone "$holder"; then
    fail "$holder is deploying since $since; its lock ends in $((expires - NOW_S)) s. If it is dead: ${KN[*]} delete configmap $LOCK"
  fi
  note "taking over the lock of $holder (since $since), which has ended"
  lock_object "$LOCK" $((NOW_S + 2 * TIMEOUT + 2 * SMOKE_S + 300)) "$NOW" "$version" >"$TEMP/lock.yaml"
  kubectl_ask replace -f "$TEMP/lock.yaml" || fail "another was faster in taking over the lock: $WHY"
}

gone() { # HOLDER: whether it was a process of this machine that is there no more
  local pid=${1##* pid }
  [[ ${1% pid *} == "${HOLDER% pid *}" ]] && ! kill -0 "$pid" 2>/dev/null
}

unlock() { # only if it is ours: it may have ended and gone to another
  local try
  [[ -n $LOCK_SINCE ]] || return 0
  for try in 1 2 3; do # a second signal interrupts whatever is waited for
    if kubectl_ask get configmap "$LOCK" -o 'jsonpath={.data.since}|{.data.holder}'; then
      [[ $ANSWER == "$LOCK_SINCE|$HOLDER" ]] || return 0
      ! kubectl_ask delete configmap "$LOCK" --ignore-not-found || return 0
    fi
    [[ $WHY != *NotFound* ]] || return 0
  done
  warn "the lock stays ($try tries: $WHY): ${KN[*]} delete configmap $LOCK"
}

# ---------------------------------------------------------------------------------------------------- deploy

deploy() {
  stage deploy
  grep -q -F "image: $DEPLOYED" "$TEMP/release.yaml" || fail "overlay $ENVIRONMENT does not use image $APP, so $DEPLOYED is nowhere in it"
  make_namespace
  lock
  remember
  if ! changes; then
    passed "unchanged: the cluster has all of it already; nothing is applied"
    return 0
  fi
  set -- apply --server-side --force-conflicts --field-manager="$MANAGER"
  announce "${K[@]}" "$@" --dry-run=server -f "$TEMP/release.yaml"
  attend "${K[@]}" "$@" --dry-run=server -f "$TEMP/release.yaml" >"$TEMP/checked" || fail "the cluster refuses it (nothing has been changed)"
  passed "server-side dry run"
  APPLIED=1
  run "${K[@]}" "$@" -f "$TEMP/release.yaml" || fail "kubectl apply failed"
}

make_namespace() { # first, because the server checks nothing inside a namespace that does not exist
  ! kubectl_ask get namespace "$NAMESPACE" -o name || return 0
  [[ $WHY == *NotFound* ]] || fail "namespace $NAMESPACE: $WHY"
  only_namespace
  note "namespace $NAMESPACE does not exist: it is made first, so that the server can check the rest"
  run "${K[@]}" apply --server-side --field-manager="$MANAGER" -f "$TEMP/namespace.yaml" || fail "namespace $NAMESPACE cannot be made"
}

only_namespace() { # its object, out of the manifests
  awk '/^---/ { if (wanted) print text; text = ""; wanted = 0; next }
    /^kind: Namespace$/ { wanted = 1 }
    { text = text $0 "\n" }
    END { if (wanted) print text }' "$TEMP/release.yaml" >"$TEMP/namespace.yaml"
  [[ -s $TEMP/namespace.yaml ]] || fail "namespace $NAMESPACE does not exist, and overlay $ENVIRONMENT does not make it: kubectl create namespace $NAMESPACE"
}

remember() { # PREVIOUS: the newest revision that has ready pods, to which a failure goes back
  kubectl_ask get replicasets -l "$SELECTOR" -o "jsonpath=$P_REVISIONS" || fail "the revisions cannot be read: $WHY"
  PREVIOUS=$(printf '%s\n' "$ANSWER" | awk -F '|' '$2 + 0 > 0 && $1 + 0 > best { best = $1 + 0 } END { if (best) print best }')
}

changes() { # whether the cluster differs from the manifests; names what differs
  local code=0
  announce "${K[@]}" diff --server-side --force-conflicts --field-manager="$MANAGER" -f "$TEMP/release.yaml"
  attend "${K[@]}" diff --server-side --force-conflicts --field-manager="$MANAGER" -f "$TEMP/release.yaml" >"$TEMP/diff" 2>"$TEMP/error" || code=$?
  [[ $code -le 1 ]] || fail "kubectl diff failed: $(complaint "$TEMP/error")"
  [[ $code -eq 1 ]] || return 1
  if [[ -n $DRY_RUN ]]; then
    sed 's/^/  | /' "$TEMP/diff"
  else
    sed -n 's|^diff .*/MERGED-[0-9]*/\([^/]*\)$|  differs: \1|p' "$TEMP/diff"
  fi
}

# ---------------------------------------------------------------------------------------------------- roll-out and health

roll_out() {
  stage roll-out
  await_rollout || fail "$WHY"
  await_others || fail "$WHY"
}

await_rollout() { # until the Deployment has what it wants; WHY if it does not get it
  local generation observed desired updated total available ready reason trouble most last='' line stuck='' end=$((SECONDS + TIMEOUT))
  note "waiting for deployment/$APP (at most $TIMEOUT s)"
  while :; do
    if kubectl_ask get deployment "$APP" -o "jsonpath=$P_DEPLOYMENT"; then
      IFS='|' read -r generation observed desired updated total available ready reason trouble <<<"$ANSWER"
      most=${desired:-1}
      [[ ${total:-0} -le $most ]] || most=$total
      line="pods ready ${ready:-0}/$most, new ${updated:-0}"
      [[ $line == "$last" ]] || note "$line"
      last=$line
      if [[ ${observed:-0} -ge $generation && ${updated:-0} -ge ${desired:-1} && ${total:-0} -le ${updated:-0} && ${available:-0} -ge ${updated:-0} ]]; then
        read_release
        return 0
      fi
      # A deadline exceeded may be the one of the release before, until the controller has looked again.
      first_reason
      line=$BLOCKED
      [[ $reason != ProgressDeadlineExceeded ]] || line="no progress within its deadline${line:+: $line}"
      [[ -z $trouble ]] || line=$trouble
      [[ -n $line ]] || stuck=''
      [[ -z $line ]] || stuck=${stuck:-$SECONDS}
    else
      line=$WHY
    fi
    if [[ -n $stuck && $((SECONDS - stuck)) -ge $STUCK_S ]] || [[ $SECONDS -ge $end ]]; then
      WHY="not complete after $((SECONDS - end + TIMEOUT)) s (${last:-no answer})${line:+: $line}"
      return 1
    fi
    [[ $ENDING != twice ]] || { WHY="not waited for any longer" && return 1; }
    nap "$POLL_S"
  done
}

first_reason() { # BLOCKED is why a pod cannot start, if one says so
  kubectl_ask get pods -l "$SELECTOR" -o "jsonpath=$P_REASONS" || ANSWER=''
  BLOCKED=$(printf '%s\n' "$ANSWER" | awk -F '|' '
    $1 == "" && match($3, /(ErrImage[A-Za-z]*|ImagePullBackOff|InvalidImageName|CreateContainer[A-Za-z]*Error|RunContainerError|CrashLoopBackOff|Unschedulable).*/) {
      text = substr($3, RSTART, 160); gsub(/ +/, " ", text); sub(/ $/, "", text); print text; exit }')
}

await_others() { # what components bring with them
  local kind name end=$((SECONDS + TIMEOUT))
  while IFS='|' read -r kind _ name _; do
    case $kind in Deployment | StatefulSet) ;; *) continue ;; esac
    [[ $name != "$APP" ]] || continue
    kind=$(printf '%s' "$kind" | tr '[:upper:]' '[:lower:]')
    if ! run "${KN[@]}" rollout status "$kind/$name" --timeout="$((end > SECONDS ? end - SECONDS : 1))s"; then
      WHY="$kind/$name is not ready"
      return 1
    fi
  done <"$TEMP/objects.txt"
}

read_release() { # REVISION, LIVE_IMAGE and LIVE_COMMIT of the Deployment
  kubectl_ask get deployment "$APP" -o "jsonpath=$P_RELEASE" || return 1
  IFS='|' read -r REVISION LIVE_COMMIT LIVE_IMAGE <<<"$ANSWER"
}

health() { # the service has ready pods behind it
  stage health
  local end=$((SECONDS + STUCK_S)) ready
  while :; do
    if kubectl_ask get endpointslices -l "kubernetes.io/service-name=$APP" -o "jsonpath=$P_ENDPOINTS"; then
      ready=$(printf '%s\n' "$ANSWER" | grep -c true) || ready=0
      [[ $ready -eq 0 ]] || { passed "service/$APP leads to $ready ready pods" && return 0; }
      WHY="service/$APP has no ready endpoint: does its selector match the pods?"
    fi
    [[ $SECONDS -lt $end ]] || fail "$WHY"
    nap "$POLL_S"
  done
}

# ---------------------------------------------------------------------------------------------------- smoke

smoke() {
  stage smoke
  smoke_test || fail "$WHY"
}

smoke_test() { # [any-commit]: whether what is live answers as it must; WHY if not
  local end=$((SECONDS + SMOKE_S))
  while :; do
    RETRY=''
    smoke_once "${1:-}" && return 0
    end_children
    [[ $ENDING != twice && -n $RETRY && $SECONDS -lt $end ]] || return 1
    note "again: $WHY"
    nap "$POLL_S"
  done
}

smoke_once() {
  local pod
  check_pods || return 1
  pod=$ANSWER
  forward "service/$APP" 80 || return 1
  check_answer readyz 200 || return 1
  passed "readyz answers 200"
  check_info "${1:-}" || return 1
  check_answer predict 200 --header 'Content-Type: application/json' --data-binary "@$(smoke_file golden.request.json)" || return 1
  check_golden || return 1
  check_answer predict 400 --header 'Content-Type: application/json' --data-binary "@$(smoke_file bad.request.json)" || return 1
  passed "a bad request gets its 400"
  forward "pod/$pod" 9100 || return 1
  check_answer metrics 200 || return 1
  if ! grep -q "^ml_model_info{.*$MODEL_DIGEST" "$TEMP/body"; then
    WHY="the metrics of $pod do not name model $MODEL"
    return 1
  fi
  passed "metrics name the live model"
  end_children
}

smoke_file() { # NAME: the overlay's own, or that of all
  local own=k8s/overlays/$ENVIRONMENT/smoke/$1
  [[ -e $own ]] || own=k8s/smoke/$1
  printf '%s/%s' "$ROOT" "$own"
}

check_pods() { # every pod runs the image that is deployed; ANSWER is one of them. Pods that are ending do not count.
  local name ending phase ready image id good='' count=0
  kubectl_ask get pods -l "$SELECTOR" -o "jsonpath=$P_PODS" || return 1
  while IFS='|' read -r name ending phase ready image id; do
    [[ -z $ending ]] || RETRY=1 # the service may still lead to it
    [[ -z $ending && $phase == Running ]] || continue
    if [[ $ready != true ]]; then
      WHY="$name is not ready" RETRY=1
      return 1
    fi
    same_image "$image" "$id" || { WHY="$name runs $id ($image), not $LIVE_IMAGE" && return 1; }
    good=$name count=$((count + 1))
  done <<<"$ANSWER"
  [[ -n $good ]] || { WHY="no pod is running" RETRY=1 && return 1; }
  passed "every pod ($count) runs $LIVE_IMAGE"
  ANSWER=$good
}

same_image() { # IMAGE IMAGE_ID of a pod's status: is it LIVE_IMAGE?
  local digest=${LIVE_IMAGE#*@}
  if [[ $LIVE_IMAGE == *@* ]]; then
    [[ $2 != *"$digest"* ]] || return 0
    # CRI-O reports the manifest of its own platform, out of the index that was asked for.
    ask "$DOCKER" buildx imagetools inspect --raw "$LIVE_IMAGE" && [[ -n ${2##*@} && $ANSWER == *"\"${2##*@}\""* ]]
    return
  fi
  [[ -n $IMAGE_ID && $2 == *"$IMAGE_ID" ]] && return 0
  # Docker counts images by another id than containerd does; the tag is that of one commit, which /model/info names.
  [[ $2 != docker*"//"* || -z $IMAGE_ID ]] && [[ $1 == "$LIVE_IMAGE" || $1 == */"$LIVE_IMAGE" || $1 == sha256:* ]]
}

forward() { # RESOURCE PORT: PORT is the local one, which kubectl chooses
  local tries=0 pid
  announce "${KN[@]}" port-forward --address 127.0.0.1 "$1" ":$2"
  : >"$TEMP/forward" # the child truncates it too, but perhaps after the first look
  "${KN[@]}" port-forward --address 127.0.0.1 "$1" ":$2" >"$TEMP/forward" 2>&1 &
  pid=$!
  while [[ $tries -lt 200 ]]; do
    PORT=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$TEMP/forward" | sed -n '1p')
    [[ -z $PORT ]] || return 0
    kill -0 "$pid" 2>/dev/null || break
    tries=$((tries + 1))
    nap 0.05
  done
  WHY="no port-forward to $1: $(complaint "$TEMP/forward")" RETRY=1
  return 1
}

check_answer() { # PATH STATUS [OPTION OF curl...]: the answer is in TEMP/body
  local path=$1 wanted=$2 code=0
  shift 2
  attend curl -q --silent --show-error --noproxy '*' --max-time 20 --output "$TEMP/body" --write-out '%{http_code}' "$@" \
    "http://127.0.0.1:$PORT/$path" >"$TEMP/status" 2>"$TEMP/error" || code=$?
  if [[ $code -ne 0 ]]; then
    WHY="/$path: $(complaint "$TEMP/error")" RETRY=1
    return 1
  fi
  [[ $(cat "$TEMP/status") != "$wanted" ]] || return 0
  WHY="/$path answers $(cat "$TEMP/status") instead of $wanted: $(head -c 200 "$TEMP/body" | tr '\n' ' ')"
  [[ $path != readyz ]] || RETRY=1
  return 1
}

field() { # NAME: the value of the first such field of the JSON on stdin
  awk -v name="$1" '{ text = text $0 } END {
    if (!match(text, "\"" name "\" *: *(\"[^\"]*\"|[^,}]*)")) exit
    text = substr(text, RSTART, RLENGTH); sub(/^"[^"]*" *: */, "", text); gsub(/"/, "", text); print text }'
}

check_info() { # [any-commit]: MODEL and MODEL_DIGEST that are live, of the commit that was deployed
  local commit version
  check_answer model/info 200 || return 1
  commit=$(sed 's/.*"service" *: *{\([^}]*\)}.*/{\1}/' "$TEMP/body" | field commit)
  version=$(sed 's/"service" *: *{[^}]*}//' "$TEMP/body" | field version)
  MODEL_DIGEST=$(field digest <"$TEMP/body")
  MODEL="$(field name <"$TEMP/body") version $version"
  if [[ -z $version || $MODEL_DIGEST != sha256:* ]]; then
    WHY="/model/info names no version and digest: $(head -c 200 "$TEMP/body")"
    return 1
  fi
  if [[ -z ${1:-} && -n $LIVE_COMMIT && $LIVE_COMMIT != unknown && $commit != "$LIVE_COMMIT" ]]; then
    WHY="the live service is of commit ${commit:-?}, not $LIVE_COMMIT"
    return 1
  fi
  passed "$MODEL ($MODEL_DIGEST) by commit ${commit:-unknown}"
}

check_golden() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    [[ -n $line ]] || continue
    grep -q -F -- "$line" "$TEMP/body" || { WHY="the golden prediction lacks $line: $(head -c 200 "$TEMP/body")" && return 1; }
  done <"$(smoke_file golden.expected)"
  passed "golden prediction"
}

# ---------------------------------------------------------------------------------------------------- when it fails

explain() { # the reasons, from the cluster
  local pod ready
  say ''
  say "${BOLD}Why${PLAIN}"
  run "${KN[@]}" get pods -l "$SELECTOR" -o wide || true
  kubectl_ask get pods -l "$SELECTOR" -o "jsonpath=$P_REASONS" || true
  printf '%s\n' "$ANSWER" | awk -F '|' '$1 == "" && $3 ~ /[A-Za-z]/ { gsub(/ +/, " ", $3); print "  " $2 ": " $3 }'
  announce "${KN[@]}" get events --sort-by=.lastTimestamp --field-selector type=Warning
  kubectl_ask get events --sort-by=.lastTimestamp --field-selector type=Warning || true
  printf '%s\n' "$ANSWER" | tail -n 15 | sed 's/^/  | /'
  kubectl_ask get pods -l "$SELECTOR" -o "jsonpath=$P_PODS" || true
  printf '%s\n' "$ANSWER" | awk -F '|' '$2 == "" && $4 != "true" && $1 != "" { print $1 }' | sed -n '1,2p' >"$TEMP/unready"
  while read -r pod; do
    for ready in --previous ''; do
      kubectl_ask logs "$pod" --tail=40 ${ready:+"$ready"} || continue
      announce "${KN[@]}" logs "$pod" --tail=40 ${ready:+"$ready"}
      printf '%s\n' "$ANSWER" | sed 's/^/  | /'
      break
    done
  done <"$TEMP/unready"
}

put_back() { # after a failure or an interruption: the revision before, tested. Fails only if that fails.
  if [[ -n $NO_ROLLBACK ]]; then
    note "left as it is (--no-rollback)"
    return 0
  fi
  if [[ -z $PREVIOUS ]]; then
    note "nothing to go back to: no revision before this one was ready. The objects stay, to be looked at or deployed over."
    return 0
  fi
  local failed=$REASON
  ROLLBACK=failed
  if back_to "$PREVIOUS"; then
    ROLLBACK='done'
    warn "rolled back to what was revision $PREVIOUS (it is $REVISION now); other objects keep what was applied"
    return 0
  fi
  REASON="$failed; and the rollback to revision $PREVIOUS: $WHY"
  warn "FAIL  rollback to revision $PREVIOUS: $WHY"
  return 1
}

back_to() { # REVISION: apply what it was, wait, test
  printf '\n%s== rollback%s  (%s)\n' "$BOLD" "$PLAIN" "$(elapsed)"
  write_revision "$1" || return 1
  run "${K[@]}" apply --server-side --force-conflicts --field-manager="$MANAGER" -f "$TEMP/revision.json" \
    || { WHY="revision $1 cannot be applied" && return 1; }
  await_rollout || return 1
  IMAGE_ID=''
  smoke_test any-commit || return 1
  mark_tested
  report_live
}

# Not `kubectl rollout undo`: what only the older revision had would then belong to that command, and no later release could
# take it away. The template is the revision's own to the last field, so Kubernetes takes up its ReplicaSet again.
write_revision() { # REVISION: TEMP/revision.json, the Deployment as it was
  local name annotations template labels selector strategy ready history deadline
  kubectl_ask get replicasets -l "$SELECTOR" -o "jsonpath=$P_REVISIONS" || return 1
  name=$(replica_set "$1")
  [[ -n $name ]] || { WHY="revision $1 is not there any more" && return 1; }
  kubectl_ask get replicaset "$name" -o "jsonpath=$P_REVISION" || return 1
  { IFS= read -r annotations && IFS= read -r template; } <<<"$ANSWER"
  kubectl_ask get deployment "$APP" -o "jsonpath=$P_FRAME" || return 1
  { IFS= read -r labels && IFS= read -r selector && IFS= read -r strategy && IFS= read -r ready && IFS= read -r history \
    && IFS= read -r deadline; } <<<"$ANSWER"
  annotations=$(printf '%s' "$annotations" | sed -e 's|"deployment\.kubernetes\.io/[^"]*":"[^"]*",\{0,1\}||g' \
    -e "s|\"$APP/tested\":\"[^\"]*\",\\{0,1\\}||" -e 's|,}$|}|')
  template=$(printf '%s' "$template" | sed -e 's|"pod-template-hash":"[^"]*",||' -e 's|,"pod-template-hash":"[^"]*"||')
  printf '{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"%s","namespace":"%s","labels":%s,"annotations":%s},' \
    "$APP" "$NAMESPACE" "$labels" "$annotations" >"$TEMP/revision.json"
  printf '"spec":{"selector":%s,"strategy":%s,"minReadySeconds":%s,"revisionHistoryLimit":%s,"progressDeadlineSeconds":%s,' \
    "$selector" "$strategy" "${ready:-0}" "${history:-10}" "${deadline:-600}" >>"$TEMP/revision.json"
  printf '"template":%s}}\n' "$template" >>"$TEMP/revision.json"
}

replica_set() { # REVISION: its name, out of the ANSWER to P_REVISIONS
  printf '%s\n' "$ANSWER" | awk -F '|' -v revision="$1" '$1 == revision { print $6 }'
}

mark_tested() { # the live revision has passed its smoke test, so that `rollback` may go back to it
  local name=''
  ! kubectl_ask get replicasets -l "$SELECTOR" -o "jsonpath=$P_REVISIONS" || name=$(replica_set "$REVISION")
  if [[ -n $name ]]; then
    announce "${KN[@]}" annotate replicaset "$name" "$APP/tested=yes" --overwrite
    ! kubectl_ask annotate replicaset "$name" "$APP/tested=yes" --overwrite || return 0
  fi
  note "revision $REVISION could not be marked as tested: $WHY"
}

report_live() { # what is live is what the report tells
  DEPLOYED=$LIVE_IMAGE COMMIT=$LIVE_COMMIT DIGEST=''
  [[ $LIVE_IMAGE != *@* ]] || DIGEST=${LIVE_IMAGE#*@}
}

# ---------------------------------------------------------------------------------------------------- verbs

up() {
  preflight
  if [[ -n $DRY_RUN ]]; then
    rehearse
    return 0
  fi
  build
  render "$TEMP/release.yaml" release || fail "the release does not render: $(complaint "$TEMP/error")"
  scan
  deploy
  roll_out
  health
  smoke
  [[ -z $APPLIED ]] || mark_tested
  how_to_reach
}

rehearse() { # --dry-run: says what `up` would do, and lets the cluster check it
  stage build
  REPOSITORY=${REGISTRY:+$REGISTRY/}$APP
  [[ -z $IMAGE ]] || take_given_image
  DEPLOYED=${DEPLOYED:-$REPOSITORY:$TAG}
  [[ -n $IMAGE ]] || note "would build $DEPLOYED and bring it to the cluster by $TARGET${SKIP_BUILD:+ (no: --skip-build)}"
  render "$TEMP/release.yaml" release || fail "the release does not render: $(complaint "$TEMP/error")"
  stage scan
  note "would scan image, secrets and manifests for $SEVERITY${SKIP_SCAN:+ (no: --skip-scan)}"
  stage deploy
  objects "$TEMP/release.yaml" | awk -F '|' '{ print "  would apply " $1 " " $3 }'
  if [[ -z $REACHED ]]; then
    note "no cluster answers, so nothing is compared"
  elif kubectl_ask get namespace "$NAMESPACE" -o name; then
    changes || passed "unchanged: the cluster has all of it already (but for the image's digest, which only a build tells)"
    run "${K[@]}" apply --server-side --force-conflicts --field-manager="$MANAGER" --dry-run=server -f "$TEMP/release.yaml" \
      || fail "the cluster refuses it"
  else
    only_namespace
    note "namespace $NAMESPACE does not exist yet: the cluster can check only that"
    run "${K[@]}" apply --server-side --field-manager="$MANAGER" --dry-run=server -f "$TEMP/namespace.yaml" || fail "the cluster refuses it"
  fi
  say ''
  say "Dry run: nothing was built, and nothing changed."
}

how_to_reach() {
  local host request
  request=$(smoke_file golden.request.json)
  host=$(awk '/^---/ { ingress = 0 } /^kind: Ingress$/ { ingress = 1 } ingress && /^ *- host: / { print $3; exit }' "$TEMP/plain.yaml")
  URL=http://127.0.0.1:$LOCAL_PORT
  say ''
  say "${GREEN}${BOLD}Live${PLAIN}: $MODEL, commit ${COMMIT:-$LIVE_COMMIT}, revision $REVISION in $NAMESPACE${CONTEXT:+ of $CONTEXT}, after $(elapsed)"
  say ''
  announce "${KN[@]}" port-forward "service/$APP" "$LOCAL_PORT:80"
  announce curl -s -H 'Content-Type: application/json' --data "$(cat "$request")" "$URL/predict"
  [[ -z $host ]] || { URL=https://$host && announce curl -s "$URL/model/info"; }
  say ''
}

status() {
  preflight
  stage status
  if ! read_release; then
    fail_health "$WHY"
  fi
  report_live
  note "image     $LIVE_IMAGE"
  note "digest    ${DIGEST:-none, deployed by tag}"
  note "commit    ${LIVE_COMMIT:-unknown}"
  note "revision  $REVISION"
  kubectl_ask get pods -l "$SELECTOR" -o "jsonpath=$P_PODS" || fail_health "$WHY"
  printf '%s\n' "$ANSWER" | awk -F '|' '$1 != "" { print "  pod       " $1 " " $3 ($2 == "" ? "" : ", ending") ($4 == "true" ? ", ready" : ", not ready") }'
  kubectl_ask get configmap "$LOCK" -o "jsonpath=$P_LOCK" || ANSWER=free
  note "lock      ${ANSWER##*|}"
  if ! forward "service/$APP" 80 || ! check_answer readyz 200 || ! check_info any-commit; then fail_health "$WHY"; fi
  note "model     $MODEL ($MODEL_DIGEST)"
  healthy_now || fail_health "$WHY"
  say "Healthy."
}

healthy_now() { # as many pods as are wanted
  local generation observed desired updated total available ready reason trouble
  kubectl_ask get deployment "$APP" -o "jsonpath=$P_DEPLOYMENT" || return 1
  IFS='|' read -r generation observed desired updated total available ready reason trouble <<<"$ANSWER"
  WHY="pods ready ${ready:-0}/${desired:-1}, of the newest revision ${updated:-0}${reason:+ ($reason)}${trouble:+: $trouble}"
  [[ ${observed:-0} -ge $generation && ${updated:-0} -ge ${desired:-1} && ${available:-0} -ge ${desired:-1} && ${total:-0} -le ${updated:-0} ]]
}

fail_health() { # WHY
  STAGE=health
  fail "$1"
}

rollback() {
  local revisions target
  preflight
  read_release || fail "there is nothing to roll back: $WHY"
  kubectl_ask get replicasets -l "$SELECTOR" -o "jsonpath=$P_REVISIONS" || fail "the revisions cannot be read: $WHY"
  revisions=$(printf '%s\n' "$ANSWER" | sort -n)
  target=${TO_REVISION:-$(printf '%s\n' "$revisions" | awk -F '|' -v live="$REVISION" '$1 + 0 < live + 0 && $5 { found = $1 } END { print found }')}
  printf '%s\n' "$revisions" | awk -F '|' -v live="$REVISION" '{
    print "  revision " $1 "  commit " $3 "  " $4 ($1 == live ? "  (live)" : "") ($5 ? "" : "  (did not pass its smoke test)") }'
  [[ -n $target ]] || fail "there is no revision before $REVISION that passed its smoke test; --to-revision takes any"
  printf '%s\n' "$revisions" | grep -q "^$target|" || fail "--to-revision $target: there is no such revision; those above are there"
  if [[ $target == "$REVISION" ]]; then
    passed "unchanged: revision $target is live already"
    return 0
  fi
  STAGE=rollback
  lock
  back_to "$target" || fail "$WHY"
  ROLLBACK='done'
  say "Revision $target is live again, as revision $REVISION."
}

smoke_verb() {
  preflight
  STAGE=smoke
  read_release || fail "$WHY"
  report_live
  smoke
  how_to_reach
}

doctor() {
  preflight
  say "Ready to deploy."
}

down() {
  local kind api name space kept=''
  preflight
  stage down
  : >"$TEMP/doomed"
  while IFS='|' read -r kind api name space; do
    case $kind in
      Namespace | PersistentVolumeClaim) continue ;;
      PriorityClass) note "$name stays: a PriorityClass belongs to the cluster, and others may use it" && continue ;;
      *) printf '%s%s/%s %s\n' "$(printf '%s' "$kind" | tr '[:upper:]' '[:lower:]')" "$(group_of "$api")" "$name" "$space" >>"$TEMP/doomed" ;;
    esac
  done <"$TEMP/objects.txt"
  say "To be deleted from $NAMESPACE${CONTEXT:+ of $CONTEXT}:"
  sed 's/^/  /' "$TEMP/doomed"
  ! rendered Namespace || note "namespace/$NAMESPACE, unless claims or Secrets of yours are in it"
  if [[ -z $YES ]]; then
    [[ -t 0 ]] || refuse "--yes: needed for down where nobody can be asked"
    read -r -p "Delete them? [y/N] " kind
    [[ $kind == [yY]* ]] || { say "Nothing was deleted." && return 0; }
  fi
  STAGE=deploy
  kubectl_ask get namespace "$NAMESPACE" -o name || { passed "namespace $NAMESPACE is gone already" && return 0; }
  lock
  while read -r name space; do
    run "${K[@]}" ${space:+--namespace "$space"} delete "$name" --ignore-not-found || fail "$name cannot be deleted"
  done <"$TEMP/doomed"
  kubectl_ask get persistentvolumeclaims,secrets -o name || ANSWER="what it has: $WHY"
  kept=$(printf '%s\n' "$ANSWER" | grep -v -e '^secret/default-token' -e '^$' | tr '\n' ' ') || kept=''
  if [[ -n $kept ]]; then
    say "Left: namespace/$NAMESPACE with $kept(and the volumes behind the claims). All of it: ${K[*]} delete namespace $NAMESPACE"
  elif rendered Namespace; then
    run "${K[@]}" delete namespace "$NAMESPACE" || fail "namespace $NAMESPACE cannot be deleted"
    LOCK_SINCE=''
  fi
}

group_of() { # APIVERSION: ".group", as kubectl wants it behind a kind
  [[ $1 != */* ]] || printf '.%s' "${1%/*}"
}

# ---------------------------------------------------------------------------------------------------- start

home() { # the folder of this file, behind symbolic links
  local file=${BASH_SOURCE[0]} link
  while [[ -L $file ]]; do
    link=$(readlink "$file")
    [[ $link == /* ]] || link=$(dirname "$file")/$link
    file=$link
  done
  cd -P "$(dirname "$file")" && pwd
}

main() {
  local argument
  for argument in "$@"; do [[ $argument != --json ]] || JSON=1; done
  [[ -z $JSON ]] || exec 3>&1 1>&2
  exec 8>&1 9>&2
  trap finish EXIT
  trap 'unexpected "$LINENO" "$BASH_COMMAND"' ERR
  trap 'interrupted 130 SIGINT' INT
  trap 'interrupted 143 SIGTERM' TERM
  trap 'interrupted 143 SIGHUP' HUP
  parse "$@"
  ROOT=$(home)
  cd "$ROOT"
  colours
  TEMP=$(mktemp -d "${TMPDIR:-/tmp}/$APP-deploy.XXXXXX")
  TEMP=$(cd "$TEMP" && pwd -P)
  case $VERB in
    smoke) smoke_verb ;;
    *) "$VERB" ;;
  esac
  STAGE='done'
  exit 0 # and not back into the file, of which bash has read only so much: it may have been replaced (git pull)
}

main "$@"
