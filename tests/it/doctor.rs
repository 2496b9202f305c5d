//! What `limo-engine doctor` prints, of this machine and of others.

use crate::command::{limo_engine, limo_engine_with, succeed};
use limo_engine::cli::doctor::{Cpu, Facts, render};
use limo_engine::comm::launch::{LaunchEnvironment, Starter};
use limo_engine::device::gpu::DeviceInfo;
use limo_engine::device::libraries::{Found, Version};
use limo_engine::error::{Error, Kind};

fn found(path: &str, major: u32, minor: u32) -> Result<Found, Error> {
    Ok(Found { path: path.into(), version: Version { major, minor } })
}

fn complete() -> Facts {
    let device = DeviceInfo {
        name: "NVIDIA H200".to_string(),
        capability: (9, 0),
        memory: 150_754_820_096,
        multiprocessors: 132,
        l2: 62_914_560,
        shared_opt_in: 232_448,
    };
    Facts {
        version: "0.1.0",
        commit: "0123abc".to_string(),
        devices: Ok(vec![device.clone(), device]),
        kernel_module: Some("580.65.06".to_string()),
        libraries: vec![
            ("driver", found("/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06", 13, 0)),
            ("cuBLASLt", found("/venv/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13", 13, 1)),
            ("NCCL", found("/venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2", 2, 28)),
        ],
        kernels: Ok("14 kernels in 9 images, 1.2 MiB (conformance, rms_norm)".to_string()),
        emulator: Ok("in this binary (--device emulator)".to_string()),
        cpu: Cpu { model: "AMD EPYC 9654".to_string(), threads: 16, simd: vec!["AVX2", "AVX-512F"] },
        launch: Ok(LaunchEnvironment {
            starter: Starter::Torchrun,
            rank: 9,
            world: 16,
            local_rank: Some(1),
            local_world: None,
            master: Some("node0:29500".to_string()),
            restarts: 2,
            reason: "RANK=9 and WORLD_SIZE=16; passed over: SLURM_PROCID=1 and SLURM_NTASKS=2".to_string(),
        }),
    }
}

#[test]
fn a_complete_machine() {
    insta::assert_snapshot!(render(&complete()));
}

#[test]
fn a_machine_without_anything() {
    let missing = |what: &str| Error::usage(format!("{what} was not found: looked for it everywhere")).help("install it");
    let facts = Facts {
        commit: "unknown".to_string(),
        devices: Err(missing("the NVIDIA driver (libcuda)")),
        kernel_module: None,
        libraries: vec![
            ("driver", Err(missing("the NVIDIA driver (libcuda)"))),
            ("cuBLASLt", Err(missing("cuBLASLt"))),
            ("NCCL", Err(missing("NCCL"))),
        ],
        kernels: Err(Error::usage("this binary was built without CUDA kernels: nvcc was not found").help("install the toolkit")),
        emulator: Err(Error::usage("this binary was built without the emulator").help("install g++")),
        cpu: Cpu { model: "aarch64".to_string(), threads: 1, simd: vec![] },
        launch: Err(Error::new(Kind::Communication, "RANK is set and WORLD_SIZE is not").help("unset RANK")),
        ..complete()
    };
    insta::assert_snapshot!(render(&facts));
}

#[test]
fn doctor_never_fails_and_says_what_it_looked_for() {
    let text = succeed(limo_engine(&["doctor"]));
    for heading in ["GPUs", "Libraries", "Kernels", "CPU", "Launch environment"] {
        assert!(text.contains(&format!("\n{heading}\n")), "{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_contradictory_launch_environment_is_a_finding() {
    let text = succeed(limo_engine_with(&[("PMI_RANK", "4"), ("PMI_SIZE", "4")], &["doctor"]));
    assert!(text.contains("PMI_RANK=4 is not below PMI_SIZE=4"), "{text}");
}
