//! Every kernel version against its case table in the emulator, and proof that the emulator finds what it claims to find.

use limo_engine::device::emulator::Emulator;
use limo_engine::error::Result;
use limo_engine::ops::cuda::rms_norm::{BACKWARD, FORWARD};
use limo_engine::testing::buffer::Behind;
use limo_engine::testing::rms_norm;

/// Natural order, and two in which blocks, warps and lanes run far apart.
const SEEDS: [u64; 3] = [0, 1, 2];

/// The emulator, or a printed skip where no C++ compiler was there to build it.
fn emulator(make: fn(u64) -> Result<Emulator>) -> Option<Emulator> {
    make(0).inspect_err(|error| println!("skipped 1: {error}")).ok()
}

#[test]
fn every_rms_norm_version_passes_every_case_in_every_order() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    for case in &rms_norm::CASES {
        for version in &FORWARD {
            let mut bits = None;
            for seed in SEEDS {
                emulator.set_seed(seed);
                let outputs = rms_norm::forward(&emulator, version, case, Behind::Canaries).unwrap();
                assert_eq!(*bits.get_or_insert_with(|| outputs.clone()), outputs, "{} depends on the order", version.name);
            }
        }
    }
}
