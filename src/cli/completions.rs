//! `limo-engine completions`.

use super::print_line;
use crate::error::{Error, Result};
use clap_complete::Shell;

/// Print a script that completes commands and options in a shell
///
/// Example: limo-engine completions bash > ~/.local/share/bash-completion/completions/limo-engine
#[derive(clap::Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

pub fn run(args: CompletionsArgs, mut command: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "limo-engine", &mut script);
    let script = String::from_utf8(script).map_err(|e| Error::internal(e.to_string()))?;
    print_line(format_args!("{}", script.trim_end()))
}
