#!/usr/bin/env bash
# The test suite, offline and on the CPU's own terms:
#
#     bash scripts/test.sh [pytest arguments; paths count from the checkout]
#
# The first run makes .venv in the checkout and installs what is missing; later runs start at once.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up test

cd "$root"
# One thread: the models are tiny, and numbers do not depend on the cores of the machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
for word in "$@"; do
    # Some of the tests, or in another way: as asked.
    [[ $word == --durations=* ]] || exec "$python" -m pytest "$@"
done
[[ $(nproc) -gt 1 ]] || exec "$python" -m pytest "$@"

# The tests that start engines wait for them most of the time: they run beside the others, and are shown after.
log=$(mktemp)
trap 'kill "$engines" 2>/dev/null || true; rm -f "$log"' EXIT
"$python" -m pytest -m vllm -p no:cacheprovider "$@" >"$log" 2>&1 &
engines=$!
status=0
"$python" -m pytest -m "not vllm" "$@" || status=$?
wait "$engines" || status=$?
echo "== tests with a real vLLM engine"
cat "$log"
exit "$status"
