//! The companion tools: rows in, rows out, statistics on standard error. A file a tool; `frame` is what they share.

mod difficulty;
mod frame;
mod grade;
mod pool;
mod score;
mod select;

use super::finish;
use crate::error::Result;
use clap::Parser;
use frame::Frame;
use std::process::ExitCode;

pub fn pool() -> ExitCode {
    run(pool::run)
}

pub fn difficulty() -> ExitCode {
    run(difficulty::run)
}

pub fn grade() -> ExitCode {
    run(grade::run)
}

pub fn select() -> ExitCode {
    run(select::run)
}

pub fn score() -> ExitCode {
    run(score::run)
}

/// Runs a tool; errors go to standard error.
fn run<A: Parser>(tool: fn(A) -> Result<()>) -> ExitCode {
    let args = A::parse();
    finish(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tool(args))))
}

/// A table to standard error, its columns aligned.
fn print_table(frame: &Frame, headers: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headers[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        frame.tell(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(headers.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
}
