//! Shapes: up to four dimensions, row-major, copied by value.

use super::DType;
use crate::error::{Error, Result};
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
    /// If `dims` has more than [`MAX_RANK`] entries, or is larger than the address space.
    pub fn new(dims: &[usize]) -> Self {
        Self::checked(dims).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Shape::new`], but what is larger than the address space does not fit. So no later product of dimensions and
    /// element size overflows, of any run of rows either.
    ///
    /// # Panics
    /// If `dims` has more than [`MAX_RANK`] entries.
    pub fn checked(dims: &[usize]) -> Result<Self> {
        assert!(dims.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} dimensions, not {dims:?}");
        let bytes = dims.iter().try_fold(DType::F32.size(), |bytes, &dim| bytes.checked_mul(dim.max(1)));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::does_not_fit(format!("a tensor of {dims:?} is larger than the address space")));
        }
        let mut shape = Shape { dims: [1; MAX_RANK], rank: dims.len() as u8 };
        shape.dims[..dims.len()].copy_from_slice(dims);
        Ok(shape)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::tensor::{Arena, HostAllocator, Tensor};

    #[test]
    fn a_size_past_the_address_space_is_refused_before_anything_is_reserved() {
        for dims in [&[1 << 62][..], &[1 << 32, 1 << 32], &[0, 1 << 40, 1 << 40], &[usize::MAX, 2, 2, 2]] {
            let kinds = [
                Shape::checked(dims).err(),
                Tensor::alone(&HostAllocator, DType::F32, dims).err(),
                Arena::dry().tensor("x", DType::U8, dims).err(),
            ];
            assert_eq!(kinds.map(|error| error.map(|error| error.kind)), [Some(Kind::DoesNotFit); 3], "{dims:?}");
            assert!(std::panic::catch_unwind(|| Tensor::host(DType::F32, dims)).is_err(), "{dims:?}");
            let view = std::panic::catch_unwind(|| Tensor::host(DType::F32, &[0]).view().reshape(dims).elements());
            assert!(view.is_err(), "{dims:?}");
        }
        assert_eq!(Shape::new(&[0, 7]).elements(), 0);
        // Five of 2^62 bytes each: three fit beside one another, four would end at 2^64.
        let mut arena = Arena::dry();
        let errors: Vec<_> = (0..5).filter_map(|_| arena.tensor("x", DType::F32, &[1 << 60]).err()).collect();
        assert!(errors.len() == 2 && errors.iter().all(|error| error.kind == Kind::DoesNotFit), "{errors:?}");
    }
}
