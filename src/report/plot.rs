//! Plots as SVG, in the colours of the page.

use super::page::escaped;
use std::fmt::Write;

/// A labelled value.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
}

impl Bar {
    pub fn new(label: impl Into<String>, value: f64) -> Bar {
        Bar { label: label.into(), value }
    }
}

/// The counts of `values` in about `count` equal bins, whose borders are round numbers. Values that are no number are left out.
pub fn bins(values: &[f64], count: usize) -> Vec<Bar> {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let Some(low) = finite.iter().copied().reduce(f64::min) else { return Vec::new() };
    let high = finite.iter().copied().fold(low, f64::max);
    // Halves, since the whole may be more than a number can hold.
    let width = round_up(2.0 * (high / 2.0 - low / 2.0) / count.max(1) as f64);
    if !(high / width - low / width).is_finite() || high / width - low / width > 4.0 * count as f64 + 4.0 {
        return vec![Bar::new("all", finite.len() as f64)];
    }
    let first = (low / width).floor();
    let place = |value: f64| ((value / width).floor() - first) as usize;
    let mut counts = vec![0usize; place(high) + 1];
    finite.iter().for_each(|&value| counts[place(value)] += 1);
    let decimals = (-width.log10().floor()).clamp(0.0, 12.0) as usize;
    let bar = |(at, &count): (usize, &usize)| Bar::new(format!("{:.decimals$}", (first + at as f64) * width), count as f64);
    counts.iter().enumerate().map(bar).collect()
}

/// 1, 2 or 5 times a power of ten, at least `width`.
fn round_up(width: f64) -> f64 {
    if width <= 0.0 || !width.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(width.log10().floor());
    [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|&round| round >= width).unwrap_or(10.0 * power)
}

const WIDTH: f64 = 720.0;

fn largest(bars: &[Bar]) -> f64 {
    bars.iter().map(|bar| bar.value).filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max)
}

/// The share of `most` that a value is; what is no number has none.
fn share(value: f64, most: f64) -> f64 {
    if value.is_finite() { (value / most).clamp(0.0, 1.0) } else { 0.0 }
}

/// Three decimals, unless the value is whole.
fn shown(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// One below the other, labels at their left, values at their right.
pub fn bars(bars: &[Bar]) -> String {
    const ROW: f64 = 22.0;
    const LABEL: f64 = 200.0;
    let (most, height) = (largest(bars), ROW * bars.len() as f64);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\">\n");
    for (at, bar) in bars.iter().enumerate() {
        let (top, length) = (ROW * at as f64, share(bar.value, most) * (WIDTH - LABEL - 90.0));
        let (label, value, middle, end) = (escaped(&bar.label), shown(bar.value), top + 15.0, LABEL + length + 6.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>\
             <rect x=\"{LABEL}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\"><title>{label}: {value}</title></rect>\
             <text x=\"{end:.1}\" y=\"{middle:.1}\">{value}</text>",
            LABEL - 8.0,
            top + 3.0,
            ROW - 6.0
        );
    }
    svg + "</svg>\n"
}

/// Side by side, labels below as far as there is room.
pub fn columns(bars: &[Bar]) -> String {
    const HEIGHT: f64 = 200.0;
    const BELOW: f64 = 22.0;
    const ABOVE: f64 = 18.0;
    let most = largest(bars);
    let step = WIDTH / bars.len().max(1) as f64;
    let longest = bars.iter().map(|bar| bar.label.chars().count().max(shown(bar.value).len())).max().unwrap_or(0);
    // A character is about seven units wide.
    let every = ((longest as f64 * 7.0 + 6.0) / step).ceil().max(1.0) as usize;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {:.0}\">\n", HEIGHT + BELOW + ABOVE);
    for (at, bar) in bars.iter().enumerate() {
        let (left, height) = (step * at as f64, share(bar.value, most) * HEIGHT);
        let (label, value, top) = (escaped(&bar.label), shown(bar.value), ABOVE + HEIGHT - height);
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{label}: {value}</title></rect>",
            left + 1.0,
            (step - 2.0).max(0.5)
        );
        if at % every == 0 {
            let middle = left + step / 2.0;
            let _ = write!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>\
                 <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                top - 5.0,
                ABOVE + HEIGHT + 16.0
            );
        }
        svg.push('\n');
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_round_and_hold_every_value() {
        let values: Vec<f64> = (0..1000).map(|i| i as f64 * 0.37 - 20.0).collect();
        for count in [1, 3, 10, 64] {
            let bars = bins(&values, count);
            assert!(bars.len() <= 2 * count + 1 && bars.iter().map(|bar| bar.value).sum::<f64>() == 1000.0, "{count}");
        }
        let bars = bins(&values, 10);
        assert_eq!(bars[0].label, "-50");
        assert_eq!(bins(&[3.0, 3.0], 10), [Bar::new("3", 2.0)]);
        let labels: Vec<String> =
            bins(&[0.1, 0.12, 0.19, f64::NAN, f64::INFINITY], 4).into_iter().map(|bar| bar.label).collect();
        assert_eq!(labels, ["0.10", "0.15"]);
        assert!(bins(&[], 10).is_empty() && bins(&[f64::NAN], 10).is_empty());
        for values in [[f64::MAX, f64::MIN], [f64::MIN_POSITIVE, 0.0], [1e300, -1e300], [1e300, 1e300 * (1.0 + f64::EPSILON)]] {
            assert_eq!(bins(&values, 10).iter().map(|bar| bar.value).sum::<f64>(), 2.0, "{values:?}");
        }
    }

    #[test]
    fn hostile_values_make_no_broken_plot() {
        for values in [&[f64::NAN, f64::INFINITY, -5.0, 0.0][..], &[0.0], &[]] {
            let hostile: Vec<Bar> = values.iter().map(|&value| Bar::new("x", value)).collect();
            for svg in [bars(&hostile), columns(&hostile)] {
                assert!(!svg.contains("width=\"NaN") && !svg.contains("height=\"NaN") && !svg.contains("\"inf"), "{svg}");
            }
        }
    }
}
