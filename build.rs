//! Builds what Cargo does not: `kernels/` into fatbins for GPUs (nvcc) and into emulator objects for this CPU (C++ compiler), and
//! the C++ header of the parameter blocks (cbindgen). Each step is a file of `build/`; the generated Rust lands in `OUT_DIR`.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/sources.rs"]
mod sources;

use std::path::{Path, PathBuf};

const PARAMS: &str = "src/ops/cuda/params";
/// Outputs of the wrappers' micro-kernels on real GPUs.
const RECORDS: &str = "tests/fixtures/conformance";

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    for input in ["build.rs", "build", "kernels", PARAMS, RECORDS] {
        println!("cargo::rerun-if-changed={input}");
    }
    let sources = sources::scan(Path::new("kernels"));
    write_params_headers(&out.join("include/params"));
    cuda::build(&sources, &out);
    emulator::build(&sources, &out);
    embed_records(&out.join("conformance_records.rs"));
}

/// `tests/fixtures/conformance/*.json` → a table of paths and texts.
fn embed_records(table: &Path) {
    let entries = std::fs::read_dir(RECORDS).expect(RECORDS).map(|entry| entry.expect(RECORDS).path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("Cargo sets CARGO_MANIFEST_DIR");
    let rows = paths.iter().map(|path| format!("({path:?}, include_str!({:?})),\n", Path::new(&root).join(path)));
    let text = format!("static RECORDS: &[(&str, &str)] = &[\n{}];\n", rows.collect::<String>());
    std::fs::write(table, text).expect("OUT_DIR is writable");
}

/// `params/rms_norm.rs` → `params/rms_norm.h`, and so on: every public struct and constant, in namespace `limo`.
fn write_params_headers(folder: &Path) {
    std::fs::create_dir_all(folder).expect("OUT_DIR is writable");
    for entry in std::fs::read_dir(PARAMS).expect(PARAMS) {
        let source = entry.expect(PARAMS).path();
        let stem = source.file_stem().expect("a file name").to_string_lossy().into_owned();
        if stem == "mod" {
            continue;
        }
        let text = std::fs::read_to_string(&source).expect("a source");
        let structs = text.lines().filter_map(|line| line.strip_prefix("pub struct "));
        let names = structs.filter_map(|rest| rest.split([' ', '<']).next());
        let config = cbindgen::Config {
            language: cbindgen::Language::Cxx,
            pragma_once: true,
            no_includes: true,
            includes: vec!["common/types.cuh".into()], // Ptr and bf16 live there
            namespace: Some("limo".into()),
            documentation: false,
            export: cbindgen::ExportConfig { include: names.map(String::from).collect(), ..Default::default() },
            constant: cbindgen::ConstantConfig { allow_constexpr: true, ..Default::default() },
            layout: cbindgen::LayoutConfig { aligned_n: Some("alignas".into()), ..Default::default() },
            ..Default::default()
        };
        let bindings = cbindgen::Builder::new().with_src(&source).with_config(config).generate();
        bindings.unwrap_or_else(|error| panic!("{}: {error}", source.display())).write_to_file(folder.join(stem + ".h"));
    }
}
