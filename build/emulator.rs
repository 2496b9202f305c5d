//! `.cu` → C++ compiler → objects of the emulator, twice: plain, and checked (every load and store reported to `device::emulator`).

use crate::cache::cached;
use crate::sources::{Source, in_parallel};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Included before every source.
const FORCED: &str = "kernels/emulator/cuda.h";

/// Set to 1, compiles kernels for a debugger: every line and variable is there, at a few times the run time.
const DEBUG: &str = "LIMO_KERNEL_DEBUG";

/// A build of all kernels for this CPU. Symbols of the two builds differ by `prefix`, so that both live in one binary.
struct Flavour {
    name: &'static str,
    prefix: &'static str,
    flags: &'static [&'static str],
}

const FLAVOURS: [Flavour; 2] = [
    Flavour { name: "plain", prefix: "", flags: &[] },
    // A call before every load and store. Loops stay loops: no memset or memcpy hides an access.
    Flavour { name: "checked", prefix: "checked_", flags: &["-fsanitize=thread", "-fno-tree-loop-distribute-patterns"] },
];

pub fn build(sources: &[Source], out: &Path) {
    println!("cargo::rustc-check-cfg=cfg(limo_emulator)");
    println!("cargo::rerun-if-env-changed={DEBUG}");
    if !has_compiler() {
        println!("cargo::warning=built without the emulator: no C++ compiler was found (install g++ or clang++, or set CXX)");
        return;
    }
    for flavour in &FLAVOURS {
        let mut kernels = compiler(sources, flavour, out);
        flavour.flags.iter().for_each(|flag| {
            kernels.flag(flag);
        });
        let objects = in_parallel(sources, |source| compile(&kernels, source, flavour, out));
        let mut archive = cc::Build::new();
        archive.cpp(true).cpp_link_stdlib(None).objects(objects).compile(&format!("limo_kernels_{}", flavour.name));

        // The table copies parameter blocks, which are no device memory: it is never instrumented.
        let table = out.join(format!("{}.cpp", flavour.name));
        std::fs::write(&table, registry(sources, flavour)).expect("OUT_DIR is writable");
        compiler(sources, flavour, out).file(table).compile(&format!("limo_registry_{}", flavour.name));
    }
    println!("cargo::rustc-cfg=limo_emulator");
}

fn has_compiler() -> bool {
    let compiler = cc::Build::new().cpp(true).cargo_metadata(false).cargo_warnings(false).try_get_compiler();
    compiler.is_ok_and(|c| c.to_command().arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// The object of one source.
fn compile(compiler: &cc::Build, source: &Source, flavour: &Flavour, out: &Path) -> PathBuf {
    let object = out.join(format!("{}.{}.{}.o", flavour.name, source.family, source.stem()));
    let mut command = compiler.get_compiler().to_command();
    command.arg("-c").arg("-o").arg(&object).arg(&source.path);
    let headers = [Path::new("kernels"), Path::new("kernels/emulator"), &out.join("include")];
    cached(&object, &format!("{command:?}"), &[&source.path, Path::new(FORCED)], &headers, || {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?} fails:\n{report}");
        report.lines().for_each(|line| println!("cargo::warning={line}"));
        report
    });
    object
}

/// Freestanding-style C++: no exceptions, no run-time types, no standard library to link.
fn compiler(sources: &[Source], flavour: &Flavour, out: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    let debug = std::env::var_os(DEBUG).is_some_and(|value| value == "1");
    let optimised = if debug { 0 } else { 2 };
    build.cpp(true).cpp_link_stdlib(None).std("c++17").opt_level(optimised).debug(debug).warnings(true).extra_warnings(true);
    build.include("kernels").include(out.join("include")).out_dir(out.join(flavour.name));
    for flag in ["-xc++", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector", "-ffp-contract=off", "-fno-math-errno"] {
        build.flag(flag);
    }
    build.flag("-Wno-unknown-pragmas").flag("-include").flag(FORCED);
    if !flavour.prefix.is_empty() {
        build.define("limo", format!("{}limo", flavour.prefix).as_str());
        for kernel in sources.iter().flat_map(|source| &source.kernels) {
            build.define(&kernel.name, format!("{}{}", flavour.prefix, kernel.name).as_str());
        }
    }
    build
}

/// A C++ table from kernel names to functions that take a pointer to the parameter block.
fn registry(sources: &[Source], flavour: &Flavour) -> String {
    let kernels = || sources.iter().flat_map(|source| &source.kernels);
    let families: BTreeSet<&str> = sources.iter().map(|source| source.family.as_str()).collect();
    let headers = families.iter().map(|family| format!("#include \"params/{family}.h\"\n"));
    let mut text = headers.collect::<String>() + "#include \"emulator/registry.h\"\n";
    for kernel in kernels() {
        writeln!(text, "extern \"C\" void {}(const limo::{});", kernel.name, kernel.params).expect("a string");
    }
    writeln!(text, "extern \"C\" const LimoKernel limo_{}_kernels[] = {{", flavour.name).expect("a string");
    for kernel in kernels() {
        let (name, params) = (&kernel.name, format!("limo::{}", kernel.params));
        let call = format!("[](const void *p) {{ {name}(load<{params}>(p)); }}");
        writeln!(text, "    {{{name:?}, sizeof({params}), {call}}},").expect("a string");
    }
    text + &format!("}};\nextern \"C\" const size_t limo_{}_kernel_count = {};\n", flavour.name, kernels().count())
}
