// libcuda's ABI over host memory, as far as the driver launcher uses it: enough to test everything but a GPU.
// FAKE_CUDA_VERSION (13000), FAKE_CUDA_DEVICES (1) and FAKE_CUDA_INIT (0) play other machines. A module image is text, a line a kernel
// ("name parameter-bytes"); the one kernel that does something is "scale". A launch with more than 1024 threads a block fails.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

struct function {
    char name[64];
    size_t bytes;
    int shared;
};
struct module {
    struct function functions[8];
    int count;
};

// What a stream was given while it was captured: launches of "scale", and copies.
struct scale { float *x, *out; uint32_t n; float factor; };
struct node { struct scale scale; uint64_t threads, to, from; size_t bytes; };
struct graph { struct node nodes[8]; int count; };
static struct graph *capturing = NULL;
static void run(const struct node *node) {
    memcpy((void *)node->to, (void *)node->from, node->bytes);
    for (uint64_t i = 0; i < node->scale.n && i < node->threads; i++) node->scale.out[i] = node->scale.x[i] * node->scale.factor;
}
static void issue(struct node node) { if (capturing) capturing->nodes[capturing->count++] = node; else run(&node); }

static int pending_error = SUCCESS;
static double clock_ms = 0;
static int current = 0;

static int setting(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
static int bound(int status) { return current ? status : 201; /* CUDA_ERROR_INVALID_CONTEXT */ }

int cuDriverGetVersion(int *version) { return *version = setting("FAKE_CUDA_VERSION", 13000), SUCCESS; }
int cuInit(unsigned flags) { return flags ? INVALID_VALUE : setting("FAKE_CUDA_INIT", SUCCESS); }
int cuGetErrorName(int status, const char **name) {
    *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : status == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : status == 100 ? "CUDA_ERROR_NO_DEVICE" : status == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
int cuGetErrorString(int status, const char **text) { return *text = "words of the fake driver", (void)status, SUCCESS; }

int cuDeviceGetCount(int *count) { return *count = setting("FAKE_CUDA_DEVICES", 1), SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetName(char *name, int bytes, int device) { return snprintf(name, bytes, "Fake GPU %d", device), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)139 << 30, (void)device, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = 132; return SUCCESS;      // multiprocessors
    case 38: *value = 60 << 20; return SUCCESS; // L2
    case 75: *value = 9; return SUCCESS;        // capability
    case 76: *value = 0; return SUCCESS;
    case 97: *value = 227 << 10; return SUCCESS; // shared memory, opt-in
    }
    return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(intptr_t)(device + 1), SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, SUCCESS; }
int cuCtxSetCurrent(void *context) { return current = context != NULL, SUCCESS; }

int cuStreamCreate(void **stream, unsigned flags) { return *stream = malloc(1), bound(flags == 1 ? SUCCESS : INVALID_VALUE); }
int cuStreamDestroy_v2(void *stream) { return free(stream), SUCCESS; }
int cuStreamSynchronize(void *stream) { return (void)stream, bound(capturing ? 900 /* STREAM_CAPTURE_UNSUPPORTED */ : pending_error); }
int cuStreamBeginCapture_v2(void *stream, int mode) {
    if (!stream || mode != 1 || capturing) return INVALID_VALUE; // THREAD_LOCAL
    return capturing = calloc(1, sizeof *capturing), bound(SUCCESS);
}
int cuStreamEndCapture(void *stream, struct graph **graph) { return *graph = capturing, capturing = NULL, bound(stream && *graph ? SUCCESS : INVALID_VALUE); }
int cuGraphInstantiateWithFlags(struct graph **exec, struct graph *graph, unsigned long long flags) {
    return *exec = malloc(sizeof **exec), **exec = *graph, bound(flags ? INVALID_VALUE : SUCCESS);
}
int cuGraphDestroy(struct graph *graph) { return free(graph), SUCCESS; }
int cuGraphExecDestroy(struct graph *exec) { return free(exec), SUCCESS; }
int cuGraphLaunch(struct graph *exec, void *stream) {
    for (int i = 0; i < exec->count; i++) run(&exec->nodes[i]);
    return bound(stream ? SUCCESS : INVALID_VALUE);
}
int cuStreamWaitEvent(void *stream, double *event, unsigned flags) { return bound(stream && event && !flags ? SUCCESS : INVALID_VALUE); }

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (bytes > (size_t)1 << 40) return OUT_OF_MEMORY;
    void *block = aligned_alloc(1024, (bytes + 1023) / 1024 * 1024);
    memset(block, 0xA5, bytes);
    return *address = (uint64_t)block, bound(SUCCESS);
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = (size_t)setting("FAKE_CUDA_FREE_MIB", 1 << 17) << 20, *total = (size_t)1 << 37, bound(SUCCESS); }
int cuMemFree_v2(uint64_t address) { return free((void *)address), SUCCESS; }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { return (void)flags, *address = calloc(1, bytes), bound(*address ? SUCCESS : INVALID_VALUE); }
int cuMemFreeHost(void *address) { return free(address), SUCCESS; }
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    return memset((void *)address, value, bytes), bound(stream ? SUCCESS : INVALID_VALUE);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { return memcpy((void *)to, from, bytes), bound(stream ? SUCCESS : INVALID_VALUE); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) { return memcpy(to, (void *)from, bytes), bound(stream ? SUCCESS : INVALID_VALUE); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    clock_ms += (double)bytes / 2e9; // 2 TB/s each way
    return issue((struct node){.to = to, .from = from, .bytes = bytes}), bound(stream ? SUCCESS : INVALID_VALUE);
}

int cuEventCreate(double **event, unsigned flags) { return *event = malloc(sizeof(double)), (void)flags, bound(SUCCESS); }
int cuEventDestroy_v2(double *event) { return free(event), SUCCESS; }
int cuEventRecord(double *event, void *stream) { return *event = clock_ms += 0.01, bound(stream ? SUCCESS : INVALID_VALUE); }
int cuEventSynchronize(double *event) { return (void)event, SUCCESS; }
// Not ready (600) every other time.
int cuEventQuery(double *event) { static int asked; return bound(!event ? INVALID_VALUE : asked++ % 2 ? SUCCESS : 600); }
int cuEventElapsedTime_v2(float *ms, double *start, double *end) { return *ms = (float)(*end - *start), SUCCESS; }

int cuModuleLoadData(struct module **module, const char *image) {
    if ((uintptr_t)image % 8) return INVALID_VALUE;
    if (!strncmp(image, "other architecture", 18)) return NO_BINARY;
    *module = calloc(1, sizeof **module);
    int read = 0;
    struct function *next = (*module)->functions;
    while (sscanf(image, "%63s %zu%n", next->name, &next->bytes, &read) == 2) image += read, next++, (*module)->count++;
    return bound(SUCCESS);
}
int cuModuleUnload(struct module *module) { return free(module), SUCCESS; }
int cuModuleGetFunction(struct function **function, struct module *module, const char *name) {
    for (int i = 0; i < module->count; i++)
        if (!strcmp(module->functions[i].name, name)) return *function = &module->functions[i], SUCCESS;
    return NOT_FOUND;
}
int cuFuncGetParamInfo(struct function *function, size_t index, size_t *offset, size_t *bytes) {
    if (index > 0) return INVALID_VALUE;
    return *offset = 0, *bytes = function->bytes, SUCCESS;
}
int cuFuncSetAttribute(struct function *function, int attribute, int value) {
    return attribute == 8 ? (function->shared = value, SUCCESS) : INVALID_VALUE; // MAX_DYNAMIC_SHARED_SIZE_BYTES
}
int cuLaunchKernel(struct function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **params, void **extra) {
    if (bx * by * bz > 1024 || extra || !stream) return INVALID_VALUE;
    if (shared > 48 << 10 && shared > (unsigned)function->shared) return INVALID_VALUE;
    if (!strcmp(function->name, "fault")) pending_error = ILLEGAL_ADDRESS;
    if (!strcmp(function->name, "scale")) {
        struct node node = {.threads = (uint64_t)gx * gy * gz * bx * by * bz};
        memcpy(&node.scale, params[0], sizeof node.scale);
        issue(node);
    }
    return bound(SUCCESS);
}
