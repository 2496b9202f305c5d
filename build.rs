//! Builds what Cargo does not: `kernels/` into fatbins for GPUs (nvcc) and into emulator objects for this CPU (C++ compiler), and
//! the C++ header of the parameter blocks (cbindgen). Each step is a file of `build/`; the generated Rust lands in `OUT_DIR`.

#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/sources.rs"]
mod sources;

use std::path::{Path, PathBuf};

const PARAMS: &str = "src/ops/cuda/params.rs";

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    for input in ["build.rs", "build", "kernels", PARAMS] {
        println!("cargo::rerun-if-changed={input}");
    }
    let sources = sources::scan(Path::new("kernels"));
    write_params_header(&out.join("include/params.h"));
    cuda::build(&sources, &out);
    emulator::build(&sources, &out);
}

/// `params.rs` → `params.h`: every public struct and constant of it, in namespace `limo`.
fn write_params_header(header: &Path) {
    let text = std::fs::read_to_string(PARAMS).expect("params.rs");
    let structs = text.lines().filter_map(|line| line.strip_prefix("pub struct "));
    let names = structs.filter_map(|rest| rest.split([' ', '<']).next()).filter(|name| *name != "Ptr");
    let config = cbindgen::Config {
        language: cbindgen::Language::Cxx,
        pragma_once: true,
        no_includes: true,
        includes: vec!["common/types.cuh".into()], // Ptr and bf16 live there
        namespace: Some("limo".into()),
        documentation: false,
        export: cbindgen::ExportConfig {
            include: names.map(String::from).collect(),
            exclude: vec!["Ptr".into()],
            ..Default::default()
        },
        constant: cbindgen::ConstantConfig { allow_constexpr: true, ..Default::default() },
        layout: cbindgen::LayoutConfig { aligned_n: Some("alignas".into()), ..Default::default() },
        ..Default::default()
    };
    let bindings = cbindgen::Builder::new().with_src(PARAMS).with_config(config).generate().expect("cbindgen reads params.rs");
    bindings.write_to_file(header);
}
