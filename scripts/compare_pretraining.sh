#!/usr/bin/env bash
# Trains Mask R-CNN with ViT-Adapter-S on a small data set three times: from random weights, from
# pre-trained weights, and with the pre-trained net frozen. Draws loss and AP of all three in
# OUTPUT_DIR/pretraining.png.
#
#   scripts/compare_pretraining.sh DATA_DIR WEIGHTS OUTPUT_DIR [overrides]
#
# DATA_DIR contains annotations/instances_{train,val}.json and images/{train,val}; WEIGHTS is any
# value of train.init_checkpoint (DINOv2 ViT-S). Running the script again skips finished runs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 3 ]; then
    echo "usage: $0 DATA_DIR WEIGHTS OUTPUT_DIR [overrides]" >&2
    exit 2
fi
data=$1 weights=$2 output=$3
shift 3
python=${PYTHON:-.venv/bin/python}
config=projects/ViTAdapter/configs/COCO/mask_rcnn_vit_adapter_s_dinov2_finetune.py

# run NAME [overrides]
run() {
    local name=$1
    shift
    [ -f "$output/$name/done" ] && return
    echo "== $name"
    "$python" scripts/lazyconfig_train_net.py --resume --config-file "$config" \
        dataset.train.json_file="$data/annotations/instances_train.json" \
        dataset.train.image_root="$data/images/train" \
        dataset.test.json_file="$data/annotations/instances_val.json" \
        dataset.test.image_root="$data/images/val" \
        train.output_dir="$output/$name" "$@"
    touch "$output/$name/done"
}

run random train.init_checkpoint="" "$@"
run trainable train.init_checkpoint="$weights" "$@"
run frozen train.init_checkpoint="$weights" model.backbone.bottom_up.freeze_net=True "$@"
"$python" scripts/compare_runs.py "random=$output/random" "pre-trained=$output/trainable" \
    "pre-trained, frozen=$output/frozen" --convergence "$output/pretraining.png"
