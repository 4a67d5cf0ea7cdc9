#!/usr/bin/env bash
# Shared by the train_*.sh, test.sh and chat.sh scripts: starts xtuner commands on all processes. It uses srun under Slurm
# (SLURM_JOB_ID set, srun installed), otherwise torchrun on the GPUs found, otherwise one CPU process.
#   bash script/launch.sh train CONFIG ...    runs any xtuner command on all processes
#
# Arguments of all scripts:
#   --dry-run         prints the commands instead of running them
#   --allow-missing   exits with 0 even if benchmarks were skipped because their files are missing (otherwise 3)
#   -h, --help        prints this text
#   -- ARGUMENTS      go to every `xtuner train`; `--cfg-options k=v ...` among them also goes to `xtuner test`
# Environment:
#   DEEPSPEED         value of --deepspeed; unset: the config's `deepspeed` (none without a GPU); empty: none
#   NPROC_PER_NODE    processes on this machine; default: one per GPU found, else 1
#   NNODES NODE_RANK ADDR PORT    several machines: how many, which is this one, address and port of the first
#   SRUN_ARGS         arguments of srun, e.g. "--ntasks-per-node=8 --gres=gpu:8"
#   WORK_DIR          each run is in $WORK_DIR/<config name>; default work_dirs
#   PRETRAIN_OPTIONS SFT_OPTIONS    settings of one stage: "k=v k=v"
#   PRETRAINED_PTH    checkpoint that SFT starts from; default: the newest of the pretrain run
#   FORCE=1           trains finished stages again; the former run is moved aside to <config name>.1, nothing is deleted
#   PYTHON            interpreter; default: .venv/bin/python if it exists, else python3
# The scripts do not repeat a finished stage and continue an interrupted one from its last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
WORK_DIR=${WORK_DIR:-work_dirs}
EXIT_MISSING=3
DRY_RUN='' ALLOW_MISSING='' NEEDS_TRAINING_FILES=1
POSITIONAL=() EXTRA=() OPTIONS=() TEST_ARGUMENTS=()
STATUS=0
declare -A NAME_OF=() DEEPSPEED_OF=()

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the comment at the head of each file.
print_heads() {
    local file
    for file in "$@"; do
        sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$file"
        echo
    done
}

# Sorts the command line into POSITIONAL, OPTIONS (of --cfg-options), EXTRA (the rest after --) and the two flags.
parse_arguments() {
    local in_options=
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) DRY_RUN=1 ;;
            --allow-missing) ALLOW_MISSING=1 ;;
            -h | --help)
                print_heads "$0" "${BASH_SOURCE[0]}"
                exit 0
                ;;
            --)
                shift
                break
                ;;
            -*) fail "unknown argument '$1': see --help; put arguments of xtuner train after --" ;;
            *) POSITIONAL+=("$1") ;;
        esac
        shift
    done
    while [ $# -gt 0 ]; do
        case $1 in
            --cfg-options) in_options=1 ;;
            -*) in_options='' EXTRA+=("$1") ;;
            *) if [ -n "$in_options" ]; then OPTIONS+=("$1"); else EXTRA+=("$1"); fi ;;
        esac
        shift
    done
}

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

in_slurm() { [ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; }

# run COMMAND...: prints it, then runs it unless --dry-run.
run() {
    printf '%q ' "$@"
    echo
    if [ -z "$DRY_RUN" ]; then "$@"; fi
}

# run_in_slurm COMMAND...: `run`, with the exit code that the ranks agreed on. srun treats the first rank that exits with
# one as a failure and ends the others, so its own code may be that of a kill.
run_in_slurm() {
    local status=0
    if [ -z "$DRY_RUN" ]; then
        mkdir -p "$WORK_DIR"
        XTUNER_EXIT_CODE_FILE=$(cd "$WORK_DIR" && pwd)/.exit_code_$SLURM_JOB_ID
        export XTUNER_EXIT_CODE_FILE
        rm -f "$XTUNER_EXIT_CODE_FILE"
    fi
    run "$@" || status=$?
    if [ "$status" -ne 0 ] && [ -s "${XTUNER_EXIT_CODE_FILE:-}" ]; then status=$(<"$XTUNER_EXIT_CODE_FILE"); fi
    if [ -n "${XTUNER_EXIT_CODE_FILE:-}" ]; then rm -f "$XTUNER_EXIT_CODE_FILE"; fi
    return "$status"
}

# launch XTUNER-COMMAND ARGUMENTS...: runs it in all processes.
launch() {
    local -a srun_arguments=() variables
    local processes name
    if in_slurm; then
        read -ra srun_arguments <<<"${SRUN_ARGS:-}"
        # inside a step (an interactive shell from srun), a second step waits forever unless it may overlap
        if [ -n "${SLURM_STEP_ID:-}" ]; then srun_arguments+=(--overlap); fi
        run_in_slurm srun --kill-on-bad-exit=1 "${srun_arguments[@]}" "$PYTHON" -m xtuner "$@" --launcher slurm
        return
    fi
    processes=${NPROC_PER_NODE:-$(count_gpus)}
    if [ "$processes" -lt 1 ]; then processes=1; fi
    variables=("NPROC_PER_NODE=$processes")
    for name in NNODES NODE_RANK ADDR PORT; do
        if [ -n "${!name:-}" ]; then variables+=("$name=${!name}"); fi
    done
    run env "${variables[@]}" "$PYTHON" -m xtuner "$@"
}

# deepspeed_arguments CONFIG: sets DEEPSPEED_ARGUMENTS.
deepspeed_arguments() {
    local chosen=${DEEPSPEED_OF[$1]}
    if [ -n "${DEEPSPEED+set}" ]; then
        chosen=$DEEPSPEED
    elif [ -n "$chosen" ] && ! in_slurm && [ "$(count_gpus)" -eq 0 ]; then
        say "no GPU found: trains without DeepSpeed (DEEPSPEED=$chosen asks for it)"
        chosen=
    fi
    DEEPSPEED_ARGUMENTS=()
    if [ -n "$chosen" ]; then DEEPSPEED_ARGUMENTS=(--deepspeed "$chosen"); fi
}

# inspect CONFIG [k=v ...]: checks the config and its files; fills NAME_OF, DEEPSPEED_OF.
inspect() {
    local answer
    local -a flags=()
    if [ -n "$NEEDS_TRAINING_FILES" ] && [ -z "$DRY_RUN" ]; then flags=(--need-files); fi
    answer=$("$PYTHON" script/stage_info.py "${flags[@]}" "$@")
    NAME_OF[$1]=$(sed -n 1p <<<"$answer")
    DEEPSPEED_OF[$1]=$(sed -n 2p <<<"$answer")
}

# check_benchmarks CONFIG [k=v ...]: names the benchmarks whose files are missing and then sets STATUS to EXIT_MISSING.
check_benchmarks() {
    local config=$1 status=0
    shift
    local -a arguments=("${TEST_ARGUMENTS[@]}" --check-files)
    if [ $# -gt 0 ]; then arguments+=(--cfg-options "$@"); fi
    run "$PYTHON" -m xtuner test "$config" "${arguments[@]}" || status=$?
    case $status in
        0) return ;;
        "$EXIT_MISSING") say "benchmarks named above are skipped: docs/dataset_prepare.md says where to get their files" ;;
        *) exit "$status" ;;
    esac
    if [ -z "$ALLOW_MISSING" ]; then STATUS=$EXIT_MISSING; fi
}

# newest_checkpoint CONFIG: prints the path of the last checkpoint of its run.
newest_checkpoint() {
    local folder=$WORK_DIR/${NAME_OF[$1]} checkpoint
    if [ ! -f "$folder/last_checkpoint" ]; then
        if [ -z "$DRY_RUN" ]; then fail "$folder holds no last_checkpoint: train ${NAME_OF[$1]} first, or set WORK_DIR."; fi
        echo "NEWEST_CHECKPOINT_OF_$folder"
        return
    fi
    checkpoint=$(<"$folder/last_checkpoint")
    # the pointer holds the path at the time of writing; the folder may have moved since
    if [ ! -e "$checkpoint" ]; then checkpoint=$folder/$(basename "$checkpoint"); fi
    if [ ! -e "$checkpoint" ]; then fail "$folder/last_checkpoint names $checkpoint, which does not exist."; fi
    echo "$checkpoint"
}

# train_stage CONFIG [k=v ...]: trains it unless it is finished. $folder/finished records the settings of that training.
train_stage() {
    local config=$1 folder=$WORK_DIR/${NAME_OF[$1]} wanted
    shift
    local -a options=("$@") arguments=("${EXTRA[@]}")
    wanted=$(printf '%s\n' "finished with:" "${options[@]}" "${arguments[@]}")
    if [ -z "${FORCE:-}" ] && [ -f "$folder/finished" ]; then
        if [ "$(<"$folder/finished")" = "$wanted" ]; then
            say "$folder is finished: not trained again (FORCE=1 does)"
            return
        fi
        fail "$folder is finished, but was trained with other settings than asked for now (see $folder/finished)." \
            "FORCE=1 trains it again, another WORK_DIR keeps both."
    fi
    deepspeed_arguments "$config"
    if [ ${#options[@]} -gt 0 ]; then arguments+=(--cfg-options "${options[@]}"); fi
    if [[ " ${EXTRA[*]} " =~ " --resume"[\ =] || " ${EXTRA[*]} " == *" --start-anew "* ]]; then
        say "as asked for: ${EXTRA[*]}"
    elif [ -n "${FORCE:-}" ]; then
        arguments+=(--start-anew)
    elif [ -f "$folder/last_checkpoint" ] || compgen -G "$folder/iter_*.pth" >/dev/null; then
        arguments+=(--resume auto)
    fi
    # a forced training that fails must not leave the record of the previous one
    if [ -z "$DRY_RUN" ] && [ "${NODE_RANK:-0}" = 0 ] && [ -f "$folder/finished" ]; then
        mv -f "$folder/finished" "$folder/finished.former"
    fi
    launch train "$config" --work-dir "$folder" "${DEEPSPEED_ARGUMENTS[@]}" "${arguments[@]}"
    if [ -z "$DRY_RUN" ] && [ "${NODE_RANK:-0}" = 0 ]; then echo "$wanted" >"$folder/finished"; fi
}

# evaluate CONFIG CHECKPOINT [k=v ...]: runs every benchmark whose files are present, with TEST_ARGUMENTS.
evaluate() {
    local config=$1 checkpoint=$2
    shift 2
    # --allow-missing: missing files are known by now, and torchrun would turn the exit code 3 into a failure
    local -a arguments=("${TEST_ARGUMENTS[@]}" --allow-missing)
    if [ $# -gt 0 ]; then arguments+=(--cfg-options "$@"); fi
    launch test "$config" --checkpoint "$checkpoint" --work-dir "$WORK_DIR/${NAME_OF[$config]}" "${arguments[@]}"
}

# train_all PRETRAIN SFT ARGUMENTS...: everything that a train_<llm>.sh does. All checks run before the first step.
train_all() {
    local pretrain=$1 sft=$2 checkpoint
    local -a pretrain_options sft_options
    shift 2
    parse_arguments "$@"
    if [ ${#POSITIONAL[@]} -gt 0 ]; then fail "unexpected argument '${POSITIONAL[0]}': see --help"; fi
    read -ra pretrain_options <<<"${PRETRAIN_OPTIONS:-}"
    read -ra sft_options <<<"${SFT_OPTIONS:-}"
    pretrain_options+=("${OPTIONS[@]}")
    sft_options+=("${OPTIONS[@]}")

    inspect "$pretrain" "${pretrain_options[@]}"
    inspect "$sft" "${sft_options[@]}"
    check_benchmarks "$sft" "${sft_options[@]}"

    train_stage "$pretrain" "${pretrain_options[@]}"
    checkpoint=${PRETRAINED_PTH:-$(newest_checkpoint "$pretrain")}
    train_stage "$sft" "pretrained_pth=$checkpoint" "${sft_options[@]}"

    checkpoint=$(newest_checkpoint "$sft")
    evaluate "$sft" "$checkpoint" "${sft_options[@]}"
    exit "$STATUS"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case ${1:-} in
        "" | -h | --help) print_heads "$0" ;;
        --dry-run) DRY_RUN=1 && shift && launch "$@" ;;
        *) launch "$@" ;;
    esac
fi
