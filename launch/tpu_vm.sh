#!/usr/bin/env bash
# Runs rankckpt_jax on a Cloud TPU slice: creates or reuses the slice, installs this
# checkout on every worker, runs it, follows the log, retries after a preemption, and
# deletes the slice.
#
#   launch/tpu_vm.sh --name rank --zone us-west4-a --type v5litepod-8 --spot -- \
#       --config=configs/caltech.py --config.workdir=gs://BUCKET/runs
#
# Arguments after -- go to `python -m rankckpt_jax.main` on all workers, which find each
# other. The work directory must be a bucket, because a preempted slice loses its disks.
# If this script is interrupted (Ctrl-C, a lost connection), the run continues; the same
# command follows it again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name NAME --zone ZONE [options] -- MAIN_ARGUMENTS...
       launch/tpu_vm.sh --name NAME --zone ZONE --delete

  --name NAME         name of the slice and of its queued resource
  --zone ZONE         such as us-west4-a
  --project PROJECT   default: gcloud's
  --type TYPE         v5litepod-8 (default), v6e-8, v5p-8, v4-8, ...
  --version VERSION   of the TPU software; default: the one for the type
  --spot              cheaper, and may be preempted at any time
  --attempts N        maximum number of attempts (default 20)
  --wait SECONDS      between polls of a slice that is not ready (default 30)
  --keep              keep the slice at the end
  --delete            only delete the slice
  --dry-run           print every command and run none

Exit codes are those of rankckpt_jax.main: 0; 1 if some checkpoints failed; 2 for bad
input; 75 if all attempts were interrupted.
TEXT
}

fail() {
  echo "$*" >&2
  exit 2
}

name='' zone='' project='' type=v5litepod-8 version='' attempts=20 wait=30
spot=false keep=false delete=false dry=false
while [ $# -gt 0 ]; do
  case $1 in
    --name | --zone | --project | --type | --version | --attempts | --wait)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot | --keep | --delete)
      printf -v "${1#--}" true
      shift
      ;;
    --dry-run)
      dry=true
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "Unknown option $1; --help lists them" ;;
  esac
done
[ -n "$name" ] || fail "--name is missing; --help lists the options"
[ -n "$zone" ] || fail "--zone is missing; --help lists the options"
[[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "--attempts must be a positive integer: $attempts"
if ! $delete; then
  [[ " $* " == *" --config.workdir=gs://"* ]] ||
    fail "--config.workdir=gs://... is missing after --: a preempted slice loses its disks"
fi
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "Unknown --type $type; name its software with --version" ;;
  esac
fi

place=(--zone "$zone")
[ -z "$project" ] || place+=(--project "$project")
queued=(gcloud compute tpus queued-resources)
slice=(gcloud compute tpus tpu-vm)

show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# Runs a command, or prints it.
do_() {
  if $dry; then show "$@"; else "$@"; fi
}

ssh_all() {
  do_ "${slice[@]}" ssh "$name" "${place[@]}" --worker=all --command="$1"
}

# Prints the state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED,
# FAILED, ...; nothing if it does not exist.
state() {
  local look=("${queued[@]}" describe "$name" "${place[@]}" '--format=value(state.state)')
  if $dry; then
    show "${look[@]}" >&2
    # As if it had just been created.
    if [ -e "$scratch/made" ]; then echo ACTIVE; fi
    return
  fi
  "${look[@]}" 2>/dev/null || true
}

remove() {
  do_ "${queued[@]}" delete "$name" "${place[@]}" --force --quiet
}

# Returns when the slice is ready; creates it if it does not exist.
obtain() {
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      '')
        local create=("${queued[@]}" create "$name" --node-id "$name" "${place[@]}"
          --accelerator-type "$type" --runtime-version "$version")
        if $spot; then create+=(--spot); fi
        do_ "${create[@]}"
        touch "$scratch/made"
        ;;
      SUSPENDED | FAILED)
        echo "slice $name: $now, creating it again" >&2
        remove
        ;;
      *)
        echo "slice $name: $now" >&2
        sleep "$wait"
        ;;
    esac
  done
}

# Copies the committed files of this checkout to every worker and installs them.
install() {
  # Every worker gets its own environment with a recent Python.
  do_ git -C "$root" archive --format=tar.gz -o "$scratch/rankckpt.tar.gz" HEAD &&
    do_ "${slice[@]}" scp "$scratch/rankckpt.tar.gz" "$name:rankckpt.tar.gz" \
      "${place[@]}" --worker=all &&
    ssh_all "set -e
mkdir -p rankckpt && tar -xzf rankckpt.tar.gz -C rankckpt && cd rankckpt
command -v uv > /dev/null || pip install --user --quiet uv
export PATH=\$HOME/.local/bin:\$PATH
[ -x venv/bin/python ] || uv venv --quiet --python 3.12 venv
uv pip install --quiet --python venv/bin/python -e '.[tpu]'"
}

# Starts the run on all workers unless it is running, and follows its log until it ends.
follow() {
  local arguments
  arguments=$(printf ' %q' "$@")
  # The run survives a lost connection. Its exit code is in a file, because gcloud only
  # returns that some worker failed. The log exists before tail opens it, and tail reads
  # to its end after the run has ended.
  ssh_all "cd rankckpt || exit 75
runs() { [ -e pid ] && [ ! -e code ] && kill -0 \"\$(cat pid)\" 2> /dev/null; }
if ! runs; then
rm -f code
: > log
cat > run.sh <<'RUN'
venv/bin/python -m rankckpt_jax.main$arguments
echo \$? > code
RUN
nohup setsid bash run.sh > log 2>&1 < /dev/null &
echo \$! > pid
fi
tail -n +1 -f --pid=\$(cat pid) log
# A shell that ended with tail would become tail, and never reap the run.
true"
}

# Returns whether the run is still running, after a connection has ended.
running() {
  if $dry; then return 1; fi
  # shellcheck disable=SC2016  # The worker expands it.
  "${slice[@]}" ssh "$name" "${place[@]}" --worker=0 \
    --command='cd rankckpt && [ ! -e code ] && kill -0 "$(cat pid)"' > /dev/null 2>&1
}

# Prints the exit code of the run; 75 (retry) if the slice is gone.
code() {
  local look=("${slice[@]}" ssh "$name" "${place[@]}" --worker=0
    '--command=cat rankckpt/code')
  if $dry; then
    show "${look[@]}" >&2
    echo 0
    return
  fi
  local found
  found=$("${look[@]}" 2> /dev/null | tr -d '[:space:]') || found=''
  if [[ $found =~ ^[0-9]+$ ]]; then echo "$found"; else echo 75; fi
}

root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if $delete; then
  remove
  exit
fi

result=75
for ((attempt = 1; attempt <= attempts; attempt++)); do
  echo "attempt $attempt of $attempts" >&2
  obtain
  # If the slice was preempted, these commands fail, and the next attempt creates it
  # again.
  if { running || install; } && { follow "$@" || true; }; then
    while running; do follow "$@" || sleep "$wait"; done
    result=$(code)
  fi
  # 0, 1 and 2 are final. Other codes, such as 75, 137 or 143, mean an interruption.
  case $result in
    0 | 1 | 2) break ;;
    *)
      echo "interrupted ($result)" >&2
      result=75
      $dry || sleep "$wait"
      ;;
  esac
done
if ! $keep; then remove; fi
exit "$result"
