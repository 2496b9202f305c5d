// cuBLASLt's ABI over host memory: bf16 products, column-major, as its documentation states them. FAKE_CUBLASLT_VERSION plays others.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15, F32 = 0, BF16 = 14, WORKSPACE = 32 << 20 };

struct layout { int type; uint64_t rows, columns; int64_t leading; };
struct product { int compute, scale, transposed_a, transposed_b, epilogue; uint16_t *bias; };
struct preference { uint64_t workspace; uint32_t reductions, alignment[4]; };
struct algorithm { uint64_t data[8]; };
struct choice { struct algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

static float from_bf16(uint16_t bits) { uint32_t wide = (uint32_t)bits << 16; float value; return memcpy(&value, &wide, 4), value; }
static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

size_t cublasLtGetVersion(void) { return getenv("FAKE_CUBLASLT_VERSION") ? atoi(getenv("FAKE_CUBLASLT_VERSION")) : 130100; }
int cublasLtCreate(void **handle) { return *handle = malloc(1), SUCCESS; }
int cublasLtDestroy(void *handle) { return free(handle), SUCCESS; }
int cublasLtMatrixLayoutCreate(struct layout **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = malloc(sizeof **layout);
    **layout = (struct layout){type, rows, columns, leading};
    return leading >= (int64_t)rows ? SUCCESS : INVALID_VALUE;
}
int cublasLtMatrixLayoutDestroy(struct layout *layout) { return free(layout), SUCCESS; }
int cublasLtMatmulDescCreate(struct product **product, int compute, int scale) {
    *product = calloc(1, sizeof **product);
    **product = (struct product){.compute = compute, .scale = scale, .epilogue = 1};
    return SUCCESS;
}
int cublasLtMatmulDescDestroy(struct product *product) { return free(product), SUCCESS; }
int cublasLtMatmulDescSetAttribute(struct product *product, int attribute, const void *value, size_t bytes) {
    switch (attribute) {
    case 3: return bytes == 4 ? memcpy(&product->transposed_a, value, 4), SUCCESS : INVALID_VALUE;
    case 4: return bytes == 4 ? memcpy(&product->transposed_b, value, 4), SUCCESS : INVALID_VALUE;
    case 7: return bytes == 4 ? memcpy(&product->epilogue, value, 4), SUCCESS : INVALID_VALUE;
    case 8: return bytes == 8 ? memcpy(&product->bias, value, 8), SUCCESS : INVALID_VALUE;
    }
    return INVALID_VALUE;
}
int cublasLtMatmulPreferenceCreate(struct preference **preference) {
    *preference = calloc(1, sizeof **preference);
    (*preference)->reductions = ~0u;
    for (int i = 0; i < 4; i++) (*preference)->alignment[i] = 256;
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(struct preference *preference) { return free(preference), SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(struct preference *preference, int attribute, const void *value, size_t bytes) {
    if (attribute == 1 && bytes == 8) return memcpy(&preference->workspace, value, 8), SUCCESS;
    if (attribute == 3 && bytes == 4) return memcpy(&preference->reductions, value, 4), SUCCESS;
    if (attribute >= 5 && attribute <= 8 && bytes == 4) return memcpy(&preference->alignment[attribute - 5], value, 4), SUCCESS;
    return INVALID_VALUE;
}
// Its first choice splits K, its second wants too much workspace, its third is not supported: the fourth is the one to take.
int cublasLtMatmulAlgoGetHeuristic(void *handle, struct product *product, struct layout *a, struct layout *b, struct layout *c,
                                   struct layout *d, struct preference *preference, int requested, struct choice *choices, int *count) {
    (void)handle, (void)a, (void)b, (void)product;
    if (requested < 4 || c != d || preference->reductions != 0) return NOT_SUPPORTED;
    memset(choices, 0, 4 * sizeof *choices);
    for (int i = 0; i < 4; i++) choices[i].algorithm.data[0] = 1;
    choices[0].algorithm.data[0] = 4;
    choices[1].workspace = preference->workspace + 1;
    choices[2].state = NOT_SUPPORTED;
    choices[3].algorithm.data[1] = 1;
    return *count = 4, SUCCESS;
}
// Runs what its heuristic chose, and a second algorithm that the heuristic never chooses.
int cublasLtMatmulAlgoCheck(void *handle, struct product *product, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                            const struct algorithm *algorithm, struct choice *choice) {
    (void)handle, (void)product, (void)a, (void)b;
    if (c != d || algorithm->data[1] < 1 || algorithm->data[1] > 2) return NOT_SUPPORTED;
    return choice->algorithm = *algorithm, choice->workspace = 0, SUCCESS;
}
int cublasLtMatmulAlgoConfigGetAttribute(const struct algorithm *algorithm, int attribute, void *value, size_t bytes, size_t *written) {
    if (attribute != 2 || bytes != 4) return INVALID_VALUE;
    uint32_t parts = (uint32_t)algorithm->data[0];
    return memcpy(value, &parts, 4), *written = 4, SUCCESS;
}
int cublasLtMatmul(void *handle, struct product *product, const float *alpha, const uint16_t *a, struct layout *la, const uint16_t *b,
                   struct layout *lb, const float *beta, const void *c, struct layout *lc, void *d, struct layout *ld,
                   const struct algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    int types = la->type == BF16 && lb->type == BF16 && product->compute == 68 && product->scale == F32;
    if (!handle || !types || algorithm->data[1] < 1 || algorithm->data[1] > 2 || !workspace || workspace_bytes != WORKSPACE || !stream) return INVALID_VALUE;
    uint64_t inner = product->transposed_a ? la->rows : la->columns;
    if (inner != (product->transposed_b ? lb->columns : lb->rows)) return INVALID_VALUE;
    if (ld->rows != (product->transposed_a ? la->columns : la->rows)) return INVALID_VALUE;
    if (ld->columns != (product->transposed_b ? lb->rows : lb->columns) || lc != ld || c != d) return INVALID_VALUE;
    if (product->epilogue != 1 && (product->epilogue != 4 || ld->type != BF16)) return NOT_SUPPORTED;
    for (uint64_t column = 0; column < ld->columns; column++)
        for (uint64_t row = 0; row < ld->rows; row++) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; k++) {
                uint64_t at = product->transposed_a ? k + row * la->leading : row + k * la->leading;
                uint64_t bt = product->transposed_b ? column + k * lb->leading : k + column * lb->leading;
                sum += from_bf16(a[at]) * from_bf16(b[bt]);
            }
            uint64_t out = row + column * ld->leading;
            float before = *beta == 0 ? 0 : ld->type == BF16 ? from_bf16(((uint16_t *)d)[out]) : ((float *)d)[out];
            float value = *alpha * sum + *beta * before + (product->epilogue == 4 ? from_bf16(product->bias[row]) : 0);
            if (ld->type == BF16) ((uint16_t *)d)[out] = to_bf16(value);
            else ((float *)d)[out] = value;
        }
    return SUCCESS;
}
