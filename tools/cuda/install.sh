#!/bin/sh
# Installs a CUDA 13.0 compiler from PyPI wheels into a folder (default: .cuda in the checkout, where build.rs looks by itself).
# Needs python3 with pip; no root, no driver, no GPU. About 300 MB.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-.cuda}
python3 -m pip install --quiet --disable-pip-version-check --upgrade --target "$folder" \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-cuobjdump==13.5.*' 'nvidia-cuda-nvdisasm==13.5.*'
"$folder/nvidia/cu13/bin/nvcc" --version | tail -n 2
touch build.rs # so that the next build looks for nvcc again
case $folder in
.cuda) ;;
*) echo "build with NVCC=$folder/nvidia/cu13/bin/nvcc" ;;
esac
