#!/bin/bash
# soda and PyTorch on one machine in one run: a line of JSON each.
#
#   benches/gpu/run.sh path/to/soda [RESULTS]
#
# Needs python3 with torch and diffusers. The first line of each architecture starts with an empty kernel cache (cold),
# the second finds it filled (warm); the twin's cold start is Python's imports and cuDNN's first calls.

set -u
soda=$(realpath "$1")
results=$(realpath -m "${2:-results.jsonl}")
twin=$(realpath "$(dirname "$0")/twin.py")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export XDG_CACHE_HOME=$work/cache

note() { echo "== $*"; timeout 600 "$@" 2>"$work/log" | tee -a "$results" || tail -5 "$work/log"; }

for line in "sd15 1" "sd15 4" "sdxl 1" "sdxl 4"; do
  read -r arch batch <<<"$line"
  common=(--arch "$arch" --batch "$batch" --dtype bf16 --steps 10)
  lora=(bench --device cuda --json --method lora --rank 32 "${common[@]}")
  [ "$batch" = 1 ] && { rm -rf "$XDG_CACHE_HOME"; note "$soda" "${lora[@]}"; }
  note "$soda" "${lora[@]}"
  note python3 "$twin" "${common[@]}"
  note "$soda" bench --device cuda --json --method soda "${common[@]}"
done

# What a user of PyTorch would try next; the first takes two to six minutes to compile.
for line in "sd15 default" "sd15 reduce-overhead" "sdxl default"; do
  read -r arch mode <<<"$line"
  note python3 "$twin" --arch "$arch" --batch 1 --dtype bf16 --steps 10 --compile "$mode"
done
