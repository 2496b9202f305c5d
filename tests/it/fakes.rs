//! Libraries in C that play those of a GPU's machine.

use std::path::Path;
use std::process::Command;

/// Compiles a source of tests/ to a shared library. False without a C compiler.
pub fn compile(source: &str, library: &Path, define: &str) -> bool {
    std::fs::create_dir_all(library.parent().unwrap()).unwrap();
    let name = library.file_name().unwrap().to_string_lossy();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    let mut compiler = Command::new(std::env::var("CC").unwrap_or("cc".into()));
    compiler.args(["-shared", "-fPIC", "-O1", "-ffp-contract=off", &format!("-Wl,-soname,{name}")]);
    compiler.args(Some(define).filter(|define| !define.is_empty()));
    match compiler.arg("-o").arg(library).arg(source).status() {
        Ok(status) => assert!(status.success(), "{} does not compile", library.display()),
        Err(_) => return false,
    }
    true
}
