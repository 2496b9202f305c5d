// What all attention kernels share: which rows a block works on, tiles of bf16 in shared memory, products of tiles on tensor cores.
// g = lane / 4 and c = lane % 4, as common/ptx.cuh numbers the lanes of a fragment.
#pragma once
#include "common/row.cuh"
#include "common/warp.cuh"

namespace limo {

// --- Work ---------------------------------------------------------------------------------------------------------------------

// Tile `index` of the `count` tiles of a sequence of `length` tokens, which starts at token `begin` of the batch.
struct SequenceTile {
    uint64_t begin;
    uint32_t sequence, length, index, count;
};

// What the block in `slot` works on, where every sequence is cut into tiles of ROWS tokens. Sequence s owns the slots from
// cu_seqlens[s] / ROWS + s up to where the next one begins. Those are at least as many as it has tiles, since
// floor((a + n) / R) - floor(a / R) + 1 >= ceil(n / R): the grid is floor(T / ROWS) + S slots, and needs no table. In a slot too
// many, index >= count.
template <int ROWS> __device__ __forceinline__ SequenceTile find_tile(const int32_t *cu_seqlens_gmem, uint32_t sequences, uint32_t slot) {
    uint32_t low = 0, high = sequences; // the sequence is in [low, high)
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (uint32_t(cu_seqlens_gmem[middle]) / ROWS + middle <= slot) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const uint32_t begin = uint32_t(cu_seqlens_gmem[low]), length = uint32_t(cu_seqlens_gmem[low + 1]) - begin;
    return {begin, low, length, slot - (begin / ROWS + low), (length + ROWS - 1) / ROWS};
}

// --- Tiles in shared memory ---------------------------------------------------------------------------------------------------

// Where chunk c of row r lies, a chunk being eight columns, 16 bytes. Shared memory has 32 banks of four bytes, so eight chunks
// can be read at once if they differ in their place modulo eight.
struct Plain { // c: the same chunk of eight rows is eight times the same place
    static __device__ __forceinline__ uint32_t place(uint32_t, uint32_t chunk) { return chunk; }
};
struct Swizzled { // c XOR r mod 8: the same chunk of eight neighbouring rows is eight different places, as are eight chunks of one row
    static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t chunk) { return chunk ^ row % 8; }
};

// ROWS rows of COLUMNS bf16; ROWS a multiple of 16, COLUMNS 64 or 128.
template <int ROWS_, int COLUMNS_, typename Layout_ = Swizzled> struct Tile {
    using Layout = Layout_;
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int CHUNKS = COLUMNS / int(CHUNK); // of a row
    static constexpr int ELEMENTS = ROWS * COLUMNS;
    static_assert(ROWS % 16 == 0 && (COLUMNS == 64 || COLUMNS == 128), "whole fragments; XOR keeps to a row");

    bf16 *smem;

    static __device__ __forceinline__ uint32_t offset(uint32_t row, uint32_t chunk) {
        return row * COLUMNS + Layout::place(row, chunk) * CHUNK;
    }
    // COUNT of its rows, from `row` on, a multiple of 8; COUNT is a multiple of 16.
    template <int COUNT> __device__ __forceinline__ Tile<COUNT, COLUMNS, Layout> part(uint32_t row) const {
        return {smem + row * COLUMNS};
    }
    // The 16 bytes of a chunk.
    __device__ __forceinline__ bf16 *chunk(uint32_t row, uint32_t chunk) const { return smem + offset(row, chunk); }
    // The two neighbours of an even column: four bytes.
    __device__ __forceinline__ uint32_t *pair(uint32_t row, uint32_t column) const {
        return reinterpret_cast<uint32_t *>(chunk(row, column / CHUNK) + column % CHUNK);
    }
};

// Calls f(chunk_smem, chunk_gmem, valid) for every chunk of a tile whose rows lie `stride` elements apart at `gmem`; valid: it is of the
// first `rows` rows. THREADS threads from `thread` 0 on take neighbouring chunks.
template <int THREADS, typename Tile, typename Pointer, typename F>
__device__ __forceinline__ void for_each_chunk(uint32_t thread, Tile tile, Pointer gmem, uint64_t stride, uint32_t rows, F f) {
    static_assert(Tile::ROWS * Tile::CHUNKS % THREADS == 0 && THREADS % Tile::CHUNKS == 0, "a thread keeps to one column of chunks");
    constexpr uint32_t STEP = THREADS / Tile::CHUNKS; // rows
    const uint32_t first = thread / Tile::CHUNKS, chunk = thread % Tile::CHUNKS;
    gmem += first * stride + chunk * CHUNK;
#pragma unroll
    for (uint32_t row = first, i = 0; i < Tile::ROWS / STEP; ++i, row += STEP, gmem += STEP * stride) {
        f(tile.chunk(row, chunk), gmem, row < rows);
    }
}

// Copies the first `rows` rows at `from_gmem`, and zeros behind them: a product with a row that does not exist is then zero, and not
// whatever lay there. The block's THREADS threads do it together; a barrier comes after.
template <int THREADS, typename Tile>
__device__ __forceinline__ void copy_tile(Tile tile, const bf16 *from_gmem, uint64_t stride, uint32_t rows) {
    for_each_chunk<THREADS>(threadIdx.x, tile, from_gmem, stride, rows, [](bf16 *to_smem, const bf16 *chunk_gmem, bool valid) {
        st128(to_smem, valid ? ld128(chunk_gmem) : vec128{});
    });
}

// The same by asynchronous copies, for the caller to commit and to wait for.
template <int THREADS, typename Tile>
__device__ __forceinline__ void copy_tile_async(Tile tile, const bf16 *from_gmem, uint64_t stride, uint32_t rows) {
    for_each_chunk<THREADS>(threadIdx.x, tile, from_gmem, stride, rows, [](bf16 *to_smem, const bf16 *chunk_gmem, bool valid) {
        copy_async(to_smem, chunk_gmem, valid);
    });
}

// Stores the first `rows` rows of a tile.
template <int THREADS, typename Tile>
__device__ __forceinline__ void store_tile(uint32_t thread, Tile tile, bf16 *to_gmem, uint64_t stride, uint32_t rows) {
    for_each_chunk<THREADS>(thread, tile, to_gmem, stride, rows, [](const bf16 *from_smem, bf16 *chunk_gmem, bool valid) {
        if (valid) st128_global(chunk_gmem, ld128(from_smem));
    });
}

// --- Fragments ----------------------------------------------------------------------------------------------------------------
// ldmatrix loads 16 × 16 elements as four 8 × 8 matrices, and what order it takes them in decides what the registers mean. `row` and
// `column` are multiples of 16, so they touch no bit that the swizzle mixes except by the XOR with `column`: a lane computes one
// offset, and every fragment of a tile is that offset XOR a constant, plus a constant.

enum class Order { DOWN_FIRST, ACROSS_FIRST };

template <Order ORDER, typename Tile>
__device__ __forceinline__ const bf16 *matrix_row(Tile tile, uint32_t row, uint32_t column) {
    const uint32_t lane = uint32_t(lane_index());
    const uint32_t within = lane % 8, first = lane / 8 % 2, second = lane / 16;
    const uint32_t down = ORDER == Order::DOWN_FIRST ? first : second, across = ORDER == Order::DOWN_FIRST ? second : first;
    return tile.smem + row * Tile::COLUMNS + (Tile::offset(8 * down + within, across) ^ column);
}

// The factor a of m16n8k16 out of X: a[i, k] = X[row + i, column + k].
template <typename Tile>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], Tile x, uint32_t row, uint32_t column) {
    ldmatrix_x4(a, matrix_row<Order::DOWN_FIRST>(x, row, column));
}

// The factor a out of X transposed: a[i, k] = X[row + k, column + i].
template <typename Tile>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], Tile x, uint32_t row, uint32_t column) {
    ldmatrix_x4_transposed(a, matrix_row<Order::ACROSS_FIRST>(x, row, column));
}

// Two factors b, of 16 columns together, out of X: b[k, j] = X[row + k, column + j].
template <typename Tile>
__device__ __forceinline__ void load_b(uint32_t (&b)[2][2], Tile x, uint32_t row, uint32_t column) {
    uint32_t loaded[4];
    ldmatrix_x4_transposed(loaded, matrix_row<Order::DOWN_FIRST>(x, row, column));
    b[0][0] = loaded[0], b[0][1] = loaded[1], b[1][0] = loaded[2], b[1][1] = loaded[3];
}

// Two factors b out of X transposed: b[k, j] = X[row + j, column + k].
template <typename Tile>
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[2][2], Tile x, uint32_t row, uint32_t column) {
    uint32_t loaded[4];
    ldmatrix_x4(loaded, matrix_row<Order::ACROSS_FIRST>(x, row, column));
    b[0][0] = loaded[0], b[0][1] = loaded[1], b[1][0] = loaded[2], b[1][1] = loaded[3];
}

// --- Products of a warp -------------------------------------------------------------------------------------------------------

// A warp's part of a product, 16 M rows of 8 N columns in f32: at[m][n][i] is row 16 m + g + 8 (i / 2), column 8 n + 2 c + i % 2.
template <int M_, int N_> struct Accumulator {
    static constexpr int M = M_, N = N_;
    float at[M][N][4];

    // Calls f(value, row, column) for each element of this lane.
    template <typename F> __device__ __forceinline__ void for_each(F f) {
        const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
        for (uint32_t m = 0; m < M; ++m) {
#pragma unroll
            for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) f(at[m][n][i], 16 * m + g + 8 * (i / 2), 8 * n + 2 * c + i % 2);
            }
        }
    }

    // Rounds columns 16 k to 16 k + 15 of rows 16 m on to bf16, as the factor a of another product: the sums of one product lie in the
    // registers where the next wants its factor, so they need not pass through shared memory.
    __device__ __forceinline__ void as_a(uint32_t (&a)[4], int m, int k) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float *pair = &at[m][2 * k + i / 2][2 * (i % 2)];
            a[i] = pack_bf16x2(pair[0], pair[1]);
        }
    }

    // Rounds to bf16 and stores from (row, column) on.
    template <typename Tile> __device__ __forceinline__ void store(Tile tile, uint32_t row, uint32_t column) const {
        const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
        for (uint32_t m = 0; m < M; ++m) {
#pragma unroll
            for (uint32_t n = 0; n < N; ++n) {
                *tile.pair(row + 16 * m + g, column + 8 * n + 2 * c) = pack_bf16x2(at[m][n][0], at[m][n][1]);
                *tile.pair(row + 16 * m + g + 8, column + 8 * n + 2 * c) = pack_bf16x2(at[m][n][2], at[m][n][3]);
            }
        }
    }
};

// Sums all rounded to factors at once, which halves the registers that they take.
template <int M, int K> struct Factor {
    uint32_t at[K][M][4];

    explicit __device__ __forceinline__ Factor(const Accumulator<M, 2 * K> &sums) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int m = 0; m < M; ++m) sums.as_a(at[k][m], m, k);
        }
    }
};

// d += a · b for the M × 2 fragments of one step.
template <int M, int N>
__device__ __forceinline__ void multiply_step(Accumulator<M, N> &d, int n, const uint32_t (&a)[M][4], const uint32_t (&b)[2][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
        mma_m16n8k16(d.at[m][n], a[m], b[0]);
        mma_m16n8k16(d.at[m][n + 1], a[m], b[1]);
    }
}

// d += X[row .. row + 16 M, :] · Y[:, :]ᵀ: scores. d has a column a row of Y.
template <int M, int N, typename X, typename Y>
__device__ __forceinline__ void multiply_transposed(Accumulator<M, N> &d, X x, uint32_t row, Y y) {
    static_assert(X::COLUMNS == Y::COLUMNS && 8 * N == Y::ROWS, "a column of d a row of Y");
#pragma unroll
    for (int k = 0; k < X::COLUMNS; k += 16) {
        uint32_t a[M][4], b[2][2];
#pragma unroll
        for (int m = 0; m < M; ++m) load_a(a[m], x, row + 16 * m, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_b_transposed(b, y, 8 * n, k);
            multiply_step(d, n, a, b);
        }
    }
}

// d += a · Y[row .. row + 16, :].
template <int M, int N, typename Y>
__device__ __forceinline__ void multiply_rows(Accumulator<M, N> &d, const uint32_t (&a)[M][4], Y y, uint32_t row) {
    static_assert(8 * N == Y::COLUMNS, "a column of d a column of Y");
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t b[2][2];
        load_b(b, y, row, 8 * n);
        multiply_step(d, n, a, b);
    }
}

// d += x · Y: x has a column a row of Y.
template <int M, int N, int K, typename Y>
__device__ __forceinline__ void multiply(Accumulator<M, N> &d, const Factor<M, K> &x, Y y) {
    static_assert(16 * K == Y::ROWS, "a column of x a row of Y");
#pragma unroll
    for (int k = 0; k < K; ++k) multiply_rows(d, x.at[k], y, 16 * k);
}

// The same, x rounded from sums where it is needed.
template <int M, int N, int K, typename Y>
__device__ __forceinline__ void multiply(Accumulator<M, N> &d, const Accumulator<M, K> &x, Y y) {
    static_assert(8 * K == Y::ROWS, "a column of x a row of Y");
#pragma unroll
    for (int k = 0; k < K / 2; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) x.as_a(a[m], m, k);
        multiply_rows(d, a, y, 16 * k);
    }
}

} // namespace limo
