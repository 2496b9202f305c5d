//! What a benchmark found, as a table for people and as JSON for scripts.

use super::timing::Timing;
use crate::ops::Cost;
use serde::Serialize;

/// One line: a version of an operation at one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The name of the benchmark.
    pub bench: &'static str,
    /// "forward 4"; "copy".
    pub version: &'static str,
    pub idea: &'static str,
    /// "T 16384, D 3584"
    pub shape: String,
    /// None where only correctness was looked at.
    #[serde(flatten)]
    pub speed: Option<Speed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Median milliseconds of a launch.
    pub milliseconds: f64,
    /// The 10th and 90th percentile.
    pub spread: [f64; 2],
    pub launches: usize,
    /// Bytes that have to cross device memory.
    pub bytes: f64,
    pub flops: f64,
    pub gigabytes_per_s: f64,
    pub teraflops_per_s: f64,
    /// gigabytes_per_s as a share of the device copy measured in the same run; none for the ceilings themselves.
    pub share_of_copy: Option<f64>,
}

impl Speed {
    /// `copy` is the ceiling in GB/s.
    pub fn new(timing: Timing, cost: Cost, copy: Option<f64>) -> Self {
        let gigabytes_per_s = cost.bytes / timing.median / 1e6;
        Speed {
            milliseconds: timing.median,
            spread: timing.spread,
            launches: timing.launches,
            bytes: cost.bytes,
            flops: cost.flops,
            gigabytes_per_s,
            teraflops_per_s: cost.flops / timing.median / 1e9,
            share_of_copy: copy.map(|copy| gigabytes_per_s / copy),
        }
    }
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub limo_engine: &'static str,
    pub commit: String,
    pub device: String,
    pub results: Vec<Measurement>,
}

/// The measurements as one aligned table.
pub fn table(results: &[Measurement]) -> String {
    let mut rows = vec![["bench", "shape", "version", "ms", "GB/s", "TFLOP/s", "of copy", "idea"].map(String::from)];
    rows.extend(results.iter().map(|m| {
        let number = |value: fn(&Speed) -> String| m.speed.as_ref().map_or("-".to_string(), value);
        [
            m.bench.to_string(),
            m.shape.clone(),
            m.version.to_string(),
            number(|s| format!("{:.4}", s.milliseconds)),
            number(|s| format!("{:.0}", s.gigabytes_per_s)),
            number(|s| format!("{:.1}", s.teraflops_per_s)),
            number(|s| s.share_of_copy.map_or("-".to_string(), |share| format!("{:.1} %", share * 100.0))),
            m.idea.to_string(),
        ]
    }));
    aligned(&rows, &[3, 4, 5, 6])
}

/// Columns padded to one width, those of `right` to the right.
pub fn aligned<const N: usize>(rows: &[[String; N]], right: &[usize]) -> String {
    let widths: [usize; N] = std::array::from_fn(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(c, (cell, width))| match right.contains(&c) {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(version: &'static str, speed: Option<Speed>) -> Measurement {
        Measurement { bench: "rmsnorm", version, idea: "an idea", shape: "T 16384, D 896".to_string(), speed }
    }

    #[test]
    fn speed_counts_bytes_and_flops_against_the_median() {
        let timing = Timing { median: 0.05, spread: [0.04, 0.07], launches: 10 };
        let speed = Speed::new(timing, Cost { flops: 1e9, bytes: 1e8 }, Some(4000.0));
        assert_eq!((speed.gigabytes_per_s, speed.teraflops_per_s, speed.share_of_copy), (2000.0, 20.0, Some(0.5)));
    }

    #[test]
    fn the_table_is_aligned_and_says_where_nothing_was_timed() {
        let timing = Timing { median: 0.05, spread: [0.04, 0.07], launches: 10 };
        let speed = Speed::new(timing, Cost { flops: 1e9, bytes: 1e8 }, Some(4000.0));
        let text = table(&[measurement("forward 1", Some(speed)), measurement("forward 10", None)]);
        let expected = "\
bench    shape           version         ms  GB/s  TFLOP/s  of copy  idea
rmsnorm  T 16384, D 896  forward 1   0.0500  2000     20.0   50.0 %  an idea
rmsnorm  T 16384, D 896  forward 10       -     -        -        -  an idea
";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_holds_every_number_and_leaves_out_what_was_not_timed() {
        let timing = Timing { median: 0.05, spread: [0.04, 0.07], launches: 10 };
        let speed = Speed::new(timing, Cost { flops: 1e9, bytes: 1e8 }, None);
        let json = serde_json::to_value([measurement("a", Some(speed)), measurement("b", None)]).unwrap();
        assert_eq!(json[0]["milliseconds"], 0.05);
        assert_eq!(json[0]["share_of_copy"], serde_json::Value::Null);
        assert_eq!(json[1].get("milliseconds"), None);
    }
}
