//! One rank alone, and ranks that are only planned.

use super::{Comm, expect_sizes};
use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};

pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        1
    }
    fn describe(&self) -> String {
        "one rank".to_string()
    }
    fn all_gather(&self, part: View, whole: ViewMut) -> Result<()> {
        expect_sizes("all_gather", part, whole.as_view(), 1)?;
        Err(Error::internal("one rank has nothing to gather"))
    }
    fn exchange(&self, sent: View, received: ViewMut) -> Result<()> {
        expect_sizes("exchange", sent, received.as_view(), 1)?;
        Err(Error::internal("one rank has nobody to exchange with"))
    }
    fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }
}

/// Rank 0 of a group that does not exist: what is reserved on each of its ranks can be measured.
pub struct Planned {
    pub world: usize,
}

impl Comm for Planned {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        self.world
    }
    fn describe(&self) -> String {
        format!("{} planned ranks", self.world)
    }
    fn all_gather(&self, _part: View, _whole: ViewMut) -> Result<()> {
        Err(Error::internal("ranks that are only planned gather nothing"))
    }
    fn exchange(&self, _sent: View, _received: ViewMut) -> Result<()> {
        Err(Error::internal("ranks that are only planned exchange nothing"))
    }
    fn share(&self, _bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Err(Error::internal("ranks that are only planned say nothing"))
    }
}
