//! The emulator: a [`Launcher`] that runs the kernels' own source on this CPU. `build.rs` compiled it twice with a host compiler:
//! plain, and checked, where every load and store calls the checker. docs/emulator.md explains both.

mod checker;
mod clocks;
mod copies;
mod fault;
mod fiber;
mod grid;
mod intrinsics;
mod machine;
mod memory;
mod shadow;
mod turns;
mod warp;

use super::{Event, Launch, Launcher, Recording, Stream, expect_bytes};
use crate::error::{Error, Result};
use crate::tensor::{Allocator, PinnedAllocator, Space, View, ViewMut};
use machine::{Machine, Moment, Work};
use memory::note_written;
use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::time::Instant;
use warp::WARP;

/// What an H200 gives a block.
const MOST_THREADS: u32 = 1024;
/// Blocks in x, y and z, on every GPU.
const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
const MOST_SHARED_BYTES: u32 = 227 << 10;

/// A device of host memory whose kernels run in fibers. Threads take turns in an order that the seed chooses.
pub struct Emulator {
    machine: Arc<Machine>,
    kernels: &'static [KernelEntry],
    stream: Stream,
}

impl Emulator {
    /// Kernels at full speed; only barriers that cannot complete and misaligned vectors are found.
    pub fn plain(seed: u64) -> Result<Self> {
        Self::new(false, seed)
    }

    /// Every access is checked: bounds, bytes that nobody wrote, races, memory that is not the kernel's.
    pub fn checked(seed: u64) -> Result<Self> {
        Self::new(true, seed)
    }

    fn new(checked: bool, seed: u64) -> Result<Self> {
        let kernels = kernels(checked).ok_or_else(|| {
            Error::usage("this binary was built without the emulator: no C++ compiler was found")
                .help("install g++ or clang++ and build again")
        })?;
        Ok(Emulator { machine: Arc::new(Machine::new(checked, seed)), kernels, stream: Stream::Compute })
    }

    /// Chooses another order of streams, blocks, warps and lanes; 0 is the natural one.
    pub fn set_seed(&mut self, seed: u64) {
        self.machine.set_seed(seed);
    }
}

impl Launcher for Emulator {
    fn device(&self) -> String {
        format!("emulator{}, seed {}", if self.machine.checked { ", checked" } else { "" }, self.machine.seed())
    }

    fn allocator(&self) -> &dyn Allocator {
        &self.machine
    }

    fn host_allocator(&self) -> &dyn Allocator {
        &PinnedAllocator
    }

    fn on(&self, stream: Stream) -> Box<dyn Launcher> {
        self.machine.open(stream);
        Box::new(Emulator { machine: self.machine.clone(), kernels: self.kernels, stream })
    }

    unsafe fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()> {
        let entry = self.kernels.iter().find(|entry| entry.name() == kernel);
        let entry = entry.ok_or_else(|| Error::internal(format!("the emulator has no kernel named {kernel}")))?;
        check_extent(kernel, &launch)?;
        if params.len() != entry.params_bytes {
            let (given, expected) = (params.len(), entry.params_bytes);
            return Err(Error::internal(format!("{kernel} takes {expected} bytes of parameters, not {given}")));
        }
        self.machine.issue(self.stream, Work::Launch { kernel: entry, launch, params: params.to_vec() })
    }

    fn fill_bytes(&self, value: u8, out: ViewMut) -> Result<()> {
        self.machine.issue(self.stream, Work::Fill { value, to: out.address(), bytes: out.bytes() })
    }

    fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        expect_bytes("copy", x.bytes(), out.bytes())?;
        let known = out.space() != Space::Pinned;
        self.machine.issue(self.stream, Work::Copy { from: x.address(), to: out.address(), bytes: x.bytes(), known })
    }

    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        expect_bytes("upload", bytes.len(), out.bytes())?;
        if out.space() == Space::Pinned {
            self.machine.finish(self.stream)?;
            out.raw_bytes().copy_from_slice(bytes);
            return Ok(());
        }
        self.machine.issue(self.stream, Work::Upload { data: bytes.to_vec(), to: out.address() })?;
        self.machine.finish(self.stream)
    }

    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        expect_bytes("download", x.bytes(), out.len())?;
        self.machine.finish(self.stream)?;
        out.copy_from_slice(x.raw_bytes());
        Ok(())
    }

    fn lend(&self, out: &ViewMut) -> Result<*mut c_void> {
        self.machine.finish(self.stream)?;
        note_written(&mut self.machine.buffers(), out.address(), out.bytes())?;
        Ok(std::ptr::null_mut())
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        self.machine.start_tape(self.stream);
        let issued = body();
        let tape = self.machine.take_tape(self.stream);
        issued?;
        Ok(Box::new(Tape { machine: self.machine.clone(), stream: self.stream, work: tape }))
    }

    fn issue_host(&self, run: Arc<dyn Fn() + Send + Sync>, out: View) -> Result<()> {
        self.machine.issue(self.stream, Work::Host { run, to: out.address(), bytes: out.bytes() })
    }

    fn mark(&self) -> Result<Box<dyn Event>> {
        let moment = Moment::default();
        self.machine.issue(self.stream, Work::Record(moment.clone()))?;
        Ok(Box::new(Mark { moment, machine: self.machine.clone(), stream: self.stream }))
    }

    fn wait(&self, event: &dyn Event) -> Result<()> {
        let mark = Mark::of(event)?;
        if !Arc::ptr_eq(&mark.machine, &self.machine) {
            return Err(Error::internal("an event of another emulator cannot be waited for"));
        }
        self.machine.issue(self.stream, Work::Wait(mark.moment.clone()))
    }

    fn synchronize(&self) -> Result<()> {
        self.machine.finish(Stream::Compute)?;
        self.machine.finish(Stream::Copy)
    }
}

/// What was recorded of a stream.
struct Tape {
    machine: Arc<Machine>,
    stream: Stream,
    work: Vec<Work>,
}

impl Recording for Tape {
    fn issue(&self) -> Result<()> {
        self.work.iter().try_for_each(|work| self.machine.issue(self.stream, work.clone()))
    }
}

/// What a GPU would refuse, and blocks that are not whole warps.
fn check_extent(kernel: &str, launch: &Launch) -> Result<()> {
    let threads = launch.block.iter().try_fold(1u32, |product, &n| product.checked_mul(n)).unwrap_or(u32::MAX);
    let whole_warps = threads != 0 && threads.is_multiple_of(WARP as u32) && threads <= MOST_THREADS;
    let grid_fits = launch.grid.iter().zip(MOST_BLOCKS).all(|(n, most)| (1..=most).contains(n));
    if whole_warps && grid_fits && launch.shared_bytes <= MOST_SHARED_BYTES {
        return Ok(());
    }
    Err(Error::internal(format!("{kernel} cannot be launched as {launch:?}")))
}

/// A point in a stream.
struct Mark {
    moment: Moment,
    machine: Arc<Machine>,
    stream: Stream,
}

impl Mark {
    fn of(event: &dyn Event) -> Result<&Self> {
        event.as_any().downcast_ref().ok_or_else(|| Error::internal("an event of another launcher was given to the emulator"))
    }

    fn moment(&self) -> Result<Instant> {
        self.machine.finish(self.stream)?;
        self.moment.get().copied().ok_or_else(|| Error::internal("an event that never happened"))
    }
}

impl Event for Mark {
    /// Work runs when somebody asks for it.
    fn is_done(&self) -> Result<bool> {
        self.moment().map(|_| true)
    }
    fn milliseconds_since(&self, start: &dyn Event) -> Result<f64> {
        let start = Mark::of(start)?.moment()?;
        Ok(self.moment()?.duration_since(start).as_secs_f64() * 1e3)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A row of the tables that build.rs generated; `kernels/emulator/registry.h` is its C++ twin.
#[repr(C)]
pub struct KernelEntry {
    name: *const c_char,
    params_bytes: usize,
    run: unsafe extern "C" fn(*const c_void),
}

// SAFETY: rows are constants.
unsafe impl Sync for KernelEntry {}

impl KernelEntry {
    fn name(&self) -> &str {
        // SAFETY: a string literal of the generated table.
        unsafe { CStr::from_ptr(self.name) }.to_str().expect("kernel names are ASCII")
    }
}

#[cfg(limo_emulator)]
fn kernels(checked: bool) -> Option<&'static [KernelEntry]> {
    unsafe extern "C" {
        static limo_plain_kernels: KernelEntry;
        static limo_checked_kernels: KernelEntry;
        static limo_plain_kernel_count: usize;
        static limo_checked_kernel_count: usize;
    }
    // SAFETY: constants of the generated tables, which have as many rows as they say.
    Some(unsafe {
        match checked {
            false => std::slice::from_raw_parts(&raw const limo_plain_kernels, limo_plain_kernel_count),
            true => std::slice::from_raw_parts(&raw const limo_checked_kernels, limo_checked_kernel_count),
        }
    })
}

#[cfg(not(limo_emulator))]
fn kernels(_checked: bool) -> Option<&'static [KernelEntry]> {
    None
}
