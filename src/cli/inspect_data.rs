//! `limo-engine inspect data`: what training would see of its data, before any of it is trained on.

use super::say;
use super::terminal::visible;
use crate::config::{Config, ModelConfig};
use crate::data::{self, Chat, Dataset, Example};
use crate::error::{Error, Result};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Show a run's data: counts, lengths, rejected rows, and rows with the trained part marked
///
/// Trained tokens are green and the others dim; away from a terminal, trained text stands in ⟦ ⟧.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    /// The configuration (docs/config.md has every key)
    config: PathBuf,
    /// Override a key, as in data.overlong=drop; values are TOML, else text
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How many rows to show
    #[arg(long, value_name = "N", default_value_t = 2)]
    rows: usize,
    /// Show the row with this id
    #[arg(long, conflicts_with = "rows")]
    id: Option<String>,
    /// Show rows as tables of tokens
    #[arg(long)]
    tokens: bool,
}

/// Prints the report. Errors: those of the configuration (exit 2) and of the data (exit 3), and an id that no row has (exit 2).
pub fn run(args: DataArgs) -> Result<()> {
    let marks = if std::io::stdout().is_terminal() { Marks::COLOURED } else { Marks::PLAIN };
    say!("{}", report(&args, &marks)?.trim_end())
}

fn report(args: &DataArgs, marks: &Marks) -> Result<String> {
    let config = Config::load(&args.config, &args.set)?;
    let model = ModelConfig::from_file(&config.model.config_file()?)?;
    let chat = Chat::load(&config.model.tokenizer_folder()?, config.model.chat_template.as_deref(), model.vocab_size)?;
    let mut report = String::new();
    let mut found = false;
    for (name, files) in [("train", &config.data.train), ("eval", &config.data.eval)] {
        if files.is_empty() {
            continue;
        }
        let dataset = data::load(files, &config.data, &chat)?;
        report.push_str(&summary(name, &dataset));
        if name == "train" {
            report.push_str(&steps(&config, &dataset)?);
        }
        for example in chosen(&dataset, args) {
            found = true;
            report.push_str(&if args.tokens { table(example, &chat) } else { marks.row(example, &chat) });
        }
    }
    match &args.id {
        Some(id) if !found => Err(Error::usage(format!("--id {id}: no row of data.train or data.eval has this id"))),
        _ => Ok(report),
    }
}

/// How an epoch falls into optimizer steps and micro-batches, in the order it will be trained in.
fn steps(config: &Config, dataset: &Dataset) -> Result<String> {
    let n = dataset.examples.len();
    let order = if config.data.shuffle { data::order(config.train.seed, 0, n) } else { (0..n).collect() };
    let mut micro_batches = 0;
    for step in order.chunks(config.train.batch) {
        let rows: Vec<&Example> = step.iter().map(|&row| &dataset.examples[row]).collect();
        micro_batches += data::pack(&rows, config.train.micro_tokens, config.train.packing)?.len();
    }
    let steps = n.div_ceil(config.train.batch);
    Ok(format!("  an epoch: {steps} steps of up to {} rows, {micro_batches} micro-batches\n", config.train.batch))
}

/// The rows to show.
fn chosen<'a>(dataset: &'a Dataset, args: &DataArgs) -> Vec<&'a Example> {
    match &args.id {
        None => dataset.examples.iter().take(args.rows).collect(),
        Some(id) => dataset.examples.iter().filter(|example| example.id == *id).collect(),
    }
}

/// Counts, length quantiles and the rows that were rejected or cut.
fn summary(name: &str, dataset: &Dataset) -> String {
    let supervised = |example: &Example| example.supervised.iter().filter(|&&target| target).count();
    let lengths: Vec<usize> = dataset.examples.iter().map(|example| example.tokens.len()).collect();
    let targets: Vec<usize> = dataset.examples.iter().map(supervised).collect();
    let (used, rejected) = (dataset.examples.len(), dataset.rejected.len());
    let mut text = format!("data.{name}: {} rows = {used} used + {rejected} rejected\n", dataset.rows);
    text.push_str("                    total       min       10%       50%       90%       99%       max\n");
    text.push_str(&quantiles("tokens", lengths));
    text.push_str(&quantiles("supervised", targets));
    for cut in &dataset.truncated {
        text.push_str(&format!("  cut          {} (id {}): {} tokens\n", cut.source, visible(&cut.id), cut.tokens));
    }
    for row in &dataset.rejected {
        text.push_str(&format!("  rejected     {} (id {}): {}\n", row.source, visible(&row.id), row.reason));
    }
    text
}

fn quantiles(name: &str, mut values: Vec<usize>) -> String {
    values.sort_unstable();
    let total: usize = values.iter().sum();
    let columns: String =
        [0.0, 0.1, 0.5, 0.9, 0.99, 1.0].iter().map(|&share| format!("{:>10}", data::quantile(&values, share))).collect();
    format!("  {name:<13}{total:>10}{columns}\n")
}

/// One line a token: index, id, whether it is a target, text.
fn table(example: &Example, chat: &Chat) -> String {
    let mut text = format!("\nrow {}\n", visible(&example.id));
    for (index, (&token, &target)) in example.tokens.iter().zip(&example.supervised).enumerate() {
        let mark = if target { "target" } else { "" };
        text.push_str(&format!("{index:>7} {token:>7} {mark:<7} {:?}\n", chat.decode_raw(&[token])));
    }
    text
}

/// What is put around the supervised part of a row, and around the rest.
struct Marks {
    supervised: (&'static str, &'static str),
    masked: (&'static str, &'static str),
}

impl Marks {
    /// Supervised green, masked dim.
    const COLOURED: Marks = Marks { supervised: ("\x1b[32m", "\x1b[0m"), masked: ("\x1b[2m", "\x1b[0m") };
    const PLAIN: Marks = Marks { supervised: ("⟦", "⟧"), masked: ("", "") };

    fn row(&self, example: &Example, chat: &Chat) -> String {
        let targets = example.supervised.iter().filter(|&&target| target).count();
        let (id, tokens) = (visible(&example.id), example.tokens.len());
        let mut text = format!("\nrow {id}: {tokens} tokens, {targets} supervised\n");
        let mut start = 0;
        for part in example.supervised.chunk_by(|a, b| a == b) {
            let (before, after) = if part[0] { self.supervised } else { self.masked };
            let decoded = chat.decode_raw(&example.tokens[start..start + part.len()]);
            text.push_str(&format!("{before}{}{after}", visible(&decoded)));
            start += part.len();
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    /// The report on two rows, with the fixture's model.
    fn report_of(flags: &[&str], marks: &Marks) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let (rows, config) = (folder.path().join("rows.jsonl"), folder.path().join("run.toml"));
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/chat");
        std::fs::write(&rows, "{\"question\": \"Q\", \"solution\": \"A\"}\n{\"id\": \"b\", \"question\": \"Hi\\u001b[2J\", \"solution\": \"Wait.\"}\n").unwrap();
        std::fs::write(&config, format!("model.path = {model:?}\ndata.train = {rows:?}\noutput.dir = \"o\"\n")).unwrap();
        let arguments = ["inspect", config.to_str().unwrap()].into_iter().chain(flags.iter().copied());
        let matches = DataArgs::augment_args(Command::new("inspect")).get_matches_from(arguments);
        let text = report(&DataArgs::from_arg_matches(&matches).unwrap(), marks)?;
        Ok(text.replace(folder.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn a_report_counts_rows_and_marks_what_is_trained_on() {
        insta::assert_snapshot!(report_of(&["--rows", "1"], &Marks::PLAIN).unwrap(), @r"
        data.train: 2 rows = 2 used + 0 rejected
                            total       min       10%       50%       90%       99%       max
          tokens               61        27        27        27        34        34        34
          supervised            8         3         3         3         5         5         5
          an epoch: 1 steps of up to 16 rows, 1 micro-batches

        row 0: 27 tokens, 3 supervised
        <|im_start|>system
        Answer with care.<|im_end|>
        <|im_start|>user
        Q<|im_end|>
        <|im_start|>assistant
        ⟦A<|im_end|>
        ⟧
        ");
        let coloured = report_of(&["--id", "b"], &Marks::COLOURED).unwrap();
        assert!(
            coloured.ends_with("Hi\u{fffd}[2J<|im_end|>\n<|im_start|>assistant\n\x1b[0m\x1b[32mWait.<|im_end|>\n\x1b[0m\n"),
            "{coloured:?}"
        );
    }

    #[test]
    fn rejected_rows_and_single_tokens_are_shown() {
        let text = report_of(&["-s", "data.overlong=drop", "-s", "data.max_tokens=27", "--tokens"], &Marks::PLAIN).unwrap();
        let (counts, tokens) = text.split_once("\nrow 0\n").unwrap();
        assert!(
            counts.contains("  rejected     DIR/rows.jsonl:2 (id b): 34 tokens, more than data.max_tokens = 27\n"),
            "{counts}"
        );
        assert_eq!(tokens.lines().count(), 27);
        assert!(tokens.ends_with("     25     402 target  \"<|im_end|>\"\n     26     198 target  \"\\n\"\n"), "{tokens}");
        let unknown = report_of(&["--id", "c"], &Marks::PLAIN).unwrap_err();
        assert!(unknown.message.contains("--id c: no row"), "{unknown}");
    }

    #[test]
    fn a_row_of_data_eval_is_shown_by_its_id() {
        let eval = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
        let row = "{\"id\": \"e\", \"question\": \"Far?\", \"solution\": \"Near.\"}\n";
        std::fs::write(eval.path(), row).unwrap();
        let evaluated = format!("data.eval={}", eval.path().display());
        let text = report_of(&["-s", &evaluated, "--id", "e"], &Marks::PLAIN).unwrap();
        assert!(text.contains("row e: ") && text.contains("Far?") && !text.contains("row 0"), "{text}");
        let unknown = report_of(&["-s", &evaluated, "--id", "c"], &Marks::PLAIN).unwrap_err();
        assert!(unknown.message.contains("--id c: no row"), "{unknown}");
    }

    #[test]
    fn an_id_cannot_steer_the_terminal() {
        let eval = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
        let rows = "{\"question\": \"Q\", \"solution\": \"A\"}\n{\"id\": \"\\u001b[2Jid\", \"question\": \"Q\", \"solution\": \"A longer answer\"}\n";
        std::fs::write(eval.path(), rows).unwrap();
        let evaluated = format!("data.eval={}", eval.path().display());
        let short = ["-s", "data.max_tokens=27", "-s"];
        let (dropped, cut) =
            ([&short[..], &["data.overlong=drop"]].concat(), [&short[..], &["data.overlong=truncate"]].concat());
        for flags in [&[][..], &["--tokens"], &dropped, &cut] {
            let text = report_of(&[&["-s", &evaluated], flags].concat(), &Marks::PLAIN).unwrap();
            assert!(text.contains("\u{fffd}[2Jid") && !text.contains('\x1b'), "{text:?}");
        }
    }
}
