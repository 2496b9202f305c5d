//! What the 32 lanes of a warp do together: each gives words, the last one to arrive works on those of all, and each takes its own.

/// Lanes of a warp.
pub const WARP: usize = 32;

/// An operation of a whole warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarpOp {
    Barrier,
    Shuffle,
    Ballot,
    /// mma.m16n8k16
    Product,
    /// ldmatrix.x4
    LoadMatrices {
        transposed: bool,
    },
}

/// A warp at an operation. A register of all lanes is a row of words.
pub struct Warp {
    /// A bit a lane that has arrived.
    pub arrived: u32,
    /// What they have arrived at.
    pub op: WarpOp,
    /// What the lanes that have arrived gave.
    pub given: [[u32; WARP]; 10],
    /// What they take. It is overwritten when the next operation is complete, so after everyone took it.
    pub taken: [[u32; WARP]; 4],
}

impl Warp {
    pub fn new() -> Self {
        Warp { arrived: 0, op: WarpOp::Barrier, given: [[0; WARP]; 10], taken: [[0; WARP]; 4] }
    }

    /// Fills `taken`, when every lane has given. Matrices are read through the addresses in `given[0]` (low words) and `given[1]`.
    ///
    /// # Safety
    /// The addresses given to LoadMatrices are valid for 16 bytes each.
    pub unsafe fn complete(&mut self) {
        match self.op {
            WarpOp::Barrier => {}
            WarpOp::Shuffle => self.taken[0] = self.given[1].map(|source| self.given[0][source as usize % WARP]),
            WarpOp::Ballot => {
                let ballot = (0..WARP).fold(0, |bits, lane| bits | self.given[0][lane] << lane);
                self.taken[0] = [ballot; WARP];
            }
            WarpOp::Product => self.multiply(),
            // SAFETY: the caller's promise.
            WarpOp::LoadMatrices { transposed } => unsafe { self.load_matrices(transposed) },
        }
    }

    /// The address that a lane gave to LoadMatrices: row lane % 8 of matrix lane / 8.
    pub fn row(&self, lane: usize) -> u64 {
        u64::from(self.given[0][lane]) | u64::from(self.given[1][lane]) << 32
    }

    /// # Safety
    /// Every row is valid for 16 bytes.
    unsafe fn load_matrices(&mut self, transposed: bool) {
        for matrix in 0..4 {
            // SAFETY: the caller's promise.
            let rows: [[u16; 8]; 8] = std::array::from_fn(|row| unsafe { *(self.row(8 * matrix + row) as *const [u16; 8]) });
            self.taken[matrix] = std::array::from_fn(|lane| {
                let (group, pair) = (lane / 4, lane % 4 * 2);
                let (low, high) = match transposed {
                    false => (rows[group][pair], rows[group][pair + 1]),
                    true => (rows[pair][group], rows[pair + 1][group]),
                };
                u32::from(low) | u32::from(high) << 16
            });
        }
    }

    /// d + a · b of the fragments that `ptx.cuh` draws: registers 0-3 hold d, 4-7 a, 8 and 9 b. Products of bf16 are exact in f32; sums
    /// run over two halves of k, so the error stays below 2^-20 of the sum of magnitudes.
    fn multiply(&mut self) {
        let low = |word: u32| f32::from_bits(word << 16);
        let high = |word: u32| f32::from_bits(word & 0xffff_0000);
        let (sums, factors) = self.given.split_at(4);
        let mut b = [[0.0f32; 8]; 16]; // [k, column]
        for (register, words) in factors[4..].iter().enumerate() {
            for (lane, &word) in words.iter().enumerate() {
                let (row, column) = (lane % 4 * 2 + register * 8, lane / 4);
                (b[row][column], b[row + 1][column]) = (low(word), high(word));
            }
        }
        for group in 0..8 {
            for upper in 0..2 {
                let mut halves = [[0.0f32; 8]; 2]; // [half of k, column]
                for (half, sum) in halves.iter_mut().enumerate() {
                    for pair in 0..4 {
                        let word = factors[2 * half + upper][4 * group + pair];
                        let (even, odd) = (b[8 * half + 2 * pair], b[8 * half + 2 * pair + 1]);
                        for column in 0..8 {
                            sum[column] += low(word) * even[column] + high(word) * odd[column];
                        }
                    }
                }
                let products: [f32; 8] = std::array::from_fn(|column| halves[0][column] + halves[1][column]);
                for (column, product) in products.into_iter().enumerate() {
                    let (register, lane) = (2 * upper + column % 2, 4 * group + column / 2);
                    self.taken[register][lane] = (f32::from_bits(sums[register][lane]) + product).to_bits();
                }
            }
        }
    }
}
