#!/usr/bin/env bash
# From nothing to a trained and measured model, on any machine with Python 3.11 or newer:
#
#     bash scripts/quickstart.sh [arguments of "stepwell quickstart"]
#
# The first run makes .venv in the checkout and installs what is missing; later runs start at once.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up quickstart

# Waiting threads sleep: spinning ones burn the cores that the next operation, or somebody else, needs.
export OMP_WAIT_POLICY=PASSIVE
# Keep freed tensors in the process: by default each large one is given back and faulted in again.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824
exec "$venv/bin/stepwell" quickstart "$@"
