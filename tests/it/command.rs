//! Runs the built program as a user would.

use std::process::Command;

/// Runs `limo-engine` in the crate's root; returns exit code, standard output and standard error.
pub fn limo_engine(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_limo-engine"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("ended by a signal"), text(output.stdout), text(output.stderr))
}

/// The standard output of a run that must succeed.
pub fn succeed((code, output, error): (i32, String, String)) -> String {
    assert_eq!(code, 0, "{output}\n{error}");
    output
}
