// A row of the table that build.rs generates: how the emulator finds a kernel by name.
#pragma once
#include <stddef.h>

struct LimoKernel {
    const char *name;
    size_t params_bytes;
    void (*run)(const void *params);
};

// The caller's bytes may lie anywhere.
template <typename Params> Params load(const void *bytes) {
    Params params;
    __builtin_memcpy(&params, bytes, sizeof params);
    return params;
}
