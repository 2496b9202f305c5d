//! Shapes: up to four dimensions, row-major, copied by value.

use std::fmt;
use std::ops::Deref;

pub const MAX_RANK: usize = 4;

/// Dimensions of a dense row-major tensor, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// # Panics
    /// If `dims` has more than [`MAX_RANK`] entries.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} dimensions, not {dims:?}");
        let mut shape = Shape { dims: [1; MAX_RANK], rank: dims.len() as u8 };
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape
    }

    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// Elements of one step along the first dimension.
    pub fn row_elements(&self) -> usize {
        self.iter().skip(1).product()
    }

    pub(super) fn with_rows(mut self, rows: usize) -> Self {
        self.dims[0] = rows;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
