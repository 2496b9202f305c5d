//! What a step tells the device: numbers that the host writes one after another, and that cross in one copy.

use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};
use std::ops::Range;

/// Each array begins at a multiple of this many numbers.
const ALIGNMENT: usize = 32;

/// Writes arrays into the host's copy.
pub struct Writer<'a> {
    words: &'a mut [i32],
    used: usize,
}

impl<'a> Writer<'a> {
    pub fn new(staging: ViewMut<'a>) -> Self {
        Writer { words: staging.i32(), used: 0 }
    }

    /// An array of `length` numbers, of which the first are given and the others `rest`.
    pub fn array(&mut self, length: usize, numbers: impl IntoIterator<Item = i32>, rest: i32) -> Result<Range<usize>> {
        let range = self.used..self.used + length;
        let array = self.words.get_mut(range.clone()).ok_or_else(|| Error::internal("the inputs of a step do not fit"))?;
        let mut numbers = numbers.into_iter();
        array.fill_with(|| numbers.next().unwrap_or(rest));
        self.used = range.end.next_multiple_of(ALIGNMENT);
        Ok(range)
    }

    /// Rows of `width` numbers each, of which the first are given and the others 0.
    pub fn table<I: Iterator<Item = u32>>(
        &mut self,
        rows: usize,
        width: usize,
        given: impl Iterator<Item = I>,
    ) -> Result<Range<usize>> {
        let range = self.array(rows * width, [], 0)?;
        for (row, numbers) in self.words[range.clone()].chunks_exact_mut(width).zip(given) {
            row.iter_mut().zip(numbers).for_each(|(to, number)| *to = number as i32);
        }
        Ok(range)
    }

    /// Numbers to copy.
    pub fn used(&self) -> usize {
        self.used.min(self.words.len())
    }
}

/// Numbers that `arrays` of these lengths take.
pub fn words(arrays: &[usize]) -> usize {
    arrays.iter().map(|length| length.next_multiple_of(ALIGNMENT)).sum()
}

/// An array of the device's copy under its shape.
pub fn cut<'a>(inputs: View<'a>, range: Range<usize>, shape: &[usize]) -> View<'a> {
    inputs.rows(range).reshape(shape)
}
