#!/usr/bin/env bash
# The test suite, offline and on the CPU's own terms:
#
#     bash scripts/test.sh [pytest arguments; paths count from the checkout]
#
# The first run makes .venv in the checkout and installs what is missing; later runs start at once. The whole
# suite runs as two processes where there are cores and memory for it: the tests that start vLLM engines, which
# wait for them most of the time, beside all others. STEPWELL_TEST_PROCESSES=1 keeps it to one.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up test

cd "$root"
test_environment

# Some of the tests, or stopping early, or a report of all: in one process, as asked.
fits_two() {
    local word free
    [[ ${STEPWELL_TEST_PROCESSES:-2} != 1 && $(find_device) == cpu ]] || return 1 # engines would share the GPU
    for word in "$@"; do
        [[ $word =~ ^(-[qv]+|-r[A-Za-z]+|--(durations|tb|color)=.*)$ ]] || return 1
    done
    [[ $(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) -gt 1 ]] || return 1 # nproc obeys these
    free=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null) || return 1
    [[ -n $free && $free -ge 10 ]] && "$python" -c \
        'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'
}

fits_two "$@" || exec "$python" -m pytest "$@"

logs=$(mktemp -d)
set -m # a group of its own, so that an interrupted run leaves no engine behind
"$python" -m pytest -p no:cacheprovider -m vllm "$@" >"$logs/engines" 2>&1 &
engines=$!
set +m
trap 'kill -INT -- "-$engines" 2>/dev/null && wait "$engines"; rm -rf "$logs"' EXIT
echo "== tests without an engine"
status=0
"$python" -m pytest -m "not vllm" "$@" 2>&1 | tee "$logs/others" || status=${PIPESTATUS[0]}
wait "$engines" || status=$?
echo "== tests with a real vLLM engine, run beside them"
cat "$logs/engines"
# The last line of each is "12 passed, 3 skipped in 4.56s".
sed 's/\x1b\[[0-9;]*m//g' "$logs/others" "$logs/engines" | awk '
    /^=* *[0-9]+ [a-z]+.* in [0-9.]+s/ {
        gsub(/[=,]/, "")
        for (i = 1; $i != "in" && i < NF; i += 2) count[$(i + 1)] += $i
    }
    END {
        printf "== together: %d passed", count["passed"]
        printf ", %d failed, %d skipped, ", count["failed"], count["skipped"]
        print count["error"] + count["errors"], "errors"
    }'
exit "$status"
