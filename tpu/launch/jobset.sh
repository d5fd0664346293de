#!/usr/bin/env bash
# Puts values into jobset.yaml and hands it to kubectl, or prints it (--print). README.md here explains each variable:
#
#   IMAGE=... MODEL=gs://b/model INPUT=gs://b/in.jsonl OUTPUT=gs://b/out.jsonl tpu/launch/jobset.sh [--print]
set -euo pipefail

wrong() {
  echo "jobset: $1" >&2
  exit 2
}

case ${1:-} in
  '' | --print) ;;
  -h | --help)
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
    ;;
  *) wrong "expected nothing, --print or --help, got $1" ;;
esac

: "${IMAGE:?expected the image that the Dockerfile here makes}"
: "${MODEL:?expected a folder that all hosts see, or a hub id}"
: "${INPUT:?expected the conversations, JSONL}" "${OUTPUT:?expected where the answers go}"
: "${SLOTS:=64}" "${OPTIONS:=}"
: "${NAME:=omni-jax}" "${ACCELERATOR:=tpu-v6e-slice}" "${TOPOLOGY:=4x4}" "${HOSTS:=4}" "${CHIPS:=4}"
: "${SERVICE_ACCOUNT:=default}" "${RESTARTS:=10}"
[[ $NAME =~ ^[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
  wrong "NAME: expected at most 50 small letters, digits and hyphens, these not at an end, got $NAME"
for number in HOSTS CHIPS SLOTS RESTARTS; do
  least=1
  [[ $number != RESTARTS ]] || least=0
  [[ ${!number} =~ ^(0|[1-9][0-9]{0,8})$ && ${!number} -ge $least ]] ||
    wrong "$number: expected a whole number of at least $least, got ${!number}"
done
export IMAGE MODEL INPUT OUTPUT SLOTS OPTIONS NAME ACCELERATOR TOPOLOGY HOSTS CHIPS SERVICE_ACCOUNT RESTARTS

manifest() {
  # Not envsubst, which would empty what it does not know, and the container's own "$INPUT" too.
  python3 -c '
import json, os, re, sys
inner = lambda name: json.dumps(os.environ[name])[1:-1]  # a quote in a value does not end the string in the YAML
print(re.sub(r"\$\{(\w+)\}", lambda found: inner(found[1]), sys.stdin.read()), end="")
' <"$(dirname "${BASH_SOURCE[0]}")/jobset.yaml"
}

if [[ ${1:-} == --print ]]; then
  manifest
else
  # For gated models; a secret, for anybody may read the manifest of a job.
  [[ -z ${HF_TOKEN:-} ]] || printf '%s' "$HF_TOKEN" |
    kubectl create secret generic "$NAME" --from-file=HF_TOKEN=/dev/stdin --dry-run=client --output=yaml | kubectl apply -f -
  manifest | kubectl apply -f -
fi
