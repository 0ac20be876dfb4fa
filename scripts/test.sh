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
exec "$python" -m pytest "$@"
