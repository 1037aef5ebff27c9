#!/bin/bash
# Times training steps of soda and of diffusers on one machine, and appends a line of JSON for each.
#
#   benches/gpu/run.sh path/to/soda [RESULTS]
#
# Requires python3 with torch and diffusers. The first line of each architecture starts with an empty kernel cache (cold),
# the second with a full one (warm). The cold start of diffusers is Python's imports and cuDNN's first calls.

set -u
soda=$(realpath "$1")
results=$(realpath -m "${2:-results.jsonl}")
diffusers=$(realpath "$(dirname "$0")/diffusers_step.py")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export XDG_CACHE_HOME=$work/cache

run() { echo "== $*"; timeout 600 "$@" 2>"$work/log" | tee -a "$results" || tail -5 "$work/log"; }

for line in "sd15 1" "sd15 4" "sdxl 1" "sdxl 4"; do
  read -r arch batch <<<"$line"
  common=(--arch "$arch" --batch "$batch" --dtype bf16 --steps 10)
  lora=(bench --device cuda --json --method lora --rank 32 "${common[@]}")
  [ "$batch" = 1 ] && { rm -rf "$XDG_CACHE_HOME"; run "$soda" "${lora[@]}"; }
  run "$soda" "${lora[@]}"
  run python3 "$diffusers" "${common[@]}"
  run "$soda" bench --device cuda --json --method soda "${common[@]}"
done

# Transformers: SODA in a subspace, as full decompositions take minutes there.
for line in "flux2-klein-4b 1 none" "flux2-klein-4b 2 block" "z-image 1 block"; do
  read -r arch batch checkpointing <<<"$line"
  common=(--arch "$arch" --batch "$batch" --dtype bf16 --steps 10)
  run "$soda" bench --device cuda --json --method lora --rank 32 --checkpointing "$checkpointing" "${common[@]}"
  run "$soda" bench --device cuda --json --method soda-subspace --checkpointing "$checkpointing" "${common[@]}"
  run python3 "$diffusers" "${common[@]}" $([ "$checkpointing" = block ] && echo --checkpoint)
done

# A quantized base, and products of codes.
while read -r arch weights activations more; do
  formats=(--base-precision "$weights")
  [ "$activations" = none ] || formats+=(--activation-precision "$activations")
  read -ra options <<<"$more"
  run "$soda" bench --device cuda --json --arch "$arch" --dtype bf16 --steps 10 "${formats[@]}" "${options[@]}" </dev/null
done <<'END'
flux2-klein-4b int8 none --method lora --rank 32
flux2-klein-4b fp8 none --method lora --rank 32
flux2-klein-4b fp8 fp8 --method lora --rank 32
flux2-klein-4b fp8 fp8 --method lora --rank 32 --latents 32 --batch 2
flux2-klein-4b fp8 fp8 --method soda-subspace
sdxl int8 none --method lora --rank 32
sdxl nf4 none --method lora --rank 32
sdxl fp8 fp8 --method lora --rank 32
sdxl fp8 fp8 --method lora --rank 32 --batch 4
END

# torch.compile, whose first run compiles for two to six minutes.
for line in "sd15 default" "sd15 reduce-overhead" "sdxl default" "flux2-klein-4b default"; do
  read -r arch mode <<<"$line"
  run python3 "$diffusers" --arch "$arch" --batch 1 --dtype bf16 --steps 10 --compile "$mode"
done
