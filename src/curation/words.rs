//! Words of texts in English and Chinese, and how often those of a list come in them.

use super::normalise::is_cjk;

/// The words of a text in lower case: runs of letters with apostrophes and single hyphens within. LaTeX commands, digits and Chinese characters are none.
pub fn english_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut command = false;
    for c in text.chars().chain([' ']) {
        let letter = c.is_alphabetic() && !is_cjk(c);
        let within = matches!(c, '\'' | '’') || c == '-' && !word.ends_with('-');
        if letter || within && !word.is_empty() {
            word.extend(if c == '’' { '\''.to_lowercase() } else { c.to_lowercase() });
            continue;
        }
        let whole = word.trim_end_matches(['\'', '-']);
        if !whole.is_empty() && !command {
            words.push(whole.to_string());
        }
        word.clear();
        command = c == '\\';
    }
    words
}

/// How many words a text has: those between spaces, and two for each three Chinese characters, which is about how long Chinese words are.
pub fn count_words(text: &str) -> f64 {
    let chinese = text.chars().filter(|&c| is_cjk(c)).count();
    let spaced = text.split_whitespace().filter(|part| part.chars().any(|c| !is_cjk(c))).count();
    spaced as f64 + chinese as f64 * 2.0 / 3.0
}

/// How often the phrase comes among the words.
pub fn occurrences(words: &[String], phrase: &[String]) -> usize {
    if phrase.is_empty() { 0 } else { words.windows(phrase.len()).filter(|window| *window == phrase).count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        let words = english_words("So, also \\therefore let’s double-check: it's x2 -- 因此 Therefore-");
        assert_eq!(words, ["so", "also", "let's", "double-check", "it's", "x", "therefore"]);
        assert_eq!(english_words("so--therefore--- a well-known-- x"), ["so", "therefore", "a", "well-known", "x"]);
        assert_eq!(occurrences(&words, &english_words("so")), 1);
        assert_eq!(occurrences(&words, &english_words("let's double-check")), 1);
        assert_eq!(occurrences(&words, &[]), 0);
    }

    #[test]
    fn chinese_counts_by_characters() {
        assert_eq!(count_words("因此我们得到"), 4.0);
        assert_eq!(count_words("two words 因此所以 x"), 3.0 + 8.0 / 3.0);
        assert_eq!(count_words(" \n"), 0.0);
    }
}
