#!/usr/bin/env bash
# Elastic training: machines may join and leave while a run goes on. Start this on every machine, with the same HOST:
#
#   scripts/elastic.sh HOST --config imagenet-mae --model vit_base_patch16_224 --amp \
#     --teacher resnet50 --data-dir /data/imagenet
#
# HOST is the machine on which they meet: it has to stay, the others may go. Further arguments are those of
# train_w2s.py. Run folder and data are on a file system that all machines see, the data under the same path.
#
# When a machine comes, or leaves on SIGTERM, the step in hand is saved and every process starts again from there; when
# one is lost, from the last checkpoint of --recovery-interval. docs/scale.md says what stays the same.
#
# TO BE EDITED, or given as NAME=VALUE before the command:
NAME=${NAME:-elastic}                        # of the run; the same on all machines
NODES=${NODES:-1:4}                          # fewest and most machines
GPUS=${GPUS:-8}                              # processes on this machine
TOTAL_BATCH=${TOTAL_BATCH:-1024}             # of all processes together, which any number of them divides
RESTARTS=${RESTARTS:-100}                    # losses of machines that are put up with
PORT=${PORT:-29400}                          # on HOST
OUTPUT=${OUTPUT:-output/train}               # folder of runs
RECOVERY_INTERVAL=${RECOVERY_INTERVAL:-500}  # updates between recovery checkpoints

set -euo pipefail
if (($# < 1)) || [[ $1 == -* ]]; then
    echo "usage: elastic.sh HOST [flags of train_w2s.py]" >&2
    exit 2
fi
host=$1
shift
export TOTAL_BATCH

# The number of processes is known in each of them only, so that is where the batch of one is worked out.
# shellcheck disable=SC2016
exec python -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$RESTARTS" \
    --rdzv-id "$NAME" --rdzv-backend c10d --rdzv-endpoint "$host:$PORT" --no-python \
    bash -c 'exec python train_w2s.py "$@" --batch-size "$((TOTAL_BATCH / WORLD_SIZE))"' train_w2s \
    --output "$OUTPUT" --experiment "$NAME" --resume auto \
    --recovery-interval "$RECOVERY_INTERVAL" "$@"
