//! One rank alone.

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
