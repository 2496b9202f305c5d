//! Model folders: what is written reads back, and nothing hostile gets through.

use limo_engine::error::{Error, Kind, write_error};
use limo_engine::io::{
    Companions, DEFAULT_SHARD_BYTES, Export, NewFolder, TensorFiles, TensorSpec, export, verify_files, write_atomic,
};
use limo_engine::tensor::DType;
use proptest::prelude::*;
use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Three tensors of odd sizes, one of them a vector.
fn specs(dtype: DType) -> Vec<TensorSpec> {
    [("embed", vec![7, 5]), ("norm", vec![5]), ("proj", vec![3, 11])]
        .map(|(name, shape)| TensorSpec { name: name.into(), dtype, shape })
        .into()
}

/// Distinct values that bf16 holds exactly: the tensor by its sign and scale, the element by its index.
fn value(name: &str, element: usize) -> f32 {
    let scale = match name {
        "embed" => 0.5,
        "norm" => -1.0,
        _ => 8.0,
    };
    scale * (1.0 + element as f32)
}

fn read(name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
    let first = rows.start * (out.len() / rows.len());
    out.iter_mut().enumerate().for_each(|(i, v)| *v = value(name, first + i));
    Ok(())
}

/// A folder to export from.
fn source() -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in [
        ("config.json", r#"{"model_type": "qwen2", "rms_norm_eps": 1e-06, "torch_dtype": "float16", "rope_theta": 1000000.0}"#),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", r#"{"chat_template": "x"}"#),
        ("generation_config.json", r#"{"eos_token_id": [2, 0]}"#),
        ("README.md", "not part of a model"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn export_to(dir: &Path, source: &Path, dtype: DType, shard_bytes: usize) -> Result<(), Error> {
    export_with(dir, source, dtype, shard_bytes, read)
}

fn export_with(
    dir: &Path,
    source: &Path,
    dtype: DType,
    shard_bytes: usize,
    read: impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let config = source.join("config.json");
    let companions = Companions::read(&config, source, None, Some("Think."))?;
    let spec = Export { companions: &companions, tensors: &specs(dtype), shard_bytes };
    export(dir, &spec, read, &|_| {})
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect();
    files.sort();
    files
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_values(dir: &Path) {
    let checkpoint = TensorFiles::open(dir).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["embed", "norm", "proj"]);
    for spec in specs(DType::F32) {
        assert_eq!(checkpoint.info(&spec.name).unwrap().1, spec.shape);
        let mut values = vec![f32::NAN; spec.shape.iter().product()];
        checkpoint.read_f32(&spec.name, 0..spec.shape[0], &mut values).unwrap();
        for (i, v) in values.iter().enumerate() {
            assert_eq!(*v, value(&spec.name, i), "{} [{i}]", spec.name);
        }
        checkpoint.check_finite(&spec.name).unwrap();
    }
}

#[test]
fn an_export_reads_back_whole_and_in_shards() {
    let (source, out) = (source(), TempDir::new().unwrap());
    for (dtype, size) in [(DType::F32, 4), (DType::Bf16, 2)] {
        // 35, 5 and 33 elements: all in one file, 2 + 1, or each alone even where it exceeds the limit.
        for (limit, shards) in [(DEFAULT_SHARD_BYTES, 1), (40 * size, 2), (1, 3)] {
            let dir = out.path().join(format!("{dtype}-{shards}"));
            export_to(&dir, source.path(), dtype, limit).unwrap();
            assert_values(&dir);
            let weights = names(&dir).iter().filter(|name| name.ends_with(".safetensors")).count();
            assert_eq!((weights, dir.join("model.safetensors.index.json").exists()), (shards, shards > 1));
        }
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("f32-2/model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * (35 + 5 + 33));
    assert_eq!(index["weight_map"]["norm"], "model-00001-of-00002.safetensors");
    assert_eq!(index["weight_map"]["proj"], "model-00002-of-00002.safetensors");
}

#[test]
fn an_export_is_a_whole_model_folder_and_always_the_same_bytes() {
    let (source, out) = (source(), TempDir::new().unwrap());
    let (a, b) = (out.path().join("a"), out.path().join("b"));
    export_to(&a, source.path(), DType::Bf16, 1).unwrap();
    export_to(&b, source.path(), DType::Bf16, 1).unwrap();
    export_to(&b, source.path(), DType::Bf16, 1).unwrap();
    assert_eq!(files(&a), files(&b));
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2, "a temporary folder was left");

    let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&fs::read(a.join(name)).unwrap()).unwrap();
    assert_eq!(json("config.json")["torch_dtype"], "bfloat16");
    assert_eq!(json("config.json")["rms_norm_eps"], 1e-6);
    assert_eq!(json("limo.json")["system"], "Think.");
    for copied in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(fs::read(a.join(copied)).unwrap(), fs::read(source.path().join(copied)).unwrap());
    }
    assert!(!a.join("README.md").exists());
    let mode = fs::metadata(a.join("config.json")).unwrap().permissions().mode();
    fs::write(out.path().join("plain"), "").unwrap();
    assert_eq!(mode, fs::metadata(out.path().join("plain")).unwrap().permissions().mode() & !0o022);
}

#[test]
fn stop_tokens_are_exported_from_where_training_took_them() {
    let (source, tokenizer, out) = (source(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (config, dir, tensors) = (source.path().join("config.json"), out.path().join("m"), specs(DType::F32));
    let exported = || {
        let companions = Companions::read(&config, tokenizer.path(), None, None).unwrap();
        let spec = Export { companions: &companions, tensors: &tensors, shard_bytes: DEFAULT_SHARD_BYTES };
        export(&dir, &spec, read, &|_| {}).unwrap();
        fs::read_to_string(dir.join("generation_config.json")).unwrap()
    };
    assert_eq!(exported(), r#"{"eos_token_id": [2, 0]}"#);
    fs::write(tokenizer.path().join("generation_config.json"), r#"{"eos_token_id": 7}"#).unwrap();
    assert_eq!(exported(), r#"{"eos_token_id": 7}"#);
}

#[test]
fn bf16_is_rounded_to_nearest_even() {
    let (source, out) = (source(), TempDir::new().unwrap());
    let ulp = 2f32.powi(-7);
    // A tie goes to the even neighbour, up or down; anything past it to the nearer one.
    let cases = [
        (1.0 + ulp / 2.0, 1.0),
        (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
        (1.0 + 0.51 * ulp, 1.0 + ulp),
        (-1.0 - ulp / 2.0, -1.0),
        (3.3e38, 3.3e38),
    ];
    let dir = out.path().join("m");
    let fill = |name: &str, rows: Range<usize>, out: &mut [f32]| {
        read(name, rows, out)?;
        if name == "norm" {
            out.copy_from_slice(&cases.map(|(v, _)| v));
        }
        Ok(())
    };
    export_with(&dir, source.path(), DType::Bf16, DEFAULT_SHARD_BYTES, fill).unwrap();
    let mut values = [f32::NAN; 5];
    TensorFiles::open(&dir).unwrap().read_f32("norm", 0..5, &mut values).unwrap();
    for ((_, expected), got) in cases.iter().zip(values) {
        assert!((got - expected).abs() <= expected.abs() * 2f32.powi(-9), "{got} instead of {expected}");
    }
}

#[test]
fn a_failed_export_leaves_the_old_folder_and_no_debris() {
    let (source, out) = (source(), TempDir::new().unwrap());
    let dir = out.path().join("m");
    export_to(&dir, source.path(), DType::F32, 1).unwrap();
    let before = files(&dir);
    let poisoned = |name: &str, rows: Range<usize>, out: &mut [f32]| {
        read(name, rows, out)?;
        if name == "proj" {
            out[2] = f32::NAN;
        }
        Ok(())
    };
    let error = export_with(&dir, source.path(), DType::Bf16, 1, poisoned).unwrap_err();
    assert_eq!(error.kind, Kind::NonFinite);
    assert!(error.message.contains("proj"), "{error}");
    assert_eq!(files(&dir), before);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "a temporary folder was left");
}

/// A disk that loses a bit, a file or a byte is noticed before the old folder is replaced, and later.
#[test]
fn a_new_folder_is_verified_before_it_takes_its_place() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("parent/folder");
    let written = |content: &[u8]| {
        let mut folder = NewFolder::create(&target).unwrap();
        folder.write_bytes("a", content).unwrap();
        folder.write_bytes("b", b"").unwrap();
        folder
    };
    written(b"first").finish(&|_| {}).unwrap();
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 4] = [
        (|folder| fs::write(folder.join("a"), b"secomd").unwrap(), "a is damaged"),
        (|folder| fs::write(folder.join("a"), b"secon").unwrap(), "a has 5 bytes, 6 were written"),
        (|folder| fs::write(folder.join("b"), b"x").unwrap(), "b has 1 bytes, 0 were written"),
        (|folder| fs::remove_file(folder.join("b")).unwrap(), "No such file"),
    ];
    for (damage, message) in damages {
        let folder = written(b"second");
        damage(folder.path());
        let error = folder.finish(&|_| {}).unwrap_err();
        assert!(error.message.contains(message) && error.message.contains("parent/.folder.tmp"), "{error}");
        assert_eq!(names(target.parent().unwrap()), ["folder"], "no debris");
        assert_eq!(fs::read(target.join("a")).unwrap(), b"first");
    }
    let folder = written(b"second");
    let files = folder.files().to_vec();
    folder.finish(&|_| {}).unwrap();
    verify_files(&target, &files, &|_| {}).unwrap();
    for name in ["../folder/a", "/etc/hosts", "", "."] {
        let mut files = files.clone();
        files[0].name = name.into();
        assert!(verify_files(&target, &files, &|_| {}).unwrap_err().message.contains("is not the name of a file"), "{name}");
    }
}

#[test]
fn an_atomic_write_is_all_or_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.json");
    let save = |content: &[u8]| write_atomic(&path, |out| out.write_all(content).map_err(|e| write_error(&path, e))).unwrap();
    save(b"old");
    let error = write_atomic(&path, |out| {
        out.write_all(b"half").unwrap();
        Err(Error::data("no more"))
    });
    assert!(error.is_err());
    assert_eq!(files(dir.path()), [("state.json".to_string(), b"old".to_vec())]);
    save(b"new");
    assert_eq!(files(dir.path()), [("state.json".to_string(), b"new".to_vec())]);
}

#[test]
fn a_link_stays_a_link_and_a_device_a_device() {
    let dir = TempDir::new().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    let save = |path: &Path| write_atomic(path, |out| out.write_all(b"new").map_err(|e| write_error(path, e)));
    fs::write(&file, "old").unwrap();
    symlink(&file, &link).unwrap();
    save(&link).unwrap();
    assert!(link.is_symlink() && !file.is_symlink());
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a temporary file was left");

    // A pipe stands for any device.
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open both ways, so that neither end waits for the other.
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    save(&pipe).unwrap();
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let mut content = [0; 3];
    reader.read_exact(&mut content).unwrap();
    assert_eq!(&content, b"new");
}

#[test]
fn an_output_that_cannot_be_written_is_a_usage_error_that_names_it() {
    let (source, dir) = (source(), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [dir.path().join("none/scores"), file.join("scores"), dir.path().to_path_buf()] {
        let error = write_atomic(&path, |out| out.write_all(b"x").map_err(|e| write_error(&path, e))).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains("cannot be written") && error.help.is_some(), "{error}");
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
    }
    let error = export_to(&file.join("model"), source.path(), DType::F32, 1).unwrap_err();
    assert!(error.kind == Kind::Usage && error.message.contains("cannot be written"), "{error}");
}

/// A safetensors file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn open(bytes: &[u8]) -> Result<TensorFiles, Error> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    TensorFiles::open(dir.path())
}

fn refused(result: Result<TensorFiles, Error>, expected: &str) {
    let error = result.err().unwrap_or_else(|| panic!("accepted: {expected}"));
    assert_eq!(error.kind, Kind::Data, "{error}");
    assert!(error.message.contains(expected), "{error}\n  does not say: {expected}");
}

#[test]
fn lying_headers_are_refused() {
    let tensor = |name: &str, dtype: &str, shape: &str, low: u64, high: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{low},{high}]}}"#)
    };
    let one = |text: String| format!("{{{text}}}");
    let good = tensor("a", "F32", "[2]", 0, 8);
    assert!(open(&file(&one(good.clone()), 8)).is_ok());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "too short"),
        (vec![1, 2, 3], "too short"),
        (u64::MAX.to_le_bytes().to_vec(), "claims a header of"),
        ([&1000u64.to_le_bytes()[..], b"{}"].concat(), "claims a header of 1000 bytes, but 2 follow"),
        (file("not json", 0), "cannot read the header"),
        (file("[]", 0), "one entry a tensor"),
        (file(&one(good.clone()), 7), "describes 8 bytes of tensors, the file has 7"),
        (file(&one(good.clone()), 9), "describes 8 bytes of tensors, the file has 9"),
        (file(&one(tensor("a", "F32", "[3]", 0, 8)), 8), "inconsistent"),
        (file(&one(tensor("a", "F32", "[2]", 4, 12)), 12), "offset for tensor `a`"),
        (file(&one(tensor("a", "F32", "[2]", 8, 0)), 8), "offset for tensor `a`"),
        (file(&one(tensor("a", "F9", "[2]", 0, 8)), 8), "tensor a"),
        (file(&one(tensor("a", "F32", "[-2]", 0, 8)), 8), "tensor a"),
        (file(&one(tensor("a", "F32", "[4294967296,4294967296,4]", 0, 8)), 8), "overflow"),
        (file(&one(format!("{good},{}", tensor("b", "F32", "[2]", 4, 12))), 12), "offset for tensor `b`"),
        (file(&one(format!("{good},{}", tensor("a", "F32", "[2]", 8, 16))), 16), "tensor a stands there twice"),
    ];
    for (bytes, expected) in cases {
        refused(open(&bytes), expected);
    }
    // Sizes that only add up past 2^64.
    let step = 1u64 << 61;
    let vast: Vec<_> = (0..9)
        .map(|i: u64| tensor(&format!("t{i}"), "U8", &format!("[{step}]"), i.wrapping_mul(step), (i + 1).wrapping_mul(step)))
        .collect();
    refused(open(&file(&one(vast.join(",")), 8)), "header");
}

#[test]
fn hostile_and_broken_indices_are_refused() {
    let (source, out) = (source(), TempDir::new().unwrap());
    let dir = out.path().join("m");
    export_to(&dir, source.path(), DType::F32, 1).unwrap();
    let index = dir.join("model.safetensors.index.json");
    let with_map = |map: &str| {
        fs::write(&index, format!(r#"{{"weight_map": {{{map}}}}}"#)).unwrap();
        TensorFiles::open(&dir)
    };
    let first = "model-00001-of-00003.safetensors";
    fs::copy(dir.join(first), out.path().join("outside.safetensors")).unwrap();
    let absolute = out.path().join("outside.safetensors").display().to_string();
    for outside in ["../outside.safetensors", &absolute, "sub/x.safetensors", "./x.safetensors", "x/", "", ".", ".."] {
        refused(with_map(&format!(r#""embed": "{outside}""#)), "is said to be in");
    }
    refused(with_map(r#""embed": "gone.safetensors""#), "gone.safetensors: No such file");
    refused(with_map(&format!(r#""embed": "{first}", "ghost": "{first}""#)), "tensor ghost is not in");
    refused(with_map(&format!(r#""embed": "{first}", "embed": "{first}""#)), "tensor embed stands there twice");
    fs::copy(dir.join(first), dir.join("copy.safetensors")).unwrap();
    refused(with_map(&format!(r#""embed": "{first}", "norm": "copy.safetensors""#)), "tensor embed is also in");
    fs::write(&index, "{").unwrap();
    refused(TensorFiles::open(&dir), "index.json");
    fs::remove_file(&index).unwrap();
    refused(TensorFiles::open(&dir), "neither model.safetensors nor");
}

#[test]
fn missing_tensors_wrong_types_and_nan_are_named() {
    let header = r#"{"n":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"q":{"dtype":"I8","shape":[4],"data_offsets":[8,12]},
        "half":{"dtype":"F16","shape":[1,2],"data_offsets":[12,16]}}"#;
    let mut bytes = file(header, 0);
    bytes.extend([1.5f32.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat());
    bytes.extend([1, 2, 3, 4]);
    bytes.extend([half::f16::from_f32(-0.375).to_le_bytes(), half::f16::from_f32(65504.0).to_le_bytes()].concat());
    let checkpoint = open(&bytes).unwrap();
    let fails = |result: Result<(), Error>, expected: &str| {
        let error = result.unwrap_err();
        assert!(error.kind == Kind::Data && error.message.contains(expected), "{error}");
    };
    fails(checkpoint.check_finite("n"), "tensor n holds 1 values that are NaN or infinite");
    fails(checkpoint.read_f32("q", 0..4, &mut [0.0; 4]), "tensor q is stored as I8");
    fails(checkpoint.read_f32("gone", 0..1, &mut [0.0]), "tensor gone is missing");
    assert!(checkpoint.read_f32("n", 1..3, &mut [0.0; 2]).is_err());
    assert!(checkpoint.read_f32("n", 0..2, &mut [0.0; 3]).is_err());
    let mut values = [0.0; 2];
    checkpoint.read_f32("half", 0..1, &mut values).unwrap();
    assert_eq!(values, [-0.375, 65504.0]);
}

#[test]
fn rows_of_a_tensor_are_read_alone_and_through_links() {
    let (source, out) = (source(), TempDir::new().unwrap());
    let (blobs, dir) = (out.path().join("blobs"), out.path().join("snapshot"));
    export_to(&blobs, source.path(), DType::F32, 1).unwrap();
    fs::create_dir(&dir).unwrap();
    for name in names(&blobs) {
        symlink(blobs.join(&name), dir.join(&name)).unwrap();
    }
    assert_values(&dir);
    let mut rows = [f32::NAN; 10];
    TensorFiles::open(&dir).unwrap().read_f32("embed", 3..5, &mut rows).unwrap();
    assert_eq!(rows, std::array::from_fn(|i| value("embed", 15 + i)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever happens to a file's bytes, it is refused or it reads: nothing panics.
    #[test]
    fn damaged_files_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), keep in any::<prop::sample::Index>()) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3,2],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#;
        let mut bytes = file(header, 16);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(checkpoint) = open(&bytes) {
            for name in checkpoint.names() {
                let _ = checkpoint.check_finite(name);
            }
        }
        bytes.truncate(keep.index(bytes.len()));
        let _ = open(&bytes);
    }
}
