#!/usr/bin/env bash
# Compiles and links examples/cust_interop.rs on a machine without a driver; arguments go to cargo. `cust` links libcuda, so a stub that
# defines nothing stands in for it: what the linker does not find it may leave open, and the real library has the same name.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${CARGO_TARGET_DIR:-$PWD/target}/stub_cuda
mkdir -p "$folder/lib64/stubs"
echo '' | cc -shared -x c - -Wl,-soname,libcuda.so.1 -o "$folder/lib64/stubs/libcuda.so"
CUDA_LIBRARY_PATH=$folder cargo rustc --example cust_interop --features cust "$@" -- \
    -C link-arg=-Wl,--unresolved-symbols=ignore-all
