#!/usr/bin/env bash
# Runs what waits for a GPU (docs/gpu-queue.md), in order, from a stripped release binary, in parts of under ten minutes.
#
#   tools/gpu/queue.sh --pack         build the binary and put it where the queue looks for it: .gpu/limo-engine (needs nvcc)
#   tools/gpu/queue.sh [STEP]...      run these steps, or all that are not done yet, while the time lasts
#   tools/gpu/queue.sh --list         the steps in order, with the seconds each may take
#
# LIMO      the binary                                          (.gpu/limo-engine)
# STATE     what is done, and results that outlive one run      (target/gpu-queue)
# MODELS    where models of random weights are made, 62 GiB            (/dev/shm/limo)
# OUT       results are copied here at the end, if it is set
# MINUTES   no step starts that could end later than this       (9)
#
# Exit code: 0 all done, 1 a step failed, 75 steps are left: run it again. Long steps are made of parts; one that runs out of time goes on with
# its next part when it is run again.
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/../.."

LIMO=${LIMO:-.gpu/limo-engine}
STATE=${STATE:-target/gpu-queue}
MINUTES=${MINUTES:-9}

# step:seconds
STEPS=(start:60 conformance:120 selftest:480 memcheck:480 racecheck:480 initcheck:480 synccheck:480
    training:300 repeat:240 resume:240 ranks:300 nccl:120 bytes:300 large:530 sampling:530 bench:480 cust:60 peers:500)

start() {
    local libraries
    libraries=$(ldd "$LIMO" 2>&1) || true
    echo "$libraries"
    [[ $libraries != *"not found"* ]]
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi does not run here"
    "$LIMO" doctor
}
conformance() {
    mkdir -p "$STATE/records"
    "$LIMO" selftest conformance --device cuda --record "$STATE/records"
    tar -cf "$RESULTS/records.tar" -C "$STATE" records
}

tables() { "$LIMO" selftest --list; }
selftest() { parts selftest "$(tables)"; }
part_selftest() { LIMO_REQUIRE_GPU=1 "$LIMO" selftest "$1" --device cuda --json "$RESULTS/selftest-$1.json"; }

# The launcher asks for a parameter past the last, which must fail; our own code checks every status.
memcheck() { parts memcheck "$(tables)"; }
part_memcheck() { sanitize memcheck "$1" --report-api-errors no; }
racecheck() { parts racecheck "$(tables)"; }
part_racecheck() { sanitize racecheck "$1"; }
initcheck() { parts initcheck "$(tables)"; }
part_initcheck() { sanitize initcheck "$1"; }
synccheck() { parts synccheck "$(tables)"; }
part_synccheck() { sanitize synccheck "$1"; }
sanitize() { compute-sanitizer --tool "$1" "${@:3}" --error-exitcode 9 "$LIMO" selftest "$2" --device cuda; }

# Ten steps of a small model (heads of 64, two layers) on the GPU and on the CPU in bf16: the losses must follow each other.
training() {
    train cpu --device cpu --dtype bf16
    train cuda --device cuda
    python3 tools/gpu/follows.py "$STATE"/runs/{cpu,cuda}/metrics.jsonl | tee "$RESULTS/training.txt"
}
# The same on the GPU twice: every exported byte must be the same.
repeat() {
    train cuda --device cuda
    train again --device cuda
    for file in "$STATE"/runs/cuda/model/*.safetensors; do
        cmp "$file" "$STATE/runs/again/model/${file##*/}"
    done
    echo "two runs exported the same bytes" | tee "$RESULTS/repeat.txt"
}
# Stopped by a signal and started again: the same bytes as without the stop.
resume() {
    local log=$STATE/runs/stopped.txt pid code=0
    train whole --device cuda -s train.max_steps=400
    train stopped --device cuda -s train.max_steps=400 >"$log" &
    pid=$!
    until grep -q '^step 20/' "$log"; do
        kill -0 "$pid"
        sleep 0.1
    done
    pkill -TERM -P "$pid"
    wait "$pid" || code=$?
    tail -n 1 "$log"
    [[ $code == 75 ]]
    CONTINUE=1 train stopped --device cuda -s train.max_steps=400 | grep '^continuing after step'
    cmp "$STATE"/runs/{whole,stopped}/model/model.safetensors
    echo "a run that was stopped exported the bytes of one that was not" | tee "$RESULTS/resume.txt"
}
# A run of its own, or with CONTINUE one that goes on where its folder stands.
train() {
    local flags=(--overwrite)
    [[ -z ${CONTINUE:-} ]] || flags=()
    mkdir -p "$STATE/runs"
    sed -e 's/"hidden_size": [0-9]*/"hidden_size": 128/' -e 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 2/' \
        -e 's/"num_attention_heads": [0-9]*/"num_attention_heads": 2/' configs/tiny/config.json >"$STATE/runs/model.json"
    "$LIMO" train configs/tiny.toml "${flags[@]}" -s model.config="$STATE/runs/model.json" -s train.max_steps=10 \
        -s 'samples.file=""' -s samples.n=0 -s output.dir="$STATE/runs/$1" "${@:2}"
}

# Ranks that share the GPU export what one rank does, whatever is kept where.
ranks() {
    local host=(-s optimizer.gradients=bf16 -s 'memory.offload=["weights","gradients","residuals","optimizer","remainder"]')
    train ranks-1 --device cuda --ranks 1
    train ranks-2 --device cuda --ranks 2
    train ranks-4 --device cuda --ranks 4
    train ranks-1-host --device cuda --ranks 1 "${host[@]}"
    train ranks-3-host --device cuda --ranks 3 "${host[@]}"
    local runs="$STATE/runs"
    cmp "$runs/ranks-1/model/model.safetensors" "$runs/ranks-2/model/model.safetensors"
    cmp "$runs/ranks-1/model/model.safetensors" "$runs/ranks-4/model/model.safetensors"
    cmp "$runs/ranks-1-host/model/model.safetensors" "$runs/ranks-3-host/model/model.safetensors"
    echo "1, 2 and 4 ranks on one GPU export the same bytes; 1 and 3 with host memory do" | tee "$RESULTS/ranks.txt"
}

# Real NCCL with one rank: it is found, has our ABI, connects, gathers and exchanges with itself.
nccl() {
    RANK=0 WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=29400 NCCL_COMM_ID=localhost:29401 NCCL_DEBUG=WARN \
        train nccl-1 --device cuda
    train nccl-0 --device cuda --ranks 1
    cmp "$STATE/runs/nccl-0/model/model.safetensors" "$STATE/runs/nccl-1/model/model.safetensors"
    echo "one rank over NCCL exports the bytes of one without" | tee "$RESULTS/nccl.txt"
}

# Samples of a small model are the same bytes with every batch, chunk and cache, and where the job was killed and went on.
bytes() {
    train cuda --device cuda
    rm -rf "$STATE/samples"
    mkdir -p "$STATE/samples"
    answer room
    answer batch --batch-cap 3 --chunk 100
    answer cache --batch-cap 64 --kv-memory 4MiB
    KILL_AFTER=8 answer killed --batch-cap 5 || true
    wc -l "$STATE"/samples/{room,killed}.jsonl
    [[ $(wc -l <"$STATE/samples/killed.jsonl") -lt $(wc -l <"$STATE/samples/room.jsonl") ]]
    answer killed --batch-cap 64 --chunk 64
    grep -o '[1-9][0-9]* preemptions' "$STATE/samples/cache.txt"
    for name in batch cache killed; do
        cmp <(sort "$STATE/samples/room.jsonl") <(sort "$STATE/samples/$name.jsonl")
    done
    echo "the same samples with every batch, chunk and cache, and after a kill" | tee "$RESULTS/bytes.txt"
}
answer() {
    timeout -s KILL "${KILL_AFTER:-250}" "$LIMO" sample --model "$STATE/runs/cuda/model" --input configs/tiny/heldout.jsonl --output "$STATE/samples/$1.jsonl" --device cuda -n 4 --max-tokens 300 --top-p 0.95 \
        --repetition-penalty 1.1 --logprobs "${@:2}" | tee "$STATE/samples/$1.txt"
}

# Random weights of 7B, 14B and 32B, 16,384 tokens at a time: three steps, the driver's own count of the memory against the plan, and what transfers cost: the same with
# nothing on the host, where that fits.
large() { parts large "7b-device 7b-host 14b-host 32b-host"; }
part_large() {
    local name=$1 size=${1%-*}
    local keys=(-s optimizer.state=bf16 -s optimizer.gradients=bf16 -s memory.recompute=mlp)
    case $name in
    7b-host) keys+=(-s 'memory.offload=["residuals","gradients"]') ;;
    14b-host) keys+=(-s optimizer.master=stochastic -s 'memory.offload=["residuals","gradients"]') ;;
    32b-host)
        keys=(-s optimizer.state=int8 -s optimizer.master=stochastic -s optimizer.gradients=bf16 -s memory.recompute=block
            -s memory.mlp_tiles=4 -s 'memory.offload=["gradients","residuals","vocabulary"]')
        ;;
    esac
    python3 tools/gpu/long_rows.py "$STATE/long.jsonl"
    "$LIMO" train configs/tiny.toml --device cuda --ranks 1 --measure 3 -s model.config=configs/models/qwen2.5-"$size".json \
        -s "data.train=[\"$STATE/long.jsonl\"]" -s data.max_tokens=16384 -s train.micro_tokens=16384 -s train.batch=4 -s train.max_steps=3 \
        -s 'samples.file=""' -s samples.n=0 -s output.dir="$STATE/large" "${keys[@]}" | tee "$RESULTS/large-$name.txt"
    grep -E "measured:|mfu|device memory:" "$RESULTS/large-$name.txt"
}

# Sampling from random weights of 7B (shaped as MATH500: many prompts, 32 samples each) and 32B (as AIME: few prompts, long answers), scaled to minutes, next to
# continuous batching of transformers, tuned and as it comes, and to its generate; before that, decode steps next to the time that reading takes. 32B has no room on the disk beside the rest: both models lie in memory.
sampling() {
    parts sampling "7b-decode-1k 7b-decode-4k 7b-ours 7b-continuous-tuned 7b-continuous 7b-generate-256 32b-decode-1k 32b-decode-4k 32b-ours 32b-continuous-tuned 32b-continuous"
    python3 tools/compare/sampling.py --summary "$RESULTS"/sampling-{7b,32b}-*.json | tee "$RESULTS/sampling.txt"
}
part_sampling() {
    local size=${1%%-*} shape=(--prompts 64 --mean 1500) job=(--samples 32 --max-tokens 8192) rows=256
    if [[ $size == 32b ]]; then
        shape=(--prompts 8 --mean 4000)
        job=(--samples 8 --max-tokens 24576)
        rows=64
    fi
    local models=${MODELS:-/dev/shm/limo}
    local model=$models/$size
    if [[ ! -e $model/prompts.jsonl ]]; then
        rm -rf "$models"/{7b,32b}
        python3 tools/compare/sampling_model.py "$model" --config configs/models/qwen2.5-"$size".json --device cuda --dtype bfloat16 "${shape[@]}"
    fi
    case $1 in
    *-decode-1k) job=(--decode "$rows" 1024) ;;
    *-decode-4k) job=(--decode "$rows" 4096) ;;
    *) job+=(--only "${1#*-}") ;;
    esac
    python3 tools/compare/sampling.py --model "$model" --device cuda --binary "$LIMO" "${job[@]}" --json "$RESULTS/sampling-$1.json"
}

bench() { parts bench "ceilings $(tables | grep -v conformance)"; }
part_bench() { "$LIMO" bench "$1" --device cuda --json "$RESULTS/bench-$1.json"; }
cust() { "${LIMO%/*}/cust_interop"; }
peers() { parts peers "rms_norm swiglu rope attention adamw classifier"; }
part_peers() { python3 tools/compare/peers.py "$1" --limo "$LIMO" --json "$RESULTS/peers-$1.json"; }

# Runs part_STEP for each name that is not done yet.
parts() {
    local name
    mkdir -p "$STATE/parts"
    for name in $2; do
        [[ -e $STATE/parts/$1-$name ]] && continue
        echo "-- $1 $name"
        "part_$1" "$name"
        touch "$STATE/parts/$1-$name"
    done
}

pack() {
    local commit
    commit=$(git rev-parse --short HEAD)
    git diff --quiet HEAD || commit+=-modified
    export LIMO_COMMIT=$commit LIMO_REQUIRE_CUDA=1
    cargo build --release
    tools/cust/build.sh --release
    mkdir -p "$(dirname "$LIMO")"
    strip -o "$LIMO" target/release/limo-engine
    strip -o "${LIMO%/*}/cust_interop" target/release/examples/cust_interop
    # A machine with an older C library than this cannot start the binary.
    echo "$LIMO: $(du -h "$LIMO" | cut -f1), commit $commit," \
        "needs $(objdump -T "$LIMO" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)"
}

# Runs one step with its time limit, output to the screen and to a log. A step that ran out of time is neither passed nor failed.
run_step() {
    local name=$1 seconds=$2 began=$SECONDS verdict=passed code=0
    echo "== $name"
    timeout "$seconds" "$self" --step "$name" 2>&1 | tee "$STATE/logs/$name.txt" || code=$?
    rm -f "$STATE"/{passed,FAILED,unfinished}/"$name"
    case $code in
    0) ;;
    124)
        verdict=unfinished
        left+=("$name")
        ;;
    *)
        verdict=FAILED
        failures=$((failures + 1))
        ;;
    esac
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
mkdir -p "$STATE"/{passed,FAILED,unfinished,logs,results}
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
    verdict=$(cat "$STATE"/{FAILED,unfinished,passed}/"$name" 2>/dev/null || true)
    printf '%-12s %s\n' "$name" "${verdict:-not run}"
done
if ((failures > 0)); then
    exit 1
elif ((${#left[@]} > 0)); then
    echo "left for the next run: ${left[*]}"
    exit 75
fi
