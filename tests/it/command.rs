//! Runs the built program as a user would.

use std::process::Command;

/// Runs `limo-engine` in the crate's root; returns exit code, standard output and standard error.
pub fn limo_engine(arguments: &[&str]) -> (i32, String, String) {
    limo_engine_with(&[], arguments)
}

/// The same with environment variables set.
pub fn limo_engine_with(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limo-engine"));
    command.args(arguments).envs(variables.iter().copied()).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("ended by a signal"), text(output.stdout), text(output.stderr))
}

/// The standard output of a run that must succeed.
pub fn succeed((code, output, error): (i32, String, String)) -> String {
    assert_eq!(code, 0, "{output}\n{error}");
    output
}
