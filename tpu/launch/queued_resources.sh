#!/usr/bin/env bash
# Answers a file of conversations on TPU VMs: asks Google's queue for them, waits, installs this clone on every host, runs
# tpu/pod_inference.py, and gives them back. From a clone, with gcloud logged in (README.md here explains each variable):
#
#   PROJECT=mine ZONE=us-east5-b MODEL=gs://b/model INPUT=gs://b/in.jsonl OUTPUT=gs://b/out.jsonl tpu/launch/queued_resources.sh
#
# VMs that are taken away in between are asked for again, and the job goes on after its last durable line.
set -euo pipefail

: "${PROJECT:?expected the Google Cloud project}" "${ZONE:?expected the zone of the TPUs}"
: "${MODEL:?expected a folder that all hosts see, or a hub id}"
: "${INPUT:?expected the conversations, JSONL}" "${OUTPUT:?expected where the answers go}"
: "${SLOTS:=64}" "${OPTIONS:=}"
: "${NAME:=omni-jax}" "${ACCELERATOR_TYPE:=v6e-16}" "${RUNTIME_VERSION:=v2-alpha-tpuv6e}" "${SPOT:=}" "${SERVICE_ACCOUNT:=}"
: "${ATTEMPTS:=10}" "${POLL:=30}" "${KEEP:=}"

queue() { # queue VERB ARGUMENT...: of queued resources
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$@" --project="$PROJECT" --zone="$ZONE"
}

hosts() { # hosts COMMAND: on all of them at once; the exit code is the first that is not 0
  gcloud compute tpus tpu-vm ssh "$NAME" --worker=all --command="$1" --project="$PROJECT" --zone="$ZONE"
}

say() { printf 'queued_resources: %s\n' "$1" >&2; }

# So many looks at the queue may fail one after another: to give up at the first would give the place in it away.
looks=10

state() { # empty where nothing of that name is asked for
  local failed=0
  until queue list --filter="name~/queuedResources/$NAME\$" --format='value(state.state)'; do
    ((++failed < looks)) || return 1
    say "could not look at the queue ($failed of $looks times)"
    sleep "$POLL"
  done
}

give_back() { queue delete "$NAME" --force --quiet; }

wait_for_hosts() {
  local now last=none
  while :; do
    now=$(state)
    [[ $now == "$last" ]] || say "$NAME: ${now:-not asked for yet}"
    last=$now
    case $now in
      ACTIVE) return ;;
      FAILED)
        queue describe "$NAME" >&2
        return 1
        ;;
      SUSPENDED) give_back ;; # taken away: asked for anew
      '')
        queue create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
          ${SPOT:+--spot} ${SERVICE_ACCOUNT:+"--service-account=$SERVICE_ACCOUNT"}
        ;;
    esac
    sleep "$POLL"
  done
}

install() {
  # The runtime's own Python is too old, so uv brings one. A run that lost its terminal would still hold the chips.
  gcloud compute tpus tpu-vm scp "$wheel" tpu/pod_inference.py ${HF_TOKEN:+"$scratch/hf_token"} "$NAME:" --worker=all --project="$PROJECT" --zone="$ZONE" &&
    hosts "if [ -f job.pid ]; then p=\$(cat job.pid); kill \"\$p\" 2>/dev/null
        for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 \"\$p\" 2>/dev/null || break; sleep 3; done
        kill -9 \"\$p\" 2>/dev/null; rm job.pid; fi; python3 -m pip install --quiet --user uv &&
      ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 job &&
      ~/.local/bin/uv pip install --quiet --python job/bin/python './${wheel##*/}[tpu]' gcsfs"
}

answer() {
  local command
  command="echo \$\$ > job.pid; [ ! -f hf_token ] || export HF_TOKEN=\$(cat hf_token); exec job/bin/python pod_inference.py $(printf '%q ' "$INPUT" "$OUTPUT" --model "$MODEL" --slots "$SLOTS")"
  hosts "$command$OPTIONS"
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
# shellcheck disable=SC2329 # the trap calls it
finish() {
  local left
  rm -rf "$scratch"
  [[ -z $KEEP ]] || return 0
  looks=3
  { left=$(state) && { [[ -z $left ]] || give_back; }; } ||
    say "could not give $NAME back, and it costs money: gcloud compute tpus queued-resources delete $NAME --force --project=$PROJECT --zone=$ZONE"
}
trap finish EXIT
[[ -z ${HF_TOKEN:-} ]] || (umask 077 && printf '%s' "$HF_TOKEN" >"$scratch/hf_token") # no process list shows it
python3 -m pip wheel --quiet --no-deps --wheel-dir "$scratch" .
wheel=$(echo "$scratch"/*.whl)

for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  wait_for_hosts
  code=0
  if install; then
    answer || code=$?
  else
    code=1 # whatever the installer's own codes mean
  fi
  if ((code == 0)); then
    say "wrote $OUTPUT"
    exit 0
  elif ((code == 2)); then
    exit 2 # the job said what is wrong with what it was given; it would say so again
  fi
  say "stopped with code $code, attempt $attempt of $ATTEMPTS; it goes on after its last durable line"
  sleep "$POLL"
done
exit "$code"
