//! The backend of GPUs: every op through the version of its ladder that ships, products through cuBLASLt. Over the emulator the same
//! kernels run on the CPU, and products are the CPU backend's, on the same bf16 operands.

use super::attention::HEAD_DIMS;
use super::gemm::CublasLt;
use super::{
    adamw, attention, bias, classifier, elementwise, embedding, paged_attention, rms_norm, rope, sampling, square_sums, swiglu,
};
use crate::device::driver::Driver;
use crate::device::gpu::peak_bf16_flops;
use crate::device::nvtx;
use crate::device::{self, Event, Launcher, Stream};
use crate::error::{Error, Result};
use crate::ops::*;
use crate::tensor::{Allocator, DType, Shape, View, ViewMut};
use std::any::Any;
use std::sync::Arc;

pub struct Cuda {
    device: Device,
    /// Of the first queue: the backend of the second.
    beside: Option<Box<Cuda>>,
}

enum Device {
    Gpu {
        driver: Box<Driver>,
        products: CublasLt,
    },
    Emulated(Box<dyn Launcher>),
    /// The second queue, of either.
    Beside(Box<dyn Launcher>),
}

impl Cuda {
    /// Few shapes of micro-batches, so that cuBLASLt chooses few algorithms, and tiles of kernels are mostly full.
    pub const TOKEN_MULTIPLE: usize = 256;

    /// Errors: usage, if cuBLASLt is missing.
    pub fn on_gpu(driver: Driver) -> Result<Self> {
        let products = CublasLt::new(&driver)?;
        let beside = Self::second_queue(&driver);
        Ok(Cuda { device: Device::Gpu { driver: Box::new(driver), products }, beside })
    }

    /// Any other launcher, with products on the host.
    pub fn emulated(launcher: impl Launcher + 'static) -> Self {
        let beside = Self::second_queue(&launcher);
        Cuda { device: Device::Emulated(Box::new(launcher)), beside }
    }

    fn second_queue(launcher: &dyn Launcher) -> Option<Box<Cuda>> {
        Some(Box::new(Cuda { device: Device::Beside(launcher.on(Stream::Copy)), beside: None }))
    }

    fn launcher(&self) -> &dyn Launcher {
        match &self.device {
            Device::Gpu { driver, .. } => driver.as_ref(),
            Device::Emulated(launcher) | Device::Beside(launcher) => launcher.as_ref(),
        }
    }
}

/// A product on the host, in the stream's order.
fn product_on_host(launcher: &dyn Launcher, op: Gemm) -> Result<()> {
    op.check()?;
    let Gemm { a, b, bias, c, accumulate, .. } = op;
    let out = c.as_view();
    // SAFETY: the stream's order keeps other work away from these elements, as it does for launches; memory goes only when all work is done.
    let (a, b, bias, to) = unsafe {
        let operand = |x: Operand| (x.view.unbounded(), x.transposed);
        (operand(a), operand(b), bias.map(|bias| bias.unbounded()), out.unbounded())
    };
    let run = move || {
        let operand = |(view, transposed)| Operand { view, transposed };
        // SAFETY: as above.
        let c = unsafe { to.writable() };
        let product = Gemm { a: operand(a), b: operand(b), bias, c, accumulate, algorithm_rows: None };
        cpu::rounded::gemm(product).expect("the operands were checked");
    };
    launcher.issue_host(Arc::new(run), out)
}

/// Puts the op and the shape of its main operand before an error of a launch, which names kernel and CUDA error.
fn named(op: &str, shape: Shape, run: impl FnOnce() -> Result<()>) -> Result<()> {
    run().map_err(|error| error.context(format!("{op} over {shape}")))
}

fn event(mark: &Mark) -> Result<&dyn Event> {
    let event = mark.downcast_ref::<Box<dyn Event>>().ok_or_else(|| Error::internal("a mark of another backend"))?;
    Ok(event.as_ref())
}

/// The version of a ladder that ships.
fn shipped<V>(ladder: &[V]) -> &V {
    ladder.last().expect("a ladder has a version")
}

impl Ops for Cuda {
    fn device(&self) -> String {
        self.launcher().device()
    }
    fn dtype(&self) -> DType {
        DType::Bf16
    }
    fn token_multiple(&self) -> usize {
        Self::TOKEN_MULTIPLE
    }

    fn require(&self, heads: HeadLayout, widths: &[(&str, usize)]) -> Result<()> {
        // Rows of whole 16-byte vectors, which cuBLASLt is promised.
        const WIDTH_MULTIPLE: usize = 8;
        let refuse = |what: String| Err(Error::usage(what).help("pass --device cpu"));
        if !HEAD_DIMS.contains(&heads.dim) {
            return refuse(format!(
                "the CUDA kernels know heads of {} and {} elements; this model has {}",
                HEAD_DIMS[0], HEAD_DIMS[1], heads.dim
            ));
        }
        match widths.iter().find(|(_, width)| !width.is_multiple_of(WIDTH_MULTIPLE)) {
            Some((key, width)) => {
                refuse(format!("{key} = {width} is not a multiple of {WIDTH_MULTIPLE}, as products on a GPU need"))
            }
            None => Ok(()),
        }
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        self.launcher().free_memory()
    }
    fn steady_rows(&self, columns: usize) -> usize {
        match &self.device {
            Device::Emulated(_) => cpu::CpuBf16.steady_rows(columns),
            Device::Gpu { .. } | Device::Beside(_) => 1,
        }
    }
    fn peak_flops(&self) -> Option<f64> {
        match &self.device {
            Device::Gpu { driver, .. } => peak_bf16_flops(&driver.info().name),
            Device::Emulated(_) | Device::Beside(_) => None,
        }
    }
    fn product_algorithms(&self) -> Vec<serde_json::Value> {
        match &self.device {
            Device::Gpu { products, .. } => products.algorithms(),
            Device::Emulated(_) | Device::Beside(_) => Vec::new(),
        }
    }
    fn use_product_algorithms(&self, rows: &[serde_json::Value]) -> Result<()> {
        match &self.device {
            Device::Gpu { products, .. } => products.use_algorithms(rows),
            Device::Emulated(_) | Device::Beside(_) => Ok(()),
        }
    }
    fn range(&self, name: &str) -> Box<dyn Any> {
        Box::new(nvtx::range(name))
    }
    fn overlaps(&self) -> bool {
        true
    }
    fn allocator(&self) -> &dyn Allocator {
        self.launcher().allocator()
    }

    fn host_allocator(&self) -> &dyn Allocator {
        self.launcher().host_allocator()
    }
    fn beside(&self) -> &dyn Ops {
        self.beside.as_deref().unwrap_or(self)
    }
    fn mark(&self) -> Result<Mark> {
        Ok(Box::new(self.launcher().mark()?))
    }
    fn wait(&self, mark: &Mark) -> Result<()> {
        self.launcher().wait(event(mark)?)
    }
    fn seconds_between(&self, start: &Mark, end: &Mark) -> Result<Option<f64>> {
        Ok(Some(event(end)?.milliseconds_since(event(start)?)? / 1e3))
    }
    fn is_done(&self, mark: &Mark) -> Result<bool> {
        event(mark)?.is_done()
    }
    fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        named("copy", *x.shape(), || self.launcher().copy(x, out))
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recording>> {
        Ok(Some(Box::new(self.launcher().record(body)?)))
    }
    fn replay(&self, recording: &Recording) -> Result<()> {
        let recording = recording.downcast_ref::<Box<dyn device::Recording>>();
        recording.ok_or_else(|| Error::internal("a recording of another backend"))?.issue()
    }

    fn fill(&self, out: ViewMut, value: f32) -> Result<()> {
        named("fill", *out.shape(), || elementwise::fill(self.launcher(), out, value))
    }
    fn add(&self, x: View, out: ViewMut) -> Result<()> {
        named("add", *x.shape(), || elementwise::add(self.launcher(), x, out))
    }
    fn cast(&self, x: View, out: ViewMut) -> Result<()> {
        named("cast", *x.shape(), || elementwise::cast(self.launcher(), x, out))
    }
    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        self.launcher().upload(bytes, out)
    }
    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        self.launcher().download(x, out)
    }
    fn synchronize(&self) -> Result<()> {
        self.launcher().synchronize()
    }

    fn gemm(&self, op: Gemm) -> Result<()> {
        match &self.device {
            Device::Gpu { driver, products } => products.gemm(driver, op),
            Device::Emulated(launcher) => product_on_host(launcher.as_ref(), op),
            Device::Beside(_) => Err(Error::internal("a product was issued to the second queue")),
        }
    }
    fn bias_backward(&self, op: BiasBackward) -> Result<()> {
        let run = |op| bias::bias_backward(self.launcher(), shipped(&bias::BACKWARD), op);
        named("bias_backward", *op.dy.shape(), || run(op))
    }
    fn embedding(&self, op: Embedding) -> Result<()> {
        let run = |op| embedding::embedding(self.launcher(), shipped(&embedding::FORWARD), op);
        named("embedding", *op.out.shape(), || run(op))
    }
    fn embedding_backward(&self, op: EmbeddingBackward) -> Result<()> {
        let run = |op| embedding::embedding_backward(self.launcher(), shipped(&embedding::BACKWARD), op);
        named("embedding_backward", *op.dout.shape(), || run(op))
    }
    fn rms_norm(&self, op: RmsNorm) -> Result<()> {
        let run = |op| rms_norm::rms_norm(self.launcher(), shipped(&rms_norm::FORWARD), op);
        named("rms_norm", *op.x.shape(), || run(op))
    }
    fn rms_norm_backward(&self, op: RmsNormBackward) -> Result<()> {
        let run = |op| rms_norm::rms_norm_backward(self.launcher(), shipped(&rms_norm::BACKWARD), op);
        named("rms_norm_backward", *op.dy.shape(), || run(op))
    }
    fn rope(&self, op: Rope) -> Result<()> {
        named("rope", *op.qkv.shape(), || rope::rope(self.launcher(), shipped(&rope::ROPE), op))
    }
    fn attention(&self, op: Attention) -> Result<()> {
        let run = |op| attention::attention(self.launcher(), shipped(&attention::FORWARD), op);
        named("attention", *op.qkv.shape(), || run(op))
    }
    fn attention_backward(&self, op: AttentionBackward) -> Result<()> {
        let run = |op| attention::attention_backward(self.launcher(), shipped(&attention::BACKWARD), op);
        named("attention_backward", *op.qkv.shape(), || run(op))
    }
    fn paged_rope(&self, op: PagedRope) -> Result<()> {
        named("paged_rope", *op.qkv.shape(), || paged_attention::rope(self.launcher(), op))
    }
    fn paged_attention(&self, op: PagedAttention) -> Result<()> {
        let run = |op: PagedAttention| match op.queries {
            PagedQueries::Last => paged_attention::decode(self.launcher(), shipped(&paged_attention::DECODE), op),
            PagedQueries::Chunks { .. } => paged_attention::prefill(self.launcher(), op),
        };
        named("paged_attention", *op.qkv.shape(), || run(op))
    }
    fn draw_tokens(&self, op: DrawTokens) -> Result<()> {
        named("draw_tokens", *op.logits.shape(), || sampling::draw_tokens(self.launcher(), op))
    }
    fn feed_tokens(&self, op: FeedTokens) -> Result<()> {
        named("feed_tokens", *op.out.shape(), || sampling::feed_tokens(self.launcher(), op))
    }
    fn swiglu(&self, op: SwiGlu) -> Result<()> {
        let run = |op| swiglu::swiglu(self.launcher(), shipped(&swiglu::FORWARD), op);
        named("swiglu", *op.out.shape(), || run(op))
    }
    fn swiglu_backward(&self, op: SwiGluBackward) -> Result<()> {
        let run = |op| swiglu::swiglu_backward(self.launcher(), shipped(&swiglu::BACKWARD), op);
        named("swiglu_backward", *op.dout.shape(), || run(op))
    }
    fn classifier(&self, op: Classifier) -> Result<()> {
        let gemm = |product: Gemm| self.gemm(product);
        let run = |op| classifier::classifier(self.launcher(), shipped(&classifier::CLASSIFIER), &gemm, op);
        named("classifier", *op.hidden.shape(), || run(op))
    }
    fn accumulate(&self, op: Accumulate) -> Result<()> {
        named("accumulate", *op.out.shape(), || elementwise::accumulate(self.launcher(), op))
    }
    fn square_sums(&self, op: SquareSums) -> Result<()> {
        let run = |op| square_sums::square_sums(self.launcher(), shipped(&square_sums::SQUARE_SUMS), op);
        named("square_sums", *op.x.shape(), || run(op))
    }
    fn adamw(&self, op: AdamW) -> Result<()> {
        named("adamw", *op.param.shape(), || adamw::adamw(self.launcher(), shipped(&adamw::ADAMW), op))
    }
}
