//! Every kernel version against its case table in the emulator, and proof that the emulator finds what it claims to find.

use limo_engine::device::emulator::Emulator;
use limo_engine::device::images::images;
use limo_engine::device::{Launch, Launcher, Stream};
use limo_engine::error::Result;
use limo_engine::model::download_f32;
use limo_engine::ops::Ops;
use limo_engine::ops::cuda::Cuda;
use limo_engine::ops::cuda::params::{PlantedParams, Ptr};
use limo_engine::tensor::{DType, Tensor};
use limo_engine::testing::buffer::Behind;
use limo_engine::testing::conformance::{self, WRAPPERS};
use limo_engine::testing::planted::{self, PLANTED, TURN_WITHOUT_TICKET};
use limo_engine::testing::{FAMILIES, Outputs};
use std::path::Path;

/// Natural order, and two in which blocks, warps and lanes run far apart.
const SEEDS: [u64; 3] = [0, 1, 2];

/// The emulator, or a printed skip where no C++ compiler was there to build it.
fn emulator(make: fn(u64) -> Result<Emulator>) -> Option<Emulator> {
    make(0).inspect_err(|error| println!("skipped 1: {error}")).ok()
}

/// Runs every version of a family's kernels on every case in each order: all must pass, with the same bits in every order.
fn run_family(name: &str, make: fn(u64) -> Result<Emulator>, behind: Behind, seeds: &[u64]) {
    let Some(mut emulator) = emulator(make) else { return };
    let family = FAMILIES.iter().find(|family| family.name == name).expect(name);
    let checks = (family.checks)().into_iter().filter(|check| behind == Behind::Canaries || !check.heavy);
    for check in checks {
        let mut first: Option<Outputs> = None;
        for &seed in seeds {
            emulator.set_seed(seed);
            let outputs = check.run(&emulator, behind).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let same = *first.get_or_insert_with(|| outputs.clone()) == outputs;
            assert!(same, "{}, case {}: seed {seed} computes other bits", check.table, check.case);
        }
    }
}

/// Two tests a family, so that they run side by side.
macro_rules! families {
    ($($name:ident),*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(mod $name {
            use super::*;
            #[test]
            fn every_version_passes_every_case_in_every_order() {
                run_family(stringify!($name), Emulator::plain, Behind::Canaries, &SEEDS);
            }
            #[test]
            fn every_version_is_clean_in_checked_mode() {
                run_family(stringify!($name), Emulator::checked, Behind::Nothing, &[1]);
            }
        })*
    };
}

families!(
    rms_norm,
    attention,
    adamw,
    square_sums,
    elementwise,
    embedding,
    rope,
    swiglu,
    bias,
    paged_attention,
    sampling,
    classifier
);

#[test]
fn every_family_is_tested() {
    assert_eq!(FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>(), TESTED);
}

#[test]
fn planted_bugs_are_found_and_their_twins_are_clean() {
    let Some(mut emulator) = emulator(Emulator::checked) else { return };
    for planted in &PLANTED {
        for seed in SEEDS {
            emulator.set_seed(seed);
            planted::run(&emulator, planted, false).unwrap();
            let report = planted::run(&emulator, planted, true).expect_err(planted.kernel).message;
            let place = format!("{}, block (", planted.kernel);
            assert!(report.starts_with(&place) && report.contains(planted.finding), "seed {seed}: {report}");
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn turns_in_another_order_than_tickets_end_as_a_deadlock_that_says_so() {
    for make in [Emulator::plain, Emulator::checked] {
        let Some(mut emulator) = emulator(make) else { return };
        let mut run = |seed, bug| {
            emulator.set_seed(seed);
            planted::run(&emulator, &TURN_WITHOUT_TICKET, bug)
        };
        let expected = bits(&run(0, true).unwrap());
        assert!((0..6).all(|seed| bits(&run(seed, false).unwrap()) == expected));
        let reports: Vec<String> = (0..6).filter_map(|seed| run(seed, true).err()).map(|error| error.message).collect();
        assert!(!reports.is_empty());
        for report in reports {
            assert!(report.contains(TURN_WITHOUT_TICKET.finding) && report.contains("blocks have not started"), "{report}");
        }
    }
}

/// Four bugs that in plain mode, too, show as results that depend on the seed, and their twins.
#[test]
fn missing_waits_show_in_plain_mode_as_results_that_depend_on_the_seed() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    let mut outputs = |planted, bug| -> Vec<Vec<f32>> {
        let of_seed = |seed| {
            emulator.set_seed(seed);
            planted::run(&emulator, planted, bug).unwrap()
        };
        (0..12).map(of_seed).collect()
    };
    for kernel in ["planted_missing_wait", "planted_wrong_group", "planted_missing_turn", "planted_early_turn"] {
        let planted = PLANTED.iter().find(|planted| planted.kernel == kernel).unwrap();
        let (wrong, right) = (outputs(planted, true), outputs(planted, false));
        assert!(right.iter().all(|output| bits(output) == bits(&right[0])), "{kernel}");
        assert!(wrong.iter().any(|output| bits(output) != bits(&right[0])), "the bug of {kernel} never shows");
    }
}

/// Copies `values` to x on the copy stream, and x to the result on the compute stream; `events` order the two.
fn through_two_streams(emulator: &Emulator, values: &Tensor, events: bool) -> Result<Vec<f32>> {
    let [mut x, mut result] = [(); 2].map(|()| Tensor::alone(emulator.allocator(), DType::F32, &[128]).unwrap());
    let copies = emulator.on(Stream::Copy);
    emulator.fill_bytes(0, x.view_mut())?;
    if events {
        copies.wait(&*emulator.mark()?)?;
    }
    copies.copy(values.view(), x.view_mut())?;
    if events {
        emulator.wait(&*copies.mark()?)?;
    }
    emulator.copy(x.view(), result.view_mut())?;
    emulator.synchronize()?;
    let mut bytes = vec![0; result.bytes()];
    emulator.download(result.view(), &mut bytes)?;
    Ok(bytemuck::cast_slice(&bytes).to_vec())
}

#[test]
fn streams_overtake_one_another_where_no_event_forbids_it() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    let mut values = Tensor::alone(emulator.allocator(), DType::F32, &[128]).unwrap();
    emulator.upload(bytemuck::cast_slice(&[2.5f32; 128]), values.view_mut()).unwrap();
    let mut results = |events| -> Vec<f32> {
        let of_seed = |seed| {
            emulator.set_seed(seed);
            through_two_streams(&emulator, &values, events).unwrap()[0]
        };
        (0..16).map(of_seed).collect()
    };
    assert_eq!(results(true), [2.5; 16]);
    let without = results(false);
    assert!(without.contains(&2.5) && without.contains(&0.0), "{without:?}");
}

#[test]
fn what_was_recorded_runs_as_often_as_it_is_issued() {
    let Some(emulator) = emulator(Emulator::plain) else { return };
    let ops = Cuda::emulated(emulator);
    let tensor = |values: &[f32]| {
        let mut tensor = Tensor::alone(ops.allocator(), DType::F32, &[values.len()]).unwrap();
        ops.upload(bytemuck::cast_slice(values), tensor.view_mut()).unwrap();
        tensor
    };
    let [mut sum, x] = [tensor(&[1.0, -2.0]), tensor(&[0.5, 0.25])];
    let add = |sum: &mut Tensor| ops.add(x.view(), sum.view_mut());
    let recording = ops.record(&mut || add(&mut sum)).unwrap().unwrap();
    assert_eq!(download_f32(&ops, sum.view()).unwrap(), [1.0, -2.0], "recorded, not run");
    ops.replay(&recording).unwrap();
    add(&mut sum).unwrap();
    ops.replay(&recording).unwrap();
    assert_eq!(download_f32(&ops, sum.view()).unwrap(), [2.5, -1.25]);
    assert!(ops.record(&mut || ops.synchronize()).is_err());
    assert!(ops.record(&mut || ops.mark().map(|_| ())).is_err());
    ops.replay(&recording).unwrap();
    assert_eq!(download_f32(&ops, sum.view()).unwrap(), [3.0, -1.0]);
}

/// A kernel on one stream reads what another stream has yet to write.
#[test]
fn a_missing_event_is_an_unwritten_read_in_checked_mode() {
    let Some(mut emulator) = emulator(Emulator::checked) else { return };
    let mut run = |seed, event| -> Result<()> {
        emulator.set_seed(seed);
        let [mut x, y] = [(); 2].map(|()| Tensor::alone(emulator.allocator(), DType::F32, &[100]).unwrap());
        let (input, output) = (Ptr::new(x.view().address()), Ptr::new(y.view().address()));
        let copies = emulator.on(Stream::Copy);
        copies.fill_bytes(0, x.view_mut())?;
        if event {
            emulator.wait(&*copies.mark()?)?;
        }
        let params = PlantedParams { input, output, scratch: Ptr::NULL, count: 100, bug: 0 };
        let launch = Launch { grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
        // SAFETY: the kernel's own parameter block; both tensors live until all work is done.
        unsafe { emulator.launch("planted_out_of_bounds", launch, bytemuck::bytes_of(&params))? };
        emulator.synchronize()
    };
    (0..24).for_each(|seed| run(seed, true).unwrap());
    let reports: Vec<String> = (0..24).filter_map(|seed| run(seed, false).err()).map(|error| error.message).collect();
    assert!(!reports.is_empty() && reports.iter().all(|report| report.contains("unwritten read: ")), "{reports:?}");
}

#[test]
fn a_wrong_order_shows_in_plain_mode_as_results_that_depend_on_the_seed() {
    let Some(mut emulator) = emulator(Emulator::plain) else { return };
    let planted = PLANTED.iter().find(|planted| planted.kernel == "planted_wrong_order").unwrap();
    let mut outputs = |bug| -> Vec<Vec<f32>> {
        let of_seed = |seed| {
            emulator.set_seed(seed);
            planted::run(&emulator, planted, bug).unwrap()
        };
        (0..8).map(of_seed).collect()
    };
    let (wrong, right) = (outputs(true), outputs(false));
    assert!(wrong.iter().any(|output| *output != wrong[0]));
    assert!(right.iter().all(|output| *output == right[0]));
}

#[test]
fn memory_of_the_host_is_foreign_to_a_kernel() {
    let Some(emulator) = emulator(Emulator::checked) else { return };
    let host = vec![1.0f32; 128];
    let address = host.as_ptr() as u64;
    let params = PlantedParams { input: Ptr::new(address), output: Ptr::new(address), scratch: Ptr::NULL, count: 128, bug: 0 };
    let launch = Launch { grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
    // SAFETY: the checked emulator stops the kernel before its first access.
    let result = unsafe { emulator.launch("planted_out_of_bounds", launch, bytemuck::bytes_of(&params)) };
    assert!(result.unwrap_err().message.contains("foreign access: "));
}

#[test]
fn launches_that_no_gpu_would_take_are_refused() {
    let Some(emulator) = emulator(Emulator::plain) else { return };
    let launch = |kernel: &str, threads: u32, shared_bytes: u32, params: &[u8]| {
        let launch = Launch { grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes };
        // SAFETY: none of these launches runs.
        unsafe { emulator.launch(kernel, launch, params) }.unwrap_err().message
    };
    let params = [0; size_of::<PlantedParams>()];
    assert!(launch("no_such_kernel", 32, 0, &params).contains("no kernel named no_such_kernel"));
    assert!(launch("planted_race", 33, 0, &params).contains("cannot be launched"));
    assert!(launch("planted_race", 2048, 0, &params).contains("cannot be launched"));
    assert!(launch("planted_race", 32, 1 << 20, &params).contains("cannot be launched"));
    assert!(launch("planted_race", 32, 0, &params[1..]).contains("bytes of parameters"));
}

#[test]
fn wrappers_conform_to_their_references_and_to_recorded_gpus() {
    let records = conformance::records().unwrap();
    println!("{} wrappers without a record of a GPU", conformance::unproven(&records).len());
    for make in [Emulator::plain, Emulator::checked] {
        let Some(mut emulator) = emulator(make) else { return };
        for seed in SEEDS {
            emulator.set_seed(seed);
            let record = conformance::record(&emulator, "emulator", "none").unwrap();
            assert_eq!(conformance::unproven(&[record]), [""; 0]);
            records.iter().for_each(|record| conformance::check_record(&emulator, record).unwrap());
        }
    }
}

/// `common/ptx.cuh`, the emulator's twin of it and the micro-kernels know the same wrappers.
#[test]
fn every_wrapper_has_a_twin_in_the_emulator_and_a_micro_kernel() {
    let ptx = include_str!("../../kernels/common/ptx.cuh");
    let twins = include_str!("../../kernels/emulator/intrinsics.h");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/conformance");
    let sources = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let kernels = without_comments(&sources.collect::<String>());
    // What follows the return type; shared_address is of use to other wrappers only.
    let declared = ptx.lines().filter_map(|line| line.split_once("__device__ __forceinline__ ")?.1.split_once('('));
    let names = declared.map(|(head, _)| head.rsplit([' ', '*', '&']).next().unwrap()).filter(|&name| name != "shared_address");
    let called = |text: &str, name: &str| text.contains(&format!(" {name}(")) || text.contains(&format!("*{name}("));
    let mut count = 0;
    for name in names {
        assert!(called(twins, name), "emulator/intrinsics.h lacks {name}");
        let called = kernels.contains(&format!("{name}(")) || kernels.contains(&format!("{name}<"));
        assert!(called, "no micro-kernel of kernels/conformance calls {name}");
        count += 1;
    }
    assert!(count > 30, "{count} wrappers found");
    let defined = kernels.matches("__global__").count();
    let tested = WRAPPERS.iter().filter(|wrapper| kernels.contains(&format!(" {}(", wrapper.kernel()))).count();
    assert_eq!((tested, tested), (defined, WRAPPERS.len()), "micro-kernels in the table");
}

fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap().to_string() + "\n").collect()
}

/// What ptxas said when build.rs ran nvcc.
#[test]
fn no_kernel_spills_registers() {
    let report = std::fs::read_to_string(env!("LIMO_PTXAS_REPORT")).unwrap();
    if report.is_empty() {
        return println!("skipped 1: built without nvcc");
    }
    let spills: Vec<&str> = report.lines().filter(|line| line.contains("spill stores")).collect();
    let kernels: usize = images().unwrap().iter().map(|image| image.kernels.len()).sum();
    assert!(spills.len() >= 3 * kernels, "a line a kernel and target");
    assert!(spills.iter().all(|line| line.contains(" 0 bytes spill stores, 0 bytes spill loads")), "{report}");
}
