#!/bin/bash
# Times whole commands of soda on a full-size SDXL directory with random weights, beside diffusers on the same machine.
#
#   benches/gpu/commands.sh path/to/soda path/to/toybox [OUT]
#
# Requires python3 with torch, transformers and diffusers. Every command runs twice: with an empty kernel cache, and with a
# full one and the files in the page cache. The tables of `--timings` are in OUT.

set -u
soda=$(realpath "$1")
toybox=$(realpath "$2")
out=$(realpath -m "${3:-commands}")
here=$(realpath "$(dirname "$0")")
mkdir -p "$out"
work=$(mktemp -d -p "${WORK:-/tmp}")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export XDG_CACHE_HOME=$work/cache
mkdir -p "$XDG_CACHE_HOME"

run() {
  local name=$1 began=$EPOCHREALTIME
  shift
  timeout 300 "$@" >"$out/$name.out" 2>"$out/$name.err"
  local rc=$? ended=$EPOCHREALTIME
  awk -v name="$name" -v rc=$rc -v b="$began" -v e="$ended" 'BEGIN { printf "%-28s rc %d  %7.2f s\n", name, rc, e - b }' |
    tee -a "$out/summary.txt"
}

run sdxl-directory python3 "$here/random_model.py" --arch sdxl --tokenizer "$toybox/base/tokenizer" "$work/sdxl"
# Steps whose results would be stored have other names in each run.
generate=("$soda" generate --base "$work/sdxl" --dtype f16 --steps 30 --prompt "a photo of a red mug on a beach" --device cuda)
train=("$soda" train --base "$work/sdxl" --preset sdxl --data "$toybox/subjects/castle_mug" --device cuda
  --set samples.steps=10 --sample "a photo of a sks mug")
run generate-1-cold "${generate[@]}" --out a --timings
run generate-1 "${generate[@]}" --out b
run generate-1-timings "${generate[@]}" --out c --timings
run generate-4 "${generate[@]}" --out d --count 4
run generate-4-timings "${generate[@]}" --out e --count 4 --timings
run train-soda-100-cold "${train[@]}" --set method=soda --steps 100 --name a --timings
run train-soda-100 "${train[@]}" --set method=soda --steps 100 --name b
run generate-adapter-timings "${generate[@]}" --out f --timings --adapter runs/b/adapter.safetensors
run train-subspace-100-timings "${train[@]}" --set method=soda-subspace --steps 100 --name c --timings
run train-lora-100-timings "${train[@]}" --set method=lora --set method.rank=32 --steps 100 --name d --timings
run diffusers-1 python3 "$here/diffusers_generate.py" "$work/sdxl" --count 1
run diffusers-4 python3 "$here/diffusers_generate.py" "$work/sdxl" --count 4
[ "${COMPILE:-1}" = 1 ] && run diffusers-1-compiled python3 "$here/diffusers_generate.py" "$work/sdxl" --count 1 --compile
cat "$out"/*.out | grep '^{' >>"$out/summary.txt"
