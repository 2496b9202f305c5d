//! What a benchmark found, as a table for people and as JSON for scripts.

use super::Ceiling;
use super::ceilings::Ceilings;
use super::models::{MODELS, Model, TOKENS};
use super::timing::Timing;
use crate::ops::Cost;
use serde::Serialize;

/// One line: a version of an operation at one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The name of the benchmark.
    pub bench: &'static str,
    /// Whose shapes: "7B".
    pub model: &'static str,
    /// "forward 4"; "copy".
    pub version: String,
    pub idea: &'static str,
    /// The last of its ladder, which the engine runs.
    pub ships: bool,
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
    /// What bounds it, and the share of that which was measured in the same run; none for the ceilings themselves.
    pub ceiling: Option<Ceiling>,
    pub share: Option<f64>,
}

impl Speed {
    pub fn new(timing: Timing, cost: Cost) -> Self {
        Speed {
            milliseconds: timing.median,
            spread: timing.spread,
            launches: timing.launches,
            bytes: cost.bytes,
            flops: cost.flops,
            gigabytes_per_s: cost.bytes / timing.median / 1e6,
            teraflops_per_s: cost.flops / timing.median / 1e9,
            ceiling: None,
            share: None,
        }
    }

    pub fn against(mut self, ceiling: Ceiling, ceilings: &Ceilings) -> Self {
        self.ceiling = Some(ceiling);
        self.share = match ceiling {
            Ceiling::Copy => Some(self.gigabytes_per_s / ceilings.copy),
            Ceiling::Product => ceilings.product.map(|product| self.teraflops_per_s / product),
        };
        self
    }

    /// "51.0 % of copy"
    fn share_text(&self) -> Option<String> {
        let of = match self.ceiling? {
            Ceiling::Copy => "copy",
            Ceiling::Product => "product",
        };
        Some(format!("{:.1} % of {of}", self.share? * 100.0))
    }
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub limo_engine: &'static str,
    pub commit: String,
    pub device: String,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    pub models: &'static [Model],
    pub results: Vec<Measurement>,
}

impl Report {
    /// A run without results yet.
    pub fn new(device: String) -> Self {
        let (limo_engine, commit) = (env!("CARGO_PKG_VERSION"), super::commit());
        Report { limo_engine, commit, device, tokens: TOKENS, models: &MODELS, results: Vec::new() }
    }
}

/// The measurements as one aligned table.
pub fn table(results: &[Measurement]) -> String {
    let mut rows = vec![["bench", "model", "shape", "version", "ms", "GB/s", "TFLOP/s", "share", "idea"].map(String::from)];
    rows.extend(results.iter().map(|m| {
        let number = |value: fn(&Speed) -> String| m.speed.as_ref().map_or("-".to_string(), value);
        [
            m.bench.to_string(),
            m.model.to_string(),
            m.shape.clone(),
            m.version.to_string(),
            number(|s| format!("{:.4}", s.milliseconds)),
            number(|s| format!("{:.0}", s.gigabytes_per_s)),
            number(|s| format!("{:.1}", s.teraflops_per_s)),
            number(|s| s.share_text().unwrap_or("-".to_string())),
            m.idea.to_string(),
        ]
    }));
    aligned(&rows, &[4, 5, 6, 7])
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

    const TIMING: Timing = Timing { median: 0.05, spread: [0.04, 0.07], launches: 10 };
    const COST: Cost = Cost { flops: 1e9, bytes: 1e8 };

    fn measurement(version: &str, speed: Option<Speed>) -> Measurement {
        let (version, shape) = (version.to_string(), "T 16384, D 896".to_string());
        Measurement { bench: "rms_norm", model: "0.5B", version, idea: "an idea", ships: false, shape, speed }
    }

    #[test]
    fn speed_counts_bytes_and_flops_against_the_median_and_its_ceiling() {
        let speed = Speed::new(TIMING, COST);
        assert_eq!((speed.gigabytes_per_s, speed.teraflops_per_s, speed.share), (2000.0, 20.0, None));
        let ceilings = Ceilings { copy: 4000.0, product: Some(80.0) };
        assert_eq!(speed.against(Ceiling::Copy, &ceilings).share, Some(0.5));
        assert_eq!(speed.against(Ceiling::Product, &ceilings).share, Some(0.25));
        assert_eq!(speed.against(Ceiling::Product, &Ceilings { copy: 4000.0, product: None }).share, None);
    }

    #[test]
    fn the_table_is_aligned_and_says_where_nothing_was_timed() {
        let speed = Speed::new(TIMING, COST).against(Ceiling::Copy, &Ceilings { copy: 4000.0, product: None });
        let text = table(&[measurement("forward 1", Some(speed)), measurement("forward 10", None)]);
        let expected = "\
bench     model  shape           version         ms  GB/s  TFLOP/s           share  idea
rms_norm  0.5B   T 16384, D 896  forward 1   0.0500  2000     20.0  50.0 % of copy  an idea
rms_norm  0.5B   T 16384, D 896  forward 10       -     -        -               -  an idea
";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_holds_every_number_and_leaves_out_what_was_not_timed() {
        let speed = Speed::new(TIMING, COST);
        let json = serde_json::to_value([measurement("a", Some(speed)), measurement("b", None)]).unwrap();
        assert_eq!(json[0]["milliseconds"], 0.05);
        assert_eq!(json[0]["share"], serde_json::Value::Null);
        assert_eq!(json[1].get("milliseconds"), None);
    }
}
