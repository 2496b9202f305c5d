//! The benchmarks of `limo-engine bench` in criterion: every version of every kernel at every shape, timed by the GPU's own events.
//!
//!     cargo bench --bench kernels -- 'rms_norm 7B'
//!
//! Without a GPU it says so and does nothing. Nothing is verified here: `limo-engine bench` and `selftest` do that.

use criterion::{Criterion, criterion_group, criterion_main};
use limo_engine::bench::BENCHES;
use limo_engine::bench::models::MODELS;
use limo_engine::bench::problem::{Device, Problem};
use limo_engine::device::Launcher;
use limo_engine::device::driver::Driver;
use limo_engine::device::gpu::visible_devices;
use limo_engine::device::images::images;
use limo_engine::error::Result;
use limo_engine::ops::Gemm;
use limo_engine::ops::cuda::gemm::CublasLt;
use std::time::Duration;

fn kernels(criterion: &mut Criterion) {
    match visible_devices() {
        Ok(0) => println!("skipped: no GPU is visible"),
        Err(error) => panic!("{error}"),
        Ok(_) => time(criterion).unwrap_or_else(|error| panic!("{error}")),
    }
}

fn time(criterion: &mut Criterion) -> Result<()> {
    let driver = Driver::open(0, images()?)?;
    let cublaslt = CublasLt::new(&driver)?;
    let gemm = |op: Gemm| cublaslt.gemm(&driver, op);
    let device = Device { launcher: &driver, gemm: &gemm };
    for ladder in BENCHES.iter().flat_map(|bench| (bench.ladders)()) {
        for model in &MODELS {
            if let Err(error) = ladder.problem(device, model) {
                println!("skipped {} {}: {error}", ladder.family, model.name);
                continue;
            }
            let mut group = criterion.benchmark_group(format!("{} {}", ladder.family, model.name));
            group.sample_size(10);
            // Reserved for the first version that the command line's filter lets through.
            let mut problem = None;
            for (version, (name, _)) in ladder.versions.iter().enumerate() {
                group.bench_function(name, |bencher| {
                    let problem = problem.get_or_insert_with(|| ladder.problem(device, model).expect("a problem that fits"));
                    bencher.iter_custom(|launches| seconds(&driver, problem, version, launches).expect("a launch"));
                });
            }
        }
    }
    Ok(())
}

/// What `launches` launches in a row take, by two events around them.
fn seconds(driver: &Driver, problem: &mut Problem, version: usize, launches: u64) -> Result<Duration> {
    let start = driver.mark()?;
    (0..launches).try_for_each(|i| problem.issue(version, i as usize))?;
    Ok(Duration::from_secs_f64(driver.mark()?.milliseconds_since(&*start)? / 1e3))
}

criterion_group!(benches, kernels);
criterion_main!(benches);
