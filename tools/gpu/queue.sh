#!/usr/bin/env bash
# Runs what waits for a GPU (docs/gpu-queue.md), in order, from a stripped release binary, in parts of under ten minutes.
#
#   tools/gpu/queue.sh --pack         build the binary and put it where the queue looks for it: .gpu/limo-engine (needs nvcc)
#   tools/gpu/queue.sh [STEP]...      run these steps, or all that are not done yet, while the time lasts
#   tools/gpu/queue.sh --list         the steps in order, with the seconds each may take
#
# LIMO      the binary                                          (.gpu/limo-engine)
# STATE     what is done, and results that outlive one run      (target/gpu-queue)
# OUT       results are copied here at the end, if it is set
# MINUTES   no step starts that could end later than this       (9)
#
# Exit code: 0 all done, 1 a step failed, 75 steps are left: run it again.
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/../.."

LIMO=${LIMO:-.gpu/limo-engine}
STATE=${STATE:-target/gpu-queue}
MINUTES=${MINUTES:-9}

# step:seconds
STEPS=(start:60 ceilings:120 conformance:120 selftest:240 memcheck:420 racecheck:420 initcheck:420 synccheck:420 rmsnorm:240 peers:500)

start() {
    local libraries
    libraries=$(ldd "$LIMO" 2>&1) || true
    echo "$libraries"
    [[ $libraries != *"not found"* ]]
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi does not run here"
    "$LIMO" doctor
}
ceilings() { "$LIMO" bench ceilings --device cuda --json "$RESULTS/ceilings.json"; }
conformance() {
    "$LIMO" selftest conformance --device cuda --record "$STATE/records"
    tar -cf "$RESULTS/records.tar" -C "$STATE" records
}
selftest() { LIMO_REQUIRE_GPU=1 "$LIMO" selftest --device cuda --json "$RESULTS/selftest.json"; }
# The launcher asks for a parameter past the last, which must fail; our own code checks every status.
memcheck() { sanitize memcheck --report-api-errors no; }
racecheck() { sanitize racecheck; }
initcheck() { sanitize initcheck; }
synccheck() { sanitize synccheck; }
rmsnorm() { "$LIMO" bench rmsnorm --device cuda --json "$RESULTS/rmsnorm.json"; }
peers() { python3 tools/compare/rms_norm.py --limo "$LIMO" --json "$RESULTS/peers.json"; }

sanitize() { compute-sanitizer --tool "$@" --error-exitcode 9 "$LIMO" selftest --device cuda; }

pack() {
    local commit
    commit=$(git rev-parse --short HEAD)
    git diff --quiet HEAD || commit+=-modified
    LIMO_COMMIT=$commit LIMO_REQUIRE_CUDA=1 cargo build --release
    mkdir -p "$(dirname "$LIMO")"
    strip -o "$LIMO" target/release/limo-engine
    # A machine with an older C library than this cannot start the binary.
    echo "$LIMO: $(du -h "$LIMO" | cut -f1), commit $commit," \
        "needs $(objdump -T "$LIMO" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)"
}

# Runs one step with its time limit, output to the screen and to a log.
run_step() {
    local name=$1 seconds=$2 began=$SECONDS verdict
    echo "== $name"
    if timeout "$seconds" "$self" --step "$name" 2>&1 | tee "$STATE/logs/$name.txt"; then
        verdict=passed
    else
        verdict=FAILED
        failures=$((failures + 1))
    fi
    rm -f "$STATE"/{passed,FAILED}/"$name"
    echo "$verdict $((SECONDS - began)) s" >"$STATE/$verdict/$name"
}

step_of() {
    local entry
    for entry in "${STEPS[@]}"; do
        [[ ${entry%%:*} == "$1" ]] && echo "$entry" && return
    done
    echo "there is no step '$1'; --list shows them" >&2
    exit 2
}

case ${1:-} in
--list)
    printf '%s\n' "${STEPS[@]/:/ }"
    exit
    ;;
--pack)
    pack
    exit
    ;;
--step)
    RESULTS=$STATE/results
    "$2"
    exit
    ;;
esac

chosen=()
for name in "$@"; do
    entry=$(step_of "$name")
    chosen+=("$entry")
done
if [[ ! -x $LIMO ]]; then
    echo "$LIMO is missing; tools/gpu/queue.sh --pack makes it on a machine with nvcc" >&2
    exit 2
fi
export LIMO STATE
mkdir -p "$STATE"/{passed,FAILED,logs,results}
failures=0
left=()
for entry in "${chosen[@]:-${STEPS[@]}}"; do
    name=${entry%%:*} seconds=${entry##*:}
    if [[ $# == 0 && -e $STATE/passed/$name ]]; then
        continue
    elif ((SECONDS + seconds > MINUTES * 60)); then
        left+=("$name")
    else
        run_step "$name" "$seconds"
    fi
done

cat "$STATE"/logs/*.txt >"$STATE/results/log.txt" 2>/dev/null || true
if [[ -n ${OUT:-} ]]; then
    cp "$STATE"/results/* "$OUT"/
fi
echo
for entry in "${STEPS[@]}"; do
    name=${entry%%:*}
    verdict=$(cat "$STATE/FAILED/$name" 2>/dev/null || cat "$STATE/passed/$name" 2>/dev/null || echo "not run")
    printf '%-12s %s\n' "$name" "$verdict"
done
if ((failures > 0)); then
    exit 1
elif ((${#left[@]} > 0)); then
    echo "left for the next run: ${left[*]}"
    exit 75
fi
