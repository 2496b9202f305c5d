//! Rules about the source itself: who may import whom, how long a file may be, what must not be in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules that each module may name. `error` is everybody's.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "bench", "comm", "config", "curation", "data", "device", "grading", "io", "model", "ops", "report", "sample",
            "tensor", "testing", "train", "zero",
        ],
    ),
    ("train", &["zero", "model", "data", "io", "comm", "config", "ops", "tensor", "device"]),
    ("zero", &["comm", "config", "io", "ops", "tensor", "model"]),
    ("comm", &["device", "tensor"]),
    ("sample", &["model", "data", "io", "ops", "tensor", "config"]),
    ("sample::blocks", &[]),
    ("sample::scheduler", &[]),
    ("sample::sequence", &[]),
    ("model", &["ops", "tensor", "config", "io"]),
    ("eval", &["sample", "grading", "data", "report"]),
    ("curation", &["data", "grading"]),
    ("bench", &["ops", "device", "model", "testing", "tensor"]),
    ("testing", &["ops", "tensor", "device"]),
    ("ops::cuda", &["device", "tensor", "ops"]),
    ("ops::cpu", &["tensor", "ops"]),
    ("ops", &["tensor"]),
    ("io", &["tensor"]),
    ("data", &["config"]),
    ("device", &["tensor"]),
    ("grading", &[]),
    ("report", &[]),
    ("tensor", &[]),
    ("config", &[]),
    ("error", &[]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(under: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(under)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The most specific module of the table that a file of src/ belongs to.
fn module_of(path: &Path) -> Option<&'static str> {
    let relative = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let name = relative.to_string_lossy().replace('/', "::");
    let belongs = |module: &str| name == module || name.starts_with(&format!("{module}::"));
    MAY_IMPORT.iter().map(|(module, _)| *module).filter(|m| belongs(m)).max_by_key(|m| m.len())
}

/// The modules that a source text names after `crate::`, braces of one `use` included.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
    let mut names = BTreeSet::new();
    for (at, found) in code.match_indices("crate::").chain(code.match_indices("limo_engine::")) {
        let rest = &code[at + found.len()..];
        let word = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        names.insert(word(&std::mem::take(&mut item)));
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
            names.insert(word(&item));
        } else {
            names.insert(word(rest));
        }
    }
    names.remove("error");
    names.remove("");
    names
}

#[test]
fn modules_import_only_what_the_design_allows() {
    let mut wrong = BTreeMap::new();
    for path in files("src", &["rs"]) {
        if path.ends_with("src/lib.rs") {
            continue;
        }
        let module = module_of(&path).unwrap_or_else(|| panic!("{} belongs to no module of the table", path.display()));
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module).unwrap().1;
        let top = module.split("::").next().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("super::super"), "{}: name modules from `crate`, so that this test sees them", path.display());
        let foreign: Vec<_> =
            imports(&text).into_iter().filter(|name| name != top && !allowed.contains(&name.as_str())).collect();
        if !foreign.is_empty() {
            wrong.insert(path, foreign);
        }
    }
    assert!(wrong.is_empty(), "imports outside the design's rules: {wrong:#?}");
}

#[test]
fn the_import_scanner_sees_every_form() {
    let text = "use crate::ops::{self, x};\nuse crate::{data::order, tensor};\nlet y = crate::model::Qwen2; // crate::zero\nuse crate::error::Result;";
    let expected = ["data", "model", "ops", "tensor"].map(str::to_string);
    assert_eq!(imports(text), BTreeSet::from(expected));
}

#[test]
fn files_stay_readable() {
    const HARD: usize = 800;
    let mut sources = Vec::new();
    for folder in ["src", "kernels", "tests", "tools", "examples", "benches"] {
        sources.extend(files(folder, &["rs", "cu", "cuh", "h", "c", "cpp", "py", "sh", "s", "S"]));
    }
    assert!(sources.len() > 50, "the scan found only {} files", sources.len());
    let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<_> = sources.iter().map(|p| (p, lines(p))).filter(|(_, n)| *n > HARD).collect();
    assert!(long.is_empty(), "files of more than {HARD} lines: {long:?}");
}

#[test]
fn every_file_of_tests_is_compiled() {
    let declared = std::fs::read_to_string(root().join("tests/it/main.rs")).unwrap();
    for path in files("tests/it", &["rs"]) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "main" || declared.lines().any(|line| line == format!("mod {name};")),
            "tests/it/main.rs does not declare {name}"
        );
    }
}
