#!/usr/bin/env bash
# Sets up .venv, makes the sample data set, trains Mask R-CNN with ViT-Adapter-T on it, evaluates
# the model, and draws predictions and curves. If it is interrupted, running it again continues
# where it stopped.
#
#   ./scripts/quickstart.sh             takes about 15 minutes on two CPU cores
#   ./scripts/quickstart.sh --task semantic
#                                       trains UPerNet instead, in about 7 minutes; shows mIoU and
#                                       draws image, ground truth and prediction
#   ./scripts/quickstart.sh --compare   also trains the plain-ViT baseline (and, for instances,
#                                       ViTDet) with the same net for the same time, and compares
#   ./scripts/quickstart.sh --compare --analyze
#                                       also draws feature maps and their Fourier spectra and, for
#                                       instances, what each kind of error costs, for each model
#   ./scripts/quickstart.sh train.init_checkpoint=timm://deit_tiny_patch16_224.fb_in1k
#                                       overrides apply to every training, whose results then go to
#                                       another folder; this one starts from pre-trained weights
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compare=false
analyze=false
task=instance
overrides=()
while [ $# -gt 0 ]; do
    case "$1" in
        --compare) compare=true ;;
        --analyze) analyze=true ;;
        --task)
            task=${2:-}
            [ $# -lt 2 ] || shift
            case "$task" in
                instance | semantic) ;;
                *) echo "quickstart.sh: --task must be instance or semantic, got '$task'" >&2; exit 2 ;;
            esac
            ;;
        [a-z]*=*) overrides+=("$1") ;;
        --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit ;;
        *) echo "quickstart.sh: unknown argument '$1' (see --help)" >&2; exit 2 ;;
    esac
    shift
done

configs=projects/ViTAdapter/configs/Digits
data=datasets/digits
runs=output/digits
if [ ${#overrides[@]} -gt 0 ]; then
    runs=output/digits-$(printf '%s\n' "${overrides[@]}" | cksum | cut -d ' ' -f 1)
fi
python=.venv/bin/python
# What fvcore, Detectron2 and timm use of PyTorch is deprecated, which nobody can act on here.
export PYTHONWARNINGS="ignore:\`torch.jit:FutureWarning${PYTHONWARNINGS:+,$PYTHONWARNINGS}"
step() { printf '\n==> %s\n' "$*"; }

./scripts/setup_env.sh

step "sample data set in $data"
$python scripts/make_sample_dataset.py --output "$data" --train 800 --val 160 --size 128 --seed 0

# train NAME [overrides]: starts or resumes a run, or skips it if it is finished
train() {
    local name=$1
    shift
    if [ -f "$runs/$name/done" ]; then
        step "$name: already trained in $runs/$name"
        return
    fi
    step "training and evaluating $name in $runs/$name"
    $python scripts/lazyconfig_train_net.py --resume --config-file "$configs/$name.py" \
        train.eval_period=150 train.report=True "${overrides[@]}" train.output_dir="$runs/$name" "$@"
    touch "$runs/$name/done"
}

# baseline NAME: trains it for as long, by the clock, as the adapter was trained
baseline() {
    local name=$1 iterations=$runs/$1/iterations
    if [ ! -f "$iterations" ]; then
        step "$name: measuring the time per iteration"
        rm -rf "${runs:?}/$name-probe"
        $python scripts/lazyconfig_train_net.py --config-file "$configs/$name.py" \
            "${overrides[@]}" train.output_dir="$runs/$name-probe" train.max_iter=60 "~dataloader.evaluator"
        mkdir -p "$runs/$name"
        $python scripts/iterations_in_time.py "$runs/$adapter" "$runs/$name-probe" \
            >"$iterations.new"
        mv "$iterations.new" "$iterations"
    fi
    train "$name" train.max_iter="$(cat "$iterations")"
}

# semantic NAME: shows the table and the pictures of a finished run
semantic() {
    local run=$runs/$1
    step "$1: mIoU and pictures"
    $python scripts/visualize_sem_seg.py --config-file "$configs/$1.py" \
        --results "$run/inference" --output "$run/pictures"
    $python scripts/plot_metrics.py "$run" --output "$run/curves.png"
    cat "$run/inference/sem_seg_results.md"
    echo "predictions:       $run/pictures/overview.png (image, ground truth, prediction)"
    echo "confusion matrix:  $run/inference/confusion_matrix.png"
    echo "losses and mIoU:   $run/curves.png"
    echo "report:            $run/report/index.html (open it in a browser: curves, errors, all images)"
}

# analyze NAME=RUN ...: draws what the paper's figures 5 to 8 show, if --analyze is given
analyze() {
    $analyze || return 0
    local output=$runs/analysis-$task named features=() errors=()
    step "figures of the paper's study in $output"
    for named in "$@"; do
        local run=$runs/${named#*=}
        features+=(--run "${named%%=*}" "$run/config.yaml" "$run/model_final.pth")
        errors+=(--run "${named%%=*}" "$run/inference/coco_instances_results.json")
    done
    $python scripts/analyze_features.py "$data/val" --output "$output" "${features[@]}"
    if [ "$task" = instance ]; then
        $python scripts/analyze_errors.py --json-file "$data/annotations/instances_val.json" \
            --output "$output" "${errors[@]}"
    fi
}

if [ "$task" = semantic ]; then
    adapter=upernet_vit_adapter_t
    models=(ViT-Adapter-T=$adapter)
    train $adapter
    if $compare; then
        baseline upernet_vit_t
        semantic upernet_vit_t
        models=(ViT-T=upernet_vit_t "${models[@]}")
    fi
    semantic $adapter
    analyze "${models[@]}"
    exit
fi

adapter=mask_rcnn_vit_adapter_t
train $adapter

pictures=$runs/$adapter/pictures
step "pictures in $pictures"
$python scripts/visualize_results.py --json-file "$data/annotations/instances_val.json" \
    --image-root "$data/val" --results "$runs/$adapter/inference/coco_instances_results.json" \
    --output "$pictures" --num-images 16
$python scripts/plot_metrics.py "$runs/$adapter" --output "$runs/$adapter/curves.png"

step "results on the held-out images"
$python scripts/compare_runs.py "ViT-Adapter-T=$runs/$adapter" --output "$runs/$adapter/result.png"
models=(ViT-Adapter-T=$adapter)
if $compare; then
    baseline mask_rcnn_vit_t
    baseline mask_rcnn_vitdet_t
    models=(ViT-T=mask_rcnn_vit_t ViTDet-T=mask_rcnn_vitdet_t "${models[@]}")
    step "the same net, trained for the same time, with and without the adapter"
    $python scripts/compare_runs.py "${models[@]/=/=$runs/}" --output "$runs/comparison.png"
    echo "comparison:        $runs/comparison.png"
fi
analyze "${models[@]}"
echo "predictions:       $pictures/overview.png (ground truth left, prediction right)"
echo "AP over time:      $runs/$adapter/result.png"
echo "losses and AP:     $runs/$adapter/curves.png"
echo "report:            $runs/$adapter/report/index.html (open it in a browser: curves, errors, all images)"
echo "weights, log:      $runs/$adapter/"
