#!/usr/bin/env bash
# Runs rankckpt_jax on a Cloud TPU slice: makes it or takes one that is there, installs
# this checkout on every worker, runs, follows the log, starts again after a preemption,
# and takes the slice down.
#
#   launch/tpu_vm.sh --name rank --zone us-west4-a --type v5litepod-8 --spot -- \
#       --config=configs/caltech.py --config.workdir=gs://BUCKET/runs
#
# What stands after -- goes to `python -m rankckpt_jax.main` on all workers, which find
# each other by themselves. The work directory must be a bucket: a preempted slice takes
# its disks with it. Interrupted here (Ctrl-C, a lost connection), the run goes on; the
# same command follows it again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name NAME --zone ZONE [options] -- MAIN_ARGUMENTS...
       launch/tpu_vm.sh --name NAME --zone ZONE --delete

  --name NAME         of the slice, and of the queued resource that holds it
  --zone ZONE         such as us-west4-a
  --project PROJECT   default: that of gcloud
  --type TYPE         v5litepod-8 (default), v6e-8, v5p-8, v4-8, ...
  --version VERSION   of the TPU software; default: the one for the type
  --spot              cheaper, and may be taken away at any time
  --attempts N        how often to start at most (default 20)
  --wait SECONDS      between two looks at a slice that is not ready (default 30)
  --keep              leave the slice there at the end
  --delete            only take the slice down
  --dry-run           print every command, run none

It ends as rankckpt_jax.main does: 0, 1 where some checkpoints could not be used, 2 for
bad input; 75 where all attempts were interrupted.
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
[[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "--attempts is a whole number from 1: $attempts"
if ! $delete; then
  [[ " $* " == *" --config.workdir=gs://"* ]] ||
    fail "--config.workdir=gs://... is missing after --: a preempted slice takes its disks with it"
fi
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "No software is known for --type $type; name it with --version" ;;
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

# Runs a command, or shows it.
do_() {
  if $dry; then show "$@"; else "$@"; fi
}

ssh_all() {
  do_ "${slice[@]}" ssh "$name" "${place[@]}" --worker=all --command="$1"
}

# The state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, FAILED, ...;
# empty where there is none.
state() {
  local look=("${queued[@]}" describe "$name" "${place[@]}" '--format=value(state.state)')
  if $dry; then
    show "${look[@]}" >&2
    # As if it had just been made.
    if [ -e "$scratch/made" ]; then echo ACTIVE; fi
    return
  fi
  "${look[@]}" 2>/dev/null || true
}

remove() {
  do_ "${queued[@]}" delete "$name" "${place[@]}" --force --quiet
}

# Returns when the slice is ready; makes it where it is not there.
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
        echo "slice $name is $now: making it anew" >&2
        remove
        ;;
      *)
        echo "slice $name is $now" >&2
        sleep "$wait"
        ;;
    esac
  done
}

# Brings this checkout, without what git does not know, to every worker.
install() {
  # Every worker gets an environment of its own, with a Python that is new enough.
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

# Starts the run on all workers, or finds it there, and follows it until it ends.
follow() {
  local arguments
  arguments=$(printf ' %q' "$@")
  # The run outlives the connection. Its exit code is kept in a file: gcloud's own says
  # only that some worker had one that is not 0.
  ssh_all "cd rankckpt || exit 75
runs() { [ -e pid ] && [ ! -e code ] && kill -0 \"\$(cat pid)\" 2> /dev/null; }
if ! runs; then
rm -f code
cat > run.sh <<'RUN'
venv/bin/python -m rankckpt_jax.main$arguments
echo \$? > code
RUN
nohup setsid bash run.sh > log 2>&1 < /dev/null &
echo \$! > pid
fi
tail -n +1 -f log & shown=\$!
while runs; do sleep 1; done
sleep 1
kill \$shown"
}

# Whether it still runs; a connection may break without its end.
running() {
  if $dry; then return 1; fi
  # shellcheck disable=SC2016  # The worker expands it.
  "${slice[@]}" ssh "$name" "${place[@]}" --worker=0 \
    --command='cd rankckpt && [ ! -e code ] && kill -0 "$(cat pid)"' > /dev/null 2>&1
}

# Its exit code; 75, "again", where the slice is gone and with it the file.
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
  # A slice that was taken away meanwhile fails any of these; the next attempt makes it
  # anew.
  if { running || install; } && { follow "$@" || true; }; then
    while running; do follow "$@" || sleep "$wait"; done
    result=$(code)
  fi
  # 0, 1 and 2 are the run's last word; anything else, such as 75, 137 or 143, is of a
  # run that was ended.
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
