//! Every kernel version against its case table in the emulator, and proof that the emulator finds what it claims to find.

use limo_engine::device::Launcher;
use limo_engine::device::emulator::Emulator;
use limo_engine::error::Result;
use limo_engine::ops::cuda::rms_norm::{BACKWARD, FORWARD, Version};
use limo_engine::testing::buffer::Behind;
use limo_engine::testing::rms_norm::{self, Case, Outputs};

/// Natural order, and two in which blocks, warps and lanes run far apart.
const SEEDS: [u64; 3] = [0, 1, 2];

/// The emulator, or a printed skip where no C++ compiler was there to build it.
fn emulator(make: fn(u64) -> Result<Emulator>) -> Option<Emulator> {
    make(0).inspect_err(|error| println!("skipped 1: {error}")).ok()
}

/// Runs each version on each case in each order: all must pass, with the same bits in every order.
fn run_ladder(
    emulator: &mut Emulator,
    ladder: &[Version],
    check: fn(&dyn Launcher, &Version, &Case, Behind) -> Result<Outputs>,
    behind: Behind,
    seeds: &[u64],
) {
    for (case, version) in rms_norm::CASES.iter().flat_map(|case| ladder.iter().map(move |version| (case, version))) {
        let mut first: Option<Outputs> = None;
        for &seed in seeds {
            emulator.set_seed(seed);
            let outputs = check(emulator, version, case, behind).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let same = *first.get_or_insert_with(|| outputs.clone()) == outputs;
            assert!(same, "{}, case {}: seed {seed} computes other bits", version.name, case.name);
        }
    }
}

#[test]
fn forward_versions_pass_every_case_in_every_order() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    run_ladder(&mut emulator, &FORWARD, rms_norm::forward, Behind::Canaries, &SEEDS);
}

#[test]
fn backward_versions_pass_every_case_in_every_order() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    run_ladder(&mut emulator, &BACKWARD, rms_norm::backward, Behind::Canaries, &SEEDS);
}

#[test]
fn forward_versions_are_clean_in_checked_mode() {
    let Some(mut emulator) = emulator(Emulator::checked) else { return };
    run_ladder(&mut emulator, &FORWARD, rms_norm::forward, Behind::Nothing, &[1]);
}

#[test]
fn backward_versions_are_clean_in_checked_mode() {
    let Some(mut emulator) = emulator(Emulator::checked) else { return };
    run_ladder(&mut emulator, &BACKWARD, rms_norm::backward, Behind::Nothing, &[1]);
}
