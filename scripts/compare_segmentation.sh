#!/usr/bin/env bash
# Fine-tunes a segmenter with ViT-Adapter-S and with the plain ViT-S on a small data set, with the
# same weights, head and number of iterations. Prints the mIoU of both, and draws image, ground truth
# and prediction in OUTPUT_DIR/NAME/pictures.
#
#   scripts/compare_segmentation.sh [--segmenter upernet|mask2former] \
#       DATA_DIR NUM_CLASSES WEIGHTS OUTPUT_DIR [overrides]
#
# The default segmenter is UPerNet.
# DATA_DIR contains images/{train,val} and annotations/{train,val} and, if class names are wanted,
# classes.txt with one line "LABEL NAME" per class; WEIGHTS is any value of train.init_checkpoint
# (DINOv2 ViT-S). Running the script again skips finished runs.
set -euo pipefail
cd "$(dirname "$0")/.."

segmenter=upernet
if [ "${1:-}" = --segmenter ]; then
    segmenter=${2:-}
    shift $(($# < 2 ? $# : 2))
fi
case $segmenter in upernet | mask2former) ;; *)
    echo "--segmenter must be upernet or mask2former, got '$segmenter'" >&2
    exit 2
    ;;
esac
if [ $# -lt 4 ]; then
    echo "usage: $0 [--segmenter upernet|mask2former]" \
        "DATA_DIR NUM_CLASSES WEIGHTS OUTPUT_DIR [overrides]" >&2
    exit 2
fi
data=$1 classes=$2 weights=$3 output=$4
shift 4
python=${PYTHON:-.venv/bin/python}
configs=projects/ViTAdapter/configs/ADE20K

settings=(
    dataset.num_classes="$classes"
    dataset.train.name=train dataset.test.name=val
    dataset.train.image_root="$data/images/train"
    dataset.train.label_root="$data/annotations/train"
    dataset.test.image_root="$data/images/val"
    dataset.test.label_root="$data/annotations/val"
)
mkdir -p "$output"
if [ -f "$data/classes.txt" ]; then
    head -n "$classes" "$data/classes.txt" | sed 's/^[0-9]* *//' >"$output/classes.txt"
    settings+=(dataset.class_names="$output/classes.txt")
fi

# run NAME [overrides]
run() {
    local name=$1 folder=$output/$1
    shift
    if [ ! -f "$folder/done" ]; then
        echo "== $name"
        "$python" scripts/lazyconfig_train_net.py --resume --config-file "$configs/$name.py" \
            "${settings[@]}" train.init_checkpoint="$weights" train.output_dir="$folder" "$@"
        touch "$folder/done"
    fi
    "$python" scripts/visualize_sem_seg.py --config-file "$configs/$name.py" \
        --results "$folder/inference" --output "$folder/pictures" "${settings[@]}"
}

plain=${segmenter}_vit_s_dinov2_finetune
adapter=${segmenter}_vit_adapter_s_dinov2_finetune
run $plain "$@"
run $adapter "$@"
for name in $plain $adapter; do
    echo
    echo "$name"
    head -n 3 "$output/$name/inference/sem_seg_results.md"
done
