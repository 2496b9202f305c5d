// The running softmax over rows of scores, as all tensor-core versions of attention carry it, and what becomes of a row at its end.
#pragma once
#include "attention/tile.cuh"

namespace limo {

__device__ __forceinline__ float minus_infinity() { return bits_as_float(0xff800000u); }

// The running softmax of the 16 M rows of a warp's accumulators. The four lanes of a quad share a row: all know its highest score, each has
// the sum over its own columns. A row's highest starts from `lowest`.
template <int M> struct RunningSoftmax {
    float highest[M][2], sum[M][2];

    explicit __device__ __forceinline__ RunningSoftmax(float lowest = minus_infinity()) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) highest[m][half] = lowest, sum[m][half] = 0;
        }
    }

    // Takes in the next keys' scores, which `scale` turns into exponents of two, and leaves their weights: two to the power of how far an
    // exponent is above the highest so far. `out` is scaled to the new highest. Each row sees a key among the
    // first that it is given, unless `lowest` is a number.
    template <int N, int D> __device__ __forceinline__ void update(Accumulator<M, N> &s, Accumulator<M, D> &out, float scale = 1.0f) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float now = minus_infinity();
#pragma unroll
                for (int n = 0; n < N; ++n) now = maximum(now, maximum(s.at[m][n][2 * half], s.at[m][n][2 * half + 1]));
                now = maximum(now, shuffle_xor(now, 1));
                now = maximum(now, shuffle_xor(now, 2));
                now = maximum(highest[m][half], now * scale);
                const float rescale = exp2_approximate(highest[m][half] - now); // 0 the first time
                highest[m][half] = now;
                float added = 0;
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        s.at[m][n][i] = exp2_approximate(multiply_add(s.at[m][n][i], scale, -now));
                        added += s.at[m][n][i];
                    }
                }
                sum[m][half] = multiply_add(sum[m][half], rescale, added);
#pragma unroll
                for (int n = 0; n < D; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) out.at[m][n][i] *= rescale;
                }
            }
        }
    }

    // The sum of a row over its quad.
    __device__ __forceinline__ float total(int m, int half) const {
        const float pair = sum[m][half] + shuffle_xor(sum[m][half], 1);
        return pair + shuffle_xor(pair, 2);
    }

    // Divides the rows of `out` by their sums; one lane of each calls tell(row, highest, sum).
    template <int D, typename F> __device__ __forceinline__ void divide(Accumulator<M, D> &out, F tell) const {
        const uint32_t lane = uint32_t(lane_index());
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float all = total(m, half);
                if (lane % 4 == 0) tell(16 * m + 8 * half + lane / 4, highest[m][half], all);
                const float share = reciprocal_approximate(all);
#pragma unroll
                for (int n = 0; n < D; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) out.at[m][n][i] *= share;
                }
            }
        }
    }
};

// Stores a warp's rows, the first `valid` of them. `own`, which only this warp reads, leaves its place in shared memory to them, so that fragments become
// whole rows of 16-byte chunks.
template <int M, int D, typename Own>
__device__ __forceinline__ void store_rows(const Accumulator<M, D> &out, Own own, bf16 *to_gmem, uint64_t stride, uint32_t valid) {
    warp_barrier(); // without it a lane could overwrite what another has yet to load
    out.store(own, 0, 0);
    warp_barrier(); // without it a lane would store chunks that others have not filled
    store_tile<WARP>(uint32_t(lane_index()), own, to_gmem, stride, valid);
}

} // namespace limo
