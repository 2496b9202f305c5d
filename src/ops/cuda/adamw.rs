//! AdamW: launches of `kernels/adamw/`.

use super::ladder::{expect_aligned, launch};
use super::params::{ADAMW_BLOCK, AdamWParams, Ptr};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::{AdamW, Master, Moment};
use crate::tensor::DType;

const _: () = assert!(ADAMW_BLOCK as usize == Moment::BLOCK);

const THREADS: u32 = 256;

/// What an update's operands are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// f32, bf16, or u8 with scales; of both moments.
    pub moments: DType,
    /// With remainders; otherwise parameters are rounded stochastically.
    pub exact: bool,
    /// f32 or bf16.
    pub grad: DType,
}

impl Storage {
    /// The default of training: what every version is written for.
    pub const DEFAULT: Self = Storage { moments: DType::F32, exact: true, grad: DType::F32 };
}

/// One rung of the ladder. Every version computes the same bits; the last is the one that ships.
#[derive(Debug)]
pub struct Version {
    pub name: &'static str,
    /// The one idea it adds to the version before.
    pub idea: &'static str,
    kernel: fn(Storage) -> Option<&'static str>,
    /// Elements of a thread.
    elements: u32,
}

impl Version {
    /// Whether there is a kernel for this storage.
    pub fn takes(&self, storage: Storage) -> bool {
        (self.kernel)(storage).is_some()
    }
}

pub const ADAMW: [Version; 3] = [
    Version {
        name: "1",
        idea: "naive: a thread an element",
        kernel: |storage| (storage == Storage::DEFAULT).then_some("adamw_1"),
        elements: 1,
    },
    Version {
        name: "2",
        idea: "16-byte accesses: eight elements a thread, 128 bytes in flight",
        kernel: |storage| (storage == Storage::DEFAULT).then_some("adamw_2"),
        elements: 8,
    },
    Version {
        name: "3",
        idea: "fewer bytes: moments in bf16 or 8 bits in the same pass; stores that leave the caches first",
        kernel: streaming,
        elements: 8,
    },
];

fn streaming(storage: Storage) -> Option<&'static str> {
    use DType::{Bf16, F32, U8};
    Some(match (storage.moments, storage.exact, storage.grad) {
        (F32, true, F32) => "adamw_3_f32_exact_f32",
        (F32, true, Bf16) => "adamw_3_f32_exact_bf16",
        (F32, false, F32) => "adamw_3_f32_stochastic_f32",
        (F32, false, Bf16) => "adamw_3_f32_stochastic_bf16",
        (Bf16, true, F32) => "adamw_3_bf16_exact_f32",
        (Bf16, true, Bf16) => "adamw_3_bf16_exact_bf16",
        (Bf16, false, F32) => "adamw_3_bf16_stochastic_f32",
        (Bf16, false, Bf16) => "adamw_3_bf16_stochastic_bf16",
        (U8, true, F32) => "adamw_3_int8_exact_f32",
        (U8, true, Bf16) => "adamw_3_int8_exact_bf16",
        (U8, false, F32) => "adamw_3_int8_stochastic_f32",
        (U8, false, Bf16) => "adamw_3_int8_stochastic_bf16",
        _ => return None,
    })
}

/// Runs `version` of the ladder. Parameters are bf16, operands start at multiples of 16 bytes, and both moments are stored alike.
pub fn adamw(launcher: &dyn Launcher, version: &Version, op: AdamW) -> Result<()> {
    const OP: &str = "adamw";
    op.check()?;
    let factors = op.factors();
    let count = op.param.elements();
    let remainder = match &op.master {
        Master::None => 0,
        Master::Remainder(remainder) => remainder.address(),
    };
    let [param, grad, m, v] = [op.param.address(), op.grad.address(), op.m.values.address(), op.v.values.address()];
    expect_aligned(OP, &[param, remainder, grad, m, v])?;
    let (storage, dtypes) = (
        Storage { moments: op.m.values.dtype(), exact: remainder != 0, grad: op.grad.dtype() },
        [op.param.dtype(), op.v.values.dtype()],
    );
    let kernel = (version.kernel)(storage).filter(|_| dtypes == [DType::Bf16, storage.moments]).ok_or_else(|| {
        let Storage { moments, exact, grad } = storage;
        let [param, v] = dtypes;
        Error::internal(format!(
            "{OP} {}: no kernel for param {param}, {}, m {moments}, v {v}, grad {grad}",
            version.name,
            if exact { "remainder" } else { "no remainder" }
        ))
    })?;
    if count == 0 {
        return Ok(());
    }
    let scales = |moment: &Moment| Ptr::new(moment.scales.as_ref().map_or(0, |scales| scales.address()));
    let params = AdamWParams {
        param: Ptr::new(param),
        remainder: Ptr::new(remainder),
        grad: Ptr::new(grad),
        m: Ptr::new(m),
        v: Ptr::new(v),
        m_scales: scales(&op.m),
        v_scales: scales(&op.v),
        count: count as u64,
        seed: op.seed,
        step: op.step,
        first: op.first,
        decay: factors.decay,
        step_size: factors.step_size,
        v_root: factors.v_root,
        beta2: factors.beta2,
        rest1: factors.rest1,
        rest2: factors.rest2,
        eps: factors.eps,
        grad_scale: op.grad_scale,
    };
    let blocks = count.div_ceil((THREADS * version.elements) as usize);
    let blocks = i32::try_from(blocks).map_err(|_| Error::internal(format!("{OP}: {count} elements are beyond one launch")))?;
    // SAFETY: the kernel's own parameter block, over views that `check` found to have one extent.
    unsafe { launcher.launch(kernel, launch(blocks as u32, THREADS, 0), bytemuck::bytes_of(&params)) }
}
