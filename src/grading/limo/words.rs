//! The words that the published normalisation knows, and how it reads numbers that are spelled out.

/// Removed where they stand between non-word characters, in this order, then their plurals. A dot stands for any
/// character. Separated by bars.
pub const UNITS: &str = "\
    east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|o|gm|p . m|lb|\
    tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no change|men|soldier|pie|bc|excess|st|\
    inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|\
    women|feet|am|pm|hr|cu cm|square|v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|minute|min|\
    second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|m|cm|mm|\
    apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|metre|meter|inch";

pub const MONTHS: &[&str] =
    &["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

const NUMBERS: &[(&str, f64)] = &[
    ("zero", 0.0),
    ("one", 1.0),
    ("two", 2.0),
    ("three", 3.0),
    ("four", 4.0),
    ("five", 5.0),
    ("six", 6.0),
    ("seven", 7.0),
    ("eight", 8.0),
    ("nine", 9.0),
    ("ten", 10.0),
    ("eleven", 11.0),
    ("twelve", 12.0),
    ("thirteen", 13.0),
    ("fourteen", 14.0),
    ("fifteen", 15.0),
    ("sixteen", 16.0),
    ("seventeen", 17.0),
    ("eighteen", 18.0),
    ("nineteen", 19.0),
    ("twenty", 20.0),
    ("thirty", 30.0),
    ("forty", 40.0),
    ("fifty", 50.0),
    ("sixty", 60.0),
    ("seventy", 70.0),
    ("eighty", 80.0),
    ("ninety", 90.0),
    ("hundred", 100.0),
    ("thousand", 1e3),
    ("million", 1e6),
    ("billion", 1e9),
];

/// The value of at most four number words below a thousand: two hundred thirty four.
fn below_thousand(words: &[f64]) -> f64 {
    match *words {
        [a, b] if a == 100.0 || b == 100.0 => a * b,
        [a, b] => a + b,
        [a, b, c] => a * b + c,
        [a, b, c, d] => a * b + c + d,
        [a, ..] => a,
        [] => 1.0,
    }
}

/// A number in words or digits, all other words ignored. None without one.
pub fn number_in_words(text: &str) -> Option<String> {
    let text = text.replace('-', " ").to_lowercase();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let stripped = text.trim_start_matches('0');
        return Some(if stripped.is_empty() { "0" } else { stripped }.to_string());
    }
    let words =
        text.split_whitespace().filter_map(|word| NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, value)| *value));
    let words: Vec<f64> = words.collect();
    if words.is_empty() {
        return None;
    }
    if let [only] = words.as_slice() {
        return Some(only.to_string());
    }
    let (mut total, mut rest) = (0.0, words.as_slice());
    for scale in [1e9, 1e6, 1e3] {
        if rest.iter().filter(|w| **w == scale).count() > 1 {
            return None;
        }
        if let Some(at) = rest.iter().position(|w| *w == scale) {
            total += below_thousand(&rest[..at]) * scale;
            rest = &rest[at + 1..];
        }
    }
    if rest.iter().any(|w| *w >= 1e3) {
        return None;
    }
    if !rest.is_empty() {
        total += below_thousand(rest);
    }
    Some(total.to_string())
}
