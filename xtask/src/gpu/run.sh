#!/usr/bin/env bash
# Runs the test suite on a GPU: ./run.sh [PART OF THE NAMES OF TESTS]
#
# Prints a line for each test file and a summary, and writes the output of all tests to the log. Fails if a test fails,
# or if no test has the name. A test is named as `soda_cli::resume::a_test`.
#
# BURN_DEVICE     the backend, cuda or wgpu; by default the one that the programs were built for
# SODA_WORKSPACE  a checkout with the test data; by default the folder `workspace` beside this script
# JOBS            test files that run at once; by default half of the processors
# LIMIT           seconds after which a test file is stopped, 1200 by default
# LOG             the log, `log.txt` beside this script by default

set -u
here=$(cd "$(dirname "$0")" && pwd)
export BURN_DEVICE=${BURN_DEVICE:-$(cat "$here/backend")}
export SODA_WORKSPACE=${SODA_WORKSPACE:-$here/workspace}
export SODA_PROGRAM=$here/soda
JOBS=${JOBS:-$((($(nproc) + 1) / 2))}
export LIMIT=${LIMIT:-1200}
LOG=${LOG:-$here/log.txt}
filter=${1:-}

if [ ! -d "$SODA_WORKSPACE/examples/toybox" ]; then
    echo "run.sh: $SODA_WORKSPACE has no examples/toybox: set SODA_WORKSPACE to a checkout" >&2
    exit 2
fi
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

# The tests of each file, one list a file, named PROGRAM@FILE.
for program in "$here"/programs/*; do
    base=$(basename "$program")
    # Integration tests are one part for each file, unit tests one for each crate.
    case $base in suite) crate= ;; *) crate=$base:: ;; esac
    "$program" --list --format terse 2>/dev/null | sed -n "s/^\(.*\): test$/$crate\1/p" |
        grep -F -e "$filter" | while read -r test; do
            file=$(echo "$test" | cut -d: -f1-3)
            [ -z "$crate" ] || file=${base}
            echo "${test#"$crate"}" >>"$parts/$base@$file.list"
        done
done
if ! ls "$parts"/*.list >/dev/null 2>&1; then
    echo "run.sh: no test has \`$filter\` in its name" >&2
    exit 2
fi

# Runs the tests of one list and prints its line.
run_part() {
    list=$1
    part=$(basename "$list" .list)
    start=$(date +%s.%N)
    # The capture of a CUDA graph allows no other thread on its device. The tests of the command line start
    # processes, which do not disturb each other.
    threads=1
    case $part in suite@soda_cli*) threads=3 ;; esac
    mapfile -t tests <"$list"
    timeout --kill-after=5 "$LIMIT" "$here/programs/${part%%@*}" --exact "${tests[@]}" \
        "--test-threads=$threads" >"$list.out" 2>&1
    code=$?
    result=$(sed -n 's/^test result: [^.]*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' \
        "$list.out" | tail -n 1)
    read -r passed failed ignored <<<"${result:-0 ${#tests[@]} 0}"
    case $code in
        0) word=ok ;;
        124 | 137) word="STOPPED after $LIMIT s" ;;
        101) word=FAILED ;;
        *) word="ENDED with code $code" ;;
    esac
    seconds=$(echo "$(date +%s.%N) $start" | awk '{ printf "%.1f", $1 - $2 }')
    echo "$code $passed $failed $ignored" >"$list.result"
    # Written part by part, so that a run that is stopped leaves a log.
    { printf '\n==== %s\n' "$part"; cat "$list.out"; } >"$list.log"
    cat "$list.log" >>"$LOG"
    printf '%-44s %3d passed %3d failed %3d ignored %7s s  %s\n' \
        "${part##*@}" "$passed" "$failed" "$ignored" "$seconds" "$word"
}
export -f run_part
export here LOG
: >"$LOG"

begin=$(date +%s)
# The command line's tests take longest, so they start first. One of them fills the GPU, so it runs alone.
alone=suite@soda_cli::full_device.list
{ ls "$parts"/suite@soda_cli*.list; ls "$parts"/*.list | grep -v '/suite@soda_cli'; } 2>/dev/null |
    grep -v "/$alone$" | xargs -d '\n' -r -P "$JOBS" -I '{}' bash -c 'run_part "$1"' run '{}'
[ ! -e "$parts/$alone" ] || run_part "$parts/$alone"

failures=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p; s/^test \(.*\) has been running.*/\1/p' "$LOG" | sort -u)
if grep -qv '^0 ' "$parts"/*.result; then
    echo
    echo "what failed (the output is in $LOG):"
    grep -l -v '^0 ' "$parts"/*.result | sed 's|.*@||; s|\.list\.result$||; s|^|  |'
    sed 's/^/    /' <<<"$failures"
    bad=1
fi
cat "$parts"/*.result | awk -v seconds=$(($(date +%s) - begin)) -v device="$BURN_DEVICE" '
    { passed += $2; failed += $3; ignored += $4 }
    END { printf "\n%s: %d files, %d tests passed, %d failed, %d ignored, %d s\n",
        device, NR, passed, failed, ignored, seconds }' | tee -a "$LOG"
exit "${bad:-0}"
