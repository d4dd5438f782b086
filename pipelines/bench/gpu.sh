#!/usr/bin/env bash
# Every GPU figure of RESULTS.md in one run: under 8 minutes on one GPU and 16 cores, without a network.
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
# It makes its own clips. --dry-run goes the same way on a CPU with toy sizes, in under 2 minutes, and measures nothing.
# A part that fails, or for which no time is left, is named under the table; the others go on, and the exit code is 1.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
wheels=$repository/../wheels out=${TMPDIR:-/tmp}/mgm-gpu-bench is_dry=false
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --dry-run) is_dry=true; shift ;;
    *) sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
budget_s=465 is_whole=true SECONDS=0
rm -rf "$out" && mkdir -p "$out" || exit 2
echo "results go to $out"

# part NAME LIMIT_S COMMAND…: run it within its limit and what is left of the time; its output goes to NAME.log.
part() {
  local name=$1 limit_s=$2 start_s=$SECONDS left_s=$((budget_s - SECONDS))
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
  device=cpu workers=2 batch=2 epochs=4 compile=--no-compile rounds=1 log_every=2
  clips=(--videos 8 --frames 24 --height 128 --width 160)
  shape=(--num-frames 4 --image-px 64) models=(vit_tiny) train_model=vit_tiny jpeg=(--frames 32) codecs=(jpeg)
else
  device=cuda workers=$(nproc) batch=64 epochs=40 compile=--compile rounds=20 log_every=10
  clips=(--videos 512 --frames 96 --height 256 --width 344)
  shape=(--num-frames 16 --image-px 224) models=(vit_base vit_small) train_model=vit_base jpeg=() codecs=(jpeg planes)
fi
results=$out/results.jsonl
transformers=--alone
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformers") is None)' && transformers=
step=("$python" "$here/step.py" --device "$device" --batch-size "$batch" "${shape[@]}" "$compile")

# The GPU has nothing to do while clips are made: the models are compiled meanwhile, into inductor's cache, and tested.
background=()
if ! $is_dry; then
  for model in "${models[@]}"; do
    for ratio in 0.75 0.9; do
      timeout 150 "${step[@]}" --model "$model" --ratio "$ratio" --rounds 1 --alone >"$out/warm-$model-$ratio.log" 2>&1 &
      background+=($!)
    done
  done
fi
part clips 120 "$python" "$here/gpu.py" clips "$out/videos" "${clips[@]}"
for codec in "${codecs[@]}"; do
  part "extract-$codec" 120 "$python" -m mgm_prep extract "$out/videos" "$out/$codec.store" --frame-codec $codec \
    --workers "$workers"
done
[ ${#background[@]} -gt 0 ] && wait "${background[@]}"

part rate 60 "$python" "$here/gpu.py" rate "$results" --device "$device"
for codec in "${codecs[@]}"; do
  part "train-$codec" 150 "$python" -m mgm_train pretrain "$out/$codec.store" --run "$out/run-$train_model-$codec" \
    --model "$train_model" "${shape[@]}" --batch-size "$batch" --epochs "$epochs" --warmup-epochs 1 --stride 4 \
    --num-workers "$workers" --device "$device" --precision bf16 "$compile" --log-every-steps "$log_every" --save-every-epochs 1000
done
for model in "${models[@]}"; do
  part "step-$model" 150 "${step[@]}" --model "$model" --rounds "$rounds" $transformers --json "$results"
done
part jpeg 60 "$python" "$here/gpu.py" jpeg "$out/jpeg.store" "$results" --device "$device" "${jpeg[@]}"
if $is_dry; then
  part tests 90 "$python" -m pytest -q --noconftest -p no:cacheprovider "$repository/tests/test_loop.py" -m needs_cuda
else
  FAIL_WITHOUT_CUDA=1 part tests 120 "$python" -m pytest -q --noconftest -p no:cacheprovider -m needs_cuda \
    $(grep -l needs_cuda "$repository"/tests/test_*.py)
fi

"$python" "$here/gpu.py" table "$out" | tee "$out/table.md"
echo "$SECONDS s in all"
$is_whole
