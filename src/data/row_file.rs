//! The rows of a file, one after another: JSON lines, one JSON list, or parquet. What is read is one row at a time, so memory does not grow with the file; a pipe
//! serves as well as a file.

use crate::error::{Error, Result, io_error};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// A row and the line it starts on; in parquet files its number from 1.
pub type Object = (usize, Map<String, Value>);
/// A line number and what is wrong there.
pub type Fault = (usize, String);

pub(super) const FILES: &str = "rows are JSON lines or one JSON list, uncompressed; docs/config.md has the formats";
/// A longer row is a fault: a file without line ends would else be read whole.
const MOST_BYTES: usize = 16 << 20;

/// See the head of this file.
pub struct RowFile {
    path: PathBuf,
    input: Box<dyn BufRead>,
    format: Format,
    /// The rows of a parquet file, which is read at once.
    columns: std::vec::IntoIter<Object>,
    /// Where the next byte lies: the line from 1, the bytes before it in that line.
    line: usize,
    column: usize,
    /// The text of the last row.
    text: Vec<u8>,
    rows: usize,
}

enum Format {
    Lines,
    /// After its opening bracket or a comma.
    List,
    /// All is read.
    End,
}

/// Where the text of a row begins.
#[derive(Clone, Copy)]
struct Start {
    line: usize,
    column: usize,
}

impl RowFile {
    /// Errors: data, if `path` is no file of rows, or has none.
    pub fn open(path: &Path) -> Result<RowFile> {
        let name = path.display();
        let named = |error| io_error(path, error);
        let kind = std::fs::metadata(path)
            .map_err(|error| named(error).help("data is read from local files, nothing is downloaded"))?
            .file_type();
        if kind.is_dir() {
            return Err(Error::data(format!("{name} is a folder"))
                .help("name its files, as in data.train = [\"DIR/a.jsonl\", \"DIR/b.jsonl\"]"));
        }
        if kind.is_char_device() && path == Path::new("/dev/stdin") {
            return Err(Error::data("standard input is a terminal, or closed").help("pipe rows into it, or name a file"));
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Err(Error::data(format!("{name} is a device")).help(FILES));
        }
        let mut input = BufReader::with_capacity(1 << 16, File::open(path).map_err(named)?);
        let mut head = Vec::new();
        input.by_ref().take(8).read_to_end(&mut head).map_err(named)?;
        refuse_packed(path, &head)?;
        if [b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| head.starts_with(*mark)) {
            return Err(Error::data(format!("{name} is UTF-16")).help("rows are UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW"));
        }
        let parquet = head.starts_with(b"PAR1");
        let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head).to_vec();
        let input = Box::new(Cursor::new(head).chain(input));
        let (path, format) = (path.to_path_buf(), Format::Lines);
        let (columns, text) = (Vec::new().into_iter(), Vec::new());
        let mut file = RowFile { path, input, format, columns, line: 1, column: 0, text, rows: 0 };
        if parquet {
            file.columns = file.parquet()?.into_iter();
            file.format = Format::End;
            return Ok(file);
        }
        match file.skip_blanks()? {
            None => return Err(Error::data(format!("{}: the file is empty", file.path.display())).help(FILES)),
            Some(b'[') => {
                file.advance(b'[');
                file.format = Format::List;
            }
            Some(_) => {}
        }
        Ok(file)
    }

    /// The next row, or what is wrong with it; none after the last one.
    ///
    /// Errors: data, if the file cannot be read any further.
    pub fn next_row(&mut self) -> Result<Option<Result<Object, Fault>>> {
        if let Some(row) = self.columns.next() {
            return Ok(Some(Ok(row)));
        }
        let first = self.rows == 0;
        Ok(self.next_text()?.map(|found| {
            let object = found.and_then(|start| object(&self.text, start));
            match object {
                Err(fault) if first && matches!(self.format, Format::Lines) => Err(one_object(&self.path).unwrap_or(fault)),
                object => object,
            }
        }))
    }

    /// How many rows follow, broken ones included.
    pub fn count(mut self) -> Result<usize> {
        while self.next_text()?.is_some() {}
        Ok(self.columns.len() + self.rows)
    }

    /// Reads the text of the next row into `text`.
    fn next_text(&mut self) -> Result<Option<Result<Start, Fault>>> {
        self.text.clear();
        let next = self.skip_blanks()?;
        let start = Start { line: self.line, column: self.column };
        let text = match (&self.format, next) {
            (Format::Lines, Some(_)) => Some(self.read_line(start)?),
            (Format::List, Some(b']')) => self.end_of_list()?.map(Err),
            (Format::List, Some(_)) => Some(self.read_element(start)?),
            (Format::List, None) => {
                self.format = Format::End;
                Some(Err((start.line, "broken JSON: the list has no end".to_string())))
            }
            _ => None,
        };
        self.rows += usize::from(text.is_some());
        Ok(text)
    }

    fn read_line(&mut self, start: Start) -> Result<Result<Start, Fault>> {
        let most = MOST_BYTES as u64 + 1;
        let named = |error| io_error(&self.path, error);
        self.input.by_ref().take(most).read_until(b'\n', &mut self.text).map_err(named)?;
        let whole = self.text.pop_if(|last| *last == b'\n').is_some() || self.text.len() <= MOST_BYTES;
        if !whole {
            self.input.skip_until(b'\n').map_err(named)?;
        }
        (self.line, self.column) = (self.line + 1, 0);
        Ok(if whole { Ok(start) } else { Err(too_long(start)) })
    }

    /// An element ends before a comma or bracket that is not within it.
    fn read_element(&mut self, start: Start) -> Result<Result<Start, Fault>> {
        let (mut depth, mut quoted, mut escaped, mut long) = (0usize, false, false, false);
        while let Some(byte) = self.peek()? {
            if escaped {
                escaped = false;
            } else if quoted {
                (quoted, escaped) = (byte != b'"', byte == b'\\');
            } else {
                match byte {
                    b'"' => quoted = true,
                    b'[' | b'{' => depth += 1,
                    b',' if depth == 0 => {
                        self.advance(byte);
                        return Ok(if long { Err(too_long(start)) } else { Ok(start) });
                    }
                    // Left for the next call, which sees that the list ends.
                    b']' if depth == 0 => return Ok(if long { Err(too_long(start)) } else { Ok(start) }),
                    b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            match self.text.len() < MOST_BYTES {
                true => self.text.push(byte),
                false => long = true,
            }
            self.advance(byte);
        }
        self.format = Format::End;
        // What is wrong within it says more, where something is.
        let within = object(&self.text, start).err().filter(|_| std::str::from_utf8(&self.text).is_err());
        Ok(Err(within.unwrap_or((start.line, "broken JSON: the list breaks off in this row".to_string()))))
    }

    /// Passes the closing bracket; what is wrong there counts as a row.
    fn end_of_list(&mut self) -> Result<Option<Fault>> {
        self.advance(b']');
        self.format = Format::End;
        let follows = self.skip_blanks()?.is_some();
        Ok(match (self.rows, follows) {
            (0, _) => Some((self.line, "the file has no rows".to_string())),
            (_, true) => Some((self.line, "broken JSON: something follows the end of the list".to_string())),
            (_, false) => None,
        })
    }

    /// The next byte that is not white space; it stays to be read.
    fn skip_blanks(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.advance(byte);
        }
        Ok(None)
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => return Ok(bytes.first().copied()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&self.path, error)),
            }
        }
    }

    /// Passes the byte that was peeked at.
    fn advance(&mut self, byte: u8) {
        self.input.consume(1);
        (self.line, self.column) = if byte == b'\n' { (self.line + 1, 0) } else { (self.line, self.column + 1) };
    }

    #[cfg(feature = "parquet")]
    fn parquet(&self) -> Result<Vec<Object>> {
        super::parquet::objects(&self.path)
            .map_err(|(line, what)| Error::data(format!("{}:{line}: {what}", self.path.display())).help(FILES))
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(&self) -> Result<Vec<Object>> {
        Err(Error::data(format!("{} is a parquet file, which this build does not read", self.path.display()))
            .help("build with `cargo build --release --features parquet`, or convert it to JSON lines"))
    }
}

fn refuse_packed(path: &Path, head: &[u8]) -> Result<()> {
    const PACKERS: [(&[u8], &str); 5] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")];
    match PACKERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, packer)) => Err(Error::data(format!("{} is packed ({packer})", path.display())).help(FILES)),
        None => Ok(()),
    }
}

/// What is wrong with a file that is a single JSON object over several lines.
fn one_object(path: &Path) -> Option<Fault> {
    let small = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= MOST_BYTES as u64);
    let bytes = small.then(|| std::fs::read(path).ok())??;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let object: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    let list = object.iter().find(|(_, value)| value.is_array()).map(|(key, _)| key);
    let rows = list.map_or("a row a line".into(), |key| format!("the list in its field `{key}`, or a row a line"));
    Some((1, format!("the file is one JSON object, not rows: make it {rows}")))
}

fn object(bytes: &[u8], start: Start) -> Result<Object, Fault> {
    let Start { line, column } = start;
    // Columns count from the beginning of the line, where the row may not begin.
    let before = |within: usize| if within == 0 { column } else { 0 };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = &bytes[..error.valid_up_to()];
        let lines = valid.iter().filter(|&&byte| byte == b'\n').count();
        let column =
            before(lines) + valid.len() - valid.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        (line + lines, format!("not UTF-8 at byte {} of the line", column + 1))
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok((line, object)),
        Ok(other) => Err((line, format!("a row must be a JSON object, not {}", kind(&other)))),
        Err(error) => {
            let lines = error.line().saturating_sub(1);
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            Err((line + lines, format!("broken JSON at column {}: {message}", before(lines) + error.column())))
        }
    }
}

fn too_long(start: Start) -> Fault {
    (start.line, format!("the row is longer than {} MiB", MOST_BYTES >> 20))
}

/// What a JSON value is called in messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
