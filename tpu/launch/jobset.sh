#!/usr/bin/env bash
# Puts values into jobset.yaml and hands it to kubectl, or prints it (--print). README.md here explains each variable:
#
#   IMAGE=... MODEL=gs://b/model INPUT=gs://b/in.jsonl OUTPUT=gs://b/out.jsonl tpu/launch/jobset.sh [--print]
set -euo pipefail

: "${IMAGE:?expected the image that the Dockerfile here makes}"
: "${MODEL:?expected a folder that all hosts see, or a hub id}"
: "${INPUT:?expected the conversations, JSONL}" "${OUTPUT:?expected where the answers go}"
: "${SLOTS:=64}" "${OPTIONS:=}"
: "${NAME:=omni-jax}" "${ACCELERATOR:=tpu-v6e-slice}" "${TOPOLOGY:=4x4}" "${HOSTS:=4}" "${CHIPS:=4}"
: "${SERVICE_ACCOUNT:=default}" "${RESTARTS:=10}"
export IMAGE MODEL INPUT OUTPUT SLOTS OPTIONS NAME ACCELERATOR TOPOLOGY HOSTS CHIPS SERVICE_ACCOUNT RESTARTS

manifest() {
  # Not envsubst, which would empty what it does not know, and the container's own "$INPUT" too.
  python3 -c '
import json, os, re, sys
inner = lambda name: json.dumps(os.environ[name])[1:-1]  # a quote in a value does not end the string in the YAML
print(re.sub(r"\$\{(\w+)\}", lambda found: inner(found[1]), sys.stdin.read()), end="")
' <"$(dirname "${BASH_SOURCE[0]}")/jobset.yaml"
}

case ${1:-} in
  --print) manifest ;;
  '') manifest | kubectl apply -f - ;;
  *)
    echo "jobset: expected nothing or --print, got $1" >&2
    exit 2
    ;;
esac
