//! The GPU code inside this binary: one fatbin a kernel source, put there by `build.rs`.

use crate::error::{Error, Result};

/// The compiled form of one `.cu` file: machine code for sm_80, sm_89 and sm_90, and PTX for other devices.
#[derive(Debug)]
pub struct Image {
    /// The folder of the source: "rms_norm".
    pub family: &'static str,
    /// The path of the source: "kernels/rms_norm/forward_1_naive.cu".
    pub source: &'static str,
    /// The kernels it holds, by the names that [`Launcher::launch`](super::Launcher::launch) takes.
    pub kernels: &'static [&'static str],
    pub fatbin: &'static [u8],
}

/// The driver reads headers of a fatbin in place, so it must not start at an odd address.
#[repr(C, align(16))]
#[allow(dead_code)] // unused in a build without nvcc
struct Aligned<T>(T);

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// All images, or why this binary has none.
pub fn images() -> Result<&'static [Image]> {
    match MISSING {
        None => Ok(IMAGES),
        Some(reason) => Err(Error::usage(format!("this binary was built without CUDA kernels: {reason}"))
            .help("install the CUDA toolkit 12.4 or later, or run tools/cuda/install.sh, then build again")),
    }
}

/// The image that holds `kernel`.
pub fn image_of(kernel: &str) -> Result<&'static Image> {
    let found = images()?.iter().find(|image| image.kernels.contains(&kernel));
    found.ok_or_else(|| Error::internal(format!("no image holds a kernel named {kernel}")))
}
