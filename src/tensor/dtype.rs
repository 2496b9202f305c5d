//! Element types.

use std::fmt;

/// The element types that buffers hold. Policy (docs/numerics.md): bf16 storage on GPUs, f32 on CPUs, f32 statistics
/// and accumulation everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    Bf16,
    I32,
    U16,
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::U16 => 2,
            DType::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U16 => "u16",
            DType::U8 => "u8",
        })
    }
}
