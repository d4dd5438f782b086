#!/usr/bin/env bash
# Every GPU figure of RESULTS.md in one run: under 9 minutes on one GPU and 16 cores, without a network.
#
#   pipelines/bench/gpu.sh [--wheels DIR] [--out DIR] [--dry-run]
#
# python3 (or $PYTHON) must be ≥ 3.11 and have torch, torchvision, timm, pandas, pyarrow and OpenCV; transformers, if the
# steps shall be compared with its. What else mgm needs lies in DIR (default: wheels/ beside the checkout) as wheels, for
# Python 3.12 fetched where there is a network by
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#       --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -d wheels av zarr numcodecs donfig \
#       google-crc32c simplejpeg msgspec dask distributed tblib zict locket partd tornado \
#       cloudpickle toolz psutil sortedcontainers msgpack pytest pluggy iniconfig pygments numba llvmlite
#
# What python has already is better left out: these come before it. All are 102 MiB, without numba and llvmlite 41 MiB.
#
# It makes its own clips, and measures decoding on the CPU, on the GPU and on both, RandAugment on either, training and
# fine-tuning of ViT-B with MFU, testing, and a step compiled or not, with CUDA graphs, in bf16, fp16 and fp32. Under its
# table it says which defaults follow. --dry-run goes the same way on a CPU with toy sizes, where the CPU's decoder stands
# in for nvJPEG, in 3 minutes or more, and measures nothing. A part that fails, or for which no time is left, is named
# under the table; the others go on, and the exit code is 1.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
wheels=$repository/../wheels out=${TMPDIR:-/tmp}/mgm-gpu-bench is_dry=false
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --dry-run) is_dry=true; shift ;;
    *) sed -n '2,24s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
# Stretched for a dry run, whose machine may be slow and busy.
budget_s=515 stretch=1 is_whole=true SECONDS=0
$is_dry && budget_s=1500 stretch=6
rm -rf "$out" && mkdir -p "$out" || exit 2
echo "results go to $out"

# part NAME LIMIT_S COMMAND…: run it within its limit and what is left of the time; its output goes to NAME.log.
part() {
  local name=$1 limit_s=$(($2 * stretch)) start_s=$SECONDS left_s=$((budget_s - SECONDS))
  shift 2
  if [ "$left_s" -lt 5 ]; then
    echo "- not measured: $name, no time was left" >>"$out/parts.txt"
    is_whole=false
    return 1
  fi
  timeout -k 5 "$((limit_s < left_s ? limit_s : left_s))" "$@" >"$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code after $((SECONDS - start_s)) s"
  [ $code -eq 0 ] && return 0
  echo "- not measured: $name, exit code $code; the end of $name.log: $(tail -n 1 "$out/$name.log")" >>"$out/parts.txt"
  is_whole=false
  return 1
}

# They come before what python has already, so there should be none but what it lacks.
if compgen -G "$wheels/*.whl" >/dev/null; then
  part install 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$out/site" "$wheels"/*.whl
fi
# Nothing is built here; this is what an installed mgm would say of itself.
mkdir -p "$out/site/mgm-0+bench.dist-info" && cd "$out/site/mgm-0+bench.dist-info" || exit 2
printf 'Metadata-Version: 2.1\nName: mgm\nVersion: 0+bench\n' >METADATA
sed -n '/^zarr.codecs/,/^\[/s/^    //p' "$repository/setup.cfg" | sed '1i [zarr.codecs]' >entry_points.txt
cd "$out" || exit 2
export PYTHONPATH=$repository/shared:$repository/preprocess:$repository/train:$out/site
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR=$out/inductor
missing=$("$python" - <<'PYTHON'
from importlib.util import find_spec
names = "torch torchvision timm pandas pyarrow cv2 safetensors yaml click tqdm av zarr numcodecs donfig google_crc32c"
names += " simplejpeg numba dask distributed pytest"
print(*(name for name in names.split() if find_spec(name) is None))
PYTHON
) || exit 2
if [ -n "$missing" ]; then
  echo "gpu.sh: python lacks: $missing; put their wheels into $wheels" >&2
  exit 2
fi

if $is_dry; then
  device=auto place=cpu workers=1 batch=2 epochs=1 finetune_epochs=1 compile=--no-compile rounds=1 log_every=1 tested=2
  clips=(--videos 8 --frames 24 --height 128 --width 160) loader=(--batches 2)
  shape=(--num-frames 4 --image-px 64) model=vit_tiny small=vit_tiny jpeg=(--frames 32)
  mgm_train=("$python" "$here/gpu.py" stand-in)
else
  device=cuda place=cuda workers=$(nproc) batch=64 epochs=24 finetune_epochs=8 compile=--compile rounds=20 log_every=10 tested=256
  clips=(--videos 512 --frames 96 --height 256 --width 344) loader=()
  shape=(--num-frames 16 --image-px 224) model=vit_base small=vit_small jpeg=()
  mgm_train=("$python" -m mgm_train)
fi
results=$out/results.jsonl
transformers=--alone
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformers") is None)' && transformers=
step=("$python" "$here/step.py" --device "$place" --batch-size "$batch" "${shape[@]}" --json "$results")
common=("${shape[@]}" --stride 4 --model "$model" --num-workers "$workers" --device "$device" "$compile"
  --log-every-steps "$log_every" --save-every-epochs 1000 --warmup-epochs 1)

# The GPU has nothing to do while clips are made: the model is compiled meanwhile, into inductor's cache.
background=()
if ! $is_dry; then
  for precision in bf16 fp16; do
    timeout 150 "${step[@]}" --json "$out/warm.jsonl" --model $model --ratio 0.75 --precision $precision --rounds 1 --alone \
      "$compile" >"$out/warm-$precision.log" 2>&1 &
    background+=($!)
  done
fi
part clips 120 "$python" "$here/gpu.py" clips "$out/videos" "${clips[@]}"
for codec in jpeg planes; do
  part "extract-$codec" 120 "$python" -m mgm_prep extract "$out/videos" "$out/$codec.store" --frame-codec $codec \
    --workers "$workers"
done
[ ${#background[@]} -gt 0 ] && wait "${background[@]}"

# pretrain CODEC DECODE_ON LIMIT_S, finetune AUGMENT_ON LIMIT_S: runs whose metrics the table reads.
pretrain() {
  part "pretrain-$1-$2" "$3" "${mgm_train[@]}" pretrain "$out/$1.store" --run "$out/run-pretrain-$1-$2" --decode-on "$2" \
    --batch-size "$batch" --epochs "$epochs" "${common[@]}"
}
finetune() {
  part "finetune-$1" "$2" "${mgm_train[@]}" finetune "$out/jpeg.store" --run "$out/run-finetune-$1" --augment-on "$1" \
    --batch-size $((batch / 2)) --epochs "$finetune_epochs" "${common[@]}"
}

# The most important first: what is last may find no time.
part rate 40 "$python" "$here/gpu.py" rate "$results" --device "$place"
part jpeg 40 "$python" "$here/gpu.py" jpeg "$out/jpeg.store" "$results" --device "$place" "${jpeg[@]}"
part loader 75 "$python" "$here/gpu_loader.py" "$out/jpeg.store" "$results" --device "$place" --workers "$workers" \
  --batch-size "$batch" "${shape[@]}" "${loader[@]}"
pretrain jpeg cpu 90
part step-compiled 90 "${step[@]}" --model $model --ratio 0.75 --rounds "$rounds" $transformers "$compile"
part step-eager 40 "${step[@]}" --model $model --ratio 0.75 --rounds "$rounds" --alone --no-compile
pretrain jpeg cuda 60
pretrain jpeg hybrid 60
finetune cpu 90
finetune cuda 60
part testing 60 "$python" "$here/gpu.py" testing "$out/jpeg.store" "$out/run-finetune-cpu" "$results" --videos $tested
part step-graphs 75 "${step[@]}" --model $model --ratio 0.75 --rounds "$rounds" --alone "$compile" --compile-mode reduce-overhead
part step-precision 75 "${step[@]}" --model $model --ratio 0.75 --rounds "$rounds" --alone "$compile" --precision fp16 \
  --precision fp32
pretrain planes cpu 50
part step-more 60 "${step[@]}" --model $small --ratio 0.9 --rounds "$rounds" --alone "$compile"
if $is_dry; then
  part tests 20 "$python" -m pytest -q --noconftest -p no:cacheprovider "$repository/tests/test_loop.py" -m needs_cuda
else
  FAIL_WITHOUT_CUDA=1 part tests 120 "$python" -m pytest -q --noconftest -p no:cacheprovider -m needs_cuda \
    $(grep -l needs_cuda "$repository"/tests/test_*.py)
fi

"$python" "$here/gpu_table.py" "$out" | tee "$out/table.md"
echo "$SECONDS s in all"
$is_whole
