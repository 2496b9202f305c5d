#!/usr/bin/env bash
# Compiles and links examples/cust_interop.rs on a machine without CUDA. `cust` asks for a libcuda at build time: a stub that defines
# nothing serves, since what the linker does not find it may leave open, and nothing is run.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${CARGO_TARGET_DIR:-$PWD/target}/stub_cuda
mkdir -p "$folder/lib64/stubs"
echo '' | cc -shared -x c - -Wl,-soname,libcuda.so.1 -o "$folder/lib64/stubs/libcuda.so"
# Another feature set is another build folder, in which neither nvcc nor the emulator needs to run again.
CUDA_LIBRARY_PATH=$folder NVCC=/none CXX=/none cargo rustc --example cust_interop --features cust -- \
    -C link-arg=-Wl,--unresolved-symbols=ignore-all
