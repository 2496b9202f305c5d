//! Bad data through the command line: exit code 3, the file and line at fault, what to do, and nothing written.

use crate::command::limo_engine;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const GOOD: &str = "{\"question\": \"1 + 1?\", \"solution\": \"2\"}\n";

struct Setup {
    folder: TempDir,
}

impl Setup {
    /// A run on these rows, whose first one is good.
    fn new(rows: impl AsRef<[u8]>) -> Setup {
        let setup = Setup { folder: tempfile::tempdir().unwrap() };
        fs::write(setup.at("rows.jsonl"), [GOOD.as_bytes(), rows.as_ref()].concat()).unwrap();
        setup
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, more: &[&str]) -> (i32, String, String) {
        let config = self.at("run.toml");
        let text = format!(
            "model = {{ config = \"configs/tiny/config.json\", tokenizer = \"configs/tiny\" }}\n\
             data.train = [{:?}]\ntrain.max_steps = 1\noutput.dir = {:?}\n",
            self.at("rows.jsonl"),
            self.at("run")
        );
        fs::write(&config, text).unwrap();
        limo_engine(&[&["train", config.to_str().unwrap(), "--device", "cpu"], more].concat())
    }

    fn refused_with(&self, more: &[&str], expected: &[&str]) {
        let (code, _, error) = self.train(more);
        assert_eq!(code, 3, "{error}");
        for expected in expected {
            assert!(error.contains(expected), "should mention {expected}: {error}");
        }
        assert!(error.starts_with("error: ") && error.contains("\n  help: ") && !error.contains("panicked"), "{error}");
        assert!(!self.at("run").exists(), "nothing was written");
    }

    fn refused(&self, expected: &[&str]) {
        self.refused_with(&[], expected);
    }

    /// With this chat template.
    fn refused_by(&self, template: &str, expected: &[&str]) {
        fs::write(self.at("template.jinja"), template).unwrap();
        let setting = format!("model.chat_template={}", self.at("template.jinja").display());
        self.refused_with(&["-s", &setting], expected);
    }
}

/// A template as the released models have it, but for what it makes of a message.
fn template(content: &str) -> String {
    format!(
        "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ {content} }}}}<|im_end|>\n{{% endfor %}}\
         {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
    )
}

#[test]
fn good_rows_train() {
    let (code, _, error) = Setup::new(GOOD).train(&[]);
    assert_eq!(code, 0, "{error}");
}

#[test]
fn broken_json_on_a_line() {
    Setup::new("{\"question\": \"2 + 2?\", \"solution\": \"4\"\n").refused(&["rows.jsonl:2: broken JSON at column"]);
}

#[test]
fn a_field_of_another_type() {
    Setup::new("{\"question\": [\"2 + 2?\"], \"solution\": \"4\"}\n").refused(&["rows.jsonl:2: field `question[0]`"]);
}

#[test]
fn a_field_that_is_not_there() {
    Setup::new(GOOD).refused_with(
        &["-s", "data.fields.response=answer_text"],
        &["rows.jsonl:1: field `answer_text` (data.fields.response) is missing"],
    );
}

#[test]
fn an_empty_file() {
    let setup = Setup::new("");
    fs::write(setup.at("rows.jsonl"), "").unwrap();
    setup.refused(&["rows.jsonl: the file is empty"]);
}

#[test]
fn a_row_without_a_response() {
    Setup::new("{\"question\": \"2 + 2?\"}\n").refused(&["rows.jsonl:2: no response"]);
    Setup::new("{\"question\": \"2 + 2?\", \"solution\": \"\"}\n").refused(&["rows.jsonl:2: the response is empty"]);
}

#[test]
fn a_response_that_the_template_drops() {
    Setup::new(GOOD).refused_by(
        &template("m.content if m.role == 'user' or m.content == 'answer' else ''"),
        &["rows.jsonl:1", "alters or drops the assistant's text"],
    );
}

#[test]
fn a_template_that_raises() {
    let raising = template("raise_exception('no such role') if m.content == '2' else m.content");
    Setup::new(GOOD).refused_by(&raising, &["rows.jsonl:1", "template.jinja", "no such role"]);
}

#[test]
fn a_template_that_does_not_parse() {
    Setup::new(GOOD).refused_by("{% for m in messages %}{{ m.content }", &["template.jinja", "line 1"]);
}

#[test]
fn an_endless_template() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    Setup::new(GOOD).refused_by(&(template("m.content") + endless), &["template.jinja", "instructions"]);
    let endless = "{% for i in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}";
    Setup::new(GOOD).refused_by(&(template("m.content") + endless), &["template.jinja"]);
}

#[test]
fn text_that_is_not_utf8() {
    Setup::new(b"{\"question\": \"caf\xe9\", \"solution\": \"4\"}\n").refused(&["rows.jsonl:2: not UTF-8 at byte 18"]);
}

#[test]
fn a_row_longer_than_allowed() {
    let long = format!("{{\"id\": \"long\", \"question\": \"2 + 2?\", \"solution\": \"{}\"}}\n", "4 ".repeat(20_000));
    Setup::new(&long).refused(&["rows.jsonl:2 (id long)", "data.max_tokens", "data.overlong"]);
    Setup::new(&long).refused_with(&["-s", "data.max_tokens=100000"], &["data.max_tokens", "train.micro_tokens", "long"]);
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    let mut line = b"{\"question\": \"2 + 2?\", \"solution\": \"".to_vec();
    line.resize(100 << 20, b'[');
    Setup::new(&line).refused(&["rows.jsonl:2: the row is longer than 16 MiB"]);
}

#[test]
fn what_is_no_file_of_rows() {
    let setup = Setup::new("");
    for (path, expected) in [("configs", "is a folder"), ("/dev/zero", "is a device"), ("nowhere.jsonl", "No such file")] {
        let setting = format!("data.train=[{path:?}]");
        setup.refused_with(&["-s", &setting], &[path, expected]);
    }
}
