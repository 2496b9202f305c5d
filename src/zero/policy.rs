//! What is stored how, and where: the choices that a plan is made of.

use crate::config::{GradientDtype, MasterWeights, MemoryConfig, Offload, OptimizerConfig, StateDtype};
use crate::tensor::DType;

/// How the flat buffers of a training job are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub state: StateDtype,
    pub master: MasterWeights,
    pub gradients: GradientDtype,
    /// What is at home in host memory.
    pub offload: Vec<Offload>,
    /// Gradients are applied block by block in the backward pass, and never summed: one micro-batch a rank and step, without clipping.
    pub gradient_release: bool,
    /// Elements that are staged at a time of buffers in host memory; a multiple of 4096.
    pub piece: usize,
}

impl Policy {
    /// Of moments: tens of megabytes, which a bus moves as fast as any.
    const PIECE: usize = 1 << 24;

    pub fn new(optimizer: &OptimizerConfig, memory: &MemoryConfig) -> Policy {
        Policy {
            state: optimizer.state,
            master: optimizer.master,
            gradients: optimizer.gradients,
            offload: memory.offload.clone(),
            gradient_release: memory.gradient_release,
            piece: Self::PIECE,
        }
    }

    /// f32 moments and gradients, exact masters, everything on the device.
    pub fn plain() -> Policy {
        Policy {
            state: StateDtype::Fp32,
            master: MasterWeights::Exact,
            gradients: GradientDtype::Fp32,
            offload: Vec::new(),
            gradient_release: false,
            piece: Self::PIECE,
        }
    }

    pub fn offloads(&self, what: Offload) -> bool {
        self.offload.contains(&what)
    }

    /// Bytes of a gradient, where it is summed or sent.
    pub fn gradient_bytes(&self) -> f64 {
        self.gradient_dtype().size() as f64
    }

    /// Of the sums of gradients, and of what ranks send one another.
    pub(super) fn gradient_dtype(&self) -> DType {
        match self.gradients {
            GradientDtype::Fp32 => DType::F32,
            GradientDtype::Bf16 => DType::Bf16,
        }
    }
}
