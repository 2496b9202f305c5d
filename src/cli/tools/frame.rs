//! What the tools share: rows of files or of standard input, rows to standard output, dropped rows with their reasons, broken rows told and counted.

use crate::cli::replaced::refuse_to_replace_inputs;
use crate::cli::terminal::visible;
use crate::curation::fields::{Row, shortened};
use crate::data::RowFile;
use crate::error::{Error, Result, io_error, write_error};
use crate::io::write_atomic;
use crate::report::{Bar, Report};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Flags that every tool has.
#[derive(clap::Args)]
pub struct FrameArgs {
    /// Rows: JSON lines or a JSON list; none or `-`: standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Also write the rows that are dropped or broken, each with the reason as `dropped`
    #[arg(long, value_name = "FILE")]
    pub dropped: Option<PathBuf>,
    /// Also write an HTML page with statistics and plots
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Exit with 0 though rows were broken; they are told and left out either way
    #[arg(long)]
    pub allow_errors: bool,
}

/// Where a row came from, for people.
#[derive(Debug, Clone)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
}

/// The rows of some files, one after another.
pub struct Source {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, RowFile)>,
}

impl Source {
    /// No file: standard input.
    pub fn new(files: &[PathBuf]) -> Source {
        let stdin = |path: &PathBuf| if path == Path::new("-") { "/dev/stdin".into() } else { path.clone() };
        let files: Vec<PathBuf> = if files.is_empty() { vec!["/dev/stdin".into()] } else { files.iter().map(stdin).collect() };
        Source { files: files.into_iter(), open: None }
    }

    /// The next row, or what is wrong with it. Errors: data, if a file cannot be read.
    pub fn next_row(&mut self) -> Result<Option<(Place, Result<Row, String>)>> {
        loop {
            let Some((path, file)) = &mut self.open else {
                let Some(path) = self.files.next() else { return Ok(None) };
                self.open = Some((path.clone(), RowFile::open(&path)?));
                continue;
            };
            let place = |line| Place { file: path.clone(), line };
            match file.next_row()? {
                Some(Ok((line, row))) => return Ok(Some((place(line), Ok(row)))),
                Some(Err((line, what))) => return Ok(Some((place(line), Err(what)))),
                None => self.open = None,
            }
        }
    }
}

/// Broken rows that are told one by one.
const MOST_TOLD: usize = 100;
/// What is told of each.
const MOST_CHARACTERS: usize = 300;

/// A tool at work.
pub struct Frame {
    source: Source,
    out: BufWriter<std::io::Stdout>,
    /// The reader of standard output went away: nothing more is written.
    pub closed: bool,
    dropped: Option<(PathBuf, BufWriter<File>)>,
    report: Option<PathBuf>,
    allow_errors: bool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    read: usize,
    written: usize,
    /// Rows that could not be used.
    broken: usize,
    /// Rows that could not be used, of files beside.
    broken_beside: usize,
    /// Dropped rows by reason.
    dropped: BTreeMap<String, usize>,
}

impl Frame {
    /// `inputs` and `outputs` are the tool's own files with their flags.
    ///
    /// Errors: usage, if a file that is to be written is one that is read, or cannot be written, or if standard input is to be read twice.
    pub fn open<'a>(args: &'a FrameArgs, inputs: &[(&str, &'a Path)], outputs: &[(&str, Option<&PathBuf>)]) -> Result<Frame> {
        let (stdin, standard) = (Path::new("-"), [Path::new("-"), Path::new("/dev/stdin")]);
        let rows: Vec<&Path> =
            if args.files.is_empty() { vec![stdin] } else { args.files.iter().map(PathBuf::as_path).collect() };
        let inputs: Vec<(&str, &Path)> = rows.into_iter().map(|file| ("FILE", file)).chain(inputs.iter().copied()).collect();
        let from_stdin: Vec<&str> = inputs.iter().filter(|(_, file)| standard.contains(file)).map(|(flag, _)| *flag).collect();
        if let [first, second, ..] = from_stdin[..] {
            return Err(Error::usage(format!("both {first} and {second} are standard input")).help("give one of them a file"));
        }
        let common = [("--dropped", args.dropped.as_ref()), ("--report", args.report.as_ref())];
        let outputs: Vec<(&str, &Path)> =
            common.iter().chain(outputs).filter_map(|(flag, path)| Some((*flag, path.as_ref()?.as_path()))).collect();
        refuse_to_replace_inputs(&inputs, &outputs)?;
        // What cannot be read is told before anything is written.
        for (_, file) in inputs.iter().filter(|(_, file)| !standard.contains(file)) {
            let found =
                std::fs::metadata(file).map_err(|e| io_error(file, e).help("the path is relative to the folder you are in"))?;
            if found.is_dir() {
                return Err(Error::data(format!("{} is a folder", file.display())).help("name its files"));
            }
        }
        let create = |path: &PathBuf| match File::create(path) {
            Ok(file) => Ok((path.clone(), BufWriter::new(file))),
            Err(error) => Err(write_error(path, error)),
        };
        Ok(Frame {
            source: Source::new(&args.files),
            out: BufWriter::with_capacity(1 << 16, std::io::stdout()),
            closed: false,
            dropped: args.dropped.as_ref().map(create).transpose()?,
            report: args.report.clone(),
            allow_errors: args.allow_errors,
            counts: Counts::default(),
        })
    }

    /// The next row that is JSON; broken ones are told. None after the last one, and once nobody reads what is written.
    pub fn next_row(&mut self) -> Result<Option<(Place, Row)>> {
        while !self.closed {
            let Some((place, row)) = self.source.next_row()? else { return Ok(None) };
            self.counts.read += 1;
            match row {
                Ok(row) => return Ok(Some((place, row))),
                Err(what) => self.broken_row(Row::new(), &place, &what)?,
            }
        }
        Ok(None)
    }

    /// Tells that a row cannot be used, counts it, and keeps it with the dropped ones; of one that could not even be read its place is kept.
    pub fn broken_row(&mut self, row: Row, place: &Place, what: &str) -> Result<()> {
        self.counts.broken += 1;
        self.tell_broken(row, place, what)
    }

    /// The rows of a file beside the tool's own rows, by their keys; those that cannot be read, or have a key that was there before, are told.
    ///
    /// Errors: data, if no row can be used.
    pub fn read_keyed<T>(
        &mut self,
        path: &Path,
        read: impl Fn(Row) -> Result<(String, T), String>,
    ) -> Result<HashMap<String, T>> {
        let mut source = Source::new(&[path.to_path_buf()]);
        let mut all = HashMap::new();
        while let Some((place, row)) = source.next_row()? {
            match row.and_then(&read) {
                Ok((key, _)) if all.contains_key(&key) => {
                    self.broken_beside(&place, &format!("there is a row for {key} already"))?;
                }
                Ok((key, value)) => drop(all.insert(key, value)),
                Err(what) => self.broken_beside(&place, &what)?,
            }
        }
        if all.is_empty() {
            return Err(
                Error::data(format!("{}: no row can be used", path.display())).help("docs/data.md has the fields of each file")
            );
        }
        Ok(all)
    }

    /// Tells that a row of a file beside the tool's own rows cannot be used, and counts it.
    pub fn broken_beside(&mut self, place: &Place, what: &str) -> Result<()> {
        self.counts.broken_beside += 1;
        self.tell_broken(Row::new(), place, what)
    }

    fn tell_broken(&mut self, row: Row, place: &Place, what: &str) -> Result<()> {
        let told = self.counts.broken + self.counts.broken_beside;
        if told <= MOST_TOLD {
            let (start, end) = (format!("{}:{}: ", place.file.display(), place.line), "; the row is left out");
            self.tell(&format!("{start}{}{end}", shortened(&what.replace(['\n', '\r'], " "), MOST_CHARACTERS)));
        } else if told == MOST_TOLD + 1 {
            self.tell("more rows are left out; --dropped FILE keeps all of them with the reason");
        }
        self.keep(row, json!({"reason": "broken", "file": place.file.display().to_string(), "line": place.line, "why": what}))
    }

    /// A line to standard error. That it is closed stops nothing.
    pub fn tell(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{}", visible(line));
    }

    /// A row of the result.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        self.counts.written += 1;
        let written =
            serde_json::to_writer(&mut self.out, row).map_err(std::io::Error::from).and_then(|()| self.out.write_all(b"\n"));
        self.check(written)
    }

    fn check(&mut self, written: std::io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            written => written.map_err(|error| Error::usage(format!("standard output: {error}")))?,
        }
        Ok(())
    }

    /// A row that does not become part of the result: `reason`, and what else is to be known, are kept with it.
    pub fn drop(&mut self, row: Row, reason: &str, more: Row) -> Result<()> {
        *self.counts.dropped.entry(reason.to_string()).or_default() += 1;
        let mut why = Row::from_iter([("reason".to_string(), Value::from(reason))]);
        why.extend(more);
        self.keep(row, Value::Object(why))
    }

    fn keep(&mut self, mut row: Row, why: Value) -> Result<()> {
        let Some((path, file)) = &mut self.dropped else { return Ok(()) };
        row.insert("dropped".to_string(), why);
        let written =
            serde_json::to_writer(&mut *file, &row).map_err(std::io::Error::from).and_then(|()| file.write_all(b"\n"));
        written.map_err(|e| write_error(path, e))
    }

    /// Writes what is left to write, the report and the statistics.
    ///
    /// Errors: data, if rows were broken and that is not allowed.
    pub fn finish(mut self, title: &str, fill: impl FnOnce(&mut Report)) -> Result<()> {
        let flushed = self.out.flush();
        self.check(flushed)?;
        if let Some((path, mut file)) = self.dropped.take() {
            file.flush().map_err(|e| write_error(&path, e))?;
        }
        let Counts { read, written, broken, broken_beside, dropped } = &self.counts;
        let gone: usize = dropped.values().sum();
        let beside = if *broken_beside > 0 { format!("; {broken_beside} broken in other files") } else { String::new() };
        let summary = format!("{read} rows read, {written} written, {gone} dropped, {broken} broken{beside}");
        if let Some(path) = &self.report {
            let mut report = Report::new(title, &summary);
            if gone > 0 {
                let bars: Vec<Bar> = dropped.iter().map(|(reason, &count)| Bar::new(reason, count as f64)).collect();
                report.heading("Dropped rows").bars("rows by reason", &bars);
            }
            fill(&mut report);
            let html = report.html();
            write_atomic(path, |out| out.write_all(html.as_bytes()).map_err(|e| write_error(path, e)))?;
        }
        if self.closed {
            self.tell("standard output was closed before the end: these are the numbers until then");
        }
        dropped.iter().for_each(|(reason, count)| self.tell(&format!("dropped {count}: {reason}")));
        self.tell(&summary);
        let what = match (broken, broken_beside) {
            (0, 0) => return Ok(()),
            (_, 0) => format!("{broken} of {read} rows could not be used"),
            (0, _) => format!("{broken_beside} rows of other files could not be used"),
            _ => format!("{broken} of {read} rows could not be used, and {broken_beside} of other files"),
        };
        let error = Error::data(what).help("the reasons are above; --allow-errors makes this exit with 0");
        if self.allow_errors { Ok(()) } else { Err(error) }
    }
}

/// What tells the chains of all problems apart, whatever file and order they come in: the problem's id, and 48 bits of a hash of the chain.
pub fn chain_key(id: &str, chain: &str) -> String {
    format!("{id}#{}", &blake3::hash(chain.as_bytes()).to_hex()[..12])
}
